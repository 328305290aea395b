// The losses' forward pass over the pixels on CUDA: each pixel's softmax, its terms of the sums,
// its pseudo label, and what backward needs of it. The formulas are csrc/losses.h's.
//
// A block takes a pixel block of 128 columns x 4 rows, a thread one column. Threads side by side
// read logits side by side, and rows between the same two cell rows share what is read. The BLP
// loss concerns few pixels unless pseudo labels are made: the block lists these, and each thread
// takes one of the list.
#pragma once

// Targets are checked by assertions, in release builds too.
#undef NDEBUG
#include <cassert>

#include "argmax.h"
#include "bilinear.h"
#include "loss_call.cuh"

namespace blpseg::device {

constexpr int kRows = 4;   // per pixel block
constexpr int kChunk = 4;  // classes per step of a softmax

// A tap as two weights, both above 0, so that a lerp needs no test for weight 0. A pixel on a cell
// takes half of that cell twice: exactly the cell, and a neighbor that is infinite is not touched.
template <typename A>
struct TwoWeightTap {
  int low, high;
  A low_weight, high_weight;

  BLPSEG_INLINE A lerp(A at_low, A at_high) const {  // the bits are those of losses.h's lerp()
    return multiply_add(high_weight, at_high, low_weight * at_low);
  }
};

template <typename A>
__device__ TwoWeightTap<A> two_weight_tap(int64_t index, int64_t in, int64_t out) {
  const Tap<A> t = tap<A>(index, in, out);
  const auto low = static_cast<int>(t.low), high = static_cast<int>(t.high);
  if (t.weight == A(0)) return {low, low, A(0.5), A(0.5)};
  return {low, high, A(1) - t.weight, t.weight};
}

// A thread's place: one column of a pixel block.
template <typename A>
struct PixelColumn {
  int n, top, left, x;  // image; first row and column of the block; this thread's column
  TwoWeightTap<A> across;
  const TwoWeightTap<A>* down;  // [kRows], shared
};

template <typename T, typename A = accumulate_t<T>>
BLPSEG_INLINE bool is_inside(const CudaLossCall<T>& call, const PixelColumn<A>& at, int row) {
  return at.x < call.width && at.top + row >= 0 && at.top + row < call.height;
}

template <typename T, typename A = accumulate_t<T>>
BLPSEG_INLINE int64_t pixel_index(const CudaLossCall<T>& call, const PixelColumn<A>& at, int row) {
  return (int64_t{at.n} * call.height + at.top + row) * call.width + at.x;
}

// The labels of a thread's pixels, and a bit per row for what they are.
struct ColumnLabels {
  int target[kRows];    // 0..K, or kIgnored
  int label[kRows];     // the class that the BLP loss learns, or none: not 0..K-1
  unsigned counts = 0;  // target is not ignored
  unsigned unlabeled = 0;
  unsigned labeled = 0;  // label is a class
};

template <typename T, typename A = accumulate_t<T>>
__device__ PixelColumn<A> locate_column(const CudaLossCall<T>& call, TwoWeightTap<A>* down) {
  const unsigned blocks_across = (call.width + kThreads - 1) / kThreads;
  const unsigned blocks_down = (call.height - call.first_row + kRows - 1) / kRows;
  PixelColumn<A> at;
  const int thread = threadIdx.x;
  at.n = blockIdx.x / (blocks_across * blocks_down);
  at.top = call.first_row + static_cast<int>(blockIdx.x / blocks_across % blocks_down) * kRows;
  at.left = static_cast<int>(blockIdx.x % blocks_across) * kThreads;
  at.x = at.left + thread;
  if (thread < kRows) {
    const int y = min(max(at.top + thread, 0), call.height - 1);
    down[thread] = two_weight_tap<A>(y, call.in_height, call.height);
  }
  at.across = two_weight_tap<A>(min(at.x, call.width - 1), call.in_width, call.width);
  at.down = down;
  __syncthreads();
  return at;
}

template <typename T, typename A = accumulate_t<T>>
__device__ ColumnLabels read_labels(const CudaLossCall<T>& call, const PixelColumn<A>& at) {
  const int64_t offset = call.target.offset(at.n, at.top, at.x);
  const auto* bytes = static_cast<const uint8_t*>(call.target.data) + offset;
  int64_t values[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    values[row] = call.ignore_index;
    if (!is_inside(call, at, row)) continue;
    if (call.target.bytes == 1)  // the usual type; all rows are read at once
      values[row] = bytes[row * call.target.stride[1]];
    else
      values[row] = call.target.at(offset + row * call.target.stride[1]);  // another type
  }
  ColumnLabels labels;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int64_t value = values[row];
    const bool known = static_cast<uint64_t>(value) <= static_cast<uint64_t>(call.classes);
    assert((known || value == call.ignore_index) && "target holds no class, K or ignore_index");
    const bool counts = known && is_inside(call, at, row);
    labels.target[row] = labels.label[row] = counts ? static_cast<int>(value) : kIgnored;
    labels.counts |= counts ? 1u << row : 0;
    labels.unlabeled |= counts && value == call.classes ? 1u << row : 0;
  }
  labels.labeled = labels.counts & ~labels.unlabeled;
  return labels;
}

