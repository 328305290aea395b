// The order by which an arg max over classes is decided, written once for host and device.
#pragma once

#include "bilinear.h"

namespace blpseg {

// Whether a class with this logit displaces the best one so far. Classes are offered in rising
// order, so "strictly larger" lets the lowest of equals win; NaN ranks above all, as in
// torch.argmax. V is a number or a vector of them, which gets an answer for each.
template <typename V>
BLPSEG_HOST_DEVICE inline auto displaces(V logit, V best) {
  return (logit > best) | ((logit != logit) & (best == best));
}

}  // namespace blpseg
