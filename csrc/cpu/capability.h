// Which of the variants of a kernel this machine runs. Kernels that gain from wide vectors are
// compiled once per capability, in a namespace of its name (kernels/simd.h).
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

// Declares a table of kernels, get<A>() in the namespace of each capability that this build knows
// (A is float or double), and defines get<A>(capability), which chooses among them.
#ifdef __x86_64__
#define BLPSEG_VARIANTS(Table, get)                                \
  namespace portable {                                             \
  template <typename A>                                            \
  const Table<A>& get();                                           \
  }                                                                \
  namespace avx2 {                                                 \
  template <typename A>                                            \
  const Table<A>& get();                                           \
  }                                                                \
  namespace avx512 {                                               \
  template <typename A>                                            \
  const Table<A>& get();                                           \
  }                                                                \
  template <typename A>                                            \
  const Table<A>& get(Capability capability) {                     \
    if (capability == Capability::avx512) return avx512::get<A>(); \
    if (capability == Capability::avx2) return avx2::get<A>();     \
    return portable::get<A>();                                     \
  }
#else
#define BLPSEG_VARIANTS(Table, get) \
  namespace portable {              \
  template <typename A>             \
  const Table<A>& get();            \
  }                                 \
  template <typename A>             \
  const Table<A>& get(Capability) { \
    return portable::get<A>();      \
  }
#endif

}  // namespace blpseg
