// The losses' pixels on CUDA: each one's softmaxes, and from them its terms of the sums (forward)
// or what its gradients need (backward). What comes of these is in losses.cu; a pixel's arithmetic
// is csrc/losses.h's.
//
// A block takes a tile of 128 columns and 4 rows, a thread one column of it: neighbouring threads
// read neighbouring logits, and rows between the same two low-resolution rows share what is read.
// The BLP loss concerns few pixels, far apart: each warp lists those of its part of the tile, and
// its threads take one each.
#pragma once

// Targets are checked by assertions, in release builds too.
#undef NDEBUG
#include <cassert>

#include "argmax.h"
#include "bilinear.h"
#include "losses.h"
#include "tensor.h"

namespace blpseg::device {

constexpr int kThreads = 128;
constexpr int kRows = 4;
constexpr int kWarp = 32;
constexpr int kIgnored = -1;

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A label map [N, H, W] of any integer type.
struct Labels {
  const void* data = nullptr;
  ScalarType dtype;
  int64_t stride[3];

  Labels() = default;
  explicit Labels(const Tensor& tensor)
      : data(tensor.const_data_ptr()), dtype(tensor.scalar_type()) {
    for (int axis = 0; axis < 3; ++axis) stride[axis] = tensor.stride(axis);
  }

  __device__ int64_t value(int64_t n, int64_t y, int64_t x) const {
    const int64_t at = n * stride[0] + y * stride[1] + x * stride[2];
    switch (dtype) {
      case ScalarType::Byte:
        return static_cast<const uint8_t*>(data)[at];
      case ScalarType::Short:
        return static_cast<const int16_t*>(data)[at];
      case ScalarType::Int:
        return static_cast<const int32_t*>(data)[at];
      default:
        return static_cast<const int64_t*>(data)[at];
    }
  }
};

// What the operators were called with; a pointer or view that is not used is null.
template <typename T>
struct LossCall {
  using A = accumulate_t<T>;

  View4<T> seg, annotation;  // [N, K, h, w], [N, K + 1, h, w]
  bool wants_blp, wants_annotation;
  Labels target, blp_target;
  int64_t images, classes, in_height, in_width, height, width;
  int64_t ignore_index;
  A gamma;
  bool checks_target;

  // Pseudo labels, where they are asked for.
  const bool* present = nullptr;  // [N, K], contiguous
  A threshold = 0;
  uint8_t* labels8 = nullptr;  // [N, H, W], one of the two
  int32_t* labels32 = nullptr;

  __device__ bool makes_labels() const { return present != nullptr; }
};

// What a tile adds to the sums.
constexpr int kSums = 6;
enum Sum { kBlp, kBlpWeight, kLabelled, kUnlabelled, kLabelledCount, kUnlabelledCount };

// How much pixels add to the gradients: upstream gradient over the normaliser.
template <typename A>
struct Shares {
  A blp;  // times the pixel's weight
  A labelled, unlabelled;
};

// What the gradients of a pixel are made of: share * (exp(logit - maximum) / sum - [k is its
// class]). A pixel without gradients has share 0.
template <typename A>
struct PixelGradients {  // [N, H, W] each
  A* maximum;
  A* share_over_sum;
  A* share;

  __device__ void write(int64_t pixel, const Softmax<A>& softmax, A factor) const {
    maximum[pixel] = softmax.maximum;
    share_over_sum[pixel] = factor == A(0) ? A(0) : factor / softmax.sum;
    share[pixel] = factor;
  }
};

// A softmax and the logit of one class.
template <typename A>
struct Picked {
  Softmax<A> softmax = no_classes<A>();
  A logit = 0;

