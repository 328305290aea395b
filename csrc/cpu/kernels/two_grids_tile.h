// A tile of queries: where it lies among the keys, and which keys it visits. docs/lam-error.md
// proves that what is skipped is below rounding.
#pragma once

#include "two_grids.h"
#include "two_grids_keys.h"
#include "two_grids_product.h"

namespace blpseg::BLPSEG_CAPABILITY {

// The keys of a block, in the order in which they are multiplied.
template <typename A>
struct KeyBlock {
  int64_t pixel[kBlockKeys];
  int32_t y[kBlockKeys], x[kBlockKeys];
  const A* rows[kBlockKeys + kKeysAcross];
  int count = 0;

  void add(const KeyMaps<A>& keys, int64_t key_y, int64_t key_x) {
    pixel[count] = key_y * keys.grid.width + key_x;
    y[count] = int32_t(key_y);
    x[count] = int32_t(key_x);
    ++count;
  }
  // Points rows at the keys' numbers in an array of `pitch` numbers per key.
  const A* const* rows_of(const A* array, int64_t pitch) {
    for (int r = 0; r < count; ++r) rows[r] = array + pixel[r] * pitch;
    for (int r = count; r < count + kKeysAcross - 1; ++r) rows[r] = rows[0];
    return rows;
  }
};

inline int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

// One axis of the tile. `n` is the key nearest to a query.
template <typename A, int lines>
struct QueryAxis {
  int64_t place[lines];    // keys (2 Y + 1): position in units of 1 / (2 queries), plus keys'
  int64_t nearest[lines];  // n
  A to_nearest[lines];     // p_n - p_b
  int64_t first, last;     // keys that some window holds; `last` is exclusive
  int64_t near_first, near_last;

  void set(int64_t start, int64_t queries, int64_t keys, int64_t reach, bool has_window) {
    for (int i = 0; i < lines; ++i) {
      const int64_t b = start + i < queries ? start + i : queries - 1;
      place[i] = keys * (2 * b + 1);
      nearest[i] = place[i] / (2 * queries);
      to_nearest[i] = A(double(queries * (2 * nearest[i] + 1) - place[i]) / double(2 * queries));
    }
    first = 0, last = keys;
    if (has_window) {
      // |queries (2 a + 1) - place| <= reach
      const int64_t low = -floor_div(-(place[0] - reach - queries), 2 * queries);
      const int64_t high = floor_div(place[lines - 1] + reach - queries, 2 * queries);
      first = low > first ? low : first;
      last = high + 1 < last ? high + 1 : last;
    }
  }
  // Marks the keys of the first block: each query's nearest key, and one more on each side if
  // that makes a contiguous range of few keys.
  void mark_near(uint8_t* near) {
    near_first = nearest[0], near_last = nearest[lines - 1] + 1;
    if (near_last - near_first <= lines) {
      near_first = near_first > first ? near_first - 1 : first;
      near_last = near_last < last ? near_last + 1 : last;
      for (int64_t a = near_first; a < near_last; ++a) near[a] = 1;
    } else {
      for (int i = 0; i < lines; ++i) near[nearest[i]] = 1;
    }
  }
  void unmark_near(uint8_t* near) const {
    for (int64_t a = near_first; a < near_last; ++a) near[a] = 0;
  }
  // sq[a][i] = (p_a - p_b)^2 - (p_n - p_b)^2, its part of the log weight, and the largest of them.
  void set_gaussian(int64_t queries, int64_t reach, bool has_window, A inv_two_sigma_sq, A* sq,
                    A* log_weight, A* highest) const {
    for (int64_t a = first; a < last; ++a) {
      highest[a] = A(-__builtin_inf());
      for (int i = 0; i < lines; ++i) {
        const A step = A(a - nearest[i]);
        A* number = sq + a * lines + i;
        *number = step * (step + 2 * to_nearest[i]);
        const int64_t offset = queries * (2 * a + 1) - place[i];
        const bool visible = !has_window || (offset < 0 ? -offset : offset) <= reach;
        A* log = log_weight + a * lines + i;
        *log = visible ? -inv_two_sigma_sq * *number : A(-__builtin_inf());
        highest[a] = larger(highest[a], *log);
      }
    }
  }
};

template <typename A>
struct QueryTile {
  QueryAxis<A, kQueryRows> y;
  QueryAxis<A, kQueryColumns> x;
  A query_bias[kTile];  // log weights are relative to the nearest key's
  A far_bias[kTile];    // log(eps exp(s_ab) / w_nb) = s_ab - s_nb + this
  A log_known[kTile];   // lower bound of log((Z + eps T) / w_nb), less log A of the gradient
  A sq_nearest[kTile];  // |p_n - p_b|^2
  alignas(64) A bound[kBoundRows * kTile];  // of the queries, times scale or |scale|
  bool prune, has_eps;
  KeyBlock<A> block;
  // For bounds of tiles and keys, relative to the key in the middle of the tile:
  A middle_y[kAxes], low[kAxes], high[kAxes], max_rest, middle_rest;
  A highest;        // largest log(w_mb / w_nb) - log_known[b] without its Gaussian
  A highest_far;    // the same for eps exp(s_ab)
  A log_threshold;  // a key is skipped if its upper bounds lie below

