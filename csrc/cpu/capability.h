// Which of the variants of a kernel this machine runs. Kernels that gain from wide vectors are
// compiled once per capability, in a namespace of its name (simd.h).
#pragma once

#include <string>
#include <vector>

namespace blpseg {

enum class Capability { portable, avx2, avx512 };

// The capabilities that this build has and this machine runs, best last.
std::vector<std::string> cpu_capabilities();

// What kernels use: the best, unless the environment variable BLPSEG_CPU_CAPABILITY names another
// when the library is loaded, or set_cpu_capability() does.
Capability cpu_capability();
std::string cpu_capability_name();

// Throws std::invalid_argument for a name that is not among cpu_capabilities().
void set_cpu_capability(const std::string& name);

}  // namespace blpseg
