// Bilinear resizing with half-pixel centers (torch's align_corners=False): positions along one
// axis, shared by host and device. A resized image takes one tap per axis; losses.h has the lerp.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace blpseg {

// An output pixel lies between two cells (input pixels): (1 - weight) * low + weight * high.
template <typename T>
struct Tap {
  int64_t low;
  int64_t high;
  T weight;  // in [0, 1)
};

// Return a / b of numbers >= 0. A 64-bit division takes several times as long as a 32-bit one.
BLPSEG_HOST_DEVICE inline int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

// Return the tap of output pixel `index` of an axis that is resized from `in` cells to `out`.
//
// The source position is (index + 1/2) * in / out - 1/2 = ((2 index + 1) in - out) / (2 out). The
// fraction is exact in integers; the weight alone is rounded, once. Positions beyond the center of
// the first or last cell get weight 0.
template <typename T>
BLPSEG_HOST_DEVICE inline Tap<T> tap(int64_t index, int64_t in, int64_t out) {
  const int64_t position = (2 * index + 1) * in - out;  // in units of 1 / (2 out) cells
  const int64_t numerator = position > 0 ? position : 0;
  const int64_t low = divide(numerator, 2 * out);
  if (low == in - 1) return {low, low, T(0)};
  const int64_t rest = numerator - low * (2 * out);
  return {low, low + 1, static_cast<T>(rest) / static_cast<T>(2 * out)};
}

// Return the first output pixel whose tap has low >= cell; `out` if there is none.
BLPSEG_HOST_DEVICE inline int64_t first_pixel(int64_t cell, int64_t in, int64_t out) {
  if (cell <= 0) return 0;
  if (cell >= in) return out;
  // low >= cell  <=>  (2 pixel + 1) in - out >= 2 out cell
  const int64_t numerator = (2 * cell + 1) * out - in;
  return numerator <= 0 ? 0 : divide(numerator + 2 * in - 1, 2 * in);
}

}  // namespace blpseg