  void set(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t tile,
           const QueryScratch<A>& scratch) {
    const LamGrid& grid = params.queries;
    y.set(tile / grid.columns * kQueryRows, grid.height, keys.grid.height, params.reach_y,
          params.has_window);
    x.set(tile % grid.columns * kQueryColumns, grid.width, keys.grid.width, params.reach_x,
          params.has_window);
    y.set_gaussian(grid.height, params.reach_y, params.has_window, keys.inv_two_sigma_sq,
                   scratch.sq_y, scratch.log_y, scratch.max_log_y);
    x.set_gaussian(grid.width, params.reach_x, params.has_window, keys.inv_two_sigma_sq,
                   scratch.sq_x, scratch.log_x, scratch.max_log_x);
    has_eps = params.log_eps > A(-__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      const A dy = y.to_nearest[lane / kQueryColumns], dx = x.to_nearest[lane % kQueryColumns];
      sq_nearest[lane] = dy * dy + dx * dx;
      far_bias[lane] = params.log_eps + keys.inv_two_sigma_sq * sq_nearest[lane];
    }
    prune = find_coordinates(keys, params.dims, scratch.queries, bound) && keys.prune;
    // The first block: all keys near the tile.
    block.count = 0;
    y.mark_near(scratch.near_y);
    x.mark_near(scratch.near_x);
    for (int64_t a = y.near_first; a < y.near_last; ++a) {
      for (int64_t b = x.near_first; b < x.near_last && scratch.near_y[a]; ++b)
        if (scratch.near_x[b]) block.add(keys, a, b);
    }
  }

  // Reads query_bias from the first block's products.
  void set_biases(const TwoGridsParams<A>& params, const A* pairs) {
    for (int lane = 0; lane < kTile; ++lane) {
      const int64_t row = y.nearest[lane / kQueryColumns], column = x.nearest[lane % kQueryColumns];
      int r = 0;
      while (block.y[r] != row || block.x[r] != column) ++r;
      query_bias[lane] = -(params.scale * pairs[r * kTile + lane]);
    }
  }

  // Prepares the bounds: log_known is set, and pairs still has the first block's products.
  void set_bounds(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, const A* log_middle) {
    const A size = params.scale < 0 ? -params.scale : params.scale;
    A magnitude = 0;
    highest = highest_far = A(-__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      const A bias = query_bias[lane] < 0 ? -query_bias[lane] : query_bias[lane];
      magnitude = larger(magnitude, bias);
      const A relative = log_middle[lane] - log_known[lane];
      highest = larger(highest, relative);
      highest_far = larger(highest_far, relative + far_bias[lane]);
    }
    for (int k = 0; k < kBoundRows; ++k) {
      const A factor = k < kAxes ? params.scale : size;
      A least = A(__builtin_inf()), most = -least;
      for (int lane = 0; lane < kTile; ++lane) {
        A* number = bound + k * kTile + lane;
        *number *= factor;
        least = smaller(least, *number);
        most = larger(most, *number);
      }
      if (k < kAxes)
        low[k] = least, high[k] = most;
      else
        max_rest = most;
    }
    const int64_t my = y.nearest[kQueryRows / 2], mx = x.nearest[kQueryColumns / 2];
    const LamGrid& grid = keys.grid;
    const int64_t tile = my / grid.tile_height * grid.columns + mx / grid.tile_width;
    const int64_t lane = my % grid.tile_height * grid.tile_width + mx % grid.tile_width;
    const A* middle = keys.bound + tile * kBoundRows * kTile + lane;
    for (int k = 0; k < kAxes; ++k) middle_y[k] = middle[k * kTile];
    middle_rest = middle[kAxes * kTile];
    // Bounds err by rounding of the biases, and by less than 0.01 otherwise.
    log_threshold = A(__builtin_log(double(keys.skip_prob))) - A(0.01) - magnitude / (1 << 16);
  }

