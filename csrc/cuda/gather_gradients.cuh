// The losses' backward pass on CUDA: the pixels' gradients, gathered into the logits' cells. It is
// the adjoint of the bilinear resizing in loss_pixels.cuh.
//
// A gap is the space between two neighboring cells of a row, or of a column; a pixel lies in one
// gap of its row and one of its column (the last gap of an axis has one cell only). A thread owns
// the pixels of one gap across (several threads if the gap is wide) and goes down the gaps of a
// cell block; per pixel it adds to the four cells around. Where a row of cells is complete, each
// cell adds what its left and its right gap have for it. Every cell has one owner, who adds in one
// fixed order: no atomics, the same bits each time.
#pragma once

#include "bilinear.h"
#include "loss_call.cuh"

namespace blpseg::device {

constexpr int kClasses = 4;           // per thread: pixels are read once for all of them
constexpr int kBatch = 4;             // pixels that a thread reads at once
constexpr int kMaxCellRows = 8;       // per cell block
constexpr int kCachedColumns = 1024;  // of pixels, whose weights a block keeps in shared memory
constexpr int kCachedRows = 128;

// Upstream gradient / normalizer.
template <typename A>
struct LossGradScales {
  const A* grad_loss;   // []
  const A* weight_sum;  // [N] of the BLP loss, [] of the annotation loss
  int64_t weight_sum_stride;
  int64_t images;  // of the BLP loss, which is a mean over them; 0: the annotation loss
  A guard;

  __device__ A of_image(int64_t n) const {
    if (images > 0) return *grad_loss / ((weight_sum[n * weight_sum_stride] + guard) * images);
    return *grad_loss / (*weight_sum > A(0) ? *weight_sum : A(1));
  }
};

template <typename T>
struct GatherCall {
  using A = accumulate_t<T>;

