// The kernels of lam with queries for one capability of the CPU: CMakeLists.txt compiles this file
// once for each.

#include "two_grids.h"
#include "two_grids_backward.h"
#include "two_grids_forward.h"
#include "two_grids_keys.h"

namespace blpseg::BLPSEG_CAPABILITY {

template <typename A>
const TwoGridsKernels<A>& two_grids_kernels() {
  static constexpr TwoGridsKernels<A> kernels = {find_axes<A>, pack_keys<A>, forward_tile<A>,
                                                 backward_tile<A>};
  return kernels;
}

template const TwoGridsKernels<float>& two_grids_kernels<float>();
template const TwoGridsKernels<double>& two_grids_kernels<double>();

}  // namespace blpseg::BLPSEG_CAPABILITY
