// What the losses need of the pixels of a row: the softmax of some or all, of either logits.
#pragma once

#include <vector>

#include "resized_logits.h"

namespace blpseg {

// Room for the softmax of a row's pixels.
template <typename A>
class SoftmaxRoom {
 public:
  explicit SoftmaxRoom(int64_t pixels) : pitch_(padded(pixels)), numbers_(3 * pitch_) {}

  SoftmaxRow<A> row() {
    return {numbers_.data(), numbers_.data() + pitch_, numbers_.data() + 2 * pitch_};
  }

 private:
  int64_t pitch_;
  std::vector<A> numbers_;
};

// The softmax of one of the logits at a row of pixels: at all of them, or at a few columns.
template <typename T>
class RowSoftmax {
 public:
  using A = accumulate_t<T>;

  RowSoftmax(const View4<T>& logits, int64_t height, const Strip<A>& strip,
             const LossKernels<A>& kernels)
      : logits_(logits, height, strip, kernels),
        strip_(strip),
        kernels_(kernels),
        of_resized_(strip.count),
        picked_(strip.count) {}

  // Every pixel of row y of image n.
  void cover_all(int64_t n, int64_t y) {
    if (all_ && n == n_ && y == y_) return;
    n_ = n, y_ = y, all_ = true;
    resized_ = logits_.row(n, y);
    kernels_.softmax(resized_, of_resized_.row());
  }

  // At least these columns, whichever way is less work: a gathered pixel costs about as much as
  // four of a whole row.
  void cover(int64_t n, int64_t y, const std::vector<int32_t>& columns) {
    if (4 * static_cast<int64_t>(columns.size()) > strip_.count) return cover_all(n, y);
    if (all_ && n == n_ && y == y_) return;
    n_ = n, y_ = y, all_ = false;
    resized_ = logits_.columns(n, y, columns);
    kernels_.softmax(resized_, of_resized_.row());
  }

  // For each of these columns, which are covered, the softmax and the logit of the class that
  // `labels` has there; side by side, the last repeated to fill up.
  SoftmaxRow<A> pick(const std::vector<int32_t>& columns, const int32_t* labels) {
    const int64_t count = columns.size();
    places_.resize(padded(count));
    classes_.resize(padded(count));
    for (int64_t i = 0; i < padded(count); ++i) {
      const int64_t place = std::min(i, count - 1);
      places_[i] = all_ ? columns[place] : static_cast<int32_t>(place);
      classes_[i] = labels[columns[place]];
    }
    kernels_.pick(resized_, of_resized_.row(), places_.data(), classes_.data(), padded(count),
                  picked_.row());
    return picked_.row();
  }

  // The softmax of what is covered: the row's pixels, or the columns side by side.
  SoftmaxRow<A> softmax() { return of_resized_.row(); }
  const ResizedRow<A>& resized() const { return resized_; }
  bool covers_all() const { return all_; }
  Tap<A> vertical_tap(int64_t y) const { return logits_.vertical_tap(y); }

 private:
  ResizedLogits<T> logits_;
  const Strip<A>& strip_;
  const LossKernels<A>& kernels_;
  SoftmaxRoom<A> of_resized_, picked_;
  std::vector<int32_t> places_, classes_;
  ResizedRow<A> resized_ = {};
  int64_t n_ = -1, y_ = -1;
  bool all_ = false;
};

}  // namespace blpseg
