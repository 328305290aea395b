// T_b = sum_a exp(s_ab), the denominator of the softmax, which eps > 0 adds to Z_b.
//
// T needs little accuracy: its error moves the result by eps dT / (Z + eps T) only. Each query has
// a tolerance for dT (docs/lam-error.md); everything here is measured in units of it. T has no
// Gaussian, so pixels are visited in tiles of alike pixels wherever these lie (LamAlikeTiles).
//
//  1. Tiles whose upper bounds add up to half of the tolerance are skipped.
//  2. The other half is dealt out to the remaining tiles. Keys are skipped by their own upper
//     bounds, and scores are made of as few coordinates as the error of leaving out the rest
//     allows. A tile inherits what those before it did not use.
#pragma once

#include "lam_bound.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Returns, in log_sum, a lower bound of log(Z_b / w_bb) for each query of a tile: the sum over the
// keys in the 3 x 3 tiles around it.
template <typename A>
void sum_neighborhood(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                      A* log_sum) {
  constexpr int width = kWidth<A>;
  PixelPositions<A> positions;
  find_positions(image.grid, tile, positions);
  alignas(64) Gaussian<A> gaussian;
  alignas(64) A scores[(kTile + kRowsAcross) * kTile];
  alignas(64) A sum[kTile] = {};
  for_each_tile_in(image.grid, tiles_in_window(image.grid, tile, 1), [&](int64_t other) {
    gaussian.set(image.grid, other, positions, params);
    KeyList keys;
    take_all_keys(image, other, keys);
    dot(image.x + other * image.rank * kTile, image.x + tile * image.rank * kTile, image.rank, keys,
        scores);
    for (int lane = 0; lane < kTile; lane += width) {
      const Vector<A> query_bias = load(image.query_bias + tile * kTile + lane);
      Vector<A> total = load(sum + lane);
      for (int r = 0; r < keys.count; ++r) {
        const int a = keys.index[r];
        const Vector<A> score = params.scale * load(scores + r * kTile + lane) +
                                (query_bias + image.key_bias[other * kTile + a]);
        total += exp<A>(smaller(score + gaussian.of(a, lane), broadcast(A(kLargestLog))));
      }
      store<A>(sum + lane, total);
    }
  });
  for (int lane = 0; lane < kTile; lane += width)
    store<A>(log_sum + lane, log<A>(smaller(load(sum + lane), broadcast(A(1e30)))));
}

// Copies the pixels of alike tile `tile` from the image, and bounds them.
template <typename A>
void gather_alike_tile(const LamImage<A>& image, const LamParams<A>& params,
                       const LamAlikeTiles<A>& alike, int64_t tile) {
  const int64_t rank = image.rank, first = tile * kTile;
  const double size = params.scale < 0 ? -params.scale : params.scale;
  A* x = alike.x + first * rank;
  A* bound = alike.bound + first * kBoundRows;
  A key_max = A(-__builtin_inf()), query_max = key_max;
  A max_rest[kLevels] = {};  // 0 for the last level, which leaves nothing out
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t pixel = alike.pixel[first + lane];
    const int64_t from = pixel < 0 ? alike.pixel[first] : pixel;  // padding: a copy, never used
    const int64_t from_tile = from / kTile, from_lane = from % kTile;
    const A* from_x = image.x + from_tile * rank * kTile + from_lane;
    const A* from_bound = image.bound + from_tile * kBoundRows * kTile + from_lane;
    for (int64_t k = 0; k < rank; ++k) x[k * kTile + lane] = from_x[k * kTile];
    for (int k = 0; k < kBoundRows; ++k) bound[k * kTile + lane] = from_bound[k * kTile];

    // |what level's coordinates leave out|, by Cauchy-Schwarz enough to bound a score's error.
    double left = 0;
    int64_t k = rank;
    for (int level = alike.levels - 2; level > 0; --level) {
      for (; k > alike.level_rank[level]; --k) {
        const double number = x[(k - 1) * kTile + lane];
        left += number * number;
      }
      alike.rest[(tile * kLevels + level) * kTile + lane] =
          A(__builtin_sqrt(size * left * (1 + 1e-6)));
    }
    alike.rest[tile * kLevels * kTile + lane] =
        A(__builtin_sqrt(size)) * bound[kAxes * kTile + lane];
    alike.rest[(tile * kLevels + alike.levels - 1) * kTile + lane] = 0;
    for (int level = 0; level < alike.levels - 1; ++level)
      max_rest[level] =
          larger(max_rest[level], alike.rest[(tile * kLevels + level) * kTile + lane]);

    const bool inside = pixel >= 0;
    const A none = A(-__builtin_inf());
    const A key_bias = inside ? image.key_bias[from] : none;
    const A query_bias = inside ? image.query_bias[from] : none;
    const A half_sq_norm = image.half_sq_norm[from];
    alike.key_bias[first + lane] = key_bias;
    alike.query_bias[first + lane] = query_bias;
    alike.key_log_bound[first + lane] = half_sq_norm + key_bias;
    alike.log_tolerance[first + lane] = inside ? image.log_tolerance[from] : A(0);
    key_max = larger(key_max, half_sq_norm + key_bias);
    query_max = larger(query_max, half_sq_norm + query_bias - alike.log_tolerance[first + lane]);
  }
  for (int level = 0; level < alike.levels; ++level)
    alike.max_rest[tile * kLevels + level] = max_rest[level];
  alike.key_max_bound[tile] = key_max;
  alike.query_max_bound[tile] = query_max + alike.bound_margin;
  for (int k = 0; k < kAxes; ++k) {
    A low = bound[k * kTile], high = low;
    for (int lane = 1; lane < kTile; ++lane) {
      low = smaller(low, bound[k * kTile + lane]);
      high = larger(high, bound[k * kTile + lane]);
    }
    alike.low[k * alike.tiles + tile] = low;
    alike.high[k * alike.tiles + tile] = high;
  }
}

