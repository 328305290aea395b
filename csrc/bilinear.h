// Bilinear resizing with half-pixel centres (torch's align_corners=False): the arithmetic of one
// axis, written once for host and device. Resizing an image is two taps, one an axis.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define BLPSEG_HOST_DEVICE __host__ __device__
#else
#define BLPSEG_HOST_DEVICE
#endif

namespace blpseg {

// Where an output pixel falls between two input pixels: (1 - weight) * low + weight * high.
template <typename T>
struct Tap {
  int64_t low;
  int64_t high;
  T weight;
};

// The tap of output pixel `index` when an axis of `in` pixels is resized to `out`.
//
// The source position is (index + 1/2) * in / out - 1/2. As the fraction
// ((2 index + 1) in - out) / (2 out) it is exact in integers; only the weight is rounded, once,
// where the usual floating-point product loses digits as positions grow. Past the centre of the
// last input pixel there is nothing to blend: the weight is 0.
template <typename T>
BLPSEG_HOST_DEVICE inline Tap<T> tap(int64_t index, int64_t in, int64_t out) {
  const int64_t position = (2 * index + 1) * in - out;  // in units of 1 / (2 out) input pixels
  const int64_t numerator = position > 0 ? position : 0;
  // Divisions of 64 bits take several times as long as those of 32.
  const int64_t low = (numerator | 2 * out) >> 32
                          ? numerator / (2 * out)
                          : static_cast<uint32_t>(numerator) / static_cast<uint32_t>(2 * out);
  if (low == in - 1) return {low, low, T(0)};
  const int64_t rest = numerator - low * (2 * out);
  return {low, low + 1, static_cast<T>(rest) / static_cast<T>(2 * out)};
}

// A pixel that falls onto an input pixel is that pixel, even beside an infinite one (0 * inf is
// NaN). Weights are numbers, as V is, or vectors where V is one.
template <typename V, typename T>
BLPSEG_HOST_DEVICE inline V blend(V low, V high, T weight) {
  return weight == 0 ? low : (1 - weight) * low + weight * high;
}

}  // namespace blpseg
