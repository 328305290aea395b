// Which pairs of pixels matter: what is left out is proved to be below rounding
// (docs/lam-error.md).
//
// The log of a pair's share of the target's denominator is
//
//     scale <x_a, x_b> + source_a + target_b - |p_a - p_b|^2 / (2 sigma^2) - log(denominator_b),
//
// where the last, a lower bound of it, is taken off target_b, and the log of how much larger than
// usual the source's values are is added to source_a. With principal coordinates y and rest
// r, <x_a, x_b> <= <y_a, y_b> + |r_a| |r_b|: kBoundRows numbers a pixel instead of all. A source is
// skipped for a whole tile of targets at once. Before that, whole tiles of sources and then single
// sources fall to
//
//     scale <x_a, x_b> = scale (|x_a|^2 + |x_b|^2 - |x_a - x_b|^2) / 2
//
// and their distance to the box around the targets' principal coordinates.
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
// pair's is the sum of the two. Squares of whole numbers are exact, so each is rounded once. Where
// the tile is cut it is -infinity for a source outside of the target's window, and for no other.
template <typename A>
struct Gaussian {
  A y[kTile][kTile], x[kTile][kTile];
  int64_t tile_width;
  bool is_cut;  // whether any source of the tile is outside of any target's window

  void set(const LamGrid& grid, int64_t tile, const Places<A>& targets,
           const LamNumbers<A>& numbers) {
    const int64_t top = tile / grid.columns * grid.tile_height;
    const int64_t left = tile % grid.columns * grid.tile_width;
    tile_width = grid.tile_width;
    fill(y, grid.tile_height, top, targets.y, numbers.minus_half_precision);
    fill(x, grid.tile_width, left, targets.x, numbers.minus_half_precision);
    is_cut = farthest(grid.tile_height, top, targets.y) > A(numbers.radius) ||
             farthest(grid.tile_width, left, targets.x) > A(numbers.radius);
    if (is_cut) {
      cut_off(y, grid.tile_height, top, targets.y, A(numbers.radius));
      cut_off(x, grid.tile_width, left, targets.x, A(numbers.radius));
    }
  }
  Vector<A> of(int source, int lane) const {
    return load(y[source / tile_width] + lane) + load(x[source % tile_width] + lane);
  }
  // The log of a weight without its Gaussian, as T needs it: -infinity outside of the window.
  Vector<A> cut(Vector<A> log_weight, int source, int lane) const {
    if (!is_cut) return log_weight;
    const Vector<A> log = of(source, lane);
    return log > -__builtin_inf() ? log_weight : log;
  }

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
  // The first and the last of a tile's pixels are its corners.
  static A farthest(int64_t lines, int64_t first, const A* targets) {
    return larger(targets[kTile - 1] - A(first), A(first + lines - 1) - targets[0]);
  }
  static void cut_off(A (*out)[kTile], int64_t lines, int64_t first, const A* targets, A radius) {
    constexpr A kNothing = A(-1e30);  // exp of this is 0, and the sum of two is finite
    for (int64_t line = 0; line < lines; ++line) {
      const A place = A(first + line);
      for (int lane = 0; lane < kTile; ++lane) {
        const A distance = place - targets[lane], size = distance < 0 ? -distance : distance;
        const A log = larger(out[line][lane], kNothing);
        out[line][lane] = size <= radius ? log : A(-__builtin_inf());
      }
    }
  }
};

// The targets' side of the bound: everything but what the source contributes.
template <typename A>
struct TargetBound {
  A factors[kBoundRows][kTile];  // scale y_b, |scale| |r_b|
  A target[kTile];               // target_bound; grows smaller as more is known
  A source[kTile];               // source_bound, for the other direction
  A low[kAxes], high[kAxes];     // the box of their y
  A top, bottom, left, right;    // the rectangle that they lie in
  A target_peak, source_peak;    // the largest |scale| |x_b|^2 / 2 + target[b], + source[b]