  View4<T> logits;      // [N, K, h, w]
  OutputView4<T> grad;  // [N, K, h, w]
  LabelMap labels;      // [N, H, W]
  SavedPixels<const A> pixels;
  LossGradScales<A> scales;
  A unlabeled_weight;  // of label `unlabeled`, if `pixels` has no weights; other labels have 1
  int unlabeled;
  int classes, in_height, in_width, height, width;
  int lanes_per_gap;  // threads that share the columns of a gap, a power of 2
  int cell_rows;      // per cell block, at most kMaxCellRows
};

// How a row of cells is cut into blocks of `gaps` gaps. Blocks overlap by a gap, since a cell needs
// the gaps on both its sides: block i has the gaps from i * (gaps - 1), and the cells to the right
// of all but its last; block 0 has cell 0 too.
__host__ __device__ inline int64_t blocks_across(int64_t in_width, int64_t gaps) {
  return in_width <= 1 ? 1 : divide_up(in_width - 1, gaps - 1);
}

// The logits on both sides of a gap across, in one row of cells.
template <typename A>
struct CornerRow {
  A left[kClasses], right[kClasses];
};

// Where a thread works.
struct GapColumn {
  int n, k0;        // image, first class
  int top, bottom;  // rows of cells
  int gap;          // between cells `gap` and `gap + 1`; may lie past the last cell
  int first, last;  // columns of pixels in the gap, from this thread's first on
};

template <typename T, typename A = accumulate_t<T>>
__device__ __forceinline__ CornerRow<A> load_corners(const GatherCall<T>& call, const GapColumn& at,
                                                     int y) {
  // Past the last cell the last one is read; past the last class, 0.
  const View4<T>& logits = call.logits;
  const T* left = logits.at(at.n, at.k0, y, min(at.gap, call.in_width - 1));
  const T* right = logits.at(at.n, at.k0, y, min(at.gap + 1, call.in_width - 1));
  CornerRow<A> row;
#pragma unroll
  for (int j = 0; j < kClasses; ++j) {
    row.left[j] = row.right[j] = A(0);
    if (at.k0 + j < call.classes)
      row.left[j] = static_cast<A>(*left), row.right[j] = static_cast<A>(*right);
    left += logits.stride[1];
    right += logits.stride[1];
  }
  return row;
}

template <typename T>
__device__ GapColumn locate_gap(const GatherCall<T>& call) {
  const int gaps = blockDim.x / call.lanes_per_gap;
  const auto groups = static_cast<unsigned>(divide_up(call.classes, kClasses));
  const auto across = static_cast<unsigned>(blocks_across(call.in_width, gaps));
  const auto down = static_cast<unsigned>(divide_up(call.in_height, call.cell_rows));
  const int first_gap = static_cast<int>(blockIdx.x / groups % across) * (gaps - 1);
  const auto first_column = [&](int gap) {
    return static_cast<int>(first_pixel(gap, call.in_width, call.width));
  };
  GapColumn at;
  at.n = blockIdx.x / groups / across / down;
  at.k0 = static_cast<int>(blockIdx.x % groups) * kClasses;
  at.top = static_cast<int>(blockIdx.x / groups / across % down) * call.cell_rows;
  at.bottom = min(at.top + call.cell_rows, call.in_height);
  at.gap = first_gap + static_cast<int>(threadIdx.x) / call.lanes_per_gap;
  at.first = first_column(at.gap) + static_cast<int>(threadIdx.x) % call.lanes_per_gap;
  at.last = first_column(at.gap + 1);
  return at;
}

// What a block computes once, since it takes divisions: where the pixels of its gaps lie.
template <typename A>
struct BlockTaps {
  A scale;                        // of the gradients: LossGradScales
  int first_x, end_x;             // columns of pixels of all gaps across
  int first_y[kMaxCellRows + 2];  // first row of pixels of each gap down, and the end of the last
  A row_weight[kCachedRows];      // of the pixels from first_y[0] on
  A column_weight[kCachedColumns];
};

// The weight of a pixel's upper tap. Not inlined: it is the way out for pixels past a cache.
template <typename A>
__device__ __noinline__ A compute_weight(int pixel, int in, int out) {
  return tap<A>(pixel, in, out).weight;
}

template <int cached, typename A>
BLPSEG_INLINE A weight_at(const A (&weights)[cached], int first, int pixel, int in, int out) {
  if (pixel - first < cached) return weights[pixel - first];
  return compute_weight<A>(pixel, in, out);  // past the cache
}

// Fill in what a block computes once. The block has the gaps from `first_row` down, and `gaps`
// gaps from `first_gap` across.
template <typename T, typename A = accumulate_t<T>>
__device__ void compute_taps(const GatherCall<T>& call, const GapColumn& at, int first_row,
                             int first_gap, int gaps, BlockTaps<A>& taps) {
  const int thread = threadIdx.x, threads = blockDim.x;
  const int rows = at.bottom - first_row;  // of gaps, at most kMaxCellRows + 1
  if (thread <= rows)
    taps.first_y[thread] = first_pixel(first_row + thread, call.in_height, call.height);
  else if (thread == rows + 1)
    taps.first_x = first_pixel(first_gap, call.in_width, call.width);
  else if (thread == rows + 2)
    taps.end_x = first_pixel(first_gap + gaps, call.in_width, call.width);
  else if (thread == rows + 3)
    taps.scale = call.scales.of_image(at.n);
  __syncthreads();
  const int pixel_rows = min(taps.first_y[rows] - taps.first_y[0], kCachedRows);
  const int pixel_columns = min(taps.end_x - taps.first_x, kCachedColumns);
#pragma unroll 1
  for (int i = thread; i < pixel_rows + pixel_columns; i += threads) {
    const bool down = i < pixel_rows;
    const int pixel = down ? taps.first_y[0] + i : taps.first_x + i - pixel_rows;
    const A weight = compute_weight<A>(pixel, down ? call.in_height : call.in_width,
                                       down ? call.height : call.width);
    (down ? taps.row_weight[i] : taps.column_weight[i - pixel_rows]) = weight;
  }
  __syncthreads();
}

// What a thread's pixels add to the corners of their gaps.
template <typename A>
struct CornerSums {
  A left[kClasses] = {}, right[kClasses] = {};
};

// Return the label of column x in a row of labels. Label is uint8_t, the usual type, or void: any.
template <typename Label>
BLPSEG_INLINE int label_at(const LabelMap& labels, int64_t row, int x) {
  if constexpr (std::is_same_v<Label, uint8_t>)
    return (static_cast<const uint8_t*>(labels.data) + row)[x * labels.stride[2]];
  else
    return static_cast<int>(labels.at(row + x * labels.stride[2]));
}

// Subtract the weight of a pixel from the gradient of its class, `own` counted from k0.
template <typename T, typename A = accumulate_t<T>>
BLPSEG_INLINE void subtract_weight(const GatherCall<T>& call, const GapColumn& at, int own,
                                   int64_t pixel, A (&gradient)[kClasses]) {
  if (own < 0 || own >= kClasses) return;
  A weight = own + at.k0 == call.unlabeled ? call.unlabeled_weight : A(1);
  if (call.pixels.weight) weight = call.pixels.weight[pixel];
#pragma unroll
  for (int j = 0; j < kClasses; ++j) gradient[j] -= own == j ? weight : A(0);
}

// Add the gradients of a thread's pixels in the rows first_y..end_y - 1, which lie in one gap down.
// `upper` and `lower` are the logits of the cells around. They are resized as in forward, across
// first, so that a logit has the same bits in both passes.
template <typename Label, typename T, typename A = accumulate_t<T>>
__device__ __forceinline__ void add_gap(const GatherCall<T>& call, const GapColumn& at, int first_y,
                                        int end_y, const CornerRow<A>& upper,
                                        const CornerRow<A>& lower, const BlockTaps<A>& taps,
                                        CornerSums<A>& to_upper, CornerSums<A>& to_lower) {
#pragma unroll 1
  for (int x = at.first; x < at.last; x += call.lanes_per_gap) {
    // 1. Resize across.
    const A right = weight_at(taps.column_weight, taps.first_x, x, call.in_width, call.width);
    A above[kClasses], below[kClasses], to_above[kClasses] = {}, to_below[kClasses] = {};
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      above[j] = lerp<A>(upper.left[j], upper.right[j], right);
      below[j] = lerp<A>(lower.left[j], lower.right[j], right);
    }
#pragma unroll 1
    for (int batch = first_y; batch < end_y; batch += kBatch) {
      // 2. Read a batch of pixels of the column.
      A log_normalizer[kBatch];
      int own[kBatch];  // class of the pixel, counted from k0
      const int64_t pixel = (int64_t{at.n} * call.height + batch) * call.width + x;
      const int64_t label_row = call.labels.offset(at.n, batch, 0);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t down = min(i, end_y - 1 - batch);
        log_normalizer[i] = call.pixels.log_normalizer[pixel + down * call.width];
        own[i] = label_at<Label>(call.labels, label_row + down * call.labels.stride[1], x) - at.k0;
      }
      // 3. Add their gradients to the rows of cells above and below.
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int y = batch + i;
        if (y >= end_y || log_normalizer[i] == A(__builtin_inf())) continue;
        const A down = weight_at(taps.row_weight, taps.first_y[0], y, call.in_height, call.height);
        A gradient[kClasses];
#pragma unroll
        for (int j = 0; j < kClasses; ++j)
          gradient[j] = exp_of_negative(lerp<A>(above[j], below[j], down) - log_normalizer[i]);
        subtract_weight(call, at, own[i], pixel + int64_t{i} * call.width, gradient);
#pragma unroll
        for (int j = 0; j < kClasses; ++j) {
          to_above[j] += (A(1) - down) * gradient[j];
          to_below[j] += down * gradient[j];
        }
      }
    }
    // 4. Share the sums out to the cells on the left and on the right.
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      to_upper.left[j] += (A(1) - right) * to_above[j];
      to_upper.right[j] += right * to_above[j];
      to_lower.left[j] += (A(1) - right) * to_below[j];
      to_lower.right[j] += right * to_below[j];
    }
  }
}

