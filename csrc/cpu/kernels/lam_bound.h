// Upper bounds of log P_ab, by which pairs of pixels are skipped. docs/lam-error.md proves that
// what is skipped is below rounding.
//
//     log P_ab = scale <x_a, x_b> + key_bias_a + query_bias_b - |p_a - p_b|^2 / (2 sigma^2)
//                - log(denominator_b)
//
// query_log_bound also subtracts the best known lower bound of log(denominator_b); key_log_bound
// adds log A_a, how far the key's values exceed their typical size. With principal coordinates y
// and the rest r, <x_a, x_b> <= <y_a, y_b> + |r_a| |r_b|: kBoundRows numbers per pixel instead of
// all. A key is skipped for a whole tile of queries at once. Before that, cheaper bounds skip whole
// tiles of keys, then single keys:
//
//     scale <x_a, x_b> = scale (|x_a|^2 + |x_b|^2 - |x_a - x_b|^2) / 2,
//
// where |x_a - x_b| is at least the distance from y_a to the box around the queries' y.
#pragma once

#include "lam_gaussian.h"
#include "tile_product.h"

namespace blpseg::BLPSEG_CAPABILITY {

// The queries' part of the bounds.
template <typename A>
struct QueryBounds {
  A factors[kBoundRows][kTile];      // scale y_b, |scale| |r_b|
  A query_log_bound[kTile];          // decreases as more of the denominator is known
  A key_log_bound[kTile];            // for pairs in which these pixels are the keys
  A low[kAxes], high[kAxes];         // box around their y
  A top, bottom, left, right;        // rectangle of their positions
  A query_max_bound, key_max_bound;  // largest half_sq_norm + query_log_bound, + key_log_bound

  void set(const LamImage<A>& image, const LamParams<A>& params, int64_t tile) {
    const LamGrid& grid = image.grid;
    const int64_t tiles = grid.rows * grid.columns;
    const A* bound = image.bound + tile * kBoundRows * kTile;
    for (int k = 0; k < kBoundRows; ++k) {
      const A factor = k == kAxes && params.scale < 0 ? -params.scale : params.scale;
      for (int lane = 0; lane < kTile; ++lane) factors[k][lane] = factor * bound[k * kTile + lane];
    }
    for (int k = 0; k < kAxes; ++k) {
      low[k] = image.low[k * tiles + tile];
      high[k] = image.high[k * tiles + tile];
    }
    for (int lane = 0; lane < kTile; ++lane) {
      query_log_bound[lane] = image.query_log_bound[tile * kTile + lane];
      key_log_bound[lane] = image.key_log_bound[tile * kTile + lane];
    }
    top = A(tile / grid.columns * grid.tile_height);
    left = A(tile % grid.columns * grid.tile_width);
    bottom = top + A(grid.tile_height - 1);
    right = left + A(grid.tile_width - 1);
    query_max_bound = image.query_max_bound[tile];
    key_max_bound = image.key_max_bound[tile];
  }

