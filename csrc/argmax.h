// The order in which an arg max over classes is decided, shared by host and device.
#pragma once

#include "host_device.h"

namespace blpseg {

// Return whether a class with this logit beats the best class so far. Classes come in rising order,
// so the lowest of equals wins. NaN beats every number, as in torch.argmax. V is a number or a
// vector; a vector gets one answer per lane.
template <typename V>
BLPSEG_HOST_DEVICE inline auto beats(V logit, V best) {
  return (logit > best) | ((logit != logit) & (best == best));
}

}  // namespace blpseg
