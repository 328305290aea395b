// What csrc/losses.h is written in, for a device: a vector is one number. The CPU's twin is
// csrc/cpu/kernels/simd.h.
#pragma once

#define BLPSEG_CAPABILITY device
#define BLPSEG_INLINE __device__ __forceinline__

namespace blpseg::device {

template <typename A>
using Vector = A;

template <typename A>
struct Simd;

template <>
struct Simd<float> {
  static constexpr float kLeast = -__FLT_MAX__;  // of all finite numbers
};

template <>
struct Simd<double> {
  static constexpr double kLeast = -__DBL_MAX__;
};

template <typename A>
BLPSEG_INLINE A broadcast(A value) {
  return value;
}

// The larger of both; b where either is NaN.
template <typename A>
BLPSEG_INLINE A larger(A a, A b) {
  return a > b ? a : b;
}

template <typename A>
BLPSEG_INLINE A smaller(A a, A b) {
  return a < b ? a : b;
}

template <typename A>
BLPSEG_INLINE A exp(A x) {
  return ::exp(x);
}

template <typename A>
BLPSEG_INLINE A log(A x) {
  return ::log(x);
}

}  // namespace blpseg::device