// What is still to be added up between warps: of each row of cells, the right side of each warp's
// last gap, and the left side of its first.
template <typename A>
struct WarpEdges {
  A right_of_last[kMaxCellRows][kWarps][kClasses];
  A left_of_first[kMaxCellRows][kWarps][kClasses];
};

template <typename T, typename A = accumulate_t<T>>
__device__ void write_cell(const GatherCall<T>& call, const GapColumn& at, int j, int y, int x,
                           A gradient) {
  if (at.k0 + j < call.classes && x < call.in_width)
    *call.grad.at(at.n, at.k0 + j, y, x) = static_cast<T>(gradient);
}

// Add up a row of cells that is complete, and write it. `sums` has both sides of each gap.
template <typename T, typename A = accumulate_t<T>>
__device__ void finish_cell_row(const GatherCall<T>& call, const GapColumn& at, int y,
                                CornerSums<A> sums, A scale, WarpEdges<A>& edges) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, lanes = call.lanes_per_gap;
#pragma unroll
  for (int j = 0; j < kClasses; ++j) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      sums.left[j] += __shfl_down_sync(~0u, sums.left[j], distance);
      sums.right[j] += __shfl_down_sync(~0u, sums.right[j], distance);
    }
    const A from_left_gap = __shfl_sync(~0u, sums.right[j], lane < lanes ? 0 : lane - lanes);
    if (lane == 0) edges.left_of_first[y - at.top][warp][j] = sums.left[j];
    if (lane == kWarp - lanes) edges.right_of_last[y - at.top][warp][j] = sums.right[j];
    if (lane >= lanes && lane % lanes == 0)
      write_cell(call, at, j, y, at.gap, scale * (from_left_gap + sums.left[j]));
  }
}

