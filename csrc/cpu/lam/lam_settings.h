// The size from which lam sums T apart from Z. Tests change it so that small inputs take that path.
#pragma once

#include <cstdint>

namespace blpseg {

// In smaller images forward sums T together with Z: ordering the pixels would cost more than it
// saves.
int64_t min_tiles_to_sum_apart();
void set_min_tiles_to_sum_apart(int64_t tiles);

}  // namespace blpseg
