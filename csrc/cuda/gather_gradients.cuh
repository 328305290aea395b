// The losses' backward pass on CUDA: the pixels' gradients, gathered into the logits' cells. It is
// the adjoint of the bilinear resizing in loss_pixels.cuh.
//
// A gap is the space between two neighboring cells of a row, or of a column; a pixel lies in one
// gap of its row and one of its column (the last gap of an axis has one cell only). A block owns a
// rectangle of cells for kGroup classes. A thread takes one column of pixels and goes down the
// gaps: it adds each gradient to the row of cells above and to the row below. Where a row of cells
// is complete, the threads hand their sums over in shared memory, and each cell adds the columns of
// its left and its right gap. Every cell has one owner, who adds in one fixed order: no atomics,
// the same bits each time.
#pragma once

#include "bilinear.h"
#include "loss_call.cuh"

namespace blpseg::device {

constexpr int kMaxCellRows = 8;      // per block
constexpr int kGatherThreads = 160;  // per block, at most
constexpr int kCachedRows = 128;     // of pixels, whose weights a block keeps in shared memory

template <typename A>
constexpr int kPack = 16 / sizeof(A);  // numbers that a thread stores at once
template <typename A>
constexpr int kGroup = 2 * kPack<A>;  // classes per thread: pixels are read once for all of them

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
  int cell_rows, cell_columns;  // per block; cell_rows <= kMaxCellRows
};

// The cells and classes of a block.
struct CellBlock {
  int n, k0;        // image, first class
  int top, bottom;  // rows of cells
  int left, cells;  // columns of cells: the first, and how many
};

// What the threads of a block share.
template <typename A>
struct GatherShared {
  struct alignas(16) Pack {
    A values[kPack<A>];
  };

  CellBlock at;                        // here, since registers are few
  int begin, end;                      // columns of pixels of all gaps across
  A scale;                             // of the gradients: LossGradScales
  int first_y[kMaxCellRows + 2];       // first row of pixels of each gap down, and the last's end
  int first_x[kGatherThreads + 2];     // first column of each gap across, and the last's end;
                                       // counted from the block's first thread
  A row_weight[kCachedRows];           // of the lower tap, in the rows of pixels being visited
  A right_weight[kGatherThreads];      // of the right tap, in each thread's column
  Pack columns[2][2][kGatherThreads];  // what is handed over: [rows of cells in turns][pack][x]
  A before[kMaxCellRows][kGroup<A>];   // sums of a cell so far, if its gaps take several passes
};

template <typename T>
__device__ CellBlock locate_cells(const GatherCall<T>& call) {
  const auto groups = static_cast<unsigned>(divide_up(call.classes, kGroup<accumulate_t<T>>));
  const auto across = static_cast<unsigned>(divide_up(call.in_width, call.cell_columns));
  const auto down = static_cast<unsigned>(divide_up(call.in_height, call.cell_rows));
  CellBlock at;
  at.n = blockIdx.x / groups / across / down;
  at.k0 = static_cast<int>(blockIdx.x % groups) * kGroup<accumulate_t<T>>;
  at.top = static_cast<int>(blockIdx.x / groups / across % down) * call.cell_rows;
  at.bottom = min(at.top + call.cell_rows, call.in_height);
  at.left = static_cast<int>(blockIdx.x / groups % across) * call.cell_columns;
  at.cells = min(call.cell_columns, call.in_width - at.left);
  return at;
}

// A thread's column of pixels.
template <typename T>
struct ThreadColumn {
  using A = accumulate_t<T>;

  int x;
  A right_weight;
  const T *left_logits, *right_logits;  // of class k0, in row 0 of the cells on both sides
};

template <typename T, typename A = accumulate_t<T>>
__device__ ThreadColumn<T> thread_column(const GatherCall<T>& call, const CellBlock& at, int x) {
  ThreadColumn<T> column;
  column.x = min(x, call.width - 1);  // nothing past the last column is added to a cell
  const Tap<A> across = tap<A>(column.x, call.in_width, call.width);
  column.right_weight = across.weight;
  column.left_logits = call.logits.at(at.n, at.k0, 0, across.low);
  column.right_logits = call.logits.at(at.n, at.k0, 0, across.high);
  return column;
}

// Resize a row of cells across, at a thread's column. Past the last class: 0.
template <typename T, typename A = accumulate_t<T>>
__device__ __forceinline__ void resize_across(const GatherCall<T>& call, const CellBlock& at,
                                              const ThreadColumn<T>& column, int row,
                                              A (&logits)[kGroup<A>]) {
  const T* left = column.left_logits + row * call.logits.stride[2];
  const T* right = column.right_logits + row * call.logits.stride[2];
  A at_left[kGroup<A>], at_right[kGroup<A>];
#pragma unroll
  for (int j = 0; j < kGroup<A>; ++j) {
    at_left[j] = at_right[j] = A(0);
    if (at.k0 + j < call.classes)
      at_left[j] = static_cast<A>(*left), at_right[j] = static_cast<A>(*right);
    left += call.logits.stride[1];
    right += call.logits.stride[1];
  }
#pragma unroll
  for (int j = 0; j < kGroup<A>; ++j)
    logits[j] = lerp<A>(at_left[j], at_right[j], column.right_weight);
}