// One block per cell block and group of kClasses classes.
template <typename T, typename Label>
__global__ void __launch_bounds__(kThreads, sizeof(accumulate_t<T>) == 4 ? 3 : 2)
    gather_gradients(GatherCall<T> call) {
  using A = accumulate_t<T>;
  __shared__ BlockTaps<A> taps;
  __shared__ WarpEdges<A> edges;

  // 1. Find this thread's gap, and the taps of the block's pixels.
  const GapColumn at = locate_gap(call);
  const int gaps = blockDim.x / call.lanes_per_gap;
  const int first_gap = at.gap - static_cast<int>(threadIdx.x) / call.lanes_per_gap;
  const int first_row = max(at.top - 1, 0);  // its pixels count for the cells below only
  compute_taps(call, at, first_row, first_gap, gaps, taps);

  // 2. Go down the gaps between the rows of cells.
  CornerRow<A> upper = load_corners(call, at, first_row);
  CornerSums<A> to_lower;
#pragma unroll 1
  for (int row = first_row; row < at.bottom; ++row) {
    const CornerRow<A> lower = load_corners(call, at, min(row + 1, call.in_height - 1));
    CornerSums<A> to_upper = to_lower;
    to_lower = {};
    add_gap<Label>(call, at, taps.first_y[row - first_row], taps.first_y[row + 1 - first_row],
                   upper, lower, taps, to_upper, to_lower);
    // The gaps above and below this row of cells are done.
    if (row >= at.top) finish_cell_row(call, at, row, to_upper, taps.scale, edges);
    upper = lower;
  }

  // 3. Write the cells between two warps.
  __syncthreads();
  const int rows = at.bottom - at.top, warps = blockDim.x / kWarp;
  for (int i = threadIdx.x; i < rows * warps * kClasses; i += blockDim.x) {
    const int j = i % kClasses, warp = i / kClasses % warps, row = i / kClasses / warps;
    if (warp == 0 && first_gap > 0) continue;  // the block to the left owns this cell
    A gradient = edges.left_of_first[row][warp][j];
    if (warp > 0) gradient += edges.right_of_last[row][warp - 1][j];
    write_cell(call, at, j, at.top + row, first_gap + warp * (kWarp / call.lanes_per_gap),
               taps.scale * gradient);
  }
}

}  // namespace blpseg::device