// Call begin(k) for each chunk of kChunk classes k, k + 1, ..., and then visit(row, logits) with
// the chunk's logits for each of the rows first..last - 1, which lie between the same two cell
// rows. Classes beyond the last have logits of -inf.
template <int rows, typename T, typename A, typename Begin, typename Visit>
BLPSEG_INLINE void visit_classes(const View4<T>& logits, int n, const TwoWeightTap<A>& across,
                                 const TwoWeightTap<A>* down, int first, int last,
                                 const Begin& begin, const Visit& visit) {
  A low_weight[rows], high_weight[rows];
#pragma unroll
  for (int row = 0; row < rows; ++row)
    low_weight[row] = down[row].low_weight, high_weight[row] = down[row].high_weight;
  const T* upper = logits.at(n, 0, down[first].low);
  const T* lower = logits.at(n, 0, down[first].high);
  const int64_t left = across.low * logits.stride[3], right = across.high * logits.stride[3];
  const auto classes = static_cast<int>(logits.size[1]);
  for (int k = 0; k < classes; k += kChunk) {
    begin(k);
    A at_upper[kChunk], at_lower[kChunk];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      at_upper[j] = at_lower[j] = -A(__builtin_inf());
      if (k + j < classes) {
        at_upper[j] = across.lerp(static_cast<A>(upper[left]), static_cast<A>(upper[right]));
        at_lower[j] = across.lerp(static_cast<A>(lower[left]), static_cast<A>(lower[right]));
      }
      upper += logits.stride[1];
      lower += logits.stride[1];
    }
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      if (row < first || row >= last) continue;
      A between[kChunk];
#pragma unroll
      for (int j = 0; j < kChunk; ++j)
        between[j] = multiply_add(high_weight[row], at_lower[j], low_weight[row] * at_upper[j]);
      visit(row, between);
    }
  }
}

// The same for all rows of a thread's column.
template <typename T, typename A, typename Begin, typename Visit>
BLPSEG_INLINE void visit_column(const View4<T>& logits, const PixelColumn<A>& at,
                                const Begin& begin, const Visit& visit) {
  for (int first = 0; first < kRows;) {
    int last = first + 1;
    while (last < kRows && at.down[last].low == at.down[first].low &&
           at.down[last].high == at.down[first].high)
      ++last;
    visit_classes<kRows>(logits, at.n, at.across, at.down, first, last, begin, visit);
    first = last;
  }
}

