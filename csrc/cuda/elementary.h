// The elementary operations that csrc/losses.h is written in, for a device: a vector is one number.
// cpu/kernels/simd.h has the same operations for the CPU.
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
  static constexpr float kLeast = -__FLT_MAX__;  // the smallest finite number
};

template <>
struct Simd<double> {
  static constexpr double kLeast = -__DBL_MAX__;
};

template <typename A>
BLPSEG_INLINE A broadcast(A value) {
  return value;
}

// Return a * b + c, rounded once.
template <typename A>
BLPSEG_INLINE A multiply_add(A a, A b, A c) {
  return ::fma(a, b, c);
}

// Return the larger number; b if either is NaN.
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

// Return exp(x) for x <= 0 (rounding may lift x above 0 by a few ulp). In float32 this is three
// instructions: the relative error is 2^-22 + |x| 2^-24, which |x| exp(x) <= 1/e makes harmless in
// a sum of probabilities. Results below the normal numbers are 0.
template <typename A>
BLPSEG_INLINE A exp_of_negative(A x) {
  return ::exp(x);
}

#if defined(__CUDA_ARCH__)
template <>
BLPSEG_INLINE float exp_of_negative(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634f));
  return power;
}
#endif

}  // namespace blpseg::device
