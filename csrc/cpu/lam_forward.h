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
  A base[kTile];         // weights are relative to exp of this
  A denominator[kTile];  // Z + eps T
  A* output;             // [C, kTile]: sum of the weighted values
};

// Lifts base by `lift` where that is more than the headroom, and the sums to the new base; `lift`
// becomes by how much.
template <typename A>
void raise_base(A* lift, int64_t channels, Sums<A>& sums) {
  constexpr int width = kWidth<A>;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> asked = load(lift + lane);
    const Vector<A> by = asked > A(kHeadroom) ? asked : Vector<A>{};
    const Vector<A> factor = exp<A>(-by);
    store<A>(lift + lane, by);
    store<A>(sums.base + lane, load(sums.base + lane) + by);
    store<A>(sums.denominator + lane, load(sums.denominator + lane) * factor);
    for (int64_t c = 0; c < channels; ++c)
      store<A>(sums.output + c * kTile + lane, load(sums.output + c * kTile + lane) * factor);
  }
}

// Turns the products of the listed sources with the targets into weights, in place, and adds them
// to the denominators. with_gaussian: w_ab, to which eps exp(s_ab) is added for the denominator
// only; else eps exp(s_ab) alone.
template <bool with_gaussian, typename A>
void weigh(const Rows& rows, const A* source, const A* target, const Gaussian<A>& gaussian,
           const LamNumbers<A>& numbers, A* pairs, Sums<A>& sums) {
  constexpr int width = kWidth<A>;
  const bool has_eps = numbers.log_eps > A(-__builtin_inf());
  alignas(64) A lift[kTile];
  bool raise = false;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> offset = load(target + lane) - load(sums.base + lane);
    Vector<A> highest = broadcast(A(-__builtin_inf()));
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      A* pair = pairs + r * kTile + lane;
      const Vector<A> log_weight = numbers.scale * load(pair) + (offset + source[a]);
      store<A>(pair, log_weight);
      if (with_gaussian)
        highest = larger(highest, log_weight + load(gaussian.of_row(a) + lane) +
                                      load(gaussian.of_column(a) + lane));
      if (has_eps) highest = larger(highest, log_weight + numbers.log_eps);
    }
    store<A>(lift + lane, highest);
    raise = raise || any_above(highest, broadcast(A(kHeadroom)));
  }
  if (raise)
    raise_base(lift, numbers.channels, sums);
  else
    for (int lane = 0; lane < kTile; ++lane) lift[lane] = 0;

  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> by = load(lift + lane);
    Vector<A> sum = {};
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      A* pair = pairs + r * kTile + lane;
      const Vector<A> log_weight = load(pair) - by;
      if (has_eps) sum += exp<A>(log_weight + numbers.log_eps);
      if (with_gaussian) {
        const Vector<A> weight = exp<A>(log_weight + load(gaussian.of_row(a) + lane) +
                                        load(gaussian.of_column(a) + lane));
        store<A>(pair, weight);
        sum += weight;
      }
    }
    store<A>(sums.denominator + lane, load(sums.denominator + lane) + sum);
  }
}

template <typename A>
void forward_tile(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                  const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const A* target = image.target + tile * kTile;

  Places<A> places;
  find_places(grid, tile, places);
  TargetBound<A> bound;
  bound.set(image, numbers, tile);
  alignas(64) Gaussian<A> gaussian;
  alignas(64) Sums<A> sums;
  alignas(64) A pairs[(kTile + kRowsAcross) * kTile];
  sums.output = scratch.values;
  for (int lane = 0; lane < kTile; ++lane) sums.base[lane] = sums.denominator[lane] = 0;
  for (int64_t i = 0; i < numbers.channels * kTile; ++i) sums.output[i] = 0;

  const auto visit = [&](int64_t from) {
    Rows near, far;
    gaussian.set(grid, from, places, numbers.minus_half_precision);
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
  for (int64_t r = row - 1; r <= row + 1; ++r) {
    for (int64_t c = column - 1; c <= column + 1; ++c) {
      if (r >= 0 && r < grid.rows && c >= 0 && c < grid.columns) visit(r * grid.columns + c);
    }
  }

  if (image.prune) {
    alignas(64) A known[kTile];
    for (int lane = 0; lane < kTile; ++lane)
      known[lane] = sums.base[lane] + A(__builtin_log(double(sums.denominator[lane])));
    bound.learn(image, tile, known);
    const int64_t count = find_candidates<false>(image, numbers, bound, scratch);
    for (int64_t i = 0; i < count; ++i) {
      if (!is_neighbour(scratch.candidates[i])) visit(scratch.candidates[i]);
    }
  } else {
    for (int64_t t = 0; t < grid.rows * grid.columns; ++t) {
      if (!is_neighbour(t)) visit(t);
    }
  }

  for (int lane = 0; lane < kTile; ++lane) {
    scratch.log_denominator[lane] =
        sums.base[lane] + A(__builtin_log(double(sums.denominator[lane])));
    const A denominator = sums.denominator[lane];
    for (int64_t c = 0; c < numbers.channels; ++c) sums.output[c * kTile + lane] /= denominator;
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
