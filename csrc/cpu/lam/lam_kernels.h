// LAM's kernels: declares <capability>::lam_kernels<A>(), the table LamKernels<A> per CPU
// capability, and lam_kernels<A>(capability), which chooses one. kernels/lam_kernels.cpp defines
// the table; the loop over `capabilities` in CMakeLists.txt compiles that file once per capability.
#pragma once

#include "cpu/capability.h"
#include "cpu/kernels/lam_image.h"

namespace blpseg {

BLPSEG_VARIANTS(LamKernels, lam_kernels)

}  // namespace blpseg