  void set(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile) {
    const LamGrid& grid = image.grid;
    const int64_t tiles = grid.rows * grid.columns;
    const A* bound = image.bound + tile * kBoundRows * kTile;
    for (int k = 0; k < kBoundRows; ++k) {
      const A factor = k == kAxes && numbers.scale < 0 ? -numbers.scale : numbers.scale;
      for (int lane = 0; lane < kTile; ++lane) factors[k][lane] = factor * bound[k * kTile + lane];
    }
    for (int k = 0; k < kAxes; ++k) {
      low[k] = image.low[k * tiles + tile];
      high[k] = image.high[k * tiles + tile];
    }
    for (int lane = 0; lane < kTile; ++lane) {
      target[lane] = image.target_bound[tile * kTile + lane];
      source[lane] = image.source_bound[tile * kTile + lane];
    }
    top = A(tile / grid.columns * grid.tile_height);
    left = A(tile % grid.columns * grid.tile_width);
    bottom = top + A(grid.tile_height - 1);
    right = left + A(grid.tile_width - 1);
    target_peak = image.target_peak[tile];
    source_peak = image.source_peak[tile];
  }

  // Takes what is known of the denominators off `target`.
  void learn(const LamImage<A>& image, int64_t tile, const A* log_denominator) {
    target_peak = A(-__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      if (source[lane] == A(-__builtin_inf())) continue;
      target[lane] -= log_denominator[lane];
      const A half = image.half[tile * kTile + lane];
      target_peak = half + target[lane] > target_peak ? half + target[lane] : target_peak;
    }
  }
};

template <typename A>
inline A distance_to(A low, A high, A own_low, A own_high) {
  const A below = own_low - high, above = low - own_high;
  const A gap = below > above ? below : above;
  return gap > 0 ? gap : A(0);
}

// reach[i] = the most that scale <x_a, x_b> can be above the peaks, for sources whose y lie in the
// box low[.][i] to high[.][i]: -scale / 2 times the squared distance to the targets' box. The axes
// are `stride` numbers apart.
template <typename A>
void find_reach(const A* low, const A* high, int64_t count, int64_t stride,
                const TargetBound<A>& targets, A scale, A* __restrict reach) {
  for (int64_t i = 0; i < count; ++i) reach[i] = 0;
  if (scale <= 0) return;
  for (int k = 0; k < kAxes; ++k) {
    const A own_low = targets.low[k], own_high = targets.high[k];
    for (int64_t i = 0; i < count; ++i) {
      const A gap = distance_to(low[k * stride + i], high[k * stride + i], own_low, own_high);
      reach[i] -= scale / 2 * gap * gap;
    }
  }
}

// The log of the largest factor that distance leaves: the Gaussian's, or eps where that is more,
// since T has no Gaussian.
template <typename A>
inline A farthest_factor(A dy, A dx, const LamNumbers<A>& numbers) {
  const A gaussian = (dy * dy + dx * dx) * numbers.minus_half_precision;
  const A factor = gaussian > numbers.log_eps ? gaussian : numbers.log_eps;
  return larger(dy, dx) <= A(numbers.radius) ? factor : A(-__builtin_inf());
}

// The tiles that a tile's window reaches: from first to last, that excluded.
struct Reached {
  int64_t first_row, last_row, first_column, last_column;
};

inline Reached reached(const LamGrid& grid, int64_t tile, int64_t radius) {
  const int64_t row = tile / grid.columns, column = tile % grid.columns;
  const int64_t down = (radius + grid.tile_height - 1) / grid.tile_height;
  const int64_t across = (radius + grid.tile_width - 1) / grid.tile_width;
  return {row > down ? row - down : 0, row + down + 1 < grid.rows ? row + down + 1 : grid.rows,
          column > across ? column - across : 0,
          column + across + 1 < grid.columns ? column + across + 1 : grid.columns};
}

// Calls visit(tile) for each of these tiles.
template <typename Visit>
void for_each_reached(const LamGrid& grid, const Reached& tiles, const Visit& visit) {
  for (int64_t row = tiles.first_row; row < tiles.last_row; ++row) {
    for (int64_t column = tiles.first_column; column < tiles.last_column; ++column)
      visit(row * grid.columns + column);
  }
}

