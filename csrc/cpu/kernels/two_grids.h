// The data that the kernels of lam with queries work on: key maps, packed once per image, and the
// memory of a thread that computes one tile of queries after the other. Plain structs:
// csrc/cpu/lam_two_grids/ allocates and fills them.
//
// Keys are centered: x = f - m, m the mean of a sample. <m, q_b> is the same for all keys of query
// b, so no weight changes. Weights are relative to that of n, the key nearest to the query:
//
//     log(w_ab / w_nb) = scale <x_a, q_b> + query_bias_b + log G_ab,
//     query_bias_b = -scale <x_n, q_b>,
//     log G_ab = -(|p_a - p_b|^2 - |p_n - p_b|^2) / (2 sigma^2).
//
// With keys and queries of one axis numbered y and Y, 2 H (p_y - p_Y) = H (2 y + 1) - h (2 Y + 1)
// is a whole number, so whether a key lies in a window is exact.
#pragma once

#include <stdint.h>

#include "lam_image.h"

namespace blpseg {

constexpr int kQueryRows = 4, kQueryColumns = 16;  // of a tile of queries: rows fill a cache line
constexpr int kBlockKeys = 128;                    // keys that are multiplied at once
constexpr int64_t kPitch = 16;  // rows of KeyGradients are multiples of this: whole vectors
static_assert(kQueryRows * kQueryColumns == kTile);

template <typename A>
struct TwoGridsParams {
  int64_t dims, channels;  // D, C
  A scale;
  A log_eps;                 // -infinity for eps = 0
  int64_t reach_y, reach_x;  // of the window, in units of 1 / (2 H) and 1 / (2 W)
  bool has_window;
  LamGrid queries;  // tiles of kQueryRows x kQueryColumns
};

// Key maps of an image. Bounds lie in tiles of 8 x 8 keys; padding has log_excess -infinity.
template <typename A>
struct KeyMaps {
  LamGrid grid;
  bool prune;          // false if an input is not finite: then nothing is skipped
  A inv_two_sigma_sq;  // 1 / (2 sigma^2)
  A skip_prob;         // theta: a key counts if A_a P_ab exceeds it for some query of the tile
  A* center;           // [D]
  A* axes;             // [kAxes, D]: orthonormal, nearly principal directions of the keys
  A* x;                // [h w, D]
  A* values;           // [h w, C]
  A* inverse_excess;   // [h w]: 1 / A_a
  A* bound;            // [tiles, kBoundRows, kTile]: kAxes coordinates y, norm of the rest r
  A* log_excess;       // [tiles, kTile]: log A_a
  A* low;              // [kAxes, tiles]: smallest of each coordinate y in a tile
  A* high;             // [kAxes, tiles]: largest
  A* max_rest;         // [tiles]: largest norm of the rest
  A* max_log_excess;   // [tiles]
};

// What backward of a chunk of query tiles adds up: [h w, pitch], one row per key.
template <typename A>
struct KeyGradients {
  A* x;                 // sum_b ds_ab q_b
  A* values;            // sum_b P_ab g_b
  int64_t x_pitch;      // D, rounded up to a multiple of kPitch
  int64_t value_pitch;  // C, likewise
};

// The memory of a thread. Sizes in [] are numbers of type A if not said otherwise.
template <typename A>
struct QueryScratch {
  A* queries;          // [D, kTile] in
  A* output;           // [C, kTile] forward's result, backward's input
  A* log_denominator;  // [kTile] forward's result, backward's input: log((Z + eps T) / w_nb)
  A* upstream;         // [C, kTile] in, backward: g
  A* delta;            // [kTile] in, backward: <g, out>
  A* excess;           // [kTile] in, backward: A of the gradient; 0 where there is none
  A* grad_queries;     // [D, kTile] backward's result
  A* queries_t;        // [kTile, x_pitch]
  A* upstream_t;       // [kTile, value_pitch]
  A* pairs;            // [kBlockKeys, kTile]
  A* more_pairs;       // [2, kBlockKeys, kTile], backward
  A* sq_y;             // [h, kQueryRows]: (p_a - p_b)^2 - (p_n - p_b)^2 along y
  A* sq_x;             // [w, kQueryColumns]
  A* log_y;            // [h, kQueryRows]: -sq_y / (2 sigma^2); -infinity outside of the window
  A* log_x;            // [w, kQueryColumns]
  A* max_log_y;        // [h]
  A* max_log_x;        // [w]
  A* tile_bound;       // [tiles]
  uint8_t* near_y;     // [h] bytes: whether a row belongs to the first block; 0 between tiles
  uint8_t* near_x;     // [w] bytes
};

template <typename A>
struct TwoGridsKernels {
  // Sets keys.center and keys.axes from a sample [count, D], followed by 2 kAxes rows of work
  // space; overwritten.
  void (*find_axes)(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, double* sample,
                    int64_t count);
  // Computes a tile's bounds and x from its features [D, kTile], which are overwritten. Returns
  // whether all are finite and far from overflow.
  bool (*pack_keys)(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t tile,
                    A* features);
  // Computes scratch.output and scratch.log_denominator of a tile of queries.
  void (*forward_tile)(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t tile,
                       const QueryScratch<A>& scratch);
  // Computes scratch.grad_queries, adds to the keys' gradients, and returns
  // sum_ab m_ab |p_a - p_b|^2.
  double (*backward_tile)(const KeyMaps<A>& keys, const TwoGridsParams<A>& params, int64_t tile,
                          const QueryScratch<A>& scratch, const KeyGradients<A>& gradients);
};

}  // namespace blpseg
