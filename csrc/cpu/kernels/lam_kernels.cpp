// LAM's kernels for one capability of the CPU: CMakeLists.txt compiles this file once for each.

#include "lam_backward.h"
#include "lam_basis.h"
#include "lam_forward.h"
#include "lam_image.h"
#include "lam_softmax_gradient.h"
#include "lam_softmax_sum.h"
#include "lam_tile_features.h"

namespace blpseg::BLPSEG_CAPABILITY {

template <typename A>
const LamKernels<A>& lam_kernels() {
  static constexpr LamKernels<A> kernels = [] {
    LamKernels<A> table = {};
    table.find_basis = find_basis<A>;
    table.pack_tile = pack_tile<A>;
    table.sum_neighborhood = sum_neighborhood<A>;
    table.gather_alike_tile = gather_alike_tile<A>;
    table.sum_alike_tile = sum_alike_tile<A>;
    table.differentiate_alike_tile = differentiate_alike_tile<A>;
    table.forward_tile = forward_tile<A>;
    table.backward_tile = backward_tile<A>;
    return table;
  }();
  return kernels;
}

template const LamKernels<float>& lam_kernels<float>();
template const LamKernels<double>& lam_kernels<double>();

}  // namespace blpseg::BLPSEG_CAPABILITY
