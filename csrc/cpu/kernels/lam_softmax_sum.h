// T_b = sum_a exp(s_ab), the denominator of the softmax, which eps > 0 adds to Z_b: summed over
// alike tiles (lam_alike_tiles.h).
#pragma once

#include "lam_alike_tiles.h"

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

// The sums of a tile's queries.
template <typename A>
struct SoftmaxSums {
  A base[kTile];          // sums are relative to exp of this
  double sum[kTile];      // T_b
  ErrorBudget<A> budget;  // in_tolerances: exp(base) / tolerance
};

// Adds the listed keys' exp(score - base) for each query, in sum. Returns 0, or, as soon as the
// cost is more than is allowed for a query, the next level worth trying.
template <bool exact, typename A>
int exponentiate_scores(const LamAlikeTiles<A>& alike, A scale, int64_t other, int64_t tile,
                        int level, const KeyList& keys, const A* scores, SoftmaxSums<A>& sums,
                        A* sum) {
  const A* key_bias = alike.key_bias + other * kTile;
  for (int lane = 0; lane < kTile; lane += kWidth<A>) {
    const Vector<A> bias = load(alike.query_bias + tile * kTile + lane);
    const Vector<A> base = load(sums.base + lane);
    Vector<A> total = {};
    for (int r = 0; r < keys.count; ++r) {
      const Vector<A> score =
          scale * load(scores + r * kTile + lane) + (bias + key_bias[keys.index[r]]);
      total += exp_of_score<exact, A>(score - base);
    }
    store<A>(sum + lane, total);
    const int next = find_cost(alike, other, tile, level, lane, total, sums.budget);
    if (next) return next;
  }
  return 0;
}

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
        sums.budget.in_tolerances[lane + i] *= A(__builtin_exp(double(rise)));
        sums.base[lane + i] = highest[i];
      }
    }
  }

  alignas(64) A sum[kTile];
  const auto exponentiate = exact ? exponentiate_scores<true, A> : exponentiate_scores<false, A>;
  const int next = exponentiate(alike, params.scale, other, tile, level, keys, scores, sums, sum);
  if (next) return next;
  sums.budget.pay();
  for (int lane = 0; lane < kTile; ++lane) sums.sum[lane] += sum[lane];
  return 0;
}

// Writes T_b / w_bb of a tile of alike pixels to each pixel's place in the image.
template <typename A>
void sum_alike_tile(const LamImage<A>& image, const LamParams<A>& params,
                    const LamAlikeTiles<A>& alike, int64_t tile, const LamScratch<A>& scratch) {
  alignas(64) SoftmaxSums<A> sums;
  for (int lane = 0; lane < kTile; ++lane) {
    sums.base[lane] = alike.log_tolerance[tile * kTile + lane];
    sums.sum[lane] = 0;
    sums.budget.in_tolerances[lane] = 1;
  }
  alignas(64) A scores[(kTile + kRowsAcross) * kTile];
  visit_alike_tiles<false>(alike, params.scale, tile, scratch, sums.budget,
                           [&](int64_t other, int level, const KeyList& keys) {
                             return add_exponentials(alike, params, other, tile, level, keys,
                                                     scores, sums);
                           });
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t pixel = alike.pixel[tile * kTile + lane];
    if (pixel < 0) continue;
    image.softmax_base[pixel] = sums.base[lane];
    image.softmax_sum[pixel] = A(sums.sum[lane]);
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
