// The output of a tile of queries. Key tiles that are not skipped are visited one after the other:
// scores, weights, sums. Sums are relative to exp(base), which rises if a weight would overflow
// (online softmax).
#pragma once

#include "lam_bound.h"

namespace blpseg::BLPSEG_CAPABILITY {

template <typename A>
struct Sums {
  A base[kTile];              // weights are relative to exp of this
  double denominator[kTile];  // Z + eps T; double, since that many equal terms round alike
  A* output;                  // [C, kTile]: sum of the weighted values
};

// Raises base to the largest log weight if that exceeds it by more than kHeadroom, and rescales the
// sums to the new base.
template <typename A>
void raise_base(const A* highest, int64_t channels, Sums<A>& sums) {
  constexpr int width = kWidth<A>;
  alignas(64) A factor[kTile];
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> base = load(sums.base + lane), asked = load(highest + lane);
    const Vector<A> raised = asked - base > A(kHeadroom) ? asked : base;
    store<A>(factor + lane, exp<A>(base - raised));
    store<A>(sums.base + lane, raised);
    for (int64_t c = 0; c < channels; ++c)
      store<A>(sums.output + c * kTile + lane,
               load(sums.output + c * kTile + lane) * load(factor + lane));
  }
  for (int lane = 0; lane < kTile; ++lane) sums.denominator[lane] *= factor[lane];
}

// Turns the products of the listed keys with the queries into weights w_ab, in place, and adds
// w_ab + eps exp(s_ab) to the denominators. with_gaussian = false: adds eps exp(s_ab) only. Log
// weights are rounded as in backward, so that the probabilities there add up to 1.
template <bool with_gaussian, typename A>
void exponentiate_and_sum(const KeyList& rows, const A* key, const A* query,
                          const Gaussian<A>& gaussian, const LamParams<A>& params, A* pairs,
                          Sums<A>& sums) {
  constexpr int width = kWidth<A>, together = 8;
  const bool has_eps = params.log_eps > A(-__builtin_inf());
  alignas(64) A highest[kTile], sum[kTile];
  bool raise = false;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own = load(query + lane);
    Vector<A> most = broadcast(A(-__builtin_inf()));
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      A* pair = pairs + r * kTile + lane;
      const Vector<A> log_weight = params.scale * load(pair) + (own + key[a]);
      store<A>(pair, log_weight);
      if (with_gaussian) most = larger(most, log_weight + gaussian.of(a, lane));
      if (has_eps) most = larger(most, gaussian.cut(log_weight, a, lane) + params.log_eps);
    }
    store<A>(highest + lane, most);
    raise = raise || any_above(most - load(sums.base + lane), broadcast(A(kHeadroom)));
  }
  if (raise) raise_base(highest, params.channels, sums);

  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> base = load(sums.base + lane);
    Vector<A> total = {};
    for (int first = 0; first < rows.count; first += together) {
      const int end = first + together < rows.count ? first + together : rows.count;
      Vector<A> part = {};
      for (int r = first; r < end; ++r) {
        const int a = rows.index[r];
        A* pair = pairs + r * kTile + lane;
        const Vector<A> log_weight = load(pair);
        if (has_eps) part += exp<A>((gaussian.cut(log_weight, a, lane) + params.log_eps) - base);
        if (with_gaussian) {
          const Vector<A> weight = exp<A>((log_weight + gaussian.of(a, lane)) - base);
          store<A>(pair, weight);
          part += weight;
        }
      }
      total += part;
    }
    store<A>(sum + lane, total);
  }
  for (int lane = 0; lane < kTile; ++lane) sums.denominator[lane] += sum[lane];
}

template <typename A>
void forward_tile(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                  const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const A* query = image.query_bias + tile * kTile;

  PixelPositions<A> positions;
  find_positions(grid, tile, positions);
  QueryBounds<A> bound;
  if (image.prune) bound.set(image, params, tile);
  const LamParams<A> bound_params = with_tolerated_eps(image, params, tile);
  alignas(64) Gaussian<A> gaussian;
  alignas(64) Sums<A> sums;
  alignas(64) A pairs[(kTile + kRowsAcross) * kTile];
  // 1. Start with eps T, if that is known, or with nothing.
  sums.output = scratch.values;
  for (int lane = 0; lane < kTile; ++lane) {
    const bool has_sum = image.softmax_sum && query[lane] > A(-__builtin_inf());
    const int64_t pixel = tile * kTile + lane;
    sums.base[lane] = has_sum ? image.softmax_base[pixel] : Simd<A>::kLeast;
    sums.denominator[lane] = has_sum ? double(image.eps) * image.softmax_sum[pixel] : 0;
  }
  for (int64_t i = 0; i < params.channels * kTile; ++i) sums.output[i] = 0;

  const auto visit = [&](int64_t from) {
    KeyList near_keys, far_keys;
    gaussian.set(grid, from, positions, params);
    if (image.prune)
      find_keys<false>(image, bound_params, from, bound, positions, gaussian, near_keys, far_keys);
    else
      take_all_keys(image, from, near_keys);
    const A* from_x = image.x + from * image.rank * kTile;
    const A* from_key_bias = image.key_bias + from * kTile;
    const A* x = image.x + tile * image.rank * kTile;
    if (near_keys.count) {
      dot(from_x, x, image.rank, near_keys, pairs);
      exponentiate_and_sum<true>(near_keys, from_key_bias, query, gaussian, params, pairs, sums);
      accumulate(image.values + from * params.channels * kTile, kTile, params.channels,
                 near_keys.index, near_keys.count, pairs, sums.output);
    }
    if (far_keys.count) {
      dot(from_x, x, image.rank, far_keys, pairs);
      exponentiate_and_sum<false>(far_keys, from_key_bias, query, gaussian, params, pairs, sums);
    }
  };

  // 2. The 3 x 3 neighborhood. Most weight lies there; its denominators are lower bounds of the
  // final ones, by which the other tiles are skipped.
  const int64_t row = tile / grid.columns, column = tile % grid.columns;
  const auto is_neighbor = [&](int64_t t) {
    const int64_t dr = t / grid.columns - row, dc = t % grid.columns - column;
    return dr >= -1 && dr <= 1 && dc >= -1 && dc <= 1;
  };
  for_each_tile_in(grid, tiles_in_window(grid, tile, params.radius < 1 ? params.radius : 1), visit);

  // 3. The other tiles of the window.
  const TileWindow tiles = tiles_in_window(grid, tile, params.radius);
  if (image.prune) {
    alignas(64) A known[kTile];
    for (int lane = 0; lane < kTile; ++lane)
      known[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    bound.tighten(image, tile, known);
    const int64_t count = find_candidates<false>(image, bound_params, bound, tiles, scratch);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_neighbor(scratch.candidates[i])) visit(scratch.candidates[i]);
    }
  } else {
    for_each_tile_in(grid, tiles, [&](int64_t t) {
      if (!is_neighbor(t)) visit(t);
    });
  }

  // 4. Divide by the denominator.
  for (int lane = 0; lane < kTile; ++lane) {
    scratch.log_denominator[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    const A denominator = A(sums.denominator[lane]);
    for (int64_t c = 0; c < params.channels; ++c) sums.output[c * kTile + lane] /= denominator;
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