// Add a chunk of logits to a softmax: one exponential per logit, and one that rescales the sum.
template <typename A>
BLPSEG_INLINE void add(Softmax<A>& softmax, const A (&logits)[kChunk]) {
  A maximum = softmax.maximum;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) maximum = max(maximum, logits[j]);  // NaN stays in the sum
  A sum = softmax.sum * exp_of_negative(softmax.maximum - maximum);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) sum += exp_of_negative(logits[j] - maximum);
  softmax = {maximum, sum};
}

// Return the logit of class k at one pixel, with the bits that visit_classes() makes.
template <typename T, typename A = accumulate_t<T>>
__device__ A logit_at(const View4<T>& logits, int n, const TwoWeightTap<A>& down,
                      const TwoWeightTap<A>& across, int k) {
  const T* upper = logits.at(n, k, down.low);
  const T* lower = logits.at(n, k, down.high);
  const int64_t left = across.low * logits.stride[3], right = across.high * logits.stride[3];
  return down.lerp(across.lerp(static_cast<A>(upper[left]), static_cast<A>(upper[right])),
                   across.lerp(static_cast<A>(lower[left]), static_cast<A>(lower[right])));
}

// Return the softmax of one pixel alone.
template <typename T, typename A = accumulate_t<T>>
__device__ Softmax<A> softmax_at(const View4<T>& logits, int n, const TwoWeightTap<A>& down,
                                 const TwoWeightTap<A>& across) {
  Softmax<A> softmax = no_classes<A>();
  visit_classes<1>(
      logits, n, across, &down, 0, 1, [](int) {},
      [&](int, const A(&chunk)[kChunk]) { add(softmax, chunk); });
  return softmax;
}

// Make the pseudo labels of a column and write them. Return each pixel's softmax over seg.
template <typename T, typename A = accumulate_t<T>>
__device__ void make_pseudo_labels(const CudaLossCall<T>& call, const PixelColumn<A>& at,
                                   ColumnLabels& labels, Softmax<A> (&p)[kRows]) {
  const bool* present = call.present + at.n * call.classes;
  A best[kRows];
  int winner[kRows];
  unsigned chunk_present = 0;
  int chunk = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    p[row] = no_classes<A>();
    best[row] = -A(__builtin_inf()), winner[row] = 0;
  }
  const auto begin = [&](int k) {
    chunk = k, chunk_present = 0;
#pragma unroll
    for (int j = 0; j < kChunk; ++j)
      if (k + j < call.classes) chunk_present |= static_cast<unsigned>(present[k + j]) << j;
  };
  // The BLP loss, if it is asked for, needs p at scribbled pixels too.
  if (call.wants_blp ? labels.counts : labels.unlabeled)
    visit_column(call.seg, at, begin, [&](int row, const A(&logits)[kChunk]) {
      add(p[row], logits);
#pragma unroll
      for (int j = 0; j < kChunk; ++j)
        if (chunk_present >> j & 1 && beats(logits[j], best[row]))
          best[row] = logits[j], winner[row] = chunk + j;
    });
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (labels.unlabeled >> row & 1) {
      const A probability = device::probability<A>(p[row], best[row]);
      const int sure = probability > A(0) ? winner[row] : 0;  // of zeros, the lowest class
      labels.label[row] = probability >= call.threshold ? sure : kIgnored;
      if (labels.label[row] != kIgnored) labels.labeled |= 1u << row;
    }
    if (!is_inside(call, at, row)) continue;
    const int64_t value = labels.label[row] == kIgnored ? call.ignore_index : labels.label[row];
    if (call.labels8)
      call.labels8[pixel_index(call, at, row)] = static_cast<uint8_t>(value);
    else
      call.labels32[pixel_index(call, at, row)] = static_cast<int32_t>(value);
  }
}