// Lists the tiles whose sums are needed; those left out have at most half of the tolerance in all.
// Upper bounds of a tile's sum are counted in bins of a width of 1/2 in the logarithm.
template <typename A>
int64_t list_alike_tiles(const LamAlikeTiles<A>& alike, int64_t tile, const QueryBounds<A>& queries,
                         A scale, const LamScratch<A>& scratch) {
  constexpr int kBins = 128;
  A* log_bound = scratch.distance_bound;
  bound_by_distance(alike.low, alike.high, alike.tiles, alike.tiles, queries, scale, log_bound);
  const A log_pixels = A(__builtin_log(double(kTile)));
  const A query_max_bound = alike.query_max_bound[tile] + log_pixels;
  int32_t bins[kBins] = {};
  const auto bin_of = [](A log) {
    const A place = A(-2) * log;
    return place > 0 ? (place < A(kBins - 1) ? int(place) : kBins - 1) : 0;
  };
  for (int64_t t = 0; t < alike.tiles; ++t) {
    log_bound[t] += alike.key_max_bound[t] + query_max_bound;
    ++bins[bin_of(log_bound[t])];
  }
  double skipped = 0;
  int last_bin = kBins;  // tiles in later bins are skipped
  while (last_bin > 0) {
    skipped += bins[last_bin - 1] * __builtin_exp(-0.5 * (last_bin - 1));
    if (skipped > 0.5) break;
    --last_bin;
  }
  int64_t count = 0;
  for (int64_t t = 0; t < alike.tiles; ++t) {
    scratch.candidates[count] = int32_t(t);
    count += bin_of(log_bound[t]) < last_bin;
  }
  return count;
}

// The sums of a tile's queries.
template <typename A>
struct SoftmaxSums {
  A base[kTile];           // sums are relative to exp of this
  double sum[kTile];       // T_b
  A in_tolerances[kTile];  // exp(base) / tolerance
  A allowed[kTile];        // the error that may still be made, in tolerances
};

