// LAM's kernels, as compiled for each capability of the CPU that this build knows.
#pragma once

#include "cpu/capability.h"
#include "cpu/kernels/lam_image.h"

namespace blpseg {

BLPSEG_VARIANTS(LamKernels, lam_kernels)

}  // namespace blpseg
