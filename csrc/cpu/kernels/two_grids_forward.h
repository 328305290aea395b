// The output of a tile of queries: blocks of keys one after the other, scores, weights, sums. Sums
// are relative to exp(base), which rises if a weight would overflow (online softmax).
#pragma once

#include "two_grids_tile.h"

namespace blpseg::BLPSEG_CAPABILITY {

template <typename A>
struct QuerySums {
  alignas(64) A base[kTile];  // weights are relative to exp of this
  double denominator[kTile];  // Z + eps T
};

// Multiplies the sums so far if a block's largest log weights exceed the base by kHeadroom.
template <typename A>
void raise_base(const A* highest, int64_t channels, QuerySums<A>& sums, A* output) {
  constexpr int width = kWidth<A>;
  alignas(64) A factor[kTile];
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> base = load(sums.base + lane), asked = load(highest + lane);
    const Vector<A> raised = asked - base > A(kHeadroom) ? asked : base;
    store<A>(factor + lane, exp<A>(base - raised));
    store<A>(sums.base + lane, raised);
  }
  for (int lane = 0; lane < kTile; ++lane) sums.denominator[lane] *= factor[lane];
  for (int64_t c = 0; c < channels; ++c) {
    for (int lane = 0; lane < kTile; ++lane) output[c * kTile + lane] *= factor[lane];
  }
}

// Turns the block's products into weights w_ab / (w_nb exp(base)), in place, and adds them and
// T's terms to the denominators.
template <typename A>
void exponentiate_and_sum(const QueryTile<A>& tile, const TwoGridsParams<A>& params,
                          const QueryScratch<A>& scratch, QuerySums<A>& sums) {
  constexpr int width = kWidth<A>, together = 8;
  const KeyBlock<A>& block = tile.block;
  alignas(64) A highest[kTile];
  bool raise = false;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own = load(tile.query_bias + lane);
    const Vector<A> far = load(tile.far_bias + lane);
    Vector<A> most = broadcast(A(-__builtin_inf()));
    for (int r = 0; r < block.count; ++r) {
      A* pair = scratch.pairs + r * kTile + lane;
      const Vector<A> log_weight = params.scale * load(pair) + own;
      const Vector<A> near = tile.gaussian(scratch, block.y[r], block.x[r], lane);
      most = larger(most, log_weight + near);
      if (tile.has_eps) most = larger(most, tile.cut(log_weight + far, near));
      store<A>(pair, log_weight);
    }
    store<A>(highest + lane, most);
    raise = raise || any_above(most - load(sums.base + lane), broadcast(A(kHeadroom)));
  }
  if (raise) raise_base(highest, params.channels, sums, scratch.output);

  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> base = load(sums.base + lane), far = load(tile.far_bias + lane);
    Vector<A> total = {};
    for (int first = 0; first < block.count; first += together) {
      const int end = first + together < block.count ? first + together : block.count;
      Vector<A> part = {};
      for (int r = first; r < end; ++r) {
        A* pair = scratch.pairs + r * kTile + lane;
        const Vector<A> log_weight = load(pair);
        const Vector<A> near = tile.gaussian(scratch, block.y[r], block.x[r], lane);
        if (tile.has_eps) part += exp<A>(tile.cut(log_weight + far, near) - base);
        const Vector<A> weight = exp<A>((log_weight + near) - base);
        part += weight;
        store<A>(pair, weight);
      }
      total += part;
    }
    for (int j = 0; j < width; ++j) sums.denominator[lane + j] += total[j];
  }
}

// Adds the block's weighted values to the output; leaves out keys whose weights are all below
// rounding of the sums.
template <typename A>
void add_values(QueryTile<A>& tile, const KeyMaps<A>& keys, const TwoGridsParams<A>& params,
                const QueryScratch<A>& scratch, const QuerySums<A>& sums) {
  constexpr int width = kWidth<A>;
  KeyBlock<A>& block = tile.block;
  if (tile.prune) {
    alignas(64) A inverse[kTile];
    for (int lane = 0; lane < kTile; ++lane) inverse[lane] = A(1 / sums.denominator[lane]);
    int kept = 0;
    for (int r = 0; r < block.count; ++r) {
      const A* pair = scratch.pairs + r * kTile;
      Vector<A> most = {};
      for (int lane = 0; lane < kTile; lane += width)
        most = larger(most, load(pair + lane) * load(inverse + lane));
      if (!any_above(most, broadcast(keys.skip_prob * keys.inverse_excess[block.pixel[r]])))
        continue;
      if (kept != r) {
        __builtin_memcpy(scratch.pairs + kept * kTile, pair, kTile * sizeof(A));
        block.pixel[kept] = block.pixel[r];
      }
      ++kept;
    }
    block.count = kept;
  }
  if (block.count == 0) return;
  add_weighted_rows(block.rows_of(keys.values, params.channels), block.count, params.channels,
                    scratch.pairs, scratch.output);
}

template <typename A>
void forward_tile(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t index,
                  const QueryScratch<A>& scratch) {
  QueryTile<A> tile;
  QuerySums<A> sums;
  // 1. The keys near the tile. Their sums are lower bounds of the denominators.
  tile.set(keys, params, index, scratch);
  for (int lane = 0; lane < kTile; ++lane) sums.base[lane] = sums.denominator[lane] = 0;
  for (int64_t i = 0; i < params.channels * kTile; ++i) scratch.output[i] = 0;
  const auto multiply = [&] {
    multiply_rows(tile.block.rows_of(keys.x, params.dims), tile.block.count, params.dims,
                  scratch.queries, scratch.pairs);
  };
  const auto visit = [&] {
    exponentiate_and_sum(tile, params, scratch, sums);
    add_values(tile, keys, params, scratch, sums);
  };
  multiply();
  tile.set_biases(params, scratch.pairs);
  alignas(64) A log_middle[kTile];
  tile.log_weights_of_middle(params, scratch.pairs, log_middle);
  visit();

  // 2. All other keys that may count.
  if (tile.prune) {
    for (int lane = 0; lane < kTile; ++lane)
      tile.log_known[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    tile.set_bounds(keys, params, log_middle);
  }
  tile.visit_other_keys(keys, scratch, [&] {
    multiply();
    visit();
  });
  tile.y.unmark_near(scratch.near_y);
  tile.x.unmark_near(scratch.near_x);

  // 3. Divide by the denominator.
  alignas(64) A denominator[kTile];
  for (int lane = 0; lane < kTile; ++lane) {
    scratch.log_denominator[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    denominator[lane] = A(sums.denominator[lane]);
  }
  for (int64_t c = 0; c < params.channels; ++c) {
    for (int lane = 0; lane < kTile; ++lane) scratch.output[c * kTile + lane] /= denominator[lane];
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