// Return the label at an offset. Label is uint8_t, the usual type, or void: any.
template <typename Label>
BLPSEG_INLINE int label_at(const LabelMap& labels, int64_t offset) {
  if constexpr (std::is_same_v<Label, uint8_t>)
    return static_cast<const uint8_t*>(labels.data)[offset];
  else
    return static_cast<int>(labels.at(offset));
}

// A thread's pixel in some row, and where it was read.
template <typename Label, typename A>
struct PixelReader {
  const A* log_normalizers;
  int64_t label_offset;
  A log_normalizer;
  int label;

  template <typename T>
  BLPSEG_INLINE void read(const GatherCall<T>& call) {
    log_normalizer = *log_normalizers;
    label = label_at<Label>(call.labels, label_offset);
  }

  template <typename T>
  BLPSEG_INLINE void go_down(const GatherCall<T>& call) {
    log_normalizers += call.width;
    label_offset += call.labels.stride[1];
  }
};

// Subtract the weight of a pixel from the gradient of its class, `own` counted from k0.
template <typename T, typename A = accumulate_t<T>>
BLPSEG_INLINE void subtract_weight(const GatherCall<T>& call, const CellBlock& at,
                                   const ThreadColumn<T>& column, int y, int own,
                                   A (&gradient)[kGroup<A>]) {
  if (own < 0 || own >= kGroup<A>) return;
  A weight = own + at.k0 == call.unlabeled ? call.unlabeled_weight : A(1);
  if (call.pixels.weight)
    weight = call.pixels.weight[(int64_t{at.n} * call.height + y) * call.width + column.x];
#pragma unroll
  for (int j = 0; j < kGroup<A>; ++j) gradient[j] -= own == j ? weight : A(0);
}

// Return where the band of kCachedRows rows of pixels ends that row y lies in.
BLPSEG_INLINE int band_end(int y) { return (y / kCachedRows + 1) * kCachedRows; }

// Fill in the weights of the rows of pixels from `first` to its band's end, at most up to `end`.
template <typename T, typename A = accumulate_t<T>>
__device__ void compute_row_weights(const GatherCall<T>& call, int first, int end,
                                    GatherShared<A>& shared) {
#pragma unroll 1
  for (int y = first + threadIdx.x; y < min(band_end(first), end); y += blockDim.x)
    shared.row_weight[y % kCachedRows] = tap<A>(y, call.in_height, call.height).weight;
}

// The same while threads still read the weights of the band before. All threads call it.
template <typename T, typename A = accumulate_t<T>>
BLPSEG_INLINE void refill_row_weights(const GatherCall<T>& call, int first, int end,
                                      GatherShared<A>& shared) {
  __syncthreads();
  compute_row_weights(call, first, end, shared);
  __syncthreads();
}

// Add the gradients of a thread's pixels in the rows of pixels of one gap down; `next` has read the
// first. `above` and `below` are the logits of the rows of cells around, resized across as in
// forward, so that a logit has the same bits in both passes.
template <typename Label, typename T, typename A = accumulate_t<T>>
__device__ __forceinline__ void add_gap(const GatherCall<T>& call, const CellBlock& at,
                                        const ThreadColumn<T>& column, int first_y, int end_y,
                                        int last_y, const A (&above)[kGroup<A>],
                                        const A (&below)[kGroup<A>], PixelReader<Label, A>& next,
                                        GatherShared<A>& shared, A (&to_above)[kGroup<A>],
                                        A (&to_below)[kGroup<A>]) {
#pragma unroll 1
  for (int y = first_y; y < end_y;) {
    if (y % kCachedRows == 0) refill_row_weights(call, y, last_y, shared);
    const int stop = min(end_y, band_end(y));
#pragma unroll 1
    for (; y < stop; ++y) {
      // 1. Read the pixel that comes next, before the one at hand is used.
      const A log_normalizer = next.log_normalizer;
      const int own = next.label - at.k0;
      if (y + 1 < last_y) next.go_down(call);
      next.read(call);
      // 2. Add the gradients of the one at hand to the rows of cells above and below.
      if (log_normalizer == A(__builtin_inf())) continue;
      const A down = shared.row_weight[y % kCachedRows], up = A(1) - down;
      A gradient[kGroup<A>];
#pragma unroll
      for (int j = 0; j < kGroup<A>; ++j)
        gradient[j] = exp_of_negative(lerp<A>(above[j], below[j], down) - log_normalizer);
      subtract_weight(call, at, column, y, own, gradient);
#pragma unroll
      for (int j = 0; j < kGroup<A>; ++j) {
        to_above[j] += up * gradient[j];
        to_below[j] += down * gradient[j];
      }
    }
  }
}

