// blpseg::upsample_argmax on the CPU: the class of the largest resized logit of every pixel,
// without the resized logits. Called by blpseg_ops/ops/upsample_argmax.py; the reference is
// blpseg_ops/reference/upsample_argmax.py.
//
// A low-resolution row is widened once (horizontal taps, the irregular reads) and kept; each output
// row is then a vertical blend of two widened rows, contiguous and so vectorised, that feeds the
// arg max directly. When output rows walk down, the lower of the two rows becomes the upper: every
// low-resolution row is widened once. A thread takes a run of rows in strips of columns, so narrow
// that the two widened rows of all classes stay in its cache.

#include "upsample_argmax.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "argmax.h"
#include "bilinear.h"

namespace blpseg {
namespace {

constexpr int64_t kRowNumbers =
    16384;  // numbers in a widened row: two rows take 128 KiB of float32

template <typename T>
class WidenedRow {
 public:
  using A = accumulate_t<T>;

  WidenedRow(int64_t classes, const Tap<A>* taps, int64_t width)
      : taps_(taps), width_(width), values_(classes * width) {}

  // Row `y` of image `n`, every class, resized to the strip's columns; nothing to do if it is held.
  void hold(const View4<T>& logits, int64_t n, int64_t y) {
    if (holds(n, y)) return;
    n_ = n, y_ = y;
    const int64_t step = logits.stride[3];
    for (int64_t k = 0; k < logits.size[1]; ++k) {
      const T* in =
          logits.data + n * logits.stride[0] + k * logits.stride[1] + y * logits.stride[2];
      A* out = values_.data() + k * width_;
      for (int64_t x = 0; x < width_; ++x) {
        const Tap<A>& t = taps_[x];
        const A low = static_cast<A>(in[t.low * step]), high = static_cast<A>(in[t.high * step]);
        out[x] = blend(low, high, t.weight);
      }
    }
  }

  const A* of_class(int64_t k) const { return values_.data() + k * width_; }
  bool holds(int64_t n, int64_t y) const { return n == n_ && y == y_; }

 private:
  const Tap<A>* taps_;  // [width]
  int64_t width_, n_ = -1, y_ = -1;
  std::vector<A> values_;  // [K, width]
};

// The rows first..last (of all images, one after the other) of a strip `width` columns wide, whose
// horizontal taps are given; `labels` points at the strip's first column, rows lie `pitch` apart.
template <typename T, typename Label>
void label_strip(const View4<T>& logits, const Tap<accumulate_t<T>>* taps, int64_t width,
                 int64_t height, int64_t pitch, Label* labels, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  WidenedRow<T> upper(logits.size[1], taps, width), lower(logits.size[1], taps, width);
  std::vector<A> best(width);
  std::vector<int32_t> winner(width);

  for (int64_t row = first; row < last; ++row) {
    const int64_t n = row / height;
    const Tap<A> t = tap<A>(row % height, logits.size[2], height);
    if (lower.holds(n, t.low)) std::swap(upper, lower);
    upper.hold(logits, n, t.low);
    lower.hold(logits, n, t.high);

    best.assign(width, -std::numeric_limits<A>::infinity());
    winner.assign(width, 0);
    for (int64_t k = 0; k < logits.size[1]; ++k) {
      const A* __restrict above = upper.of_class(k);
      const A* __restrict below = lower.of_class(k);
      A* __restrict leader = best.data();
      int32_t* __restrict label = winner.data();
      for (int64_t x = 0; x < width; ++x) {
        const A logit = blend(above[x], below[x], t.weight);
        const bool wins = displaces(logit, leader[x]);
        leader[x] = wins ? logit : leader[x];
        label[x] = wins ? static_cast<int32_t>(k) : label[x];
      }
    }
    for (int64_t x = 0; x < width; ++x) labels[row * pitch + x] = static_cast<Label>(winner[x]);
  }
}

template <typename T, typename Label>
void label_rows(const View4<T>& logits, int64_t height, int64_t width, Label* labels, int64_t first,
                int64_t last) {
  using A = accumulate_t<T>;
  std::vector<Tap<A>> taps(width);
  for (int64_t x = 0; x < width; ++x) taps[x] = tap<A>(x, logits.size[3], width);
  const int64_t strip = std::max<int64_t>(16, kRowNumbers / logits.size[1]);
  for (int64_t x = 0; x < width; x += strip) {
    const int64_t columns = std::min(strip, width - x);
    label_strip(logits, taps.data() + x, columns, height, width, labels + x, first, last);
  }
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size) {
  Tensor labels = new_label_map(logits, size);
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