  // Subtracts lower bounds of the denominators' logarithms from query_log_bound.
  void tighten(const LamImage<A>& image, int64_t tile, const A* log_denominator) {
    query_max_bound = A(-__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      if (key_log_bound[lane] == A(-__builtin_inf())) continue;
      query_log_bound[lane] -= log_denominator[lane];
      const A half_sq_norm = image.half_sq_norm[tile * kTile + lane];
      query_max_bound = half_sq_norm + query_log_bound[lane] > query_max_bound
                            ? half_sq_norm + query_log_bound[lane]
                            : query_max_bound;
    }
  }
};

template <typename A>
inline A distance_to(A low, A high, A own_low, A own_high) {
  const A below = own_low - high, above = low - own_high;
  const A gap = below > above ? below : above;
  return gap > 0 ? gap : A(0);
}

// distance_bound[i] = -scale / 2 * d^2 for box i of keys, low[.][i] <= y <= high[.][i]: d is its
// distance to the queries' box. Axes are `stride` numbers apart. 0 for scale <= 0.
template <typename A>
void bound_by_distance(const A* low, const A* high, int64_t count, int64_t stride,
                       const QueryBounds<A>& queries, A scale, A* __restrict distance_bound) {
  for (int64_t i = 0; i < count; ++i) distance_bound[i] = 0;
  if (scale <= 0) return;
  for (int k = 0; k < kAxes; ++k) {
    const A own_low = queries.low[k], own_high = queries.high[k];
    for (int64_t i = 0; i < count; ++i) {
      const A gap = distance_to(low[k * stride + i], high[k * stride + i], own_low, own_high);
      distance_bound[i] -= scale / 2 * gap * gap;
    }
  }
}

// log max(G, eps) at this distance of positions: pairs count in Z by G, in T by eps.
template <typename A>
inline A farthest_factor(A dy, A dx, const LamParams<A>& params) {
  const A gaussian = (dy * dy + dx * dx) * params.minus_inv_two_sigma_sq;
  const A factor = gaussian > params.log_eps ? gaussian : params.log_eps;
  return larger(dy, dx) <= A(params.radius) ? factor : A(-__builtin_inf());
}

// Params with an eps as small as it may be for the bounds of R_ab of a tile's queries b: their sum
// over the skipped keys a may be u max(1, S_b / 4), S_b = |scale| |x_b|^2, that of P_ab only u
// (docs/lam-error.md).
template <typename A>
LamParams<A> with_tolerated_eps(const LamImage<A>& image, LamParams<A> params, int64_t tile) {
  A least = image.half_sq_norm[tile * kTile];
  for (int lane = 1; lane < kTile; ++lane)
    least = smaller(least, image.half_sq_norm[tile * kTile + lane]);
  if (least > A(2)) params.log_eps -= A(__builtin_log(double(least) / 2));
  return params;
}

// The tiles that hold a pixel of some window around a tile's pixels; `last` is exclusive.
struct TileWindow {
  int64_t first_row, last_row, first_column, last_column;
};

inline TileWindow tiles_in_window(const LamGrid& grid, int64_t tile, int64_t radius) {
  const int64_t row = tile / grid.columns, column = tile % grid.columns;
  const int64_t down = (radius + grid.tile_height - 1) / grid.tile_height;
  const int64_t across = (radius + grid.tile_width - 1) / grid.tile_width;
  return {row > down ? row - down : 0, row + down + 1 < grid.rows ? row + down + 1 : grid.rows,
          column > across ? column - across : 0,
          column + across + 1 < grid.columns ? column + across + 1 : grid.columns};
}

// Calls visit(tile) for each of these tiles.
template <typename Visit>
void for_each_tile_in(const LamGrid& grid, const TileWindow& tiles, const Visit& visit) {
  for (int64_t row = tiles.first_row; row < tiles.last_row; ++row) {
    for (int64_t column = tiles.first_column; column < tiles.last_column; ++column)
      visit(row * grid.columns + column);
  }
}

// Lists the key tiles that are not skipped; returns their number. `both`: a pair also counts with
// key and query exchanged.
template <bool both, typename A>
int64_t find_candidates(const LamImage<A>& image, const LamParams<A>& params,
                        const QueryBounds<A>& queries, const TileWindow& tiles,
                        const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  // Whole rows of tiles at once: the loop over one row's part would be short.
  const int64_t first = tiles.first_row * grid.columns;
  bound_by_distance(image.low + first, image.high + first, tiles.last_row * grid.columns - first,
                    grid.rows * grid.columns, queries, params.scale, scratch.distance_bound);
  int64_t count = 0;
  for (int64_t row = tiles.first_row; row < tiles.last_row; ++row) {
    const A top = A(row * grid.tile_height);
    const A dy = distance_to(top, top + A(grid.tile_height - 1), queries.top, queries.bottom);
    for (int64_t column = tiles.first_column; column < tiles.last_column; ++column) {
      const A left = A(column * grid.tile_width);
      const A dx = distance_to(left, left + A(grid.tile_width - 1), queries.left, queries.right);
      const int64_t t = row * grid.columns + column;
      A peak = image.key_max_bound[t] + queries.query_max_bound;
      if (both) peak = larger(peak, image.query_max_bound[t] + queries.key_max_bound);
      scratch.candidates[count] = int32_t(t);
      count += scratch.distance_bound[t - first] + farthest_factor(dy, dx, params) + peak >
               image.log_skip_threshold;
    }
  }
  return count;
}

// max_log_prob[a]: upper bound of log max(P_ab, R_ab) over all queries b of the tile.
template <bool both, typename A>
void find_max_log_prob(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                       const QueryBounds<A>& queries, const PixelPositions<A>& positions,
                       A* __restrict max_log_prob) {
  const LamGrid& grid = image.grid;
  const A* y = image.bound + tile * kBoundRows * kTile;
  const A* half_sq_norm = image.half_sq_norm + tile * kTile;
  const A* key = image.key_log_bound + tile * kTile;
  const A* query = image.query_log_bound + tile * kTile;
  const A down = A(tile / grid.columns * grid.tile_height) - queries.top;
  const A across = A(tile % grid.columns * grid.tile_width) - queries.left;
  bound_by_distance(y, y, kTile, kTile, queries, params.scale, max_log_prob);
  for (int lane = 0; lane < kTile; ++lane) {
    const A py = positions.y[lane] + down, px = positions.x[lane] + across;
    const A dy = distance_to(py, py, queries.top, queries.bottom);
    const A dx = distance_to(px, px, queries.left, queries.right);
    A peak = half_sq_norm[lane] + key[lane] + queries.query_max_bound;
    if (both) peak = larger(peak, half_sq_norm[lane] + query[lane] + queries.key_max_bound);
    max_log_prob[lane] += farthest_factor(dy, dx, params) + peak;
  }
}

// Lists the keys of a tile that are not skipped: near_keys need their values, far_keys count in T
// only. `both`: a pair also counts with key and query exchanged.
template <bool both, typename A>
void find_keys(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
               const QueryBounds<A>& queries, const PixelPositions<A>& positions,
               const Gaussian<A>& gaussian, KeyList& near_keys, KeyList& far_keys) {
  constexpr int width = kWidth<A>, vectors = kTile / width;
  constexpr int together = vectors < 4 ? vectors : 4;
  const A* bound = image.bound + tile * kBoundRows * kTile;
  const A* key = image.key_log_bound + tile * kTile;
  const A* query = image.query_log_bound + tile * kTile;
  const bool has_eps = params.log_eps > -__builtin_inf();
  const Vector<A> skip = broadcast(image.log_skip_threshold);
  const Vector<A> skip_far = broadcast(image.log_skip_threshold - params.log_eps);
  alignas(64) A max_log_prob[kTile];
  find_max_log_prob<both>(image, params, tile, queries, positions, max_log_prob);
  near_keys.count = far_keys.count = 0;
  for (int a = 0; a < kTile; ++a) {
    if (!(max_log_prob[a] > image.log_skip_threshold)) continue;
    bool is_near = false, is_far = false;
    for (int first = 0; first < vectors && !is_near; first += together) {
      Vector<A> log_prob[together], highest = broadcast(A(-__builtin_inf())), highest_far = highest;
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        const int lane = (first + j) * width;
        log_prob[j] = load(queries.query_log_bound + lane) + key[a];
        if (both) log_prob[j] = larger(log_prob[j], load(queries.key_log_bound + lane) + query[a]);
      }
#pragma GCC unroll 9
      for (int k = 0; k < kBoundRows; ++k) {
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j)
          log_prob[j] += bound[k * kTile + a] * load(queries.factors[k] + (first + j) * width);
      }
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        const int lane = (first + j) * width;
        if (has_eps) highest_far = larger(highest_far, gaussian.cut(log_prob[j], a, lane));
        highest = larger(highest, log_prob[j] + gaussian.of(a, lane));
      }
      is_near = any_above(highest, skip);
      is_far = is_far || (has_eps && any_above(highest_far, skip_far));
    }
    if (is_near)
      near_keys.add(a);
    else if (is_far)
      far_keys.add(a);
  }
  near_keys.finish();
  far_keys.finish();
}

// Lists all keys of a tile but the padding.
template <typename A>
void take_all_keys(const LamImage<A>& image, int64_t tile, KeyList& near_keys) {
  near_keys.count = 0;
  for (int a = 0; a < kTile; ++a) {
    if (image.key_bias[tile * kTile + a] != A(-__builtin_inf())) near_keys.add(a);
  }
  near_keys.finish();
}

}  // namespace blpseg::BLPSEG_CAPABILITY
