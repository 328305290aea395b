// LAM's kernels, as compiled for each capability of the CPU that this build knows.
#pragma once

#include "capability.h"
#include "lam_image.h"

namespace blpseg {

#define BLPSEG_DECLARE_LAM(capability) \
  namespace capability {               \
  template <typename A>                \
  const LamKernels<A>& lam_kernels();  \
  }
BLPSEG_DECLARE_LAM(portable)
#ifdef __x86_64__
BLPSEG_DECLARE_LAM(avx2)
BLPSEG_DECLARE_LAM(avx512)
#endif
#undef BLPSEG_DECLARE_LAM

// Instantiated for float and double.
template <typename A>
const LamKernels<A>& lam_kernels(Capability capability) {
#ifdef __x86_64__
  if (capability == Capability::avx512) return avx512::lam_kernels<A>();
  if (capability == Capability::avx2) return avx2::lam_kernels<A>();
#endif
  static_cast<void>(capability);  // elsewhere there is but one
  return portable::lam_kernels<A>();
}

}  // namespace blpseg
