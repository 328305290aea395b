// Declares <capability>::two_grids_kernels<A>(), the table TwoGridsKernels<A> per CPU capability,
// and two_grids_kernels<A>(capability), which chooses one. kernels/two_grids_kernels.cpp defines
// it.
#pragma once

#include "cpu/capability.h"
#include "cpu/kernels/two_grids.h"

namespace blpseg {

BLPSEG_VARIANTS(TwoGridsKernels, two_grids_kernels)

}  // namespace blpseg
