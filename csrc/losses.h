// The arithmetic of a pixel in the losses, written once for host and device: the softmax of its
// resized logits, its cross entropy, its BLP weight.
//
// All of it works on Vector<A>: as many pixels as the CPU's vectors hold (cpu/kernels/simd.h), or
// one on the device (cuda/elementary.h), in the namespace of either.
#pragma once

#if defined(__CUDACC__) || defined(BLPSEG_CUDA_ON_HOST)
#include "cuda/elementary.h"
#else
#include "cpu/kernels/simd.h"
#endif

namespace blpseg::BLPSEG_CAPABILITY {

// A softmax whose logits come one after the other: sum is that of exp(logit - maximum).
template <typename A>
struct Softmax {
  Vector<A> maximum, sum;
};

// Least, not -inf: a class may be ruled out by a logit of -inf, whose difference has to be a
// number.
template <typename A>
BLPSEG_INLINE Softmax<A> no_classes() {
  return {broadcast<A>(Simd<A>::kLeast), broadcast<A>(A(0))};
}

// One exponential a logit: either the logit is the new maximum and what was summed shrinks, or it
// is not and its own exponential is added. A NaN stays in the sum.
template <typename A>
BLPSEG_INLINE void add(Softmax<A>& softmax, Vector<A> logit) {
  const Vector<A> least = smaller(softmax.maximum, logit), most = larger(softmax.maximum, logit);
  const Vector<A> shrunk = exp<A>(least - most);
  softmax.sum = logit > softmax.maximum ? softmax.sum * shrunk + A(1) : softmax.sum + shrunk;
  softmax.maximum = most;
}

// log p of a class.
template <typename A>
BLPSEG_INLINE Vector<A> log_probability(const Softmax<A>& softmax, Vector<A> logit) {
  return (logit - softmax.maximum) - log<A>(softmax.sum);
}

// p of a class.
template <typename A>
BLPSEG_INLINE Vector<A> probability(const Softmax<A>& softmax, Vector<A> logit) {
  return exp<A>(logit - softmax.maximum) / softmax.sum;
}

// (1 - q p)^gamma, from both probabilities of the pixel's class.
template <typename A>
BLPSEG_INLINE Vector<A> blp_weight(Vector<A> p, Vector<A> q, A gamma) {
  if (gamma == A(0)) return broadcast<A>(A(1));
  const Vector<A> rare = broadcast<A>(A(1)) - q * p;  // may round to below 0; a NaN stays
  return exp<A>(gamma * log<A>(larger(broadcast<A>(A(0)), rare)));
}

}  // namespace blpseg::BLPSEG_CAPABILITY
