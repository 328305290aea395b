// Sums over all pixels a of an image of exp(s_ab) without a Gaussian, as eps > 0 needs them: T in
// forward (lam_softmax_sum.h), the terms of R in backward (lam_softmax_gradient.h).
//
// These sums need little accuracy. Each query has a tolerance (docs/lam-error.md), and errors are
// measured in units of it. Pixels are visited in tiles of alike pixels, wherever these lie
// (LamAlikeTiles).
//
//  1. Tiles whose upper bounds add up to half of the tolerance are skipped.
//  2. The other half is dealt out to the remaining tiles. Keys are skipped by their own upper
//     bounds, and scores are made of as few coordinates as the error of leaving out the rest
//     allows. A tile inherits what those before it did not use.
//
// `both`: a pair also counts with key and query exchanged, for the tolerance of the same pixel.
#pragma once

#include "lam_bound.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Errors of a tile's queries.
template <typename A>
struct ErrorBudget {
  A allowed[kTile];        // the error that may still be made, in tolerances
  A in_tolerances[kTile];  // 1 of the sums, in tolerances
  A cost[kTile];           // the error that a tile of keys makes, in tolerances

  void pay() {
    for (int lane = 0; lane < kTile; ++lane) allowed[lane] -= cost[lane];
  }
};

// exp of a score, bounded so that it is finite. Only the last level's is exact.
template <bool exact, typename A>
inline Vector<A> exp_of_score(Vector<A> score) {
  const Vector<A> finite = smaller(score, broadcast(A(kLargestLog)));
  if constexpr (exact) return exp<A>(finite);
  return exp_roughly<A>(finite);
}

