// The data that LAM's kernels work on: an image whose pixels are packed in tiles. Plain structs:
// csrc/cpu/lam/lam.cpp allocates and fills them; the functions of LamKernels, which are compiled
// once per CPU capability, read them.
//
// The features f are centered: x = f - m, where m is the center of a sample (any vector would do).
//
//     scale <f_a, f_b> = scale <x_a, x_b> + key_bias_a + key_bias_b + a constant,
//     key_bias_a = scale <m, x_a>,
//
// so relative to the query's own weight w_bb
//
//     log(w_ab / w_bb) = scale <x_a, x_b> + key_bias_a + query_bias_b
//                        - |p_a - p_b|^2 / (2 sigma^2),
//     query_bias_b = -scale |x_b|^2 - key_bias_b.
//
// Centering makes the products smaller, and with them their rounding errors and the bounds.
// `radius` sets the weight of pixels outside the window to 0; they leave both sums, Z and T.
#pragma once

#include <stdint.h>

namespace blpseg {

constexpr int kTile = 64;  // pixels in a tile
constexpr int kAxes = 8;   // principal directions that upper bounds use
constexpr int kBoundRows = kAxes + 1;
constexpr int kHeadroom = 20;      // weights may pass exp(base) by exp of this: far from overflow
constexpr int kLargestLog = 80;    // exp of this is finite in float32
constexpr int kMostSamples = 512;  // limit of the pixels that a basis is computed from

// h x w pixels, cut into tiles of tile_height x tile_width = kTile pixels. Row-major, both the
// tiles and the pixels of a tile.
struct LamGrid {
  int64_t height, width;
  int64_t tile_height, tile_width;
  int64_t rows, columns;  // of tiles
};

template <typename A>
struct LamParams {
  int64_t dims, channels;  // D, C
  A scale;
  A minus_inv_two_sigma_sq;  // -1 / (2 sigma^2)
  A log_eps;                 // -infinity for eps = 0
  int64_t radius;            // of the window; at least the image's sides if there is no window
  int64_t principal_axes;    // leading basis directions to be made nearly principal
};

// Arrays are [tiles, rows, kTile]: a row holds one number per pixel of a tile. Pixels of a tile
// that lie outside the image (padding) copy the edge's features; their key_bias and query_bias are
// -infinity, so all their weights are 0.
template <typename A>
struct LamImage {
  LamGrid grid;
  int64_t directions;    // rows of the basis: the rank of the features if projected, else kAxes
  int64_t rank;          // rows of x: directions if projected, else D
  bool projected;        // x holds coordinates in the basis; otherwise f - center
  bool prune;            // whether pairs may be skipped; false if an input is not finite
  A log_skip_threshold;  // a pair is skipped if an upper bound of its log P_ab is below this
  A* center;             // [D]
  A* basis;             // [directions, D]: orthonormal, the first kAxes nearly principal directions
  A* transposed;        // [D, directions]
  A* x;                 // [tiles, rank, kTile]
  A* values;            // [tiles, C, kTile]
  A* half_sq_norm;      // [tiles, kTile]: |scale| |x|^2 / 2
  A* key_bias;          // [tiles, kTile]
  A* query_bias;        // [tiles, kTile]
  A* log_denominator;   // [tiles, kTile]: in backward log((Z + eps T) / w_bb), in forward 0
  A* key_log_bound;     // [tiles, kTile]: key_bias + log A_a (lam-error.md)
  A* query_log_bound;   // [tiles, kTile]: query_bias - log_denominator + log A of the gradient
  A* bound;             // [tiles, kBoundRows, kTile]: kAxes coordinates y, norm of the rest r
  A* low;               // [kAxes, tiles]: smallest of each coordinate y in a tile
  A* high;              // [kAxes, tiles]: largest
  A* key_max_bound;     // [tiles]: largest half_sq_norm + key_log_bound
  A* query_max_bound;   // [tiles]: largest half_sq_norm + query_log_bound
  A* upstream;          // [tiles, C, kTile], in backward: g
  A* delta;             // [tiles, kTile], in backward: <g, out>
  A* log_tolerance;     // [tiles, kTile]: log of the error that a sum over alike tiles may have
  A* softmax_base;      // [tiles, kTile]: T_b / w_bb = softmax_sum exp(softmax_base)
  A* softmax_sum;       // [tiles, kTile], or null if forward sums T together with Z
  A eps;                // set with softmax_sum
  A* softmax_gradient;  // [tiles, rank, kTile], in backward: the sums over R of
                        // lam_softmax_gradient.h, in coordinates; null if gathered with P
  A* softmax_total;     // [tiles, kTile]: sum_a of their factors, set with softmax_gradient
};

// To sum T or R, scores are computed from kAxes, kMoreCoordinates or all coordinates: the levels.
constexpr int kLevels = 3;
constexpr int64_t kMoreCoordinates = 24;

// A copy of the image's pixels, ordered so that the pixels of a tile have similar features. Sums
// without a Gaussian visit these tiles (lam_alike_tiles.h): T in forward, R in backward. The size
// of a term is exp(scale <x_a, x_b> + key_bias_a + query_bias_b); in backward it is R_ab |delta_b|
// / delta_unit.
template <typename A>
struct LamAlikeTiles {
  int64_t tiles;
  int64_t rank;  // rows of x
  int levels;    // the last is exact
  int64_t level_rank[kLevels];
  A bound_margin;      // added to upper bounds: covers their rounding
  int32_t* pixel;      // [tiles, kTile]: index into the image's [tiles, kTile]; -1 for padding
  A* x;                // [tiles, rank, kTile]
  A* bound;            // [tiles, kBoundRows, kTile]
  A* rest;             // [tiles, kLevels, kTile]: sqrt(|scale|) |x beyond level_rank[level]|
  A* max_rest;         // [tiles, kLevels]
  A* key_bias;         // [tiles, kTile]
  A* query_bias;       // [tiles, kTile]
  A* log_tolerance;    // [tiles, kTile]
  A* key_log_bound;    // [tiles, kTile]: key_bias + |scale| |x|^2 / 2
  A* query_log_bound;  // [tiles, kTile]: query_bias + |scale| |x|^2 / 2
  A* key_max_bound;    // [tiles]: largest key_log_bound
  A* query_max_bound;  // [tiles]: largest query_log_bound - log_tolerance
  A* exchanged_key_max_bound;    // [tiles]: largest query_log_bound
  A* exchanged_query_max_bound;  // [tiles]: largest key_log_bound - log_tolerance
  A* low;                        // [kAxes, tiles]: smallest of each coordinate y in a tile
  A* high;                       // [kAxes, tiles]: largest
  A rest_cost;                   // relative error of a term per `rest` of its key
  // In backward only:
  A* sign;           // [tiles, kTile]: of delta; null in forward
  A delta_unit;      // unit of the sums
  A log_delta_unit;  // log(eps / delta_unit)
};

// The memory of a thread: work space, a tile's inputs, and its results.
template <typename A>
struct LamScratch {
  int32_t* candidates;  // [tiles]
  A* distance_bound;    // [tiles]
  A* features;          // [D, kTile]: features in, their gradient out
  A* coordinates;       // [max(rank, kAxes), kTile]
  A* values;            // [C, kTile]: output or the values' gradient
  A* log_denominator;   // [kTile]: forward's log((Z + eps T) / w_bb)
};

// Facts about a tile that packing returns.
struct LamPacked {
  double residual;   // largest projection error / tolerated error; above 1 the basis is too small
  int64_t worst;     // the pixel with that error, y * width + x
  double magnitude;  // largest |key_bias| + |query_bias|
  bool finite;       // whether all biases are finite, and far from overflow
};

// The table of functions that lam_kernels.cpp fills. CMakeLists.txt compiles that file once per
// capability; csrc/cpu/lam/lam_kernels.h declares the variants.
template <typename A>
struct LamKernels {
  // Sets center, basis, transposed, directions and projected from a sample of the pixels' features:
  // [count, D], followed by most_directions + kMoreCoordinates rows of work space; overwritten.
  // projected: whether the projection error of every sample is tolerated.
  void (*find_basis)(LamImage<A>& image, const LamParams<A>& params, double* sample, int64_t count,
                     int64_t most_directions);
  // Computes all of a tile that depends on scratch.features: x, the biases and their bounds. Adds
  // the biases to key_log_bound and query_log_bound, which hold log A before.
  LamPacked (*pack_tile)(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                         const LamScratch<A>& scratch);
  // Computes scratch.values (the output) and scratch.log_denominator of a tile.
  void (*forward_tile)(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                       const LamScratch<A>& scratch);
  // The sums over alike tiles; see lam_softmax_sum.h and lam_softmax_gradient.h.
  void (*sum_neighborhood)(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                           A* log_sum);
  void (*gather_alike_tile)(const LamImage<A>& image, const LamParams<A>& params,
                            const LamAlikeTiles<A>& alike, int64_t tile);
  void (*sum_alike_tile)(const LamImage<A>& image, const LamParams<A>& params,
                         const LamAlikeTiles<A>& alike, int64_t tile, const LamScratch<A>& scratch);
  void (*differentiate_alike_tile)(const LamImage<A>& image, const LamParams<A>& params,
                                   const LamAlikeTiles<A>& alike, int64_t tile,
                                   const LamScratch<A>& scratch);
  // Computes scratch.features and scratch.values (the gradients) of a tile.
  void (*backward_tile)(const LamImage<A>& image, const LamParams<A>& params, int64_t tile,
                        const LamScratch<A>& scratch);
};

}  // namespace blpseg
