// What the loss kernels are called with on CUDA, and what forward keeps per pixel for backward.
#pragma once

#include "losses.h"
#include "tensor.h"

namespace blpseg::device {

constexpr int kThreads = 128;  // per block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kIgnored = -1;

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A label map [N, H, W] of any integer type.
struct LabelMap {
  const void* data = nullptr;
  int bytes = 0;  // per label
  int64_t stride[3] = {};

  LabelMap() = default;
  explicit LabelMap(const Tensor& tensor) : data(tensor.const_data_ptr()) {
    switch (tensor.scalar_type()) {
      case ScalarType::Byte:
        bytes = 1;
        break;
      case ScalarType::Short:
        bytes = 2;
        break;
      case ScalarType::Int:
        bytes = 4;
        break;
      default:
        bytes = 8;
    }
    for (int axis = 0; axis < 3; ++axis) stride[axis] = tensor.stride(axis);
  }

  __device__ int64_t offset(int64_t n, int64_t y, int64_t x) const {
    return n * stride[0] + y * stride[1] + x * stride[2];
  }

  // Return the label at an offset from `data`, in labels.
  __device__ __forceinline__ int64_t at(int64_t offset) const {
    if (bytes == 1) return static_cast<const uint8_t*>(data)[offset];
    if (bytes == 2) return static_cast<const int16_t*>(data)[offset];
    if (bytes == 4) return static_cast<const int32_t*>(data)[offset];
    return static_cast<const int64_t*>(data)[offset];
  }
};

// What backward needs per pixel, [N, H, W] each. The gradient of class k at a pixel is
//   exp(logit_k - log_normalizer) - weight * [k is the pixel's class],
// times a factor per image (LossGradScales). log_normalizer = log(sum_k exp(logit_k)) -
// log(weight); it is infinite at a pixel without gradient.
template <typename A>
struct SavedPixels {
  A* log_normalizer = nullptr;
  A* weight = nullptr;  // null for the annotation loss, whose weight follows from the label

  __device__ void write(int64_t pixel, const Softmax<A>& softmax, A log_weight) const {
    const A rounded = softmax.maximum + (log<A>(softmax.sum) - log_weight);
    log_normalizer[pixel] = rounded;
    // sum_k exp(logit_k - rounded): the gradients of a pixel then add up to 0, and the rounding of
    // log_normalizer changes them by a factor near 1, even if p of the pixel's class is near 1.
    if (weight) weight[pixel] = softmax.sum * exp_of_negative(softmax.maximum - rounded);
  }

  __device__ void write_none(int64_t pixel) const {
    log_normalizer[pixel] = A(__builtin_inf());
    if (weight) weight[pixel] = A(0);
  }
};

// What an operator's forward was called with; pointers and views that it does not use are null.
template <typename T>
struct CudaLossCall {
  using A = accumulate_t<T>;

  View4<T> seg, annotation;  // [N, K, h, w], [N, K + 1, h, w]
  bool wants_blp, wants_annotation;
  LabelMap target;
  int classes, in_height, in_width, height, width;
  int first_row;  // of the first pixel block, <= 0
  int64_t ignore_index;
  A gamma;
  A log_unlabeled_weight;
  SavedPixels<A> blp_pixels, annotation_pixels;

  // Pseudo labels, if they are asked for.
  const bool* present = nullptr;  // [N, K], contiguous
  A threshold = 0;
  uint8_t* labels8 = nullptr;  // [N, H, W]; one of the two is null
  int32_t* labels32 = nullptr;
};

// The sums that the losses are made of, over a pixel block, an image or the batch.
enum LossSum {
  kBlp,        // weighted cross entropy
  kBlpWeight,  // BLP weights
  kLabeled,    // cross entropy of the annotation loss, at labeled and at unlabeled pixels
  kUnlabeled,
  kLabeledCount,  // pixels
  kUnlabeledCount,
  kLossSums
};

template <typename A>
struct LossSums {
  A values[kLossSums] = {};

  __device__ A& operator[](int i) { return values[i]; }
};

}  // namespace blpseg::device
