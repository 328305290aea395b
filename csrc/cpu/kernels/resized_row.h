// A row of pixels as the losses' kernels see it, and what these do to it. Plain data: loss_rows.h
// makes the rows, the functions in LossKernels, compiled once per capability of the CPU, work on
// them.
#pragma once

#include <stdint.h>

namespace blpseg {

constexpr int64_t kLanes = 32;  // rows are padded to whole runs of so many pixels

constexpr int64_t padded(int64_t pixels) { return (pixels + kLanes - 1) / kLanes * kLanes; }

// From one class to the next: an odd number of runs, lest all classes of a pixel fall into the same
// few sets of the cache.
constexpr int64_t class_pitch(int64_t pixels) { return (padded(pixels) / kLanes | 1) * kLanes; }

// Where a row's pixels fall between the logits' columns: (1 - weight) * low + weight * high.
template <typename A>
struct HorizontalTaps {
  const int32_t* low;
  const int32_t* high;
  const A* weight;
  int64_t count;  // a multiple of kLanes
};

// Which of a row's pixels each of the logits' columns ("cells") goes into, and with which weights:
// those of cell c are weights[begin[c]] to weights[begin[c + 1] - 1], of the pixels from first[c].
template <typename A>
struct CellWeights {
  const int64_t* first;
  const int64_t* begin;
  const A* weights;
  int64_t cells;
};

// A row of pixels with the resized logits of all classes, of which the vertical half is done as
// they are read: that of class k at x lies between upper[k * pitch + x] and lower[k * pitch + x].
template <typename A>
struct ResizedRow {
  const A* upper;  // [K, pitch]
  const A* lower;  // [K, pitch]
  A weight;        // of the lower
  int64_t classes;
  int64_t pitch;
  int64_t count;  // pixels to work on, a multiple of kLanes
};

// The softmax of each pixel of a row, and the logit of the one class that matters for its loss.
template <typename A>
struct SoftmaxRow {
  A* maximum;
  A* sum;
  A* logit;
};

template <typename A>
struct LossKernels {
  // A row of one class, resized; kLanes numbers beyond it may be read.
  void (*widen)(const HorizontalTaps<A>&, const A* narrow, A* wide);
  // The adjoint of widen(), added up from left to right.
  void (*narrow)(const CellWeights<A>&, const A* wide, A* cells);
  // Each pixel's maximum and sum.
  void (*softmax)(const ResizedRow<A>&, const SoftmaxRow<A>&);
  // For each of `count` pixels, the softmax at its place in the row and the logit of its class.
  void (*pick)(const ResizedRow<A>&, const SoftmaxRow<A>& of_row, const int32_t* places,
               const int32_t* classes, int64_t count, const SoftmaxRow<A>& picked);
  // p of each pixel's class, and its log.
  void (*probability)(const SoftmaxRow<A>&, int64_t count, A* p);
  void (*log_probability)(const SoftmaxRow<A>&, int64_t count, A* log_p);
  // log p and the BLP weight of each pixel's class.
  void (*blp)(const SoftmaxRow<A>& seg, const SoftmaxRow<A>& annotation, A gamma, int64_t count,
              A* log_p, A* weight);
  // Adds coefficient * p of each class and pixel to upper and lower [K, pitch], by their weights.
  // To upper alone where the row's weight is 0.
  void (*spread)(const ResizedRow<A>&, const SoftmaxRow<A>&, const A* coefficient, A* upper,
                 A* lower);
  // The class with the largest logit among those that `present` names (all, if it is null); the
  // lowest of equals; and that logit. NaN is the largest.
  void (*best_class)(const ResizedRow<A>&, const bool* present, A* best, int32_t* winner);
};

}  // namespace blpseg
