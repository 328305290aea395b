#include "capability.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace blpseg {
namespace {

const char* const kNames[] = {"portable", "avx2", "avx512"};

Capability best() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Capability::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
#endif
  return Capability::portable;
}

Capability named(const std::string& name) {
  const std::vector<std::string> known = cpu_capabilities();
  const auto found = std::find(known.begin(), known.end(), name);
  if (found == known.end()) {
    std::string choices;
    for (const std::string& choice : known) choices += (choices.empty() ? "" : ", ") + choice;
    throw std::invalid_argument("BLPSEG_CPU_CAPABILITY: expected one of " + choices +
                                " (what this machine runs), got '" + name + "'");
  }
  return static_cast<Capability>(found - known.begin());
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> capability = [] {
    const char* asked = std::getenv("BLPSEG_CPU_CAPABILITY");
    return asked && *asked ? named(asked) : best();
  }();
  return capability;
}

}  // namespace

std::vector<std::string> cpu_capabilities() {
  return {kNames, kNames + static_cast<int>(best()) + 1};
}

Capability cpu_capability() { return current(); }

std::string cpu_capability_name() { return kNames[static_cast<int>(cpu_capability())]; }

void set_cpu_capability(const std::string& name) { current() = named(name); }

}  // namespace blpseg