  // log(w_mb / w_nb) of the middle key m, without Gaussian, from the first block's products.
  void log_weights_of_middle(const TwoGridsParams<A>& params, const A* pairs, A* out) const {
    const int64_t row = y.nearest[kQueryRows / 2], column = x.nearest[kQueryColumns / 2];
    int r = 0;
    while (block.y[r] != row || block.x[r] != column) ++r;
    for (int lane = 0; lane < kTile; ++lane)
      out[lane] = params.scale * pairs[r * kTile + lane] + query_bias[lane];
  }

  // Calls visit(block) whenever the block is full, and at the end. Keys of the first block are left
  // out.
  template <typename Visit>
  void visit_other_keys(const KeyMaps<A>& keys, const QueryScratch<A>& scratch,
                        const Visit& visit) {
    block.count = 0;
    const auto add = [&](int64_t a, int64_t b) {
      if (scratch.near_y[a] && scratch.near_x[b]) return;
      block.add(keys, a, b);
      if (block.count < kBlockKeys) return;
      visit();
      block.count = 0;
    };
    if (!prune) {
      for (int64_t a = y.first; a < y.last; ++a)
        for (int64_t b = x.first; b < x.last; ++b) add(a, b);
    } else {
      const LamGrid& grid = keys.grid;
      const int64_t first_row = y.first / grid.tile_height;
      const int64_t last_row = (y.last - 1) / grid.tile_height + 1;
      const int64_t first_column = x.first / grid.tile_width;
      const int64_t last_column = (x.last - 1) / grid.tile_width + 1;
      bound_tiles(keys, first_row * grid.columns, last_row * grid.columns, scratch.tile_bound);
      for (int64_t row = first_row; row < last_row; ++row) {
        const A log_row = largest(scratch.max_log_y, row * grid.tile_height, grid.tile_height, y);
        for (int64_t column = first_column; column < last_column; ++column) {
          const A log_column =
              largest(scratch.max_log_x, column * grid.tile_width, grid.tile_width, x);
          const int64_t tile = row * grid.columns + column;
          if (!(scratch.tile_bound[tile] + farthest(log_row + log_column) > log_threshold))
            continue;
          find_keys(keys, scratch, tile, add);
        }
      }
    }
    if (block.count) visit();
  }

 private:
  template <typename Axis>
  static A largest(const A* numbers, int64_t start, int64_t size, const Axis& axis) {
    const int64_t first = start > axis.first ? start : axis.first;
    const int64_t last = start + size < axis.last ? start + size : axis.last;
    A most = A(-__builtin_inf());
    for (int64_t a = first; a < last; ++a) most = larger(most, numbers[a]);
    return most;
  }

  // Largest relative log weight by position: of Z's term, or of T's.
  A farthest(A log_gaussian) const {
    if (!has_eps || !(log_gaussian > A(-__builtin_inf()))) return highest + log_gaussian;
    return larger(highest + log_gaussian, highest_far);
  }

