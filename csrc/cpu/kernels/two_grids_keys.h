// Packs key maps: coordinates along few axes and norms of the rest, for upper bounds of scores.
#pragma once

#include "lam_tile_features.h"
#include "two_grids.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Norms of the rest are increased by this times |x|^2, squared: it covers the rounding of scores
// and coordinates in float32, whose sums are made in short runs.
constexpr double kRestShare = 1.0 / (1 << 16);

template <typename A>
void find_axes(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, double* sample,
               int64_t count) {
  const int64_t dims = params.dims;
  for (int64_t i = 0; i < dims; ++i) {
    double center = 0;
    for (int64_t s = 0; s < count; ++s) center += sample[s * dims + i] / count;
    keys.center[i] = A(center);
    for (int64_t s = 0; s < count; ++s) sample[s * dims + i] -= keys.center[i];
  }
  double* directions = sample + count * dims;
  double* scratch = directions + kAxes * dims;
  for (int64_t k = 0; k < kAxes; ++k) {
    uint32_t state = 2654435769u * uint32_t(k + 1);
    for (int64_t i = 0; i < dims; ++i) {
      state = state * 1664525u + 1013904223u;
      directions[k * dims + i] = state >> 31 ? 1 : -1;
    }
  }
  turn_to_principal(directions, scratch, kAxes, sample, count, dims);
  for (int64_t i = 0; i < kAxes * dims; ++i) keys.axes[i] = A(directions[i]);
}

// Computes bound [kBoundRows, kTile]: coordinates of a tile's vectors [D, kTile] along the axes,
// and the norm of the rest. Returns whether all vectors are finite and far from overflow.
template <typename A>
bool find_coordinates(const KeyMaps<A>& keys, int64_t dims, const A* vectors, A* bound) {
  for (int i = 0; i < kAxes * kTile; ++i) bound[i] = 0;
  multiply(keys.axes, kAxes, dims, vectors, bound);
  double square[kTile] = {}, along[kTile] = {};
  add_squares(vectors, dims, square);
  add_squares(bound, kAxes, along);
  bool finite = true;
  for (int lane = 0; lane < kTile; ++lane) {
    const double rest = square[lane] > along[lane] ? square[lane] - along[lane] : 0;
    bound[kAxes * kTile + lane] = A(__builtin_sqrt(rest + kRestShare * square[lane]));
    finite = finite && square[lane] < kLargest;
  }
  return finite;
}

template <typename A>
bool pack_keys(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t tile, A* features) {
  const LamGrid& grid = keys.grid;
  const int64_t dims = params.dims, tiles = grid.rows * grid.columns;
  for (int64_t d = 0; d < dims; ++d) {
    for (int lane = 0; lane < kTile; ++lane) features[d * kTile + lane] -= keys.center[d];
  }
  for (int lane = 0; lane < kTile; ++lane) {
    if (!inside(grid, tile, lane)) continue;
    A* x = keys.x + pixel_of(grid, tile, lane) * dims;
    for (int64_t d = 0; d < dims; ++d) x[d] = features[d * kTile + lane];
  }
  A* bound = keys.bound + tile * kBoundRows * kTile;
  const bool finite = find_coordinates(keys, dims, features, bound);
  for (int k = 0; k < kBoundRows; ++k) {
    A low = bound[k * kTile], high = low;
    for (int lane = 0; lane < kTile; ++lane) {
      low = smaller(low, bound[k * kTile + lane]);
      high = larger(high, bound[k * kTile + lane]);
    }
    if (k < kAxes) {
      keys.low[k * tiles + tile] = low;
      keys.high[k * tiles + tile] = high;
    } else {
      keys.max_rest[tile] = high;
    }
  }
  return finite;
}

}  // namespace blpseg::BLPSEG_CAPABILITY
