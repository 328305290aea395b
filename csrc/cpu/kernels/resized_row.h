// Rows of pixels as the loss kernels see them (plain data), and the table of the kernels.
// loss_rows.h makes the rows; the kernels are compiled once per capability of the CPU.
#pragma once

#include <stdint.h>

namespace blpseg {

constexpr int64_t kLanes = 32;  // rows are padded to multiples of this many pixels

constexpr int64_t padded(int64_t pixels) { return (pixels + kLanes - 1) / kLanes * kLanes; }

// Return the distance between classes: an odd multiple of kLanes, so that the classes of a pixel do
// not fall into the same few sets of the cache.
constexpr int64_t class_pitch(int64_t pixels) { return (padded(pixels) / kLanes | 1) * kLanes; }

// The horizontal taps of a row's pixels: (1 - weight) * cells[low] + weight * cells[high].
template <typename A>
struct HorizontalTaps {
  const int32_t* low;
  const int32_t* high;
  const A* weight;
  int64_t count;  // a multiple of kLanes
};

// The adjoint of the taps: cell c contributes to the pixels first[c], first[c] + 1, ... with the
// weights weights[begin[c]] to weights[begin[c + 1] - 1].
template <typename A>
struct CellWeights {
  const int64_t* first;
  const int64_t* begin;
  const A* weights;
  int64_t cells;
};

// A row of pixels whose logits are resized horizontally. The kernels do the vertical lerp: the
// logit of class k at x lies between upper[k * pitch + x] and lower[k * pitch + x].
template <typename A>
struct ResizedRow {
  const A* upper;  // [K, pitch]
  const A* lower;  // [K, pitch]
  A weight;        // of the lower
  int64_t classes;
  int64_t pitch;
  int64_t count;  // pixels to work on, a multiple of kLanes
};

// The softmax of each pixel of a row, and the logit of the pixel's class.
template <typename A>
struct SoftmaxRow {
  A* maximum;
  A* sum;
  A* logit;
};

template <typename A>
struct LossKernels {
  // Resize a row of cells of one class; may read kLanes values past its end.
  void (*resize_row)(const HorizontalTaps<A>&, const A* cells, A* row);
  // Resize `count` pixels of one class. corners [4, count]: upper left, upper right, lower left,
  // lower right; weights [count] of the right ones.
  void (*resize_columns)(const A* corners, const A* weights, A weight_of_lower, int64_t count,
                         A* resized);
  // The adjoint of resize_row(); each cell adds from left to right.
  void (*resize_row_adjoint)(const CellWeights<A>&, const A* row, A* cells);
  // Compute maximum and sum per pixel.
  void (*softmax)(const ResizedRow<A>&, const SoftmaxRow<A>&);
  // Gather, for each of `count` pixels, the softmax at its place in the row and its class's logit.
  void (*gather_at)(const ResizedRow<A>&, const SoftmaxRow<A>& of_row, const int32_t* places,
                    const int32_t* classes, int64_t count, const SoftmaxRow<A>& gathered);
  // Compute p of each pixel's class, or log p.
  void (*probability)(const SoftmaxRow<A>&, int64_t count, A* p);
  void (*log_probability)(const SoftmaxRow<A>&, int64_t count, A* log_p);
  // Compute log p and the BLP weight of each pixel's class.
  void (*blp)(const SoftmaxRow<A>& seg, const SoftmaxRow<A>& annotation, A gamma, int64_t count,
              A* log_p, A* weight);
  // Add coefficient * p per class and pixel to upper and lower [K, pitch], times (1 - weight) and
  // weight. If the row's weight is 0, `lower` is not touched and may be null.
  void (*scatter_softmax_grad)(const ResizedRow<A>&, const SoftmaxRow<A>&, const A* coefficient,
                               A* upper, A* lower);
  // Find the class with the largest logit among the classes in `present` (null: all), and its
  // logit. The lowest of equals wins; NaN is the largest.
  void (*best_class)(const ResizedRow<A>&, const bool* present, A* best, int32_t* winner);
};

}  // namespace blpseg
