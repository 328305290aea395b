// The gradients of a tile of pixels: each pixel gathers from all that it gave to (as source) and
// all that gave to it (as target), so that every sum has one owner and one order.
//
// In units of the owner c and another pixel a, with P_ac = w_ac / (Z_c + eps T_c) and so on:
//
//     dv_c = sum_a P_ca g_a
//     m_ac = ds_ac + ds_ca,  ds_ac = P_ac (<g_c, v_a> - delta_c) - eps e^{s_ac} / (...)_c delta_c
//     df_c = scale * sum_a m_ac f_a
#pragma once

#include "lam_bound.h"
#include "lam_pack.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Where a tile's products with the owners are kept, and what becomes of them.
template <typename A>
struct Pairs {
  alignas(64) A x[(kTile + kRowsAcross) * kTile];  // <x_a, x_c>, then m_ac
  A out[(kTile + kRowsAcross) * kTile];            // <g_a, v_c>, then P_ca
  A in[(kTile + kRowsAcross) * kTile];             // <v_a, g_c>
};

// Turns the products of the listed pixels a with the owners c into m_ac and P_ca, and adds m_ac to
// `total`. with_gaussian: false where only eps T matters.
template <bool with_gaussian, typename A>
void differentiate(const Rows& rows, const LamImage<A>& image, const LamNumbers<A>& numbers,
                   int64_t other, int64_t owner, const Gaussian<A>& gaussian, Pairs<A>& pairs,
                   A* total) {
  constexpr int width = kWidth<A>;
  const bool has_eps = numbers.log_eps > A(-__builtin_inf());
  const A* source = image.source + other * kTile;
  const A* target = image.target + other * kTile;
  const A* log_denominator = image.log_denominator + other * kTile;
  const A* delta = image.delta + other * kTile;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> own_source = load(image.source + owner * kTile + lane);
    const Vector<A> own_target = load(image.target + owner * kTile + lane);
    const Vector<A> own_denominator = load(image.log_denominator + owner * kTile + lane);
    const Vector<A> own_delta = load(image.delta + owner * kTile + lane);
    Vector<A> sum = {};
    for (int r = 0; r < rows.count; ++r) {
      const int a = rows.index[r];
      const int at = r * kTile + lane;
      const Vector<A> score = numbers.scale * load(pairs.x + at);
      // Scores first: denominators' logs are small beside them, and would drown in them.
      const Vector<A> log_in = score + (own_target + source[a]);   // a gives, c takes
      const Vector<A> log_out = score + (own_source + target[a]);  // c gives, a takes
      Vector<A> m = {};
      if (with_gaussian) {
        const Vector<A> near = gaussian.of(a, lane);
        const Vector<A> share_out = exp<A>((log_out + near) - log_denominator[a]);
        m = exp<A>((log_in + near) - own_denominator) * (load(pairs.in + at) - own_delta) +
            share_out * (load(pairs.out + at) - delta[a]);
        store<A>(pairs.out + at, share_out);
      }
      if (has_eps) {
        const Vector<A> far_in = gaussian.cut(log_in, a, lane);
        const Vector<A> far_out = gaussian.cut(log_out, a, lane);
        m -= exp<A>((far_in + numbers.log_eps) - own_denominator) * own_delta +
             exp<A>((far_out + numbers.log_eps) - log_denominator[a]) * delta[a];
      }
      store<A>(pairs.x + at, m);
      sum += m;
    }
    store<A>(total + lane, load(total + lane) + sum);
  }
}

template <typename A>
void backward_tile(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                   const LamScratch<A>& scratch) {
  const LamGrid& grid = image.grid;
  const int64_t rank = image.rank, channels = numbers.channels, dims = numbers.dims;

  Places<A> places;
  find_places(grid, tile, places);
  TargetBound<A> bound;
  if (image.prune) bound.set(image, numbers, tile);
  alignas(64) Gaussian<A> gaussian;
  Pairs<A> pairs;
  alignas(64) A total[kTile] = {};  // sum of m_ac
  A* grad_x = image.projected ? scratch.coordinates : scratch.features;
  for (int64_t i = 0; i < rank * kTile; ++i) grad_x[i] = 0;
  for (int64_t i = 0; i < channels * kTile; ++i) scratch.values[i] = 0;

  const auto visit = [&](int64_t other) {
    Rows near, far;
    gaussian.set(grid, other, places, numbers);
    if (image.prune)
      find_sources<true>(image, numbers, other, bound, places, gaussian, near, far);
    else
      take_all_sources(image, other, near);
    const A* x = image.x + other * rank * kTile;
    const A* own_x = image.x + tile * rank * kTile;
    const A* values = image.values + other * channels * kTile;
    const A* own_values = image.values + tile * channels * kTile;
    const A* upstream = image.upstream + other * channels * kTile;
    const A* own_upstream = image.upstream + tile * channels * kTile;
    if (near.count) {
      dot(x, own_x, rank, near, pairs.x);
      dot(upstream, own_values, channels, near, pairs.out);
      dot(values, own_upstream, channels, near, pairs.in);
      differentiate<true>(near, image, numbers, other, tile, gaussian, pairs, total);
      accumulate(upstream, kTile, channels, near.index, near.count, pairs.out, scratch.values);
      accumulate(x, kTile, rank, near.index, near.count, pairs.x, grad_x);
    }
    if (far.count) {
      dot(x, own_x, rank, far, pairs.x);
      differentiate<false>(far, image, numbers, other, tile, gaussian, pairs, total);
      accumulate(x, kTile, rank, far.index, far.count, pairs.x, grad_x);
    }
  };

  const Reached tiles = reached(grid, tile, numbers.radius);
  if (image.prune) {
    const int64_t count = find_candidates<true>(image, numbers, bound, tiles, scratch);
    for (int64_t i = 0; i < count; ++i) visit(scratch.candidates[i]);
  } else {
    for_each_reached(grid, tiles, visit);
  }

  // Back from coordinates to features: f = basis^T x + centre.
  A* gradient = scratch.features;
  if (image.projected) {
    for (int64_t i = 0; i < dims * kTile; ++i) gradient[i] = 0;
    multiply(image.transposed, dims, rank, grad_x, gradient);
  }
  for (int64_t d = 0; d < dims; ++d) {
    for (int lane = 0; lane < kTile; ++lane) {
      A* number = gradient + d * kTile + lane;
      *number = numbers.scale * (*number + image.centre[d] * total[lane]);
    }
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
