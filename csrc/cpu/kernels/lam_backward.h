// The gradients of a tile of pixels. Each pixel c gathers the terms in which it is a key and those
// in which it is a query, so every sum is computed by one thread in a fixed order.
//
// With another pixel a, P_ac = w_ac / (Z_c + eps T_c) and R_ac = eps exp(s_ac) / (Z_c + eps T_c):
//
//     dv_c = sum_a P_ca g_a
//     m_ac = ds_ac + ds_ca,  ds_ac = P_ac (<g_c, v_a> - delta_c) - R_ac delta_c
//     df_c = scale * sum_a m_ac f_a
#pragma once

#include "lam_bound.h"
#include "lam_tile_features.h"

namespace blpseg::BLPSEG_CAPABILITY {

// The products of the listed pixels a with the tile's pixels c, and what replaces them.
template <typename A>
struct PairBlock {
  alignas(64) A x[(kTile + kRowsAcross) * kTile];  // <x_a, x_c>, then m_ac
  A out[(kTile + kRowsAcross) * kTile];            // <g_a, v_c>, then P_ca
  A in[(kTile + kRowsAcross) * kTile];             // <v_a, g_c>
};

// Turns the products of the listed pixels a with the tile's pixels c into m_ac and P_ca, and adds
// m_ac to `total`. with_gaussian = false: only R_ac and R_ca matter.
template <bool with_gaussian, typename A>
void differentiate(const KeyList& rows, const LamImage<A>& image, const LamParams<A>& params,
                   int64_t other, int64_t owner, const Gaussian<A>& gaussian, PairBlock<A>& pairs,
                   A* total) {
  constexpr int width = kWidth<A>;
  const bool has_eps = params.log_eps > A(-__builtin_inf());
  const A* key = image.key_bias + other * kTile;
  const A* query = image.query_bias + other * kTile;
  const A* log_denominator = image.log_denominator + other * kTile;
  const A* delta = image.delta + other * kTile;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own_key_bias = load(image.key_bias + owner * kTile + lane);
    const Vector<A> own_query_bias = load(image.query_bias + owner * kTile + lane);
    const Vector<A> own_denominator = load(image.log_denominator + owner * kTile + lane);
    const Vector<A> own_delta = load(image.delta + owner * kTile + lane);
    Vector<A> sum = {};
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      const int at = r * kTile + lane;
      const Vector<A> score = params.scale * load(pairs.x + at);
      // Scores first: denominators' logs are small beside them, and would drown in them.
      const Vector<A> log_in = score + (own_query_bias + key[a]);   // a gives, c takes
      const Vector<A> log_out = score + (own_key_bias + query[a]);  // c gives, a takes
      Vector<A> m = {};
      if (with_gaussian) {
        const Vector<A> near = gaussian.of(a, lane);
        const Vector<A> prob_out = exp<A>((log_out + near) - log_denominator[a]);
        m = exp<A>((log_in + near) - own_denominator) * (load(pairs.in + at) - own_delta) +
            prob_out * (load(pairs.out + at) - delta[a]);
        store<A>(pairs.out + at, prob_out);
      }
      if (has_eps) {
        const Vector<A> far_in = gaussian.cut(log_in, a, lane);
        const Vector<A> far_out = gaussian.cut(log_out, a, lane);
        m -= exp<A>((far_in + params.log_eps) - own_denominator) * own_delta +
             exp<A>((far_out + params.log_eps) - log_denominator[a]) * delta[a];
      }
      store<A>(pairs.x + at, m);
      sum += m;
    }
    store<A>(total + lane, load(total + lane) + sum);
  }
}

template <typename A>
void backward_tile(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                   const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const int64_t rank = image.rank, channels = params.channels, dims = params.dims;

  PixelPositions<A> positions;
  find_positions(grid, tile, positions);
  // 1. Bounds, and sums at what is known: the terms of R, if they were summed apart, or 0.
  QueryBounds<A> bound;
  if (image.prune) bound.set(image, params, tile);
  const LamParams<A> bound_params = with_tolerated_eps(image, params, tile);
  alignas(64) Gaussian<A> gaussian;
  PairBlock<A> pairs;
  alignas(64) A total[kTile];  // sum of m_ac
  A* grad_x = image.projected ? scratch.coordinates : scratch.features;
  const A* known = image.softmax_gradient;
  for (int64_t i = 0; i < rank * kTile; ++i)
    grad_x[i] = known ? known[tile * rank * kTile + i] : A(0);
  for (int lane = 0; lane < kTile; ++lane)
    total[lane] = known ? image.softmax_total[tile * kTile + lane] : A(0);
  for (int64_t i = 0; i < channels * kTile; ++i) scratch.values[i] = 0;

  const auto visit = [&](int64_t other) {
    KeyList near_keys, far_keys;
    gaussian.set(grid, other, positions, params);
    if (image.prune)
      find_keys<true>(image, bound_params, other, bound, positions, gaussian, near_keys, far_keys);
    else
      take_all_keys(image, other, near_keys);
    const A* x = image.x + other * rank * kTile;
    const A* own_x = image.x + tile * rank * kTile;
    const A* values = image.values + other * channels * kTile;
    const A* own_values = image.values + tile * channels * kTile;
    const A* upstream = image.upstream + other * channels * kTile;
    const A* own_upstream = image.upstream + tile * channels * kTile;
    if (near_keys.count) {
      dot(x, own_x, rank, near_keys, pairs.x);
      dot(upstream, own_values, channels, near_keys, pairs.out);
      dot(values, own_upstream, channels, near_keys, pairs.in);
      differentiate<true>(near_keys, image, params, other, tile, gaussian, pairs, total);
      accumulate(upstream, kTile, channels, near_keys.index, near_keys.count, pairs.out,
                 scratch.values);
      accumulate(x, kTile, rank, near_keys.index, near_keys.count, pairs.x, grad_x);
    }
    if (far_keys.count) {
      dot(x, own_x, rank, far_keys, pairs.x);
      differentiate<false>(far_keys, image, params, other, tile, gaussian, pairs, total);
      accumulate(x, kTile, rank, far_keys.index, far_keys.count, pairs.x, grad_x);
    }
  };

  // 2. Gather from all tiles of the window.
  const TileWindow tiles = tiles_in_window(grid, tile, params.radius);
  if (image.prune) {
    const int64_t count = find_candidates<true>(image, bound_params, bound, tiles, scratch);
    for (int64_t i = 0; i < count; ++i) visit(scratch.candidates[i]);
  } else {
    for_each_tile_in(grid, tiles, visit);
  }

  // 3. From coordinates back to features: f = basis^T x + center.
  A* gradient = scratch.features;
  if (image.projected) {
    for (int64_t i = 0; i < dims * kTile; ++i) gradient[i] = 0;
    multiply(image.transposed, dims, rank, grad_x, gradient);
  }
  for (int64_t d = 0; d < dims; ++d) {
    for (int lane = 0; lane < kTile; ++lane) {
      A* number = gradient + d * kTile + lane;
      *number = params.scale * (*number + image.center[d] * total[lane]);
    }
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
