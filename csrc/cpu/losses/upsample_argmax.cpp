// blpseg::upsample_argmax on the CPU: the class of the largest resized logit of every pixel,
// without the resized logits. Called by blpseg_ops/ops/upsample_argmax.py; the reference is
// blpseg_ops/reference/upsample_argmax.py.
//
// A thread takes a run of rows in strips of columns (resized_logits.h); loss_kernels.cpp looks for
// the largest.

#include "upsample_argmax.h"

#include <algorithm>
#include <vector>

#include "loss_kernels.h"
#include "resized_logits.h"

namespace blpseg {
namespace {

// The rows first..last (of all images, one after the other).
template <typename T, typename Label>
void label_rows(const View4<T>& logits, int64_t height, int64_t width, Label* labels, int64_t first,
                int64_t last) {
  using A = accumulate_t<T>;
  const LossKernels<A>& kernels = loss_kernels<A>(cpu_capability());
  const int64_t columns = columns_of_strip(logits.size[1], width);
  std::vector<A> best(padded(columns));
  std::vector<int32_t> winner(padded(columns));
  for (int64_t x = 0; x < width; x += columns) {
    const Strip<A> strip(x, std::min(columns, width - x), logits.size[3], width);
    ResizedLogits<T> resized(logits, height, strip, kernels);
    for (int64_t row = first; row < last; ++row) {
      kernels.best_class(resized.row(row / height, row % height), nullptr, best.data(),
                         winner.data());
      std::transform(winner.begin(), winner.begin() + strip.count, labels + row * width + x,
                     [](int32_t label) { return static_cast<Label>(label); });
    }
  }
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size) {
  Tensor labels = new_label_map(logits, size);
  if (labels.numel() == 0) return labels;  // no memory bounds its size then
  const int64_t rows = logits.size(0) * size[0];
  // Enough rows a thread to pay for starting it, counted in logits looked at.
  const int64_t grain = 1 + (int64_t{1} << 16) / (logits.size(1) * size[1]);
  dispatch_floating("upsample_argmax", "logits", logits.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const View4<T> view(logits);
    dispatch_label(labels.scalar_type(), [&](auto label) {
      auto* out = static_cast<decltype(label)*>(labels.mutable_data_ptr());
      torch::stable::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
        label_rows(view, size[0], size[1], out, first, last);
      });
    });
  });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  library.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

}  // namespace blpseg