// Add up a row of cells that is complete, and write it. `sums` is what a thread's column adds to
// it; the threads have the columns of pixels from `left` on.
template <typename T, typename A = accumulate_t<T>>
__device__ void finish_cell_row(const GatherCall<T>& call, const CellBlock& at, int row,
                                const A (&sums)[kGroup<A>], int left, GatherShared<A>& shared) {
  using Pack = typename GatherShared<A>::Pack;
  // 1. Hand the sums over. The buffer's last readers are a row of cells further back.
  Pack(&columns)[2][kGatherThreads] = shared.columns[row % 2];
#pragma unroll
  for (int pack = 0; pack < 2; ++pack) {
    Pack own;
#pragma unroll
    for (int e = 0; e < kPack<A>; ++e) own.values[e] = sums[pack * kPack<A> + e];
    columns[pack][threadIdx.x] = own;
  }
  __syncthreads();

  // 2. Add the columns of both gaps of a cell, for one pack of classes.
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * at.cells; i += blockDim.x) {
    const int pack = i >= at.cells, cell = pack ? i - at.cells : i;
    const int middle = shared.first_x[cell + 1], end = shared.first_x[cell + 2];
    Pack sum = {};
#pragma unroll 1
    for (int x = shared.first_x[cell]; x < end; ++x) {
      const Pack of_column = columns[pack][x];
      const A right = shared.right_weight[x], weight = x < middle ? right : A(1) - right;
#pragma unroll
      for (int e = 0; e < kPack<A>; ++e) sum.values[e] += weight * of_column.values[e];
    }
    // Gaps that are wider than a block's threads take several passes; such a block has one cell.
    A* before = shared.before[row - at.top] + pack * kPack<A>;
    T* grad = call.grad.at(at.n, at.k0 + pack * kPack<A>, row, at.left + cell);
#pragma unroll
    for (int e = 0; e < kPack<A>; ++e) {
      const A total = left == shared.begin ? sum.values[e] : before[e] + sum.values[e];
      if (left + static_cast<int>(blockDim.x) < shared.end)
        before[e] = total;
      else if (at.k0 + pack * kPack<A> + e < call.classes)
        grad[e * call.grad.stride[1]] = static_cast<T>(shared.scale * total);
    }
  }
}

// One block per cell block and group of kGroup classes.
template <typename T, typename Label>
__global__ void __launch_bounds__(kGatherThreads, sizeof(accumulate_t<T>) == 4 ? 4 : 2)
    gather_gradients(GatherCall<T> call) {
  using A = accumulate_t<T>;
  __shared__ GatherShared<A> shared;

  // 1. Find the block's cells and its rows of pixels.
  if (threadIdx.x == 0) {
    shared.at = locate_cells(call);
    shared.begin = first_pixel(shared.at.left - 1, call.in_width, call.width);
    shared.end = first_pixel(shared.at.left + shared.at.cells, call.in_width, call.width);
    shared.scale = call.scales.of_image(shared.at.n);
  }
  __syncthreads();
  const CellBlock& at = shared.at;
  const int first_row = max(at.top - 1, 0);  // its pixels count for the cells below only
  const int gap_rows = at.bottom - first_row, thread = threadIdx.x, threads = blockDim.x;
  if (thread <= gap_rows)
    shared.first_y[thread] = first_pixel(first_row + thread, call.in_height, call.height);

  // 2. Visit the columns of pixels, one per thread. Cells without pixels take a pass too.
#pragma unroll 1
  for (int left = shared.begin; left == shared.begin || left < shared.end; left += threads) {
    __syncthreads();
    for (int gap = thread; gap < at.cells + 2; gap += threads) {
      const int x = first_pixel(at.left - 1 + gap, call.in_width, call.width);
      shared.first_x[gap] = min(max(x - left, 0), threads);
    }
    const ThreadColumn<T> column = thread_column(call, at, left + thread);
    shared.right_weight[thread] = column.right_weight;
    const int last_y = shared.first_y[gap_rows];
    compute_row_weights(call, shared.first_y[0], last_y, shared);
    __syncthreads();

    // 3. Go down the gaps between the rows of cells.
    const int y = min(shared.first_y[0], call.height - 1);
    PixelReader<Label, A> next;
    next.log_normalizers =
        call.pixels.log_normalizer + (int64_t{at.n} * call.height + y) * call.width + column.x;
    next.label_offset = call.labels.offset(at.n, y, column.x);
    next.read(call);
    A above[kGroup<A>], below[kGroup<A>], to_below[kGroup<A>] = {};
    resize_across(call, at, column, first_row, above);
#pragma unroll 1
    for (int row = first_row; row < at.bottom; ++row) {
      resize_across(call, at, column, min(row + 1, call.in_height - 1), below);
      A to_above[kGroup<A>];
#pragma unroll
      for (int j = 0; j < kGroup<A>; ++j) to_above[j] = to_below[j], to_below[j] = A(0);
      add_gap<Label>(call, at, column, shared.first_y[row - first_row],
                     shared.first_y[row - first_row + 1], last_y, above, below, next, shared,
                     to_above, to_below);
      // The gaps above and below this row of cells are done.
      if (row >= at.top) finish_cell_row(call, at, row, to_above, left, shared);
#pragma unroll
      for (int j = 0; j < kGroup<A>; ++j) above[j] = below[j];
    }
  }
}

}  // namespace blpseg::device
