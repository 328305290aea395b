// The two matrix products that LAM is made of, on tiles: lanes are the kTile target pixels, rows
// are source pixels, picked from their tile by a list. Both keep a block of kRowsAcross rows by
// kVectorsAcross vectors in registers while they walk along the inner dimension.
#pragma once

#include "lam_image.h"
#include "simd.h"

namespace blpseg::BLPSEG_CAPABILITY {

constexpr int kRowsAcross = 4;

// The sources of a tile that are taken, in order. Behind the last stand kRowsAcross - 1 copies of
// it, so that products can work in whole blocks.
struct Rows {
  int32_t index[kTile + kRowsAcross];
  int count = 0;

  void add(int row) { index[count++] = row; }
  void finish() {
    for (int i = 0; i < kRowsAcross - 1; ++i) index[count + i] = count ? index[count - 1] : 0;
  }
};

// out[r][lane] = sum_k a[k][rows[r]] b[k][lane]
// a, b: [inner, kTile]; out: [rows.count rounded up to whole blocks, kTile].
// Summed from the last k to the first, since principal coordinates come first and are the largest:
// most roundings then happen while the sum is small. Runs of kRun are summed apart for the same
// end.
template <typename A>
void dot(const A* a, const A* b, int64_t inner, const Rows& rows, A* out) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  constexpr int64_t kRun = 64;
  for (int64_t end = inner; end > 0; end -= kRun) {
    const int64_t begin = end > kRun ? end - kRun : 0;
    for (int row = 0; row < rows.count; row += kRowsAcross) {
      const A* source[kRowsAcross];
      for (int i = 0; i < kRowsAcross; ++i) source[i] = a + rows.index[row + i];
      for (int lane = 0; lane < kTile; lane += across * width) {
        Vector<A> sum[kRowsAcross][across] = {};
        for (int64_t k = end - 1; k >= begin; --k) {
          Vector<A> target[across];
#pragma GCC unroll 4
          for (int j = 0; j < across; ++j) target[j] = load(b + k * kTile + lane + j * width);
#pragma GCC unroll 4
          for (int i = 0; i < kRowsAcross; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < across; ++j) sum[i][j] += source[i][k * kTile] * target[j];
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kRowsAcross; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < across; ++j) {
            A* to = out + (row + i) * kTile + lane + j * width;
            store<A>(to, end == inner ? sum[i][j] : load(to) + sum[i][j]);
          }
        }
      }
    }
  }
}

template <typename A, int rows_across>
inline void accumulate_block(const A* a, int64_t pitch, const int32_t* index, int count,
                             const A* weights, A* out) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  for (int lane = 0; lane < kTile; lane += across * width) {
    Vector<A> sum[rows_across][across] = {};
    for (int r = 0; r < count; ++r) {
      const A* source = a + index[r];
      Vector<A> weight[across];
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) weight[j] = load(weights + r * kTile + lane + j * width);
#pragma GCC unroll 4
      for (int i = 0; i < rows_across; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < across; ++j) sum[i][j] += source[i * pitch] * weight[j];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows_across; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) {
        A* to = out + i * kTile + lane + j * width;
        store<A>(to, load(to) + sum[i][j]);
      }
    }
  }
}

// out[c][lane] += sum_r a[c][index[r]] weights[r][lane]
// a: `channels` rows, `pitch` numbers apart; weights: [count, kTile]; out: [channels, kTile].
// In short runs, so that few roundings happen to a long sum.
template <typename A>
void accumulate(const A* a, int64_t pitch, int64_t channels, const int32_t* index, int count,
                const A* weights, A* out) {
  constexpr int kRun = 16;
  for (int r = 0; r < count; r += kRun) {
    const int run = count - r < kRun ? count - r : kRun;
    const A* weight = weights + r * kTile;
    int64_t c = 0;
    for (; c + kRowsAcross <= channels; c += kRowsAcross)
      accumulate_block<A, kRowsAcross>(a + c * pitch, pitch, index + r, run, weight,
                                       out + c * kTile);
    for (; c < channels; ++c)
      accumulate_block<A, 1>(a + c * pitch, pitch, index + r, run, weight, out + c * kTile);
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
