// Matrix products of listed keys, each a row of numbers, with a tile of kTile queries.
#pragma once

#include "simd.h"
#include "two_grids.h"

namespace blpseg::BLPSEG_CAPABILITY {

constexpr int kKeysAcross = 4;  // of a register block

// out[r][lane] = sum_k rows[r][k] tile[k][lane]
// rows: `count` pointers, followed by kKeysAcross - 1 more; tile: [size, kTile]. Sums blocks of
// kRun numbers apart, so that few roundings happen to a long sum. The order depends on k only.
template <typename A>
void multiply_rows(const A* const* rows, int count, int64_t size, const A* tile, A* out) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  constexpr int64_t kRun = 64;
  for (int64_t begin = 0; begin < size; begin += kRun) {
    const int64_t end = begin + kRun < size ? begin + kRun : size;
    for (int row = 0; row < count; row += kKeysAcross) {
      const A* const* key = rows + row;
      for (int lane = 0; lane < kTile; lane += across * width) {
        Vector<A> sum[kKeysAcross][across] = {};
        for (int64_t k = begin; k < end; ++k) {
          Vector<A> query[across];
#pragma GCC unroll 4
          for (int j = 0; j < across; ++j) query[j] = load(tile + k * kTile + lane + j * width);
#pragma GCC unroll 4
          for (int i = 0; i < kKeysAcross; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < across; ++j) sum[i][j] += key[i][k] * query[j];
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kKeysAcross; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < across; ++j) {
            A* to = out + (row + i) * kTile + lane + j * width;
            store<A>(to, begin == 0 ? sum[i][j] : load(to) + sum[i][j]);
          }
        }
      }
    }
  }
}

template <typename A, int across_numbers>
inline void add_weighted_block(const A* const* rows, int64_t first, int count, const A* weights,
                               A* out) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  for (int lane = 0; lane < kTile; lane += across * width) {
    Vector<A> sum[across_numbers][across] = {};
    for (int r = 0; r < count; ++r) {
      const A* key = rows[r] + first;
      Vector<A> weight[across];
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) weight[j] = load(weights + r * kTile + lane + j * width);
#pragma GCC unroll 4
      for (int i = 0; i < across_numbers; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < across; ++j) sum[i][j] += key[i] * weight[j];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < across_numbers; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) {
        A* to = out + (first + i) * kTile + lane + j * width;
        store<A>(to, load(to) + sum[i][j]);
      }
    }
  }
}

// out[k][lane] += sum_r rows[r][k] weights[r][lane], for k < size. In short runs of rows.
template <typename A>
void add_weighted_rows(const A* const* rows, int count, int64_t size, const A* weights, A* out) {
  constexpr int kRun = 32;
  for (int r = 0; r < count; r += kRun) {
    const int run = count - r < kRun ? count - r : kRun;
    int64_t k = 0;
    for (; k + kKeysAcross <= size; k += kKeysAcross)
      add_weighted_block<A, kKeysAcross>(rows + r, k, run, weights + r * kTile, out);
    for (; k < size; ++k) add_weighted_block<A, 1>(rows + r, k, run, weights + r * kTile, out);
  }
}

template <typename A, int across>
inline void add_to_rows_block(A* const* rows, int count, int64_t pitch, int64_t first,
                              const A* weights, const A* tile_t) {
  constexpr int width = kWidth<A>;
  for (int row = 0; row < count; row += kKeysAcross) {
    const A* weight = weights + row * kTile;
    Vector<A> sum[kKeysAcross][across] = {};
    for (int lane = 0; lane < kTile; ++lane) {
      Vector<A> number[across];
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) number[j] = load(tile_t + lane * pitch + first + j * width);
#pragma GCC unroll 4
      for (int i = 0; i < kKeysAcross; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < across; ++j) sum[i][j] += weight[i * kTile + lane] * number[j];
      }
    }
    for (int i = 0; i < kKeysAcross && row + i < count; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) {
        A* to = rows[row + i] + first + j * width;
        store<A>(to, load(to) + sum[i][j]);
      }
    }
  }
}

// rows[r][k] += sum_lane weights[r][lane] tile_t[lane][k], for k < pitch, a multiple of kPitch.
// rows: `count` distinct pointers; weights has rows for whole blocks of kKeysAcross.
template <typename A>
void add_to_rows(A* const* rows, int count, int64_t pitch, const A* weights, const A* tile_t) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  static_assert(kPitch % width == 0);
  int64_t first = 0;
  for (; first + across * width <= pitch; first += across * width)
    add_to_rows_block<A, across>(rows, count, pitch, first, weights, tile_t);
  for (; first < pitch; first += width)
    add_to_rows_block<A, 1>(rows, count, pitch, first, weights, tile_t);
}

}  // namespace blpseg::BLPSEG_CAPABILITY
