// Low-resolution logits as rows of output pixels, without the resized logits.
//
// A low-resolution row is widened once (horizontal taps, the irregular reads) and kept; each output
// row is then a vertical blend of two widened rows, contiguous and so vectorised, which the kernels
// make as they read. When output rows walk down, the lower of the two rows becomes the upper: every
// low-resolution row is widened once. Where few pixels of a row matter, these are gathered instead.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "bilinear.h"
#include "loss_kernels.h"
#include "tensor.h"

namespace blpseg {

constexpr int64_t kRowNumbers = 65536;  // in a widened row, all classes: 256 KiB of float32

// So many columns that widened rows of them stay in a core's cache.
inline int64_t columns_of_strip(int64_t classes, int64_t width) {
  return std::min(width, std::max<int64_t>(2 * kLanes, kRowNumbers / classes));
}

// A run of output columns that are worked on together, and where they fall between the logits' own.
template <typename A>
struct Strip {
  int64_t first, count;            // output columns
  int64_t in_first, in_count;      // the logits' columns that they are blended from
  std::vector<int32_t> low, high;  // [padded(count)] taps, counted from in_first; the last repeated
  std::vector<A> weight;           // [padded(count)] of the higher

  Strip(int64_t first, int64_t count, int64_t in, int64_t out)
      : first(first),
        count(count),
        in_first(tap<A>(first, in, out).low),
        in_count(tap<A>(first + count - 1, in, out).high + 1 - in_first) {
    for (int64_t x = 0; x < padded(count); ++x) {
      const Tap<A> t = tap<A>(first + std::min(x, count - 1), in, out);
      low.push_back(static_cast<int32_t>(t.low - in_first));
      high.push_back(static_cast<int32_t>(t.high - in_first));
      weight.push_back(t.weight);
    }
  }

  int64_t pitch() const { return class_pitch(count); }
  HorizontalTaps<A> taps() const { return {low.data(), high.data(), weight.data(), padded(count)}; }
};

// A row of a low-resolution image, as wide as the strip.
template <typename A>
class WidenedRow {
 public:
  WidenedRow(int64_t classes, const Strip<A>& strip) : values_(classes * strip.pitch()) {}

  // Row `y` of image `n`, every class; nothing to do if it is held.
  template <typename T>
  void hold(const View4<T>& logits, int64_t n, int64_t y, const Strip<A>& strip,
            const LossKernels<A>& kernels) {
    if (holds(n, y)) return;
    n_ = n, y_ = y;
    narrow_.resize(strip.in_count + kLanes);  // which the kernel may read beyond
    for (int64_t k = 0; k < logits.size[1]; ++k) {
      const T* in = logits.at(n, k, y, strip.in_first);
      for (int64_t x = 0; x < strip.in_count; ++x)
        narrow_[x] = static_cast<A>(in[x * logits.stride[3]]);
      kernels.widen(strip.taps(), narrow_.data(), values_.data() + k * strip.pitch());
    }
  }

  const A* data() const { return values_.data(); }
  bool holds(int64_t n, int64_t y) const { return n == n_ && y == y_; }

 private:
  int64_t n_ = -1, y_ = -1;
  std::vector<A> values_;  // [K, pitch]
  std::vector<A> narrow_;  // one class of the row as it is
};

template <typename T>
class ResizedLogits {
 public:
  using A = accumulate_t<T>;

  ResizedLogits(const View4<T>& logits, int64_t height, const Strip<A>& strip,
                const LossKernels<A>& kernels)
      : logits_(logits),
        height_(height),
        strip_(strip),
        kernels_(kernels),
        upper_(logits.size[1], strip),
        lower_(logits.size[1], strip) {}

  // Output row `y` of image `n`; valid until the next call.
  ResizedRow<A> row(int64_t n, int64_t y) {
    const Tap<A> t = vertical_tap(y);
    if (lower_.holds(n, t.low)) std::swap(upper_, lower_);
    upper_.hold(logits_, n, t.low, strip_, kernels_);
    if (t.weight != A(0)) lower_.hold(logits_, n, t.high, strip_, kernels_);
    return {upper_.data(), lower_.data(),  t.weight,
            classes(),     strip_.pitch(), padded(strip_.count)};
  }

  // The given columns of that row alone, one at least, side by side; the last is repeated to fill
  // up. Here the vertical blend comes first, for it is contiguous.
  ResizedRow<A> columns(int64_t n, int64_t y, const std::vector<int32_t>& columns) {
    const Tap<A> t = vertical_tap(y);
    const int64_t count = columns.size(), pitch = class_pitch(count);
    gathered_.resize(classes() * pitch);
    between_.resize(padded(strip_.in_count));
    for (int64_t k = 0; k < classes(); ++k) {
      const T* above = logits_.at(n, k, t.low, strip_.in_first);
      const T* below = logits_.at(n, k, t.high, strip_.in_first);
      for (int64_t x = 0, at = 0; x < strip_.in_count; ++x, at += logits_.stride[3])
        between_[x] = blend(static_cast<A>(above[at]), static_cast<A>(below[at]), t.weight);
      A* out = gathered_.data() + k * pitch;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t x = columns[i];
        out[i] = blend(between_[strip_.low[x]], between_[strip_.high[x]], strip_.weight[x]);
      }
      std::fill(out + count, out + padded(count), out[count - 1]);
    }
    return {gathered_.data(), gathered_.data(), A(0), classes(), pitch, padded(count)};
  }

  Tap<A> vertical_tap(int64_t y) const { return tap<A>(y, logits_.size[2], height_); }
  int64_t classes() const { return logits_.size[1]; }

 private:
  const View4<T> logits_;
  const int64_t height_;
  const Strip<A>& strip_;
  const LossKernels<A>& kernels_;
  WidenedRow<A> upper_, lower_;
  std::vector<A> gathered_;  // [K, pitch of the columns]
  std::vector<A> between_;   // one class of a row that is resized vertically alone
};

}  // namespace blpseg
