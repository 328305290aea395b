// LAM's kernels, as compiled for each capability of the CPU that this build knows.
#pragma once

#include "lam_image.h"

namespace blpseg {

#define BLPSEG_DECLARE_LAM(capability)         \
  namespace capability {                       \
  extern const LamKernels<float> kLamFloat;    \
  extern const LamKernels<double> kLamDouble;  \
  }
BLPSEG_DECLARE_LAM(portable)
#ifdef __x86_64__
BLPSEG_DECLARE_LAM(avx2)
BLPSEG_DECLARE_LAM(avx512)
#endif
#undef BLPSEG_DECLARE_LAM

}  // namespace blpseg
