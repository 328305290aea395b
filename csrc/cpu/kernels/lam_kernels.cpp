// LAM's kernels for one capability of the CPU: CMakeLists.txt compiles this file once for each.

#include "lam_backward.h"
#include "lam_basis.h"
#include "lam_forward.h"
#include "lam_image.h"
#include "lam_pack.h"

namespace blpseg::BLPSEG_CAPABILITY {

template <typename A>
const LamKernels<A>& lam_kernels() {
  static constexpr LamKernels<A> kernels = {find_basis<A>, pack_tile<A>, forward_tile<A>,
                                            backward_tile<A>};
  return kernels;
}

template const LamKernels<float>& lam_kernels<float>();
template const LamKernels<double>& lam_kernels<double>();

}  // namespace blpseg::BLPSEG_CAPABILITY
