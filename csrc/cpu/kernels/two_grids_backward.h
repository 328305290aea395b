// The gradients that a tile of queries makes. With P_ab = w_ab / (Z_b + eps T_b) and
// R_ab = eps exp(s_ab) / (Z_b + eps T_b):
//
//     dv_a += P_ab g_b
//     m_ab  = P_ab (<g_b, v_a> - delta_b),  ds_ab = m_ab - R_ab delta_b
//     dq_b += scale ds_ab f_a               df_a += scale ds_ab q_b
//
// sum_a ds_ab = 0, so the center of the keys leaves dq_b unchanged. Queries of a chunk are visited
// in order by one thread, so the keys' sums have a fixed order.
#pragma once

#include "two_grids_tile.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Turns the block's products into P_ab (scratch.pairs) and R_ab (scratch.more_pairs, with eps), and
// drops keys for which both are below rounding for all queries.
template <typename A>
void find_probabilities(QueryTile<A>& tile, const KeyMaps<A>& keys, const TwoGridsParams<A>& params,
                        const QueryScratch<A>& scratch) {
  constexpr int width = kWidth<A>;
  KeyBlock<A>& block = tile.block;
  int kept = 0;
  for (int r = 0; r < block.count; ++r) {
    const A* pair = scratch.pairs + r * kTile;
    A* prob = scratch.pairs + kept * kTile;
    A* far_prob = scratch.more_pairs + kept * kTile;
    Vector<A> most = {};
    for (int lane = 0; lane < kTile; lane += width) {
      const Vector<A> log_weight = params.scale * load(pair + lane) + load(tile.query_bias + lane);
      const Vector<A> near = tile.gaussian(scratch, block.y[r], block.x[r], lane);
      const Vector<A> log_denominator = load(scratch.log_denominator + lane);
      const Vector<A> excess = load(scratch.excess + lane);
      const Vector<A> p = exp<A>((log_weight + near) - log_denominator);
      most = larger(most, p * excess);
      store<A>(prob + lane, p);
      if (tile.has_eps) {
        const Vector<A> far =
            exp<A>(tile.cut(log_weight + load(tile.far_bias + lane), near) - log_denominator);
        most = larger(most, far * excess);
        store<A>(far_prob + lane, far);
      }
    }
    if (tile.prune &&
        !any_above(most, broadcast(keys.skip_prob * keys.inverse_excess[block.pixel[r]])))
      continue;
    block.pixel[kept] = block.pixel[r];
    block.y[kept] = block.y[r];
    block.x[kept] = block.x[r];
    ++kept;
  }
  block.count = kept;
}

// Turns <v_a, g_b> (`products`, [kBlockKeys, kTile]) into ds_ab; adds m_ab's sums.
template <typename A>
void differentiate(const QueryTile<A>& tile, const QueryScratch<A>& scratch, const A* far,
                   A* products, A* sum, A* sum_by_distance) {
  constexpr int width = kWidth<A>;
  const KeyBlock<A>& block = tile.block;
  for (int lane = 0; lane < kTile; lane += width) {
    const Vector<A> delta = load(scratch.delta + lane);
    Vector<A> total = {}, by_distance = {};
    for (int r = 0; r < block.count; ++r) {
      const int at = r * kTile + lane;
      Vector<A> m = load(scratch.pairs + at) * (load(products + at) - delta);
      const Vector<A> sq_distance =
          load(scratch.sq_x + block.x[r] * kQueryColumns + lane % kQueryColumns) +
          scratch.sq_y[block.y[r] * kQueryRows + lane / kQueryColumns];
      total += m;
      by_distance += m * sq_distance;
      if (tile.has_eps) m -= load(far + at) * delta;
      store<A>(products + at, m);
    }
    store<A>(sum + lane, load(sum + lane) + total);
    store<A>(sum_by_distance + lane, load(sum_by_distance + lane) + by_distance);
  }
}

// out[lane][k] = tile[k][lane], and 0 for size <= k < pitch. In blocks of a cache line.
template <typename A>
void transpose_tile(const A* tile, int64_t size, int64_t pitch, A* out) {
  for (int64_t first = 0; first < pitch; first += kPitch) {
    const int count = int(size - first < kPitch ? size - first : kPitch);
    for (int lane = 0; lane < kTile; ++lane) {
      A* to = out + lane * pitch + first;
      for (int k = 0; k < count; ++k) to[k] = tile[(first + k) * kTile + lane];
      for (int k = count; k < kPitch; ++k) to[k] = 0;
    }
  }
}

template <typename A>
double backward_tile(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t index,
                     const QueryScratch<A>& scratch, const KeyGradients<A>& gradients) {
  QueryTile<A> tile;
  tile.set(keys, params, index, scratch);
  for (int64_t i = 0; i < params.dims * kTile; ++i) scratch.grad_queries[i] = 0;
  transpose_tile(scratch.queries, params.dims, gradients.x_pitch, scratch.queries_t);
  transpose_tile(scratch.upstream, params.channels, gradients.value_pitch, scratch.upstream_t);
  alignas(64) A sum[kTile] = {}, sum_by_distance[kTile] = {};
  A* products = scratch.more_pairs + kBlockKeys * kTile;

  const auto multiply = [&] {
    multiply_rows(tile.block.rows_of(keys.x, params.dims), tile.block.count, params.dims,
                  scratch.queries, scratch.pairs);
  };
  const auto visit = [&] {
    KeyBlock<A>& block = tile.block;
    find_probabilities(tile, keys, params, scratch);
    if (block.count == 0) return;
    multiply_rows(block.rows_of(keys.values, params.channels), block.count, params.channels,
                  scratch.upstream, products);
    differentiate(tile, scratch, scratch.more_pairs, products, sum, sum_by_distance);
    add_weighted_rows(block.rows_of(keys.x, params.dims), block.count, params.dims, products,
                      scratch.grad_queries);
    A* rows[kBlockKeys + kKeysAcross];
    const auto point = [&](A* array, int64_t pitch) {
      for (int r = 0; r < block.count; ++r) rows[r] = array + block.pixel[r] * pitch;
    };
    point(gradients.values, gradients.value_pitch);
    add_to_rows(rows, block.count, gradients.value_pitch, scratch.pairs, scratch.upstream_t);
    point(gradients.x, gradients.x_pitch);
    add_to_rows(rows, block.count, gradients.x_pitch, products, scratch.queries_t);
  };

  multiply();
  tile.set_biases(params, scratch.pairs);
  if (tile.prune) {
    alignas(64) A log_middle[kTile];
    tile.log_weights_of_middle(params, scratch.pairs, log_middle);
    for (int lane = 0; lane < kTile; ++lane)
      tile.log_known[lane] =
          scratch.log_denominator[lane] - A(__builtin_log(double(scratch.excess[lane])));
    tile.set_bounds(keys, params, log_middle);
  }
  visit();
  tile.visit_other_keys(keys, scratch, [&] {
    multiply();
    visit();
  });
  tile.y.unmark_near(scratch.near_y);
  tile.x.unmark_near(scratch.near_x);

  for (int64_t i = 0; i < params.dims * kTile; ++i) scratch.grad_queries[i] *= params.scale;
  double total = 0;
  for (int lane = 0; lane < kTile; ++lane) {
    total += sum_by_distance[lane];
    if (tile.has_eps) total += double(sum[lane]) * tile.sq_nearest[lane];  // else sum is rounding
  }
  return total;
}

}  // namespace blpseg::BLPSEG_CAPABILITY
