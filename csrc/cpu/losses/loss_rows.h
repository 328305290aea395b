// The softmax at the pixels of a row: at all of them, or at a few columns.
#pragma once

#include <vector>

#include "resized_logits.h"

namespace blpseg {

// Memory for the softmax of a row of pixels.
template <typename A>
class SoftmaxBuffer {
 public:
  explicit SoftmaxBuffer(int64_t pixels) : pitch_(padded(pixels)), values_(3 * pitch_) {}

  SoftmaxRow<A> row() {
    return {values_.data(), values_.data() + pitch_, values_.data() + 2 * pitch_};
  }

 private:
  int64_t pitch_;
  std::vector<A> values_;
};

// The softmax of seg_logits or annotation_logits at a row of pixels.
template <typename T>
class RowSoftmax {
 public:
  using A = accumulate_t<T>;

  RowSoftmax(const View4<T>& logits, int64_t height, const RowSegment<A>& segment,
             const LossKernels<A>& kernels)
      : logits_(logits, height, segment, kernels),
        segment_(segment),
        kernels_(kernels),
        of_resized_(segment.count),
        gathered_(segment.count) {}

  // Evaluate every pixel of row y of image n.
  void evaluate_row(int64_t n, int64_t y) {
    if (all_ && n == n_ && y == y_) return;
    n_ = n, y_ = y, all_ = true;
    resized_ = logits_.row(n, y);
    kernels_.softmax(resized_, of_resized_.row());
  }

  // Evaluate at least these columns, in the cheaper way: a gathered pixel costs about as much as
  // four pixels of a whole row.
  void evaluate_at(int64_t n, int64_t y, const std::vector<int32_t>& columns) {
    if (4 * static_cast<int64_t>(columns.size()) > segment_.count) return evaluate_row(n, y);
    if (all_ && n == n_ && y == y_) return;
    n_ = n, y_ = y, all_ = false;
    resized_ = logits_.columns(n, y, columns);
    kernels_.softmax(resized_, of_resized_.row());
  }

  // Return, for each of these evaluated columns, the softmax and the logit of the class that
  // `labels` has there. Columns are side by side; the last is repeated as padding.
  SoftmaxRow<A> gather_at(const std::vector<int32_t>& columns, const int32_t* labels) {
    const int64_t count = columns.size();
    places_.resize(padded(count));
    classes_.resize(padded(count));
    for (int64_t i = 0; i < padded(count); ++i) {
      const int64_t place = std::min(i, count - 1);
      places_[i] = all_ ? columns[place] : static_cast<int32_t>(place);
      classes_[i] = labels[columns[place]];
    }
    kernels_.gather_at(resized_, of_resized_.row(), places_.data(), classes_.data(), padded(count),
                       gathered_.row());
    return gathered_.row();
  }

  // Return the softmax of the evaluated pixels: the row, or the columns side by side.
  SoftmaxRow<A> softmax() { return of_resized_.row(); }
  const ResizedRow<A>& resized() const { return resized_; }
  bool has_whole_row() const { return all_; }
  Tap<A> vertical_tap(int64_t y) const { return logits_.vertical_tap(y); }

 private:
  ResizedLogits<T> logits_;
  const RowSegment<A>& segment_;
  const LossKernels<A>& kernels_;
  SoftmaxBuffer<A> of_resized_, gathered_;
  std::vector<int32_t> places_, classes_;
  ResizedRow<A> resized_ = {};
  int64_t n_ = -1, y_ = -1;
  bool all_ = false;
};

}  // namespace blpseg
