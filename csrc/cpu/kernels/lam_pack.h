// A tile's features, made into what its pairs with other tiles need.
#pragma once

#include "lam_basis.h"
#include "lam_image.h"
#include "tile_product.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Bounds and weights are computed in floating point: a share of |x_a| |x_b| this large covers the
// rounding of <x_a, x_b> in float32, and the basis being orthonormal to float32 only.
constexpr double kRoundingShare = 1.0 / (1 << 18);

// Beyond, sums of scores could overflow float32; such images are left to the plain path.
constexpr double kLargest = 1e36;

inline bool inside(const LamGrid& grid, int64_t tile, int lane) {
  const int64_t y = tile / grid.columns * grid.tile_height + lane / grid.tile_width;
  const int64_t x = tile % grid.columns * grid.tile_width + lane % grid.tile_width;
  return y < grid.height && x < grid.width;
}

inline int64_t pixel_of(const LamGrid& grid, int64_t tile, int lane) {
  const int64_t y = tile / grid.columns * grid.tile_height + lane / grid.tile_width;
  const int64_t x = tile % grid.columns * grid.tile_width + lane % grid.tile_width;
  return y * grid.width + x;
}

// out[row][lane] += sum_k matrix[row][k] in[k][lane]; matrix: [rows, size].
template <typename A>
void multiply(const A* matrix, int64_t rows, int64_t size, const A* in, A* out) {
  int32_t index[kTile];
  for (int i = 0; i < kTile; ++i) index[i] = i;
  for (int64_t k = 0; k < size; k += kTile) {
    const int count = size - k < kTile ? int(size - k) : kTile;
    accumulate(matrix + k, size, rows, index, count, in + k * kTile, out);
  }
}

// sums[lane] += (sum over rows of in[row][lane]^2)
template <typename A>
void add_squares(const A* in, int64_t rows, double* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int lane = 0; lane < kTile; ++lane) {
      const double number = in[row * kTile + lane];
      sums[lane] += number * number;
    }
  }
}

// What the bounds of a tile's pairs are made of: coordinates along the basis, and the norm of what
// it leaves. features: centred, destroyed; plain, square: |f|^2 before and after.
template <typename A>
LamPacked bound_tile(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                     const double* plain, const double* square, A* features, A* coordinates) {
  const int64_t dims = numbers.dims, tiles = image.grid.rows * image.grid.columns;
  for (int64_t i = 0; i < image.directions * kTile; ++i) coordinates[i] = 0;
  multiply(image.basis, image.directions, dims, features, coordinates);

  // The sign of what the directions leave does not matter.
  for (int64_t i = 0; i < dims * kTile; ++i) features[i] = -features[i];
  multiply(image.transposed, dims, image.directions, coordinates, features);
  double left[kTile] = {};
  add_squares(features, dims, left);

  LamPacked packed = {0, 0, 0, true};
  for (int lane = 0; lane < kTile; ++lane) {
    const double allowed = droppable<A>(plain[lane], double(numbers.scale));
    if (!inside(image.grid, tile, lane) || !(left[lane] > packed.residual * allowed)) continue;
    packed.residual = left[lane] / allowed;
    packed.worst = pixel_of(image.grid, tile, lane);
  }
  packed.residual = __builtin_sqrt(packed.residual);

  add_squares(coordinates + kAxes * kTile, image.directions - kAxes, left);
  A* bound = image.bound + tile * kBoundRows * kTile;
  for (int k = 0; k < kAxes; ++k) {
    A low = coordinates[k * kTile], high = low;
    for (int lane = 0; lane < kTile; ++lane) {
      const A c = coordinates[k * kTile + lane];
      bound[k * kTile + lane] = c;
      low = c < low ? c : low;
      high = c > high ? c : high;
    }
    image.low[k * tiles + tile] = low;
    image.high[k * tiles + tile] = high;
  }
  for (int lane = 0; lane < kTile; ++lane)
    bound[kAxes * kTile + lane] = A(__builtin_sqrt(left[lane] + kRoundingShare * square[lane]));
  return packed;
}

template <typename A>
LamPacked pack_tile(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                    const LamScratch<A>& scratch) {
  const int64_t dims = numbers.dims;
  const double scale = double(numbers.scale), size = scale < 0 ? -scale : scale;
  A* features = scratch.features;
  A* x = image.x + tile * image.rank * kTile;

  double plain[kTile] = {}, along_centre[kTile] = {};  // |f|^2, <c, x>
  if (image.prune) add_squares(features, dims, plain);
  for (int64_t d = 0; d < dims; ++d) {
    const A centre = image.centre[d];
    for (int lane = 0; lane < kTile; ++lane) {
      features[d * kTile + lane] -= centre;
      along_centre[lane] += double(centre) * features[d * kTile + lane];
    }
  }
  double square[kTile] = {};
  add_squares(features, dims, square);

  if (!image.projected)
    for (int64_t i = 0; i < dims * kTile; ++i) x[i] = features[i];
  LamPacked packed = {0, 0, 0, true};
  if (image.prune)
    packed = bound_tile(image, numbers, tile, plain, square, features,
                        image.projected ? x : scratch.coordinates);

  A* half = image.half + tile * kTile;
  A* source = image.source + tile * kTile;
  A* target = image.target + tile * kTile;
  A* source_bound = image.source_bound + tile * kTile;
  A* target_bound = image.target_bound + tile * kTile;
  const A* log_denominator = image.log_denominator + tile * kTile;
  A source_peak = A(-__builtin_inf()), target_peak = source_peak;
  for (int lane = 0; lane < kTile; ++lane) {
    half[lane] = 0;
    source[lane] = target[lane] = A(-__builtin_inf());
    if (!inside(image.grid, tile, lane)) {
      source_bound[lane] = target_bound[lane] = source[lane];
      continue;
    }
    const double out = scale * along_centre[lane], own = -scale * square[lane] - out;
    source[lane] = A(out);
    // Without a finite weight of its own, a pixel's weights are relative to 1.
    target[lane] = A(__builtin_isfinite(own) ? own : 0);
    const double magnitude = __builtin_fabs(out) + __builtin_fabs(own);
    packed.finite = packed.finite && magnitude < kLargest;
    if (magnitude > packed.magnitude) packed.magnitude = magnitude;
    half[lane] = A(size * square[lane] / 2);
    source_bound[lane] += source[lane];
    target_bound[lane] += target[lane] - log_denominator[lane];
    source_peak = larger(source_peak, half[lane] + source_bound[lane]);
    target_peak = larger(target_peak, half[lane] + target_bound[lane]);
  }
  image.source_peak[tile] = source_peak;
  image.target_peak[tile] = target_peak;
  return packed;
}

}  // namespace blpseg::BLPSEG_CAPABILITY
