// blpseg::upsample_argmax on the CPU: the class of the largest resized logit of every pixel,
// without storing the resized logits. blpseg_ops/ops/upsample_argmax.py calls it;
// blpseg_ops/reference/upsample_argmax.py defines it.
//
// A thread takes a range of rows and goes through it by segments of columns (resized_logits.h);
// loss_kernels.cpp finds the largest logit.

#include "upsample_argmax.h"

#include <algorithm>
#include <vector>

#include "loss_kernels.h"
#include "resized_logits.h"

namespace blpseg {
namespace {

// Label the rows first..last - 1, counted over all images.
template <typename T, typename Label>
void label_rows(const View4<T>& logits, int64_t height, int64_t width, Label* labels, int64_t first,
                int64_t last) {
  using A = accumulate_t<T>;
  const LossKernels<A>& kernels = loss_kernels<A>(cpu_capability());
  const int64_t columns = columns_per_segment(logits.size[1], width);
  std::vector<A> best(padded(columns));
  std::vector<int32_t> winner(padded(columns));
  for (int64_t x = 0; x < width; x += columns) {
    const RowSegment<A> segment(x, std::min(columns, width - x), logits.size[3], width);
    ResizedLogits<T> resized(logits, height, segment, kernels);
    for (int64_t row = first; row < last; ++row) {
      kernels.best_class(resized.row(row / height, row % height), nullptr, best.data(),
                         winner.data());
      std::transform(winner.begin(), winner.begin() + segment.count, labels + row * width + x,
                     [](int32_t label) { return static_cast<Label>(label); });
    }
  }
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size) {
  Tensor labels = new_label_map(logits, size);
  if (labels.numel() == 0) return labels;  // no memory bounds its size then
  const int64_t rows = logits.size(0) * size[0];
  // Rows per thread: enough logits to pay for starting the thread.
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
