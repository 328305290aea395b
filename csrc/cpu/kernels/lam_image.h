// An image as LAM's kernels see it: pixels in tiles, and of every pixel the numbers that the pair
// of it with another needs. Plain data: csrc/cpu/lam.cpp allocates and fills it, the functions in
// LamKernels, compiled once per capability of the CPU, work on it.
//
// With features f, their mean m (of a sample; any vector would do) and centred features x = f - m,
//
//     scale <f_a, f_b> = scale <x_a, x_b> + source_a + source_b + a constant,
//     source_a = scale <m, x_a>,
//
// so that relative to the target's own weight w_bb
//
//     log(w_ab / w_bb) = scale <x_a, x_b> + source_a + target_b - |p_a - p_b|^2 / (2 sigma^2),
//     target_b = -scale |x_b|^2 - source_b.
//
// A window is a Gaussian of 0 beyond it, and of its sum T.
//
// Centring leaves smaller products, hence smaller rounding, and tighter bounds.
#pragma once

#include <stdint.h>

namespace blpseg {

constexpr int kTile = 64;  // pixels in a tile
constexpr int kAxes = 8;   // principal directions that bounds are made of
constexpr int kBoundRows = kAxes + 1;
constexpr int kMostSamples = 512;  // of pixels that a basis is found from

// The h x w pixels in tiles of tile_height x tile_width = kTile pixels, row by row.
struct LamGrid {
  int64_t height, width;
  int64_t tile_height, tile_width;
  int64_t rows, columns;  // of tiles
};

template <typename A>
struct LamNumbers {
  int64_t dims, channels;  // D, C
  A scale;
  A minus_half_precision;  // -1 / (2 sigma^2)
  A log_eps;               // -infinity for eps = 0
  int64_t radius;          // of the window; at least the image's sides where there is none
};

// Arrays are [tiles, rows, kTile]: a row holds one number of each of a tile's pixels. Where a tile
// reaches over the image's edge, its other pixels repeat the edge's and have source and target
// -infinity: no weight goes out from them and none comes in.
template <typename A>
struct LamImage {
  LamGrid grid;
  int64_t directions;  // in the basis: the rank of the features if projected, else kAxes
  int64_t rank;        // rows of x: directions if projected, else D
  bool projected;      // x holds coordinates in the basis, else f - centre
  bool prune;          // false where an input is not finite: then every pair is taken
  A log_skip;     // a pair whose share of the denominator is provably below exp of this is skipped
  A* centre;      // [D]
  A* basis;       // [directions, D]: orthonormal, the first kAxes nearly principal directions
  A* transposed;  // [D, directions]
  A* x;           // [tiles, rank, kTile]
  A* values;      // [tiles, C, kTile]
  A* half;        // [tiles, kTile]: |scale| |x|^2 / 2
  A* source;      // [tiles, kTile]
  A* target;      // [tiles, kTile]
  A* log_denominator;  // [tiles, kTile]: in backward log((Z + eps T) / w_bb), in forward 0
  A* source_bound;     // [tiles, kTile]: source + log of how much larger than usual its values are
  A* target_bound;  // [tiles, kTile]: target - log_denominator + the same of the upstream gradient
  A* bound;         // [tiles, kBoundRows, kTile]: principal coordinates, norm of the rest
  A* low;           // [kAxes, tiles]: the least of each principal coordinate in a tile
  A* high;          // [kAxes, tiles]: the largest
  A* source_peak;   // [tiles]: the largest half + source_bound
  A* target_peak;   // [tiles]: the largest half + target_bound
  A* upstream;      // [tiles, C, kTile], in backward: g
  A* delta;         // [tiles, kTile], in backward: <g, out>
};

// What a thread works in, and where it finds a tile's inputs and leaves its results.
template <typename A>
struct LamScratch {
  int32_t* candidates;  // [tiles]
  A* reach;             // [tiles]
  A* features;          // [D, kTile]: features in, their gradient out
  A* coordinates;       // [max(rank, kAxes), kTile]
  A* values;            // [C, kTile]: output or the values' gradient
  A* log_denominator;   // [kTile]: forward's log((Z + eps T) / w_bb)
};

// What packing a tile found out.
struct LamPacked {
  double residual;   // the most that the basis leaves of a feature, in units of what it may
  int64_t worst;     // the pixel that it is left of, y * width + x
  double magnitude;  // largest |source| + |target|
  bool finite;       // whether all sources and targets are, and far from overflow
};

// The functions that lam_kernels.cpp offers, compiled for one capability.
template <typename A>
struct LamKernels {
  // From a sample of the pixels' features ([count, D], followed by room for most_directions + kAxes
  // more rows; destroyed), sets centre, basis, transposed, directions and projected: whether the
  // basis leaves no more of any sample than may be dropped.
  void (*find_basis)(LamImage<A>& image, const LamNumbers<A>& numbers, double* sample,
                     int64_t count, int64_t most_directions);
  // Makes a tile's x, source, target, bound, low, high and peaks from scratch's features, and adds
  // source and target to source_bound and target_bound.
  LamPacked (*pack_tile)(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                         const LamScratch<A>& scratch);
  // Makes values (the output) and log_denominator of a tile.
  void (*forward_tile)(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                       const LamScratch<A>& scratch);
  // Makes features and values (the gradients) of a tile.
  void (*backward_tile)(const LamImage<A>& image, const LamNumbers<A>& numbers, int64_t tile,
                        const LamScratch<A>& scratch);
};

}  // namespace blpseg
