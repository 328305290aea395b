// blpseg::upsample_argmax on CUDA: one thread per column of output pixels. Neighboring threads read
// neighboring logits, and the few rows of cells in use stay in the caches.
// blpseg_ops/ops/upsample_argmax.py calls it. Taps, lerps and ties are those of the CPU kernel
// (csrc/bilinear.h, csrc/losses.h, csrc/argmax.h).

#include <algorithm>
#include <limits>

#include "argmax.h"
#include "bilinear.h"
#include "losses.h"
#include "stream.h"
#include "upsample_argmax.h"

namespace blpseg {
namespace {

constexpr int kThreads = 128;

template <typename T, typename Label>
__global__ void __launch_bounds__(kThreads)
    upsample_argmax_kernel(View4<T> logits, int64_t height, int64_t width, Label* labels) {
  using A = accumulate_t<T>;
  const int64_t x = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (x >= width) return;
  const Tap<A> tx = tap<A>(x, logits.size[3], width);
  const int64_t left = tx.low * logits.stride[3], right = tx.high * logits.stride[3];

  const int64_t rows = logits.size[0] * height;  // counted over all images
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t n = row / height;
    const Tap<A> ty = tap<A>(row - n * height, logits.size[2], height);
    const T* upper = logits.data + n * logits.stride[0] + ty.low * logits.stride[2];
    const T* lower = upper + (ty.high - ty.low) * logits.stride[2];

    A best = -std::numeric_limits<A>::infinity();
    int32_t winner = 0;
    for (int32_t k = 0; k < logits.size[1]; ++k) {
      const A above =
          device::lerp<A>(static_cast<A>(upper[left]), static_cast<A>(upper[right]), tx.weight);
      const A below =
          device::lerp<A>(static_cast<A>(lower[left]), static_cast<A>(lower[right]), tx.weight);
      const A logit = device::lerp<A>(above, below, ty.weight);
      if (beats(logit, best)) {
        best = logit;
        winner = k;
      }
      upper += logits.stride[1];
      lower += logits.stride[1];
    }
    labels[row * width + x] = static_cast<Label>(winner);
  }
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size) {
  Tensor labels = new_label_map(logits, size);
  if (labels.numel() == 0) return labels;
  const LaunchOn on(logits, "upsample_argmax");
  const auto columns = static_cast<unsigned>((size[1] + kThreads - 1) / kThreads);
  const auto rows = static_cast<unsigned>(std::min<int64_t>(logits.size(0) * size[0], 65535));
  dispatch_floating("upsample_argmax", "logits", logits.scalar_type(), [&](auto element) {
    using T = decltype(element);
    dispatch_label(labels.scalar_type(), [&](auto label) {
      using Label = decltype(label);
      upsample_argmax_kernel<T, Label><<<dim3(columns, rows), kThreads, 0, on.stream>>>(
          View4<T>(logits), size[0], size[1], static_cast<Label*>(labels.mutable_data_ptr()));
    });
  });
  on.check();
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CUDA, library) {
  library.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

}  // namespace blpseg
