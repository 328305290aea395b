// Rows of resized logits, without storing the resized logits.
//
// Resizing is horizontal first: a row of cells is resized to the output's width once (irregular
// reads) and kept. An output row is the vertical lerp of two such rows; the kernels compute it as
// they read (contiguous, vectorized). Going down, the lower row becomes the upper row, so each row
// of cells is resized once. If few pixels of a row matter, only these are resized.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "bilinear.h"
#include "loss_kernels.h"
#include "tensor.h"

namespace blpseg {

constexpr int64_t kRowElements = 65536;  // per resized row of cells, all classes: 256 KiB (float32)

// Return how many columns a segment has, so that its resized rows stay in a core's cache.
inline int64_t columns_per_segment(int64_t classes, int64_t width) {
  return std::min(width, std::max<int64_t>(2 * kLanes, kRowElements / classes));
}

// A range of output columns that is processed at once, with the horizontal taps of its columns.
template <typename A>
struct RowSegment {
  int64_t first, count;            // output columns
  int64_t in_first, in_count;      // columns of cells that they depend on
  std::vector<int32_t> low, high;  // [padded(count)] taps minus in_first; the last is repeated
  std::vector<A> weight;           // [padded(count)] of `high`

  RowSegment(int64_t first, int64_t count, int64_t in, int64_t out)
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

// A row of cells, resized to the columns of a segment.
template <typename A>
class ResizedCellRow {
 public:
  ResizedCellRow(int64_t classes, const RowSegment<A>& segment)
      : values_(classes * segment.pitch()) {}

  // Resize row `y` of image `n`, all classes, unless it is held already.
  template <typename T>
  void hold(const View4<T>& logits, int64_t n, int64_t y, const RowSegment<A>& segment,
            const LossKernels<A>& kernels) {
    if (holds(n, y)) return;
    n_ = n, y_ = y;
    cells_of_row_.resize(segment.in_count + kLanes);  // the kernel may read kLanes past the end
    for (int64_t k = 0; k < logits.size[1]; ++k) {
      const T* in = logits.at(n, k, y, segment.in_first);
      for (int64_t x = 0; x < segment.in_count; ++x)
        cells_of_row_[x] = static_cast<A>(in[x * logits.stride[3]]);
      kernels.resize_row(segment.taps(), cells_of_row_.data(),
                         values_.data() + k * segment.pitch());
    }
  }

  const A* data() const { return values_.data(); }
  bool holds(int64_t n, int64_t y) const { return n == n_ && y == y_; }

 private:
  int64_t n_ = -1, y_ = -1;
  std::vector<A> values_;        // [K, pitch]
  std::vector<A> cells_of_row_;  // one class of the row, not resized
};

template <typename T>
class ResizedLogits {
 public:
  using A = accumulate_t<T>;

  ResizedLogits(const View4<T>& logits, int64_t height, const RowSegment<A>& segment,
                const LossKernels<A>& kernels)
      : logits_(logits),
        height_(height),
        segment_(segment),
        kernels_(kernels),
        upper_(logits.size[1], segment),
        lower_(logits.size[1], segment) {}

  // Return output row `y` of image `n`; valid until the next call.
  ResizedRow<A> row(int64_t n, int64_t y) {
    const Tap<A> t = vertical_tap(y);
    if (lower_.holds(n, t.low)) std::swap(upper_, lower_);
    upper_.hold(logits_, n, t.low, segment_, kernels_);
    if (t.weight != A(0)) lower_.hold(logits_, n, t.high, segment_, kernels_);
    return {upper_.data(), lower_.data(),    t.weight,
            classes(),     segment_.pitch(), padded(segment_.count)};
  }

  // Resize the given columns (at least one) of output row `y` alone, side by side; the last column
  // is repeated as padding. The bits are those of row().
  ResizedRow<A> columns(int64_t n, int64_t y, const std::vector<int32_t>& columns) {
    const Tap<A> t = vertical_tap(y);
    const int64_t count = columns.size(), pitch = class_pitch(count), stride = logits_.stride[3];
    gathered_.resize(classes() * pitch);
    corners_.resize(4 * padded(count));
    weights_.resize(padded(count));
    lefts_.resize(count);
    rights_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      weights_[i] = segment_.weight[columns[i]];
      lefts_[i] = segment_.low[columns[i]] * stride;
      rights_[i] = segment_.high[columns[i]] * stride;
    }
    A *const upper_left = corners_.data(), *const upper_right = upper_left + padded(count);
    A *const lower_left = upper_right + padded(count), *const lower_right =
                                                           lower_left + padded(count);
    for (int64_t k = 0; k < classes(); ++k) {
      const T* upper = logits_.at(n, k, t.low, segment_.in_first);
      const T* lower = logits_.at(n, k, t.high, segment_.in_first);
      for (int64_t i = 0; i < count; ++i) {
        upper_left[i] = static_cast<A>(upper[lefts_[i]]);
        upper_right[i] = static_cast<A>(upper[rights_[i]]);
        lower_left[i] = static_cast<A>(lower[lefts_[i]]);
        lower_right[i] = static_cast<A>(lower[rights_[i]]);
      }
      A* out = gathered_.data() + k * pitch;
      kernels_.resize_columns(corners_.data(), weights_.data(), t.weight, padded(count), out);
      std::fill(out + count, out + padded(count), out[count - 1]);
    }
    return {gathered_.data(), gathered_.data(), A(0), classes(), pitch, padded(count)};
  }

  Tap<A> vertical_tap(int64_t y) const { return tap<A>(y, logits_.size[2], height_); }
  int64_t classes() const { return logits_.size[1]; }

 private:
  const View4<T> logits_;
  const int64_t height_;
  const RowSegment<A>& segment_;
  const LossKernels<A>& kernels_;
  ResizedCellRow<A> upper_, lower_;
  std::vector<A> gathered_;  // [K, pitch of the columns]
  std::vector<A> corners_;   // [4, padded count] of one class: upper left, upper right, lower ...
  std::vector<A> weights_;   // [padded count] of the right corners
  std::vector<int64_t> lefts_, rights_;  // [count] offsets of the corners in a row of cells
};

}  // namespace blpseg
