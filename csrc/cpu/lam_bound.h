// Which pairs of pixels matter: what is left out is proved to be below rounding
// (docs/lam-error.md).
//
// The log of a pair's share of the target's denominator is
//
//     scale <x_a, x_b> + source_a + target_b - |p_a - p_b|^2 / (2 sigma^2) - log(denominator_b),
//
// where the last, a lower bound of it, is taken off target_b. With principal coordinates y and rest
// r, <x_a, x_b> <= <y_a, y_b> + |r_a| |r_b|: kBoundRows numbers a pixel instead of all. A source is
// skipped for a whole tile of targets at once. Before that, whole tiles of sources fall to
//
//     scale <x_a, x_b> = scale (|x_a|^2 + |x_b|^2 - |x_a - x_b|^2) / 2
//
// and the distance between the two tiles' boxes in principal coordinates.
#pragma once

#include "tile_product.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Where the pixels of a tile lie, for the Gaussian of a tile of sources.
template <typename A>
struct Places {
  A y[kTile], x[kTile];
};

template <typename A>
void find_places(const LamGrid& grid, int64_t tile, Places<A>& places) {
  for (int lane = 0; lane < kTile; ++lane) {
    places.y[lane] = A(tile / grid.columns * grid.tile_height + lane / grid.tile_width);
    places.x[lane] = A(tile % grid.columns * grid.tile_width + lane % grid.tile_width);
  }
}

// The logs of the Gaussian between the rows and columns of a tile of sources and the targets: a
// pair's is the sum of the two. Squares of whole numbers are exact, so each is rounded once.
template <typename A>
struct Gaussian {
  A y[kTile][kTile], x[kTile][kTile];
  int64_t tile_width;

  void set(const LamGrid& grid, int64_t tile, const Places<A>& targets, A minus_half_precision) {
    tile_width = grid.tile_width;
    fill(y, grid.tile_height, tile / grid.columns * grid.tile_height, targets.y,
         minus_half_precision);
    fill(x, grid.tile_width, tile % grid.columns * grid.tile_width, targets.x,
         minus_half_precision);
  }
  const A* of_row(int source) const { return y[source / tile_width]; }
  const A* of_column(int source) const { return x[source % tile_width]; }

 private:
  static void fill(A (*out)[kTile], int64_t lines, int64_t first, const A* targets, A factor) {
    for (int64_t line = 0; line < lines; ++line) {
      const A place = A(first + line);
      for (int lane = 0; lane < kTile; ++lane) {
        const A distance = place - targets[lane];
        out[line][lane] = distance * distance * factor;
      }
    }
  }
};

// target_b less the log of what is known of the denominator.
template <typename A>
A share_of_target(const LamImage<A>& image, int64_t tile, int lane) {
  return image.target[tile * kTile + lane] - image.log_denominator[tile * kTile + lane];
}

// The targets' side of the bound: everything but what the source contributes.
template <typename A>
struct TargetBound {
  A factors[kBoundRows][kTile];  // scale y_b, |scale| |r_b|
  A target[kTile];               // share_of_target; grows smaller as more is known
  A source[kTile];               // source_b, for the other direction

  void set(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile) {
    const A* bound = image.bound + tile * kBoundRows * kTile;
    for (int k = 0; k < kBoundRows; ++k) {
      const A factor = k == kAxes && numbers.scale < 0 ? -numbers.scale : numbers.scale;
      for (int lane = 0; lane < kTile; ++lane) factors[k][lane] = factor * bound[k * kTile + lane];
    }
    for (int lane = 0; lane < kTile; ++lane) {
      target[lane] = share_of_target(image, tile, lane);
      source[lane] = image.source[tile * kTile + lane];
    }
  }
};

