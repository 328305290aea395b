// The loss kernels of each capability that this build knows.
#pragma once

#include "cpu/capability.h"
#include "cpu/kernels/resized_row.h"

namespace blpseg {

BLPSEG_VARIANTS(LossKernels, loss_kernels)

}  // namespace blpseg
