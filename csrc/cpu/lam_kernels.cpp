// LAM's kernels for one capability of the CPU: CMakeLists.txt compiles this file once for each.
#include "lam_kernels.h"

#include "lam_backward.h"
#include "lam_basis.h"
#include "lam_forward.h"
#include "lam_pack.h"

namespace blpseg::BLPSEG_CAPABILITY {

const LamKernels<float> kLamFloat = {find_basis<float>, pack_tile<float>, forward_tile<float>,
                                     backward_tile<float>};
const LamKernels<double> kLamDouble = {find_basis<double>, pack_tile<double>, forward_tile<double>,
                                       backward_tile<double>};

}  // namespace blpseg::BLPSEG_CAPABILITY