// Lists the tiles of sources that may hold a pair that matters for the targets of `tile`.
// target_peak: the largest |scale| |x_b|^2 / 2 + target_b. source_peak: where pairs matter in
// either direction (backward), that of the targets as sources, else -infinity. log_far: what the
// Gaussian is replaced by where that is more (log_eps: T has no Gaussian).
template <typename A>
int64_t find_candidates(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                        A target_peak, A source_peak, const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const int64_t tiles = grid.rows * grid.columns;
  A* __restrict reach = scratch.reach;
  for (int64_t t = 0; t < tiles; ++t) reach[t] = 0;
  if (numbers.scale > 0) {
    const A factor = -numbers.scale / 2;
    for (int k = 0; k < kAxes; ++k) {
      const A* low = image.low + k * tiles;
      const A* high = image.high + k * tiles;
      const A own_low = low[tile], own_high = high[tile];
      for (int64_t t = 0; t < tiles; ++t) {
        const A below = own_low - high[t], above = low[t] - own_high;
        A gap = below > above ? below : above;
        gap = gap > 0 ? gap : 0;
        reach[t] += factor * gap * gap;
      }
    }
  }
  int64_t count = 0;
  const int64_t row = tile / grid.columns, column = tile % grid.columns;
  for (int64_t r = 0; r < grid.rows; ++r) {
    const A dy =
        A(r == row ? 0 : (r > row ? r - row : row - r) * grid.tile_height - grid.tile_height + 1);
    for (int64_t c = 0; c < grid.columns; ++c) {
      const A dx = A(c == column ? 0
                                 : (c > column ? c - column : column - c) * grid.tile_width -
                                       grid.tile_width + 1);
      const int64_t t = r * grid.columns + c;
      A far = (dy * dy + dx * dx) * numbers.minus_half_precision;
      far = far > numbers.log_eps ? far : numbers.log_eps;
      const A there = image.source_peak[t] + target_peak, back = image.target_peak[t] + source_peak;
      const A most = reach[t] + far + (there > back ? there : back);
      scratch.candidates[count] = int32_t(t);
      count += most > image.log_skip;
    }
  }
  return count;
}

// Sorts the sources of a tile: `near` matter with their values, `far` to T alone. `both`: also
// pairs that matter with the roles of source and target exchanged.
template <bool both, typename A>
void find_sources(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                  const TargetBound<A>& targets, const Gaussian<A>& gaussian, Rows& near,
                  Rows& far) {
  constexpr int width = kWidth<A>, vectors = kTile / width;
  constexpr int together = vectors < 4 ? vectors : 4;
  const A* bound = image.bound + tile * kBoundRows * kTile;
  const A* source = image.source + tile * kTile;
  const bool has_eps = numbers.log_eps > -__builtin_inf();
  const Vector<A> skip = broadcast(image.log_skip);
  const Vector<A> skip_far = broadcast(image.log_skip - numbers.log_eps);
  near.count = far.count = 0;
  for (int a = 0; a < kTile; ++a) {
    if (source[a] == A(-__builtin_inf())) continue;
    const A* along_y = gaussian.of_row(a);
    const A* along_x = gaussian.of_column(a);
    const A back = share_of_target(image, tile, a);
    bool is_near = false, is_far = false;
    for (int first = 0; first < vectors && !is_near; first += together) {
      Vector<A> log_share[together], highest = broadcast(A(-__builtin_inf())),
                                     highest_far = highest;
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        const int lane = (first + j) * width;
        log_share[j] = load(targets.target + lane) + source[a];
        if (both) log_share[j] = larger(log_share[j], load(targets.source + lane) + back);
      }
#pragma GCC unroll 9
      for (int k = 0; k < kBoundRows; ++k) {
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j)
          log_share[j] += bound[k * kTile + a] * load(targets.factors[k] + (first + j) * width);
      }
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        const int lane = (first + j) * width;
        highest_far = larger(highest_far, log_share[j]);
        highest = larger(highest, log_share[j] + load(along_y + lane) + load(along_x + lane));
      }
      is_near = any_above(highest, skip);
      is_far = is_far || (has_eps && any_above(highest_far, skip_far));
    }
    if (is_near)
      near.add(a);
    else if (is_far)
      far.add(a);
  }
  near.finish();
  far.finish();
}

// All sources that lie in the image.
template <typename A>
void take_all_sources(const LamImage<A>& image, int64_t tile, Rows& near) {
  near.count = 0;
  for (int a = 0; a < kTile; ++a) {
    if (image.source[tile * kTile + a] != A(-__builtin_inf())) near.add(a);
  }
  near.finish();
}

}  // namespace blpseg::BLPSEG_CAPABILITY
