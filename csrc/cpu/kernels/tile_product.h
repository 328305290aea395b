// LAM's two matrix products on tiles. Lanes are the kTile query pixels; rows are the listed key
// pixels of another tile. Both keep a block of kRowsAcross rows by kVectorsAcross vectors in
// registers along the inner dimension.
#pragma once

#include "lam_image.h"
#include "simd.h"

namespace blpseg::BLPSEG_CAPABILITY {

constexpr int kRowsAcross = 4;

// A list of keys of a tile, in order. finish() appends kRowsAcross - 1 copies of the last, so that
// products can work in whole blocks.
struct KeyList {
  int32_t index[kTile + kRowsAcross];
  int count = 0;

  void add(int row) { index[count++] = row; }
  void finish() {
    for (int i = 0; i < kRowsAcross - 1; ++i) index[count + i] = count ? index[count - 1] : 0;
  }
};

// out[r][lane] = sum_k a[k][rows[r]] b[k][lane]
// a, b: [inner, kTile]; out: [rows.count rounded up to whole blocks, kTile].
// Sums from the last k to the first: principal coordinates come first and are the largest, so most
// roundings happen while the sum is small. Blocks of kRun are summed apart for the same reason.
// Each product is one fused multiply-add and the order depends on k only, so <a, b> and <b, a> have
// the same bits.
template <typename A>
void dot(const A* a, const A* b, int64_t inner, const KeyList& rows, A* out) {
  constexpr int width = kWidth<A>, across = kVectorsAcross;
  constexpr int64_t kRun = 64;
  for (int64_t end = inner; end > 0; end -= kRun) {
    const int64_t begin = end > kRun ? end - kRun : 0;
    for (int row = 0; row < rows.count; row += kRowsAcross) {
      const A* key[kRowsAcross];
      for (int i = 0; i < kRowsAcross; ++i) key[i] = a + rows.index[row + i];
      for (int lane = 0; lane < kTile; lane += across * width) {
        Vector<A> sum[kRowsAcross][across] = {};
        for (int64_t k = end - 1; k >= begin; --k) {
          Vector<A> query[across];
#pragma GCC unroll 4
          for (int j = 0; j < across; ++j) query[j] = load(b + k * kTile + lane + j * width);
#pragma GCC unroll 4
          for (int i = 0; i < kRowsAcross; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < across; ++j) sum[i][j] += key[i][k * kTile] * query[j];
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
      const A* key = a + index[r];
      Vector<A> weight[across];
#pragma GCC unroll 4
      for (int j = 0; j < across; ++j) weight[j] = load(weights + r * kTile + lane + j * width);
#pragma GCC unroll 4
      for (int i = 0; i < rows_across; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < across; ++j) sum[i][j] += key[i * pitch] * weight[j];
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
    const int rest = int(channels % kRowsAcross);
    for (int64_t c = 0; c < channels - rest; c += kRowsAcross)
      accumulate_block<A, kRowsAcross>(a + c * pitch, pitch, index + r, run, weight,
                                       out + c * kTile);
    for (int64_t c = channels - rest; c < channels; ++c)
      accumulate_block<A, 1>(a + c * pitch, pitch, index + r, run, weight, out + c * kTile);
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