// Copies the pixels of alike tile `tile` from the image, and bounds them.
template <typename A>
void gather_alike_tile(const LamImage<A>& image, const LamParams<A>& params,
                       const LamAlikeTiles<A>& alike, int64_t tile) {
  const int64_t rank = image.rank, first = tile * kTile;
  const double size = params.scale < 0 ? -params.scale : params.scale;
  A* x = alike.x + first * rank;
  A* bound = alike.bound + first * kBoundRows;
  const A none = A(-__builtin_inf());
  A key_max = none, query_max = none, weight_max = none, tolerance_max = none;
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
    const A key_bias = inside ? image.key_bias[from] : none;
    const A log_tolerance = inside ? image.log_tolerance[from] : A(0);
    const A half_sq_norm = image.half_sq_norm[from];
    A query_bias = inside ? image.query_bias[from] : none;
    if (alike.sign) {  // the size of R_ab delta_b, and its sign
      const double delta = image.delta[from];
      const double size_of_delta = delta < 0 ? -delta : delta;
      alike.sign[first + lane] = delta < 0 ? A(-1) : A(1);
      query_bias +=
          (alike.log_delta_unit + A(__builtin_log(size_of_delta))) - image.log_denominator[from];
    }
    alike.key_bias[first + lane] = key_bias;
    alike.query_bias[first + lane] = query_bias;
    alike.key_log_bound[first + lane] = half_sq_norm + key_bias;
    alike.query_log_bound[first + lane] = half_sq_norm + query_bias;
    alike.log_tolerance[first + lane] = log_tolerance;
    key_max = larger(key_max, half_sq_norm + key_bias);
    query_max = larger(query_max, half_sq_norm + query_bias - log_tolerance);
    weight_max = larger(weight_max, half_sq_norm + query_bias);
    tolerance_max = larger(tolerance_max, half_sq_norm + key_bias - log_tolerance);
  }
  for (int level = 0; level < alike.levels; ++level)
    alike.max_rest[tile * kLevels + level] = max_rest[level];
  alike.key_max_bound[tile] = key_max;
  alike.query_max_bound[tile] = query_max + alike.bound_margin;
  alike.exchanged_key_max_bound[tile] = weight_max;
  alike.exchanged_query_max_bound[tile] = tolerance_max + alike.bound_margin;
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
template <bool both, typename A>
int64_t list_alike_tiles(const LamAlikeTiles<A>& alike, int64_t tile, const QueryBounds<A>& queries,
                         A scale, const LamScratch<A>& scratch) {
  constexpr int kBins = 128;
  A* log_bound = scratch.distance_bound;
  bound_by_distance(alike.low, alike.high, alike.tiles, alike.tiles, queries, scale, log_bound);
  const A log_pixels = A(__builtin_log(double(kTile)));
  const A query_max_bound = alike.query_max_bound[tile];
  const A exchanged_max_bound = alike.exchanged_query_max_bound[tile];
  int32_t bins[kBins] = {};
  const auto bin_of = [](A log) {
    const A place = A(-2) * log;
    return place > 0 ? (place < A(kBins - 1) ? int(place) : kBins - 1) : 0;
  };
  for (int64_t t = 0; t < alike.tiles; ++t) {
    A peak = alike.key_max_bound[t] + query_max_bound;
    if (both) peak = larger(peak, alike.exchanged_key_max_bound[t] + exchanged_max_bound);
    log_bound[t] += peak + log_pixels;
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

// Returns what `level` costs a vector of queries from `lane` on. sum: of the rough exponentials of
// another tile's keys, per query.
template <typename A>
Vector<A> cost_of(const LamAlikeTiles<A>& alike, int64_t other, int64_t tile, int level, int lane,
                  Vector<A> sum, const ErrorBudget<A>& budget) {
  // exp(s + e) differs from exp(s) by at most exp(s) |e| exp(|e|). Beyond |e| = kHeadroom that says
  // little, and exp(s) may have been rounded to 0.
  const A max_rest = alike.max_rest[other * kLevels + level];
  const Vector<A> change = load(alike.rest + (tile * kLevels + level) * kTile + lane) * max_rest;
  const Vector<A> relative = change * exp<A>(smaller(change, broadcast(A(kHeadroom)))) +
                             (max_rest * alike.rest_cost + A(kRoughError));
  const Vector<A> cost = sum * relative * (load(budget.in_tolerances + lane) * A(1 + kRoughError));
  return change > A(kHeadroom) ? broadcast(A(__builtin_inf())) : cost;
}

// Writes to budget.cost what `level` costs. Returns 0; or, if the cost is more than is allowed, the
// next level worth trying. The last level costs nothing.
template <typename A>
int find_cost(const LamAlikeTiles<A>& alike, int64_t other, int64_t tile, int level, int lane,
              Vector<A> sum, ErrorBudget<A>& budget) {
  const bool exact = level == alike.levels - 1;
  const Vector<A> cost =
      exact ? Vector<A>{} : cost_of(alike, other, tile, level, lane, sum, budget);
  store<A>(budget.cost + lane, cost);
  const Vector<A> allowed = load(budget.allowed + lane);
  if (exact || !(any_above(cost, allowed) || any_above(sum, broadcast(A(1e20))))) return 0;
  if (level + 2 == alike.levels) return level + 1;
  return any_above(cost_of(alike, other, tile, level + 1, lane, sum, budget), allowed) ? level + 2
                                                                                       : level + 1;
}

// Calls add(other, level, keys) for the keys of all tiles that are not skipped. It returns 0, or
// the level that it is to be called again with.
template <bool both, typename A, typename Add>
void visit_alike_tiles(const LamAlikeTiles<A>& alike, A scale, int64_t tile,
                       const LamScratch<A>& scratch, ErrorBudget<A>& budget, const Add& add) {
  QueryBounds<A> queries;
  for (int k = 0; k < kAxes; ++k) {
    queries.low[k] = alike.low[k * alike.tiles + tile];
    queries.high[k] = alike.high[k * alike.tiles + tile];
  }
  const int64_t count = list_alike_tiles<both>(alike, tile, queries, scale, scratch);
  for (int lane = 0; lane < kTile; ++lane) budget.allowed[lane] = 0;
  const A share = A(0.5) / A(count ? count : 1);
  alignas(64) A log_bound[kTile];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t other = scratch.candidates[i];
    A least = A(__builtin_inf());
    for (int lane = 0; lane < kTile; ++lane) {
      budget.allowed[lane] += share;
      least = smaller(least, budget.allowed[lane]);
    }
    // Keys that together cost at most half of what is allowed are skipped.
    const A* y = alike.bound + other * kBoundRows * kTile;
    const A each = larger(least, A(0)) / (2 * kTile);
    const A log_each = A(__builtin_log(double(each)));
    bound_by_distance(y, y, kTile, kTile, queries, scale, log_bound);
    KeyList keys;
    for (int a = 0; a < kTile; ++a) {
      A peak = alike.key_log_bound[other * kTile + a] + alike.query_max_bound[tile];
      if (both)
        peak = larger(
            peak, alike.query_log_bound[other * kTile + a] + alike.exchanged_query_max_bound[tile]);
      if (log_bound[a] + peak > log_each) keys.add(a);
    }
    for (int lane = 0; lane < kTile; ++lane) budget.allowed[lane] -= each * A(kTile - keys.count);
    if (!keys.count) continue;
    keys.finish();
    for (int level = 0, next;; level = next) {
      next = add(other, level, keys);
      if (!next) break;
    }
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
