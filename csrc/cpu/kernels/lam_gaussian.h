// log G_ab = -|p_a - p_b|^2 / (2 sigma^2), the log of the Gaussian between the pixels of two tiles.
#pragma once

#include "lam_image.h"
#include "simd.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Where the pixels of a tile lie, for the Gaussian of a tile of keys.
template <typename A>
struct PixelPositions {
  A y[kTile], x[kTile];
};

template <typename A>
void find_positions(const LamGrid& grid, int64_t tile, PixelPositions<A>& positions) {
  for (int lane = 0; lane < kTile; ++lane) {
    positions.y[lane] = A(tile / grid.columns * grid.tile_height + lane / grid.tile_width);
    positions.x[lane] = A(tile % grid.columns * grid.tile_width + lane % grid.tile_width);
  }
}

// The logs of the Gaussian between the rows and columns of a tile of keys and the queries: a
// pair's is the sum of the two. Squares of whole numbers are exact, so each is rounded once. Where
// the tile is cut it is -infinity for a key outside of the query's window, and for no other.
template <typename A>
struct Gaussian {
  A y[kTile][kTile], x[kTile][kTile];
  int64_t tile_width;
  bool is_cut;  // whether any key of the tile is outside of any query's window

  void set(const LamGrid& grid, int64_t tile, const PixelPositions<A>& queries,
           const LamParams<A>& params) {
    const int64_t top = tile / grid.columns * grid.tile_height;
    const int64_t left = tile % grid.columns * grid.tile_width;
    tile_width = grid.tile_width;
    fill(y, grid.tile_height, top, queries.y, params.minus_inv_two_sigma_sq);
    fill(x, grid.tile_width, left, queries.x, params.minus_inv_two_sigma_sq);
    is_cut = farthest(grid.tile_height, top, queries.y) > A(params.radius) ||
             farthest(grid.tile_width, left, queries.x) > A(params.radius);
    if (is_cut) {
      cut_off(y, grid.tile_height, top, queries.y, A(params.radius));
      cut_off(x, grid.tile_width, left, queries.x, A(params.radius));
    }
  }
  Vector<A> of(int key, int lane) const {
    return load(y[key / tile_width] + lane) + load(x[key % tile_width] + lane);
  }
  // The log of a weight without its Gaussian, as T needs it: -infinity outside of the window.
  Vector<A> cut(Vector<A> log_weight, int key, int lane) const {
    if (!is_cut) return log_weight;
    const Vector<A> log = of(key, lane);
    return log > -__builtin_inf() ? log_weight : log;
  }

 private:
  static void fill(A (*out)[kTile], int64_t lines, int64_t first, const A* queries, A factor) {
    for (int64_t line = 0; line < lines; ++line) {
      const A place = A(first + line);
      for (int lane = 0; lane < kTile; ++lane) {
        const A distance = place - queries[lane];
        out[line][lane] = distance * distance * factor;
      }
    }
  }
  // The first and the last of a tile's pixels are its corners.
  static A farthest(int64_t lines, int64_t first, const A* queries) {
    return larger(queries[kTile - 1] - A(first), A(first + lines - 1) - queries[0]);
  }
  static void cut_off(A (*out)[kTile], int64_t lines, int64_t first, const A* queries, A radius) {
    constexpr A kNothing = A(-1e30);  // exp of this is 0, and the sum of two is finite
    for (int64_t line = 0; line < lines; ++line) {
      const A place = A(first + line);
      for (int lane = 0; lane < kTile; ++lane) {
        const A distance = place - queries[lane], size = distance < 0 ? -distance : distance;
        const A log = larger(out[line][lane], kNothing);
        out[line][lane] = size <= radius ? log : A(-__builtin_inf());
      }
    }
  }
};

}  // namespace blpseg::BLPSEG_CAPABILITY