  __device__ A log_probability() const { return device::log_probability<A>(softmax, logit); }
  __device__ A probability() const { return device::probability<A>(softmax, logit); }
};

// Calls visit(k, row, logit) for each class and each of the tile's rows in column x that `rows`
// names by its bits.
template <typename T, typename Visit>
__device__ __forceinline__ void for_each_logit(const View4<T>& logits, const LossCall<T>& call,
                                               int64_t n, int64_t top, int64_t x, unsigned rows,
                                               const Visit& visit) {
  using A = accumulate_t<T>;
  if (!rows) return;
  const Tap<A> across = tap<A>(x, call.in_width, call.width);
  const int64_t left = across.low * logits.stride[3], right = across.high * logits.stride[3];
  int64_t low[kRows], high[kRows];
  A weight[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const Tap<A> down = tap<A>(top + row, call.in_height, call.height);
    low[row] = down.low, high[row] = down.high, weight[row] = down.weight;
  }
  for (int first = 0; first < kRows;) {
    int last = first + 1;  // rows first to last - 1 lie between the same two
    int64_t above_row = 0, below_row = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row == first) above_row = low[row], below_row = high[row];
      if (row == last && low[row] == above_row) ++last;
    }
    const unsigned run = rows & ((1u << last) - (1u << first));
    const T* upper = logits.data + n * logits.stride[0] + above_row * logits.stride[2];
    const T* lower = upper + (below_row - above_row) * logits.stride[2];
    for (int k = 0; run && k < logits.size[1]; ++k) {
      const A above =
          blend(static_cast<A>(upper[left]), static_cast<A>(upper[right]), across.weight);
      const A below =
          blend(static_cast<A>(lower[left]), static_cast<A>(lower[right]), across.weight);
#pragma unroll
      for (int row = 0; row < kRows; ++row)
        if (run >> row & 1) visit(k, row, blend(above, below, weight[row]));
      upper += logits.stride[1];
      lower += logits.stride[1];
    }
    first = last;
  }
}

// The softmax of one pixel alone, with the logit of a class.
template <typename T>
__device__ Picked<accumulate_t<T>> pick(const View4<T>& logits, const LossCall<T>& call, int64_t n,
                                        int64_t y, int64_t x, int label) {
  Picked<accumulate_t<T>> picked;
  for_each_logit(logits, call, n, y, x, 1u, [&](int k, int, accumulate_t<T> logit) {
    add(picked.softmax, logit);
    if (k == label) picked.logit = logit;
  });
  return picked;
}