// Adds the exponentials of the listed keys' scores, made of the coordinates of `level`. Returns 0,
// or, if leaving out the others may cost more than is allowed, adds nothing and returns the next
// level worth trying. The last level is exact.
template <typename A>
int add_exponentials(const LamAlikeTiles<A>& alike, const LamParams<A>& params, int64_t other,
                     int64_t tile, int level, const KeyList& keys, A* scores,
                     SoftmaxSums<A>& sums) {
  constexpr int width = kWidth<A>;
  const bool exact = level == alike.levels - 1;
  const A* key_bias = alike.key_bias + other * kTile;
  const A* query_bias = alike.query_bias + tile * kTile;
  if (level == 0 && !exact)
    dot(alike.bound + other * kBoundRows * kTile, alike.bound + tile * kBoundRows * kTile, kAxes,
        keys, scores);
  else
    dot(alike.x + other * alike.rank * kTile, alike.x + tile * alike.rank * kTile,
        alike.level_rank[level], keys, scores);

  if (exact) {  // raise the base where a score is far above it
    for (int lane = 0; lane < kTile; lane += width) {
      const Vector<A> bias = load(query_bias + lane), base = load(sums.base + lane);
      Vector<A> highest = base;
      for (int r = 0; r < keys.count; ++r)
        highest = larger(highest, params.scale * load(scores + r * kTile + lane) +
                                      (bias + key_bias[keys.index[r]]));
      if (!any_above(highest - base, broadcast(A(kHeadroom)))) continue;
      for (int i = 0; i < width; ++i) {
        const A rise = highest[i] - base[i];
        if (!(rise > A(kHeadroom))) continue;
        sums.sum[lane + i] *= __builtin_exp(-double(rise));
        sums.in_tolerances[lane + i] *= A(__builtin_exp(double(rise)));
        sums.base[lane + i] = highest[i];
      }
    }
  }

  alignas(64) A sum[kTile], error[kTile];
  bool fits = true, next_fits = true;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> bias = load(query_bias + lane), base = load(sums.base + lane);
    Vector<A> total = {};
    for (int r = 0; r < keys.count; ++r) {
      const Vector<A> score =
          params.scale * load(scores + r * kTile + lane) + (bias + key_bias[keys.index[r]]);
      total += exp<A>(smaller(score - base, broadcast(A(kLargestLog))));
    }
    store<A>(sum + lane, total);
    if (exact) continue;
    // exp(s + e) differs from exp(s) by at most exp(s) |e| exp(|e|). Beyond |e| = kHeadroom that
    // says little, and exp(s) may have been rounded to 0.
    const auto cost_at = [&](int at) {
      const Vector<A> change = load(alike.rest + (tile * kLevels + at) * kTile + lane) *
                               alike.max_rest[other * kLevels + at];
      const Vector<A> cost = total * change * exp<A>(smaller(change, broadcast(A(kHeadroom)))) *
                             load(sums.in_tolerances + lane);
      return change > A(kHeadroom) ? broadcast(A(__builtin_inf())) : cost;
    };
    const Vector<A> cost = cost_at(level), allowed = load(sums.allowed + lane);
    store<A>(error + lane, cost);
    fits = fits && !any_above(cost, allowed) && !any_above(total, broadcast(A(1e20)));
    if (fits) continue;
    next_fits = next_fits && !any_above(cost_at(level + 1), allowed);
  }
  if (!fits) return level + 2 < alike.levels && !next_fits ? level + 2 : level + 1;
  for (int lane = 0; lane < kTile; ++lane) {
    sums.sum[lane] += sum[lane];
    if (!exact) sums.allowed[lane] -= error[lane];
  }
  return 0;
}

// Writes T_b / w_bb of a tile of alike pixels to each pixel's place in the image.
template <typename A>
void sum_alike_tile(const LamImage<A>& image, const LamParams<A>& params,
                    const LamAlikeTiles<A>& alike, int64_t tile, const LamScratch<A>& scratch) {
  QueryBounds<A> queries;
  for (int k = 0; k < kAxes; ++k) {
    queries.low[k] = alike.low[k * alike.tiles + tile];
    queries.high[k] = alike.high[k * alike.tiles + tile];
  }
  const int64_t count = list_alike_tiles(alike, tile, queries, params.scale, scratch);
  alignas(64) SoftmaxSums<A> sums;
  for (int lane = 0; lane < kTile; ++lane) {
    sums.base[lane] = alike.log_tolerance[tile * kTile + lane];
    sums.sum[lane] = 0;
    sums.in_tolerances[lane] = 1;
    sums.allowed[lane] = 0;
  }
  const A share = A(0.5) / A(count ? count : 1);
  alignas(64) A scores[(kTile + kRowsAcross) * kTile];
  alignas(64) A log_bound[kTile];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t other = scratch.candidates[i];
    A least = A(__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      sums.allowed[lane] += share;
      least = smaller(least, sums.allowed[lane]);
    }
    // Keys that together cost at most half of what is allowed are skipped.
    const A* y = alike.bound + other * kBoundRows * kTile;
    const A each = larger(least, A(0)) / (2 * kTile);
    const A skip = A(__builtin_log(double(each))) - alike.query_max_bound[tile];
    bound_by_distance(y, y, kTile, kTile, queries, params.scale, log_bound);
    KeyList keys;
    for (int a = 0; a < kTile; ++a)
      if (log_bound[a] + alike.key_log_bound[other * kTile + a] > skip) keys.add(a);
    for (int lane = 0; lane < kTile; ++lane) sums.allowed[lane] -= each * A(kTile - keys.count);
    if (!keys.count) continue;
    keys.finish();
    for (int level = 0, next;; level = next) {
      next = add_exponentials(alike, params, other, tile, level, keys, scores, sums);
      if (!next) break;
    }
  }
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t pixel = alike.pixel[tile * kTile + lane];
    if (pixel < 0) continue;
    image.softmax_base[pixel] = sums.base[lane];
    image.softmax_sum[pixel] = A(sums.sum[lane]);
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