// Lists the tiles that may hold a pair that matters; returns how many. `both`: whether pairs matter
// with the roles of source and target exchanged, too.
template <bool both, typename A>
int64_t find_candidates(const LamImage<A>& image, const LamNumbers<A>& numbers,
                        const TargetBound<A>& targets, const Reached& tiles,
                        const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  // Of whole rows of tiles at once: a row alone makes short loops.
  const int64_t first = tiles.first_row * grid.columns;
  find_reach(image.low + first, image.high + first, tiles.last_row * grid.columns - first,
             grid.rows * grid.columns, targets, numbers.scale, scratch.reach);
  int64_t count = 0;
  for (int64_t row = tiles.first_row; row < tiles.last_row; ++row) {
    const A top = A(row * grid.tile_height);
    const A dy = distance_to(top, top + A(grid.tile_height - 1), targets.top, targets.bottom);
    for (int64_t column = tiles.first_column; column < tiles.last_column; ++column) {
      const A left = A(column * grid.tile_width);
      const A dx = distance_to(left, left + A(grid.tile_width - 1), targets.left, targets.right);
      const int64_t t = row * grid.columns + column;
      A peak = image.source_peak[t] + targets.target_peak;
      if (both) peak = larger(peak, image.target_peak[t] + targets.source_peak);
      scratch.candidates[count] = int32_t(t);
      count += scratch.reach[t - first] + farthest_factor(dy, dx, numbers) + peak > image.log_skip;
    }
  }
  return count;
}

// The most that the log of a share can be between each source of a tile and any of the targets.
template <bool both, typename A>
void find_most(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
               const TargetBound<A>& targets, const Places<A>& places, A* __restrict most) {
  const LamGrid& grid = image.grid;
  const A* y = image.bound + tile * kBoundRows * kTile;
  const A* half = image.half + tile * kTile;
  const A* source = image.source_bound + tile * kTile;
  const A* target = image.target_bound + tile * kTile;
  const A down = A(tile / grid.columns * grid.tile_height) - targets.top;
  const A across = A(tile % grid.columns * grid.tile_width) - targets.left;
  find_reach(y, y, kTile, kTile, targets, numbers.scale, most);
  for (int lane = 0; lane < kTile; ++lane) {
    const A py = places.y[lane] + down, px = places.x[lane] + across;
    const A dy = distance_to(py, py, targets.top, targets.bottom);
    const A dx = distance_to(px, px, targets.left, targets.right);
    A peak = half[lane] + source[lane] + targets.target_peak;
    if (both) peak = larger(peak, half[lane] + target[lane] + targets.source_peak);
    most[lane] += farthest_factor(dy, dx, numbers) + peak;
  }
}

// Sorts the sources of a tile: `near` matter with their values, `far` to T alone. `both`: also
// pairs that matter with the roles of source and target exchanged.
template <bool both, typename A>
void find_sources(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                  const TargetBound<A>& targets, const Places<A>& places,
                  const Gaussian<A>& gaussian, Rows& near, Rows& far) {
  constexpr int width = kWidth<A>, vectors = kTile / width;
  constexpr int together = vectors < 4 ? vectors : 4;
  const A* bound = image.bound + tile * kBoundRows * kTile;
  const A* source = image.source_bound + tile * kTile;
  const A* target = image.target_bound + tile * kTile;
  const bool has_eps = numbers.log_eps > -__builtin_inf();
  const Vector<A> skip = broadcast(image.log_skip);
  const Vector<A> skip_far = broadcast(image.log_skip - numbers.log_eps);
  alignas(64) A most[kTile];
  find_most<both>(image, numbers, tile, targets, places, most);
  near.count = far.count = 0;
  for (int a = 0; a < kTile; ++a) {
    if (!(most[a] > image.log_skip)) continue;
    bool is_near = false, is_far = false;
    for (int first = 0; first < vectors && !is_near; first += together) {
      Vector<A> log_share[together], highest = broadcast(A(-__builtin_inf())),
                                     highest_far = highest;
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        const int lane = (first + j) * width;
        log_share[j] = load(targets.target + lane) + source[a];
        if (both) log_share[j] = larger(log_share[j], load(targets.source + lane) + target[a]);
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
        if (has_eps) highest_far = larger(highest_far, gaussian.cut(log_share[j], a, lane));
        highest = larger(highest, log_share[j] + gaussian.of(a, lane));
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