// One block a tile. Forward writes the tile's sums; backward what the gradients are made of, of
// either logits whose loss is asked for.
template <typename T, bool backward>
__global__ void __launch_bounds__(kThreads)
    loss_pixels(LossCall<T> call, const Shares<accumulate_t<T>>* shares_of_image,
                accumulate_t<T>* sums_of_tile, PixelGradients<accumulate_t<T>> to_seg,
                PixelGradients<accumulate_t<T>> to_annotation) {
  using A = accumulate_t<T>;
  const auto across = static_cast<unsigned>(divide_up(call.width, kThreads));
  const auto down = static_cast<unsigned>(divide_up(call.height, kRows));
  const int64_t n = blockIdx.x / (across * down);
  const int64_t top = int64_t{blockIdx.x / across % down} * kRows;
  const int64_t x = int64_t{blockIdx.x % across} * kThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  int target[kRows], label[kRows];
  unsigned counts = 0, unlabelled = 0, labelled = 0;  // a bit a row
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int64_t y = top + row;
    target[row] = label[row] = kIgnored;
    if (x >= call.width || y >= call.height) continue;
    const int64_t value = call.target.value(n, y, x);
    const bool known = value >= 0 && value <= call.classes;
    if (call.checks_target)
      assert((known || value == call.ignore_index) && "target holds no class, K or ignore_index");
    if (known) {
      target[row] = label[row] = static_cast<int>(value);
      counts |= 1u << row;
      if (value == call.classes) unlabelled |= 1u << row;
    }
    if (call.blp_target.data) {
      const int64_t other = call.blp_target.value(n, y, x);
      label[row] = other >= 0 && other < call.classes ? static_cast<int>(other) : kIgnored;
    }
  }

  Picked<A> p[kRows];
  if (call.makes_labels()) {
    // The BLP loss, if it is asked for, needs p at scribbled pixels too.
    const unsigned rows = call.wants_blp ? counts : unlabelled;
    A best[kRows];
    int winner[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) best[row] = -__builtin_inff(), winner[row] = 0;
    const bool* present = call.present + n * call.classes;
    for_each_logit(call.seg, call, n, top, x, rows, [&](int k, int row, A logit) {
      add(p[row].softmax, logit);
      if (k == target[row]) p[row].logit = logit;
      if (present[k] && displaces(logit, best[row])) best[row] = logit, winner[row] = k;
    });
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (unlabelled >> row & 1) {
        p[row].logit = best[row];
        const A probability = p[row].probability();
        const int sure = probability > A(0) ? winner[row] : 0;  // of zeros, the lowest class
        label[row] = probability >= call.threshold ? sure : kIgnored;
      }
      if (x < call.width && top + row < call.height) {
        const int64_t pixel = (n * call.height + top + row) * call.width + x;
        const int64_t value = label[row] == kIgnored ? call.ignore_index : label[row];
        if (call.labels8)
          call.labels8[pixel] = static_cast<uint8_t>(value);
        else
          call.labels32[pixel] = static_cast<int32_t>(value);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row)
    if (label[row] >= 0 && label[row] < call.classes) labelled |= 1u << row;

  A sums[kSums] = {};
  __shared__ A q_of_pixel[kThreads * kRows];  // where the annotation loss has it made
  if (call.wants_annotation) {
    Picked<A> q[kRows];
    A own[kRows];  // logit of the BLP loss's label
    for_each_logit(call.annotation, call, n, top, x, counts, [&](int k, int row, A logit) {
      add(q[row].softmax, logit);
      if (k == target[row]) q[row].logit = logit;
      if (k == label[row]) own[row] = logit;
    });
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int64_t pixel = (n * call.height + top + row) * call.width + x;
      if (backward) {
        const Shares<A>& shares = shares_of_image[n];
        const A share = unlabelled >> row & 1 ? shares.unlabelled : shares.labelled;
        if (x < call.width && top + row < call.height)
          to_annotation.write(pixel, q[row].softmax, counts >> row & 1 ? share : A(0));
      } else if (counts >> row & 1) {
        const bool named = !(unlabelled >> row & 1);
        const A entropy = -q[row].log_probability();
        sums[kLabelled] += named ? entropy : A(0);
        sums[kUnlabelled] += named ? A(0) : entropy;
        sums[kLabelledCount] += named ? A(1) : A(0);
        sums[kUnlabelledCount] += named ? A(0) : A(1);
      }
      if (labelled >> row & 1)
        q_of_pixel[row * kThreads + threadIdx.x] = probability<A>(q[row].softmax, own[row]);
    }
  }

  if (call.wants_blp) {
    // A labelled pixel's part in the loss, once p and q are known.
    const auto use = [&](int64_t y, int64_t column, const Picked<A>& of_class, A q) {
      const A weight = blp_weight<A>(of_class.probability(), q, call.gamma);
      if (backward) {
        const int64_t pixel = (n * call.height + y) * call.width + column;
        to_seg.write(pixel, of_class.softmax, weight * shares_of_image[n].blp);
      } else {
        sums[kBlp] -= weight * of_class.log_probability();
        sums[kBlpWeight] += weight;
      }
    };
    if (call.makes_labels()) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (!(labelled >> row & 1)) continue;
        const A q = call.wants_annotation
                        ? q_of_pixel[row * kThreads + threadIdx.x]
                        : pick(call.annotation, call, n, top + row, x, label[row]).probability();
        use(top + row, x, p[row], q);
      }
    } else {
      __shared__ int listed[kThreads / kWarp][kWarp * kRows],
          label_of[kThreads / kWarp][kWarp * kRows];
      int count = 0;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const unsigned lanes = __ballot_sync(~0u, labelled >> row & 1);
        if (labelled >> row & 1) {
          const int place = count + __popc(lanes & ((1u << lane) - 1));
          listed[warp][place] = row * kThreads + threadIdx.x;
          label_of[warp][place] = label[row];
        }
        count += __popc(lanes);
        if (backward && x < call.width && top + row < call.height && !(labelled >> row & 1))
          to_seg.write((n * call.height + top + row) * call.width + x, no_classes<A>(), A(0));
      }
      __syncwarp();
      for (int i = lane; i < count; i += kWarp) {
        const int place = listed[warp][i], own = label_of[warp][i];
        const int64_t y = top + place / kThreads;
        const int64_t column = int64_t{blockIdx.x % across} * kThreads + place % kThreads;
        const A q = call.wants_annotation
                        ? q_of_pixel[place]
                        : pick(call.annotation, call, n, y, column, own).probability();
        use(y, column, pick(call.seg, call, n, y, column, own), q);
      }
    }
  }

  if constexpr (!backward) {
    // Sums of the tile, always in the same order.
    __shared__ A sums_of_warp[kThreads / kWarp][kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      for (int distance = kWarp / 2; distance > 0; distance /= 2)
        sums[i] += __shfl_down_sync(~0u, sums[i], distance);
      if (lane == 0) sums_of_warp[warp][i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x < kSums) {
      A sum = 0;
      for (int other = 0; other < kThreads / kWarp; ++other)
        sum += sums_of_warp[other][threadIdx.x];
      sums_of_tile[static_cast<int64_t>(blockIdx.x) * kSums + threadIdx.x] = sum;
    }
  }
}

}  // namespace blpseg::device
