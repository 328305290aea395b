// The adjoint of resized_logits.h: sums the gradients of output pixels per cell of the logits.
//
// A row of output pixels adds to two cell rows that are as wide as the output, each by its vertical
// weight. When such a row is complete, each cell sums the columns that it contributes to. One
// thread owns a cell and adds from top to bottom and from left to right: the sum has the same bits
// however the work is shared out.
#pragma once

#include <utility>
#include <vector>

#include "resized_logits.h"

namespace blpseg {

// The output pixels along one axis that depend on the cells cell_first..cell_last - 1.
struct PixelRange {
  int64_t first, last;

  PixelRange(int64_t cell_first, int64_t cell_last, int64_t in, int64_t out)
      : first(first_pixel(cell_first - 1, in, out)), last(first_pixel(cell_last, in, out)) {}
};

template <typename T>
class GradientRows {
 public:
  using A = accumulate_t<T>;

  // The two rows [K, pitch] to which the pixels of one output row add their gradients.
  struct Pair {
    A* upper;
    A* lower;

    void add(int64_t place, A weight_of_lower, A gradient) const {
      upper[place] += (1 - weight_of_lower) * gradient;
      if (weight_of_lower != A(0)) lower[place] += weight_of_lower * gradient;
    }
  };

  // grad: [N, K, h, w], zero.
  GradientRows(const OutputView4<T>& grad, const View4<T>& logits, const RowSegment<A>& segment,
               int64_t left, int64_t right, const LossKernels<A>& kernels)
      : grad_(grad),
        kernels_(kernels),
        classes_(logits.size[1]),
        pitch_(segment.pitch()),
        left_(left),
        cells_(right - left),
        sums_(cells_),
        upper_{std::vector<A>(classes_ * pitch_)},
        lower_{std::vector<A>(classes_ * pitch_)} {
    find_columns(segment);
  }

  // Begin a block of cells of image n; finish() must have ended the one before.
  void begin(int64_t n, int64_t top, int64_t bottom) { n_ = n, top_ = top, bottom_ = bottom; }

  // Return the rows to which an output row with this vertical tap adds. Output rows must come from
  // top to bottom.
  Pair at(const Tap<A>& t) {
    if (upper_.y != t.low) {
      write_cells(upper_);
      if (lower_.y == t.low) std::swap(upper_, lower_);
      upper_.y = t.low;
    }
    if (t.weight != A(0) && lower_.y != t.high) {
      write_cells(lower_);
      lower_.y = t.high;
    }
    return {upper_.values.data(), lower_.values.data()};
  }

  void finish() {
    write_cells(upper_);
    write_cells(lower_);
  }

 private:
  struct Row {
    std::vector<A> values;  // [K, pitch], zero if y is -1
    int64_t y = -1;
  };

  void find_columns(const RowSegment<A>& segment) {
    std::vector<std::vector<A>> weights_of(cells_);
    first_.resize(cells_);
    const auto add = [&](int64_t cell, int64_t x, A weight) {
      if (cell < 0 || cell >= cells_ || weight == A(0)) return;
      if (weights_of[cell].empty()) first_[cell] = x;
      weights_of[cell].push_back(weight);  // the columns of a cell are neighbors
    };
    for (int64_t x = 0; x < segment.count; ++x) {
      add(segment.in_first + segment.low[x] - left_, x, 1 - segment.weight[x]);
      add(segment.in_first + segment.high[x] - left_, x, segment.weight[x]);
    }
    begin_.push_back(0);
    for (const std::vector<A>& weights : weights_of) {
      weights_.insert(weights_.end(), weights.begin(), weights.end());
      begin_.push_back(weights_.size());
    }
  }

  void write_cells(Row& row) {
    if (row.y < 0) return;
    if (row.y >= top_ && row.y < bottom_) {
      const CellWeights<A> columns = {first_.data(), begin_.data(), weights_.data(), cells_};
      for (int64_t k = 0; k < classes_; ++k) {
        kernels_.resize_row_adjoint(columns, row.values.data() + k * pitch_, sums_.data());
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