  // out[t]: upper bound of scale <x_a - x_m, q_b> + log A_a over tile t's keys and all queries.
  void bound_tiles(const KeyMaps<A>& keys, int64_t first, int64_t last, A* __restrict out) const {
    const int64_t tiles = keys.grid.rows * keys.grid.columns;
    for (int64_t t = first; t < last; ++t)
      out[t] = keys.max_log_excess[t] + (keys.max_rest[t] + middle_rest) * max_rest;
    for (int k = 0; k < kAxes; ++k) {
      const A own_low = low[k], own_high = high[k], middle = middle_y[k];
      const A* key_low = keys.low + k * tiles;
      const A* key_high = keys.high + k * tiles;
      for (int64_t t = first; t < last; ++t) {
        const A below = key_low[t] - middle, above = key_high[t] - middle;
        out[t] += larger(larger(below * own_low, below * own_high),
                         larger(above * own_low, above * own_high));
      }
    }
  }

  template <typename Add>
  void find_keys(const KeyMaps<A>& keys, const QueryScratch<A>& scratch, int64_t tile,
                 const Add& add) const {
    constexpr int width = kWidth<A>, vectors = kTile / width;
    constexpr int together = vectors < 4 ? vectors : 4;
    const LamGrid& grid = keys.grid;
    const A* key_bound = keys.bound + tile * kBoundRows * kTile;
    const A* log_excess = keys.log_excess + tile * kTile;
    const int64_t top = tile / grid.columns * grid.tile_height;
    const int64_t left = tile % grid.columns * grid.tile_width;
    // 1. The bound by the box around the queries' coordinates, of all keys of the tile.
    alignas(64) A rough[kTile];
    for (int a = 0; a < kTile; ++a)
      rough[a] = log_excess[a] + (key_bound[kAxes * kTile + a] + middle_rest) * max_rest;
    for (int k = 0; k < kAxes; ++k) {
      for (int a = 0; a < kTile; ++a) {
        const A step = key_bound[k * kTile + a] - middle_y[k];
        rough[a] += larger(step * low[k], step * high[k]);
      }
    }
    const Vector<A> threshold = broadcast(log_threshold);
    for (int a = 0; a < kTile; ++a) {
      const int64_t key_y = top + a / grid.tile_width, key_x = left + a % grid.tile_width;
      if (key_y < y.first || key_y >= y.last || key_x < x.first || key_x >= x.last) continue;
      const A log_gaussian = scratch.max_log_y[key_y] + scratch.max_log_x[key_x];
      if (!(rough[a] + farthest(log_gaussian) > log_threshold)) continue;
      // 2. The bound of each pair.
      bool counts = false;
      for (int first = 0; first < vectors && !counts; first += together) {
        Vector<A> log_prob[together], most = broadcast(A(-__builtin_inf()));
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j) {
          const int lane = (first + j) * width;
          log_prob[j] = load(query_bias + lane) - load(log_known + lane) + log_excess[a];
        }
#pragma GCC unroll 9
        for (int k = 0; k < kBoundRows; ++k) {
#pragma GCC unroll 4
          for (int j = 0; j < together; ++j)
            log_prob[j] += key_bound[k * kTile + a] * load(bound + k * kTile + (first + j) * width);
        }
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j) {
          const int lane = (first + j) * width;
          const Vector<A> near = gaussian(scratch, key_y, key_x, lane);
          most = larger(most, log_prob[j] + near);
          if (has_eps) most = larger(most, cut(log_prob[j] + load(far_bias + lane), near));
        }
        counts = any_above(most, threshold);
      }
      if (counts) add(key_y, key_x);
    }
  }

 public:
  // log G_ab of a key and the lanes from `lane` on; -infinity outside of the window.
  static Vector<A> gaussian(const QueryScratch<A>& scratch, int64_t key_y, int64_t key_x,
                            int lane) {
    static_assert(kQueryColumns % kWidth<A> == 0);
    return load(scratch.log_x + key_x * kQueryColumns + lane % kQueryColumns) +
           scratch.log_y[key_y * kQueryRows + lane / kQueryColumns];
  }
  // A log weight without its Gaussian; -infinity outside of the window.
  static Vector<A> cut(Vector<A> log_weight, Vector<A> log_gaussian) {
    return log_gaussian > A(-__builtin_inf()) ? log_weight : log_gaussian;
  }
};

}  // namespace blpseg::BLPSEG_CAPABILITY