// Add a column's terms of the annotation loss. Return q of the BLP label, if there is one; it can
// differ from the target if `makes_labels`.
template <bool makes_labels, typename T, typename A = accumulate_t<T>>
__device__ void add_annotation_terms(const CudaLossCall<T>& call, const PixelColumn<A>& at,
                                     const ColumnLabels& labels, A (*q_of_label)[kThreads],
                                     LossSums<A>& sums) {
  Softmax<A> q[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) q[row] = no_classes<A>();
  if (labels.counts)
    visit_column(
        call.annotation, at, [](int) {},
        [&](int row, const A(&logits)[kChunk]) { add(q[row], logits); });
  // Read the targets' logits of all rows at once; an ignored pixel reads class 0's.
  A logit_of_target[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row)
    logit_of_target[row] =
        logit_at(call.annotation, at.n, at.down[row], at.across, max(labels.target[row], 0));
  sums[kLabeledCount] += A(__popc(labels.counts & ~labels.unlabeled));
  sums[kUnlabeledCount] += A(__popc(labels.unlabeled));
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (!is_inside(call, at, row)) continue;
    const int64_t pixel = pixel_index(call, at, row);
    const int target = labels.target[row];
    if (target == kIgnored) {
      call.annotation_pixels.write_none(pixel);
      continue;
    }
    const A logit = logit_of_target[row];
    const bool labeled = target < call.classes;
    const A cross_entropy = -log_probability<A>(q[row], logit);
    sums[kLabeled] += labeled ? cross_entropy : A(0);
    sums[kUnlabeled] += labeled ? A(0) : cross_entropy;
    call.annotation_pixels.write(pixel, q[row], labeled ? A(0) : call.log_unlabeled_weight);
    if (labels.labeled >> row & 1) {
      A own = logit;
      if (makes_labels && labels.label[row] != target)
        own = logit_at(call.annotation, at.n, at.down[row], at.across, labels.label[row]);
      q_of_label[row][threadIdx.x] = probability<A>(q[row], own);
    }
  }
}

// Add one labeled pixel's terms of the BLP loss. p: the softmax over seg, and the label's logit.
template <typename T, typename A = accumulate_t<T>>
__device__ void add_blp_terms(const CudaLossCall<T>& call, int64_t pixel, const Softmax<A>& p,
                              A logit, A q, LossSums<A>& sums) {
  const A weight = blp_weight<A>(probability<A>(p, logit), q, call.gamma);
  sums[kBlp] -= weight * log_probability<A>(p, logit);
  sums[kBlpWeight] += weight;
  call.blp_pixels.write(pixel, p, log<A>(weight));
}

// Add the BLP terms of a column whose softmaxes are known, since pseudo labels were made. The
// operator that does this has an annotation loss, which has left q.
template <typename T, typename A = accumulate_t<T>>
__device__ void add_blp_terms_of_column(const CudaLossCall<T>& call, const PixelColumn<A>& at,
                                        const ColumnLabels& labels, const Softmax<A> (&p)[kRows],
                                        const A (*q_of_label)[kThreads], LossSums<A>& sums) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (!(labels.labeled >> row & 1)) continue;
    const A logit = logit_at(call.seg, at.n, at.down[row], at.across, labels.label[row]);
    const A q = q_of_label[row][threadIdx.x];
    add_blp_terms(call, pixel_index(call, at, row), p[row], logit, q, sums);
  }
}

