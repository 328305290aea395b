// The formulas of one pixel, shared by the CPU and CUDA kernels: resized logits, the softmax over
// classes, the cross entropy, the BLP weight.
//
// All of them work on Vector<A>: many pixels on the CPU (cpu/kernels/simd.h), one pixel on a device
// (cuda/elementary.h).
#pragma once

#if defined(__CUDACC__) || defined(BLPSEG_CUDA_ON_HOST)
#include "cuda/elementary.h"
#else
#include "cpu/kernels/simd.h"
#endif

namespace blpseg::BLPSEG_CAPABILITY {

// Return (1 - weight) * low + weight * high. `weight` is one number, or one per lane.
//
// The fused multiply-add is explicit, so that every kernel rounds a resized logit to the same bits.
// (Portable x86 code has no such instruction and rounds twice.) Weight 0 returns `low` itself: an
// infinite neighbor, times 0, would make it NaN.
template <typename A, typename W>
BLPSEG_INLINE Vector<A> lerp(Vector<A> low, Vector<A> high, W weight) {
  const Vector<A> weights = weight - Vector<A>{};
  return weight == 0 ? low : multiply_add(weights, high, (A(1) - weights) * low);
}

// The softmax of logits that arrive one after the other: sum = sum_k exp(logit_k - maximum).
template <typename A>
struct Softmax {
  Vector<A> maximum, sum;
};

// Return the softmax before the first logit. The maximum is finite, not -inf: the difference from
// a logit of -inf (an impossible class) must be a number.
template <typename A>
BLPSEG_INLINE Softmax<A> no_classes() {
  return {broadcast<A>(Simd<A>::kLeast), broadcast<A>(A(0))};
}

// Add one logit, with one exponential: a new maximum rescales the sum, any other logit adds its own
// term. A NaN stays in the sum.
template <typename A>
BLPSEG_INLINE void add(Softmax<A>& softmax, Vector<A> logit) {
  const Vector<A> least = smaller(softmax.maximum, logit), most = larger(softmax.maximum, logit);
  const Vector<A> shrunk = exp<A>(least - most);
  softmax.sum = logit > softmax.maximum ? softmax.sum * shrunk + A(1) : softmax.sum + shrunk;
  softmax.maximum = most;
}

// Return log p of the class with this logit.
template <typename A>
BLPSEG_INLINE Vector<A> log_probability(const Softmax<A>& softmax, Vector<A> logit) {
  return (logit - softmax.maximum) - log<A>(softmax.sum);
}

// Return p of the class with this logit.
template <typename A>
BLPSEG_INLINE Vector<A> probability(const Softmax<A>& softmax, Vector<A> logit) {
  return exp<A>(logit - softmax.maximum) / softmax.sum;
}

// Return (1 - q p)^gamma; p and q are both probabilities of the pixel's class.
template <typename A>
BLPSEG_INLINE Vector<A> blp_weight(Vector<A> p, Vector<A> q, A gamma) {
  if (gamma == A(0)) return broadcast<A>(A(1));
  const Vector<A> rarity = broadcast<A>(A(1)) - q * p;  // rounding may make it negative; NaN stays
  return exp<A>(gamma * log<A>(larger(broadcast<A>(A(0)), rarity)));
}

}  // namespace blpseg::BLPSEG_CAPABILITY
