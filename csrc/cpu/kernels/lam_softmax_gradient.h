// The part of the features' gradient that eps adds, for images whose T was summed apart:
//
//     R_ab = eps exp(s_ab) / (Z_b + eps T_b)
//     df_c = -scale * sum_a (R_ac delta_c + R_ca delta_a) f_a
//
// Like T, it has no Gaussian and is summed over alike tiles (lam_alike_tiles.h). What is left out
// of a score is left out of f_a too.
#pragma once

#include "lam_alike_tiles.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Turns the products of the listed keys a with the queries c of a tile into
// -(R_ac delta_c + R_ca delta_a), in place, and adds them up in `total`. Returns 0, or, as soon as
// the cost is more than is allowed for a query, the next level worth trying.
template <bool exact, typename A>
int differentiate_softmax(const LamAlikeTiles<A>& alike, A scale, int64_t other, int64_t tile,
                          int level, const KeyList& keys, A* pairs, ErrorBudget<A>& budget,
                          A* total) {
  constexpr int width = kWidth<A>;
  const A* key = alike.key_bias + other * kTile;
  const A* query = alike.query_bias + other * kTile;
  const A* sign = alike.sign + other * kTile;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own_key = load(alike.key_bias + tile * kTile + lane);
    const Vector<A> own_query = load(alike.query_bias + tile * kTile + lane);
    const Vector<A> own_sign = load(alike.sign + tile * kTile + lane);
    Vector<A> sizes = {}, terms = {};
    for (int r = 0; r < keys.count; ++r) {
      const int a = keys.index[r];
      const Vector<A> score = scale * load(pairs + r * kTile + lane);
      const Vector<A> in = exp_of_score<exact, A>(score + (own_query + key[a]));
      const Vector<A> out = exp_of_score<exact, A>(score + (own_key + query[a]));
      const Vector<A> term = -(own_sign * in + sign[a] * out);
      store<A>(pairs + r * kTile + lane, term);
      sizes += in + out;
      terms += term;
    }
    store<A>(total + lane, terms);
    const int next = find_cost(alike, other, tile, level, lane, sizes, budget);
    if (next) return next;
  }
  return 0;
}

// Writes the sums of a tile of alike pixels to each pixel's place in the image.
template <typename A>
void differentiate_alike_tile(const LamImage<A>& image, const LamParams<A>& params,
                              const LamAlikeTiles<A>& alike, int64_t tile,
                              const LamScratch<A>& scratch) {
  const int64_t rank = alike.rank;
  A* grad_x = scratch.coordinates;
  for (int64_t i = 0; i < rank * kTile; ++i) grad_x[i] = 0;
  alignas(64) A total[kTile] = {};
  alignas(64) A tile_total[kTile];
  alignas(64) A pairs[(kTile + kRowsAcross) * kTile];
  alignas(64) ErrorBudget<A> budget;
  for (int lane = 0; lane < kTile; ++lane)
    budget.in_tolerances[lane] =
        A(__builtin_exp(-double(alike.log_tolerance[tile * kTile + lane])));
  visit_alike_tiles<true>(
      alike, params.scale, tile, scratch, budget,
      [&](int64_t other, int level, const KeyList& keys) {
        const A* x = alike.x + other * rank * kTile;
        const int64_t coordinates = alike.level_rank[level];
        dot(x, alike.x + tile * rank * kTile, coordinates, keys, pairs);
        const auto differentiate = level == alike.levels - 1 ? differentiate_softmax<true, A>
                                                             : differentiate_softmax<false, A>;
        const int next =
            differentiate(alike, params.scale, other, tile, level, keys, pairs, budget, tile_total);
        if (next) return next;
        budget.pay();
        accumulate(x, kTile, coordinates, keys.index, keys.count, pairs, grad_x);
        for (int lane = 0; lane < kTile; ++lane) total[lane] += tile_total[lane];
        return 0;
      });
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t pixel = alike.pixel[tile * kTile + lane];
    if (pixel < 0) continue;
    A* out = image.softmax_gradient + pixel / kTile * rank * kTile + pixel % kTile;
    for (int64_t k = 0; k < rank; ++k) out[k * kTile] = alike.delta_unit * grad_x[k * kTile + lane];
    image.softmax_total[pixel] = alike.delta_unit * total[lane];
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