// Add the BLP terms of the block's labeled pixels, which are listed first.
template <typename T, typename A = accumulate_t<T>>
__device__ void add_blp_terms_of_list(const CudaLossCall<T>& call, const PixelColumn<A>& at,
                                      const ColumnLabels& labels, const A (*q_of_label)[kThreads],
                                      LossSums<A>& sums) {
  __shared__ int listed[kThreads * kRows], label_of[kThreads * kRows], count_of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // 1. List the labeled pixels, in an order that does not depend on timing.
  unsigned lanes[kRows];
  int count = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    lanes[row] = __ballot_sync(~0u, labels.labeled >> row & 1);
    count += __popc(lanes[row]);
  }
  if (lane == 0) count_of_warp[warp] = count;
  __syncthreads();
  int place = 0, total = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    place += other < warp ? count_of_warp[other] : 0;
    total += count_of_warp[other];
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (labels.labeled >> row & 1) {
      const int own = place + __popc(lanes[row] & ((1u << lane) - 1));
      listed[own] = row * kThreads + threadIdx.x;
      label_of[own] = labels.label[row];
    }
    place += __popc(lanes[row]);
  }
  __syncthreads();

  // 2. Take one pixel of the list per thread.
  for (int i = threadIdx.x; i < total; i += kThreads) {
    const int row = listed[i] / kThreads, column = listed[i] % kThreads;
    PixelColumn<A> pixel = at;
    pixel.x = at.left + column;
    pixel.across = two_weight_tap<A>(pixel.x, call.in_width, call.width);
    const TwoWeightTap<A>&down = at.down[row], &across = pixel.across;
    A q;
    if (call.wants_annotation)
      q = q_of_label[row][column];
    else
      q = probability<A>(softmax_at(call.annotation, at.n, down, across),
                         logit_at(call.annotation, at.n, down, across, label_of[i]));
    const Softmax<A> p = softmax_at(call.seg, at.n, down, across);
    const A logit = logit_at(call.seg, at.n, down, across, label_of[i]);
    add_blp_terms(call, pixel_index(call, pixel, row), p, logit, q, sums);
  }
}

// Add up the sums of the block's threads, always in the same order.
template <typename A>
__device__ void write_block_sums(const LossSums<A>& sums, A* sums_of_block) {
  __shared__ A of_thread[kLossSums][kThreads];
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kLossSums; ++i) of_thread[i][threadIdx.x] = sums.values[i];
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x / kWarp; i < kLossSums; i += kWarps) {
    A sum = of_thread[i][lane];
#pragma unroll
    for (int other = 1; other < kWarps; ++other) sum += of_thread[i][lane + other * kWarp];
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      sum += __shfl_down_sync(~0u, sum, distance);
    if (lane == 0) sums_of_block[int64_t{blockIdx.x} * kLossSums + i] = sum;
  }
}

// One block per pixel block: writes the block's sums, its pseudo labels and what backward needs.
template <typename T, bool makes_labels>
__global__ void __launch_bounds__(kThreads, sizeof(accumulate_t<T>) == 8 ? 2
                                            : makes_labels               ? 4
                                                                         : 6)
    loss_pixels(CudaLossCall<T> call, accumulate_t<T>* sums_of_block) {
  using A = accumulate_t<T>;
  __shared__ TwoWeightTap<A> down[kRows];
  __shared__ A q_of_label[kRows][kThreads];  // if the annotation loss makes it
  LossSums<A> sums;

  // 1. Find this thread's pixels and their labels.
  const PixelColumn<A> at = locate_column(call, down);
  ColumnLabels labels = read_labels(call, at);

  // 2. Make pseudo labels, which the BLP loss then learns.
  Softmax<A> p[kRows];
  if constexpr (makes_labels) make_pseudo_labels(call, at, labels, p);

  // 3. Add the annotation loss's terms, which every pixel has that is not ignored.
  if (call.wants_annotation) add_annotation_terms<makes_labels>(call, at, labels, q_of_label, sums);

  // 4. Add the BLP loss's terms, which labeled pixels have.
  if (call.wants_blp) {
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      if (is_inside(call, at, row) && !(labels.labeled >> row & 1))
        call.blp_pixels.write_none(pixel_index(call, at, row));
    if constexpr (makes_labels)
      add_blp_terms_of_column(call, at, labels, p, q_of_label, sums);
    else
      add_blp_terms_of_list(call, at, labels, q_of_label, sums);
  }

  // 5. Add up the block.
  write_block_sums(sums, sums_of_block);
}

}  // namespace blpseg::device
