// LAM of a tile of targets: over the tiles of sources that matter, one after the other, weights are
// made and used at once. Sums are kept relative to exp(base), which rises where a weight would
// leave the range of numbers (online softmax).
#pragma once

#include "lam_bound.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Weights may pass exp(base) by this much before base has to rise: still far from overflow.
constexpr int kHeadroom = 20;

template <typename A>
struct Sums {
  A base[kTile];              // weights are relative to exp of this
  double denominator[kTile];  // Z + eps T; double, since that many equal terms round alike
  A* output;                  // [C, kTile]: sum of the weighted values
};

// Raises base to the highest log of a weight where that is more than the headroom above it, and the
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

// Turns the products of the listed sources with the targets into weights, in place, and adds them
// to the denominators. with_gaussian: w_ab, to which eps exp(s_ab) is added for the denominator
// only; else eps exp(s_ab) alone. A weight's log is rounded here just as in backward, so that the
// shares that backward makes of it add up to 1.
template <bool with_gaussian, typename A>
void weigh(const Rows& rows, const A* source, const A* target, const Gaussian<A>& gaussian,
           const LamNumbers<A>& numbers, A* pairs, Sums<A>& sums) {
  constexpr int width = kWidth<A>, together = 8;
  const bool has_eps = numbers.log_eps > A(-__builtin_inf());
  alignas(64) A highest[kTile], sum[kTile];
  bool raise = false;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own = load(target + lane);
    Vector<A> most = broadcast(A(-__builtin_inf()));
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      A* pair = pairs + r * kTile + lane;
      const Vector<A> log_weight = numbers.scale * load(pair) + (own + source[a]);
      store<A>(pair, log_weight);
      if (with_gaussian) most = larger(most, log_weight + gaussian.of(a, lane));
      if (has_eps) most = larger(most, gaussian.cut(log_weight, a, lane) + numbers.log_eps);
    }
    store<A>(highest + lane, most);
    raise = raise || any_above(most - load(sums.base + lane), broadcast(A(kHeadroom)));
  }
  if (raise) raise_base(highest, numbers.channels, sums);

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
        if (has_eps) part += exp<A>((gaussian.cut(log_weight, a, lane) + numbers.log_eps) - base);
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
void forward_tile(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                  const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const A* target = image.target + tile * kTile;

  Places<A> places;
  find_places(grid, tile, places);
  TargetBound<A> bound;
  if (image.prune) bound.set(image, numbers, tile);
  alignas(64) Gaussian<A> gaussian;
  alignas(64) Sums<A> sums;
  alignas(64) A pairs[(kTile + kRowsAcross) * kTile];
  sums.output = scratch.values;
  for (int lane = 0; lane < kTile; ++lane) {
    sums.base[lane] = Simd<A>::kLeast;
    sums.denominator[lane] = 0;
  }
  for (int64_t i = 0; i < numbers.channels * kTile; ++i) sums.output[i] = 0;

  const auto visit = [&](int64_t from) {
    Rows near, far;
    gaussian.set(grid, from, places, numbers);
    if (image.prune)
      find_sources<false>(image, numbers, from, bound, places, gaussian, near, far);
    else
      take_all_sources(image, from, near);
    const A* from_x = image.x + from * image.rank * kTile;
    const A* from_source = image.source + from * kTile;
    const A* x = image.x + tile * image.rank * kTile;
    if (near.count) {
      dot(from_x, x, image.rank, near, pairs);
      weigh<true>(near, from_source, target, gaussian, numbers, pairs, sums);
      accumulate(image.values + from * numbers.channels * kTile, kTile, numbers.channels,
                 near.index, near.count, pairs, sums.output);
    }
    if (far.count) {
      dot(from_x, x, image.rank, far, pairs);
      weigh<false>(far, from_source, target, gaussian, numbers, pairs, sums);
    }
  };

  // The neighbourhood first: most weight lies there, so that its denominators, which are lower
  // bounds of the final ones, show how little the rest matters.
  const int64_t row = tile / grid.columns, column = tile % grid.columns;
  const auto is_neighbour = [&](int64_t t) {
    const int64_t dr = t / grid.columns - row, dc = t % grid.columns - column;
    return dr >= -1 && dr <= 1 && dc >= -1 && dc <= 1;
  };
  for_each_reached(grid, reached(grid, tile, numbers.radius < 1 ? numbers.radius : 1), visit);

  const Reached tiles = reached(grid, tile, numbers.radius);
  if (image.prune) {
    alignas(64) A known[kTile];
    for (int lane = 0; lane < kTile; ++lane)
      known[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    bound.learn(image, tile, known);
    const int64_t count = find_candidates<false>(image, numbers, bound, tiles, scratch);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_neighbour(scratch.candidates[i])) visit(scratch.candidates[i]);
    }
  } else {
    for_each_reached(grid, tiles, [&](int64_t t) {
      if (!is_neighbour(t)) visit(t);
    });
  }

  for (int lane = 0; lane < kTile; ++lane) {
    scratch.log_denominator[lane] = sums.base[lane] + A(__builtin_log(sums.denominator[lane]));
    const A denominator = A(sums.denominator[lane]);
    for (int64_t c = 0; c < numbers.channels; ++c) sums.output[c * kTile + lane] /= denominator;
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
