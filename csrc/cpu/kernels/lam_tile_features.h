// Packs the features of a tile: coordinates, biases, and the numbers that upper bounds use.
#pragma once

#include "lam_basis.h"
#include "lam_image.h"
#include "tile_product.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Upper bounds are increased by this times |x_a| |x_b|. It covers the rounding of <x_a, x_b> in
// float32, and that the basis is orthonormal in float32 only.
constexpr double kRoundingShare = 1.0 / (1 << 18);

// With larger biases, sums of scores could overflow float32; no pair of such an image is skipped.
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

// Computes the coordinates along the basis, the norms of the rest, and the boxes of a tile.
// features: centered; overwritten. plain, square: |f|^2 before and after centering.
template <typename A>
LamPacked bound_tile(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                     const double* plain, const double* square, A* features, A* coordinates) {
  const int64_t dims = params.dims, tiles = image.grid.rows * image.grid.columns;
  for (int64_t i = 0; i < image.directions * kTile; ++i) coordinates[i] = 0;
  multiply(image.basis, image.directions, dims, features, coordinates);

  // Only the norm of the rest matters, so its negative will do.
  for (int64_t i = 0; i < dims * kTile; ++i) features[i] = -features[i];
  multiply(image.transposed, dims, image.directions, coordinates, features);
  double left[kTile] = {};
  add_squares(features, dims, left);

  LamPacked packed = {0, 0, 0, true};
  for (int lane = 0; lane < kTile; ++lane) {
    const double allowed = tolerated_sq_residual<A>(plain[lane], double(params.scale));
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
LamPacked pack_tile(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                    const LamScratch<A>& scratch) {
  const int64_t dims = params.dims;
  const double scale = double(params.scale), size = scale < 0 ? -scale : scale;
  A* features = scratch.features;
  A* x = image.x + tile * image.rank * kTile;

  double plain[kTile] = {}, along_center[kTile] = {};  // |f|^2, <c, x>
  if (image.prune) add_squares(features, dims, plain);
  for (int64_t d = 0; d < dims; ++d) {
    const A center = image.center[d];
    for (int lane = 0; lane < kTile; ++lane) {
      features[d * kTile + lane] -= center;
      along_center[lane] += double(center) * features[d * kTile + lane];
    }
  }
  double square[kTile] = {};
  add_squares(features, dims, square);

  if (!image.projected)
    for (int64_t i = 0; i < dims * kTile; ++i) x[i] = features[i];
  LamPacked packed = {0, 0, 0, true};
  if (image.prune)
    packed = bound_tile(image, params, tile, plain, square, features,
                        image.projected ? x : scratch.coordinates);

  A* half_sq_norm = image.half_sq_norm + tile * kTile;
  A* key = image.key_bias + tile * kTile;
  A* query = image.query_bias + tile * kTile;
  A* key_log_bound = image.key_log_bound + tile * kTile;
  A* query_log_bound = image.query_log_bound + tile * kTile;
  const A* log_denominator = image.log_denominator + tile * kTile;
  A key_max_bound = A(-__builtin_inf()), query_max_bound = key_max_bound;
  for (int lane = 0; lane < kTile; ++lane) {
    half_sq_norm[lane] = 0;
    key[lane] = query[lane] = A(-__builtin_inf());
    if (!inside(image.grid, tile, lane)) {
      key_log_bound[lane] = query_log_bound[lane] = key[lane];
      continue;
    }
    const double out = scale * along_center[lane], own = -scale * square[lane] - out;
    key[lane] = A(out);
    // Without a finite weight of its own, a pixel's weights are relative to 1.
    query[lane] = A(__builtin_isfinite(own) ? own : 0);
    const double magnitude = __builtin_fabs(out) + __builtin_fabs(own);
    packed.finite = packed.finite && magnitude < kLargest;
    if (magnitude > packed.magnitude) packed.magnitude = magnitude;
    half_sq_norm[lane] = A(size * square[lane] / 2);
    key_log_bound[lane] += key[lane];
    query_log_bound[lane] += query[lane] - log_denominator[lane];
    key_max_bound = larger(key_max_bound, half_sq_norm[lane] + key_log_bound[lane]);
    query_max_bound = larger(query_max_bound, half_sq_norm[lane] + query_log_bound[lane]);
  }
  image.key_max_bound[tile] = key_max_bound;
  image.query_max_bound[tile] = query_max_bound;
  return packed;
}

}  // namespace blpseg::BLPSEG_CAPABILITY
