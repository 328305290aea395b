// The adjoint of resized_logits.h: gradients of output pixels, gathered into the logits' cells.
//
// Rows of output pixels add to two widened rows, each by its vertical weight. A widened row that is
// complete is narrowed: every cell sums the columns that are blended from it. A cell has one owner,
// who adds what comes to it from top to bottom and from left to right, so that its sum is the same
// bit for bit however the work is shared out.
#pragma once

#include <utility>
#include <vector>

#include "resized_logits.h"

namespace blpseg {

// The output pixels along one axis that are blended from cells first..last, last left out.
struct PixelRange {
  int64_t first = 0, last = 0;

  PixelRange(int64_t cell_first, int64_t cell_last, int64_t in, int64_t out) : last(out) {
    // Taps rise with the pixels: halve the range until its ends are found.
    first = find(out, [&](int64_t x) { return tap<double>(x, in, out).high >= cell_first; });
    last = find(out, [&](int64_t x) { return tap<double>(x, in, out).low >= cell_last; });
  }

 private:
  template <typename Holds>
  static int64_t find(int64_t end, const Holds& holds) {
    int64_t low = 0;
    for (int64_t high = end; low < high;) {
      const int64_t middle = (low + high) / 2;
      if (holds(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
};

template <typename T>
class GradientRows {
 public:
  using A = accumulate_t<T>;

  // Where pixels of one output row add their gradients, [K, pitch] each.
  struct Pair {
    A* upper;
    A* lower;

    void add(int64_t place, A weight_of_lower, A gradient) const {
      upper[place] += (1 - weight_of_lower) * gradient;
      if (weight_of_lower != A(0)) lower[place] += weight_of_lower * gradient;
    }
  };

  // grad: [N, K, h, w], zero.
  GradientRows(const OutputView4<T>& grad, const View4<T>& logits, const Strip<A>& strip,
               int64_t left, int64_t right, const LossKernels<A>& kernels)
      : grad_(grad),
        kernels_(kernels),
        classes_(logits.size[1]),
        pitch_(strip.pitch()),
        left_(left),
        cells_(right - left),
        sums_(cells_),
        upper_{std::vector<A>(classes_ * pitch_)},
        lower_{std::vector<A>(classes_ * pitch_)} {
    find_columns(strip);
  }

  // Begins a patch of image n; the one before must be finished.
  void begin(int64_t n, int64_t top, int64_t bottom) { n_ = n, top_ = top, bottom_ = bottom; }

  // Rows to which an output row with this vertical tap adds. Output rows come from top to bottom.
  Pair at(const Tap<A>& t) {
    if (upper_.y != t.low) {
      narrow(upper_);
      if (lower_.y == t.low) std::swap(upper_, lower_);
      upper_.y = t.low;
    }
    if (t.weight != A(0) && lower_.y != t.high) {
      narrow(lower_);
      lower_.y = t.high;
    }
    return {upper_.values.data(), lower_.values.data()};
  }

  void finish() {
    narrow(upper_);
    narrow(lower_);
  }

 private:
  struct Row {
    std::vector<A> values;  // [K, pitch], zero where y is -1
    int64_t y = -1;
  };

  void find_columns(const Strip<A>& strip) {
    std::vector<std::vector<A>> weights_of(cells_);
    first_.resize(cells_);
    const auto add = [&](int64_t cell, int64_t x, A weight) {
      if (cell < 0 || cell >= cells_ || weight == A(0)) return;
      if (weights_of[cell].empty()) first_[cell] = x;
      weights_of[cell].push_back(weight);  // a cell's columns lie side by side
    };
    for (int64_t x = 0; x < strip.count; ++x) {
      add(strip.in_first + strip.low[x] - left_, x, 1 - strip.weight[x]);
      add(strip.in_first + strip.high[x] - left_, x, strip.weight[x]);
    }
    begin_.push_back(0);
    for (const std::vector<A>& weights : weights_of) {
      weights_.insert(weights_.end(), weights.begin(), weights.end());
      begin_.push_back(weights_.size());
    }
  }

  void narrow(Row& row) {
    if (row.y < 0) return;
    if (row.y >= top_ && row.y < bottom_) {
      const CellWeights<A> columns = {first_.data(), begin_.data(), weights_.data(), cells_};
      for (int64_t k = 0; k < classes_; ++k) {
        kernels_.narrow(columns, row.values.data() + k * pitch_, sums_.data());
        T* out = grad_.at(n_, k, row.y, left_);
        for (int64_t x = 0; x < cells_; ++x) out[x * grad_.stride[3]] = static_cast<T>(sums_[x]);
      }
    }
    std::fill(row.values.begin(), row.values.end(), A(0));
    row.y = -1;
  }

  const OutputView4<T> grad_;
  const LossKernels<A>& kernels_;
  const int64_t classes_, pitch_, left_, cells_;
  int64_t n_ = 0, top_ = 0, bottom_ = 0;
  std::vector<int64_t> first_, begin_;  // CellWeights
  std::vector<A> weights_, sums_;
  Row upper_, lower_;
};

}  // namespace blpseg
