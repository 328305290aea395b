// The losses' gradients on CUDA: those of the pixels, gathered into the logits' cells. The adjoint
// of the bilinear resizing in loss_pixels.cuh.
//
// A warp owns a patch of cells for four classes. It goes down the rows of all pixels that touch the
// patch, a thread a column; whatever comes to a row of cells is summed along the column first, and
// across columns once the row is complete. Every cell has one owner, who adds in one fixed order:
// no atomics, the same bits each time.
#pragma once

#include "loss_pixels.cuh"

namespace blpseg::device {

constexpr int kClasses = 4;  // of a warp: pixels are read once for all
constexpr int kWarps = kThreads / kWarp;

// Rows of a patch: its sums, kClasses x rows x 32 cells for each warp, fill 32 KiB.
template <typename A>
constexpr int kPatchRows = 64 / sizeof(A);

// The first pixel along an axis whose tap is at least at `cell`.
template <bool high>
__device__ inline int64_t first_pixel(int64_t cell, int64_t in, int64_t out) {
  int64_t first = 0;
  for (int64_t last = out; first < last;) {
    const int64_t middle = (first + last) / 2;
    const Tap<float> t = tap<float>(middle, in, out);
    if ((high ? t.high : t.low) >= cell)
      last = middle;
    else
      first = middle + 1;
  }
  return first;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    loss_gradients(View4<T> logits, Labels labels, int64_t height, int64_t width,
                   PixelGradients<accumulate_t<T>> pixels, int64_t patch_columns,
                   OutputView4<T> grad) {
  using A = accumulate_t<T>;
  constexpr int rows = kPatchRows<A>;
  const int64_t classes = logits.size[1], in_height = logits.size[2], in_width = logits.size[3];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // This warp's classes, cells and pixels.
  const auto groups = static_cast<unsigned>(divide_up(classes, kClasses * kWarps));
  const auto across = static_cast<unsigned>(divide_up(in_width, patch_columns));
  const auto down = static_cast<unsigned>(divide_up(in_height, rows));
  const int64_t k0 = (int64_t{blockIdx.x % groups} * kWarps + warp) * kClasses;
  if (k0 >= classes) return;
  const int64_t left = int64_t{blockIdx.x / groups % across} * patch_columns;
  const int64_t top = int64_t{blockIdx.x / groups / across % down} * rows;
  const int64_t n = blockIdx.x / groups / across / down;
  const int cells = static_cast<int>(min(patch_columns, in_width - left));
  const int64_t bottom = min(top + rows, in_height);
  const int64_t first_y = first_pixel<true>(top, in_height, height);
  const int64_t last_y = first_pixel<false>(bottom, in_height, height);
  const int64_t first_x = first_pixel<true>(left, in_width, width);
  const int64_t last_x = first_pixel<false>(left + cells, in_width, width);

  __shared__ A sums_of_warp[kWarps][kClasses][rows][kWarp];
  __shared__ A columns_of_warp[kWarps][kClasses][kWarp];
  __shared__ A weights_of_warp[kWarps][kWarp];  // of the columns' higher taps
  // Of each cell the columns that are blended from it, first to last - 1; from `low` on it is their
  // lower tap.
  __shared__ int first_of_warp[kWarps][kWarp], low_of_warp[kWarps][kWarp],
      last_of_warp[kWarps][kWarp];
  auto& sums = sums_of_warp[warp];
  auto& columns = columns_of_warp[warp];
  auto& weights = weights_of_warp[warp];
  for (int i = lane; i < kClasses * rows * kWarp; i += kWarp) (&sums[0][0][0])[i] = A(0);

  for (int64_t chunk = first_x; chunk < last_x; chunk += kWarp) {
    const int64_t x = min(chunk + lane, width - 1);
    const bool inside = chunk + lane < last_x;
    const Tap<A> tx = tap<A>(x, in_width, width);
    __syncwarp();
    weights[lane] = tx.weight;
    if (lane < cells) {
      const int64_t end = min(chunk + kWarp, last_x);
      const auto column = [&](int64_t pixel) {
        return static_cast<int>(max(chunk, min(pixel, end)) - chunk);
      };
      const int64_t cell = left + lane;
      first_of_warp[warp][lane] = column(first_pixel<true>(cell, in_width, width));
      low_of_warp[warp][lane] = column(first_pixel<false>(cell, in_width, width));
      last_of_warp[warp][lane] = column(first_pixel<false>(cell + 1, in_width, width));
    }

    A above[kClasses] = {}, below[kClasses] = {};  // logits of the low-resolution rows
    A to_above[kClasses] = {}, to_below[kClasses] = {};
    int64_t current = -1;

    const auto load_row = [&](int64_t y, A(&row)[kClasses]) {
      const T* in = logits.data + n * logits.stride[0] + y * logits.stride[2];
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        if (k0 + j >= classes) continue;
        const T* of_class = in + (k0 + j) * logits.stride[1];
        row[j] = blend(static_cast<A>(of_class[tx.low * logits.stride[3]]),
                       static_cast<A>(of_class[tx.high * logits.stride[3]]), tx.weight);
      }
    };
    // Adds what the columns hold for row y to its cells, from left to right.
    const auto finish_row = [&](int64_t y, A(&row)[kClasses]) {
      if (y >= top && y < bottom) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < kClasses; ++j) columns[j][lane] = row[j];
        __syncwarp();
        for (int i = lane; i < kClasses * cells; i += kWarp) {
          const int j = i / cells, cell = i % cells;
          const int low = low_of_warp[warp][cell], last = last_of_warp[warp][cell];
          A sum = sums[j][y - top][cell];
          for (int at = first_of_warp[warp][cell]; at < low; ++at)
            sum += weights[at] * columns[j][at];
          for (int at = low; at < last; ++at) sum += (A(1) - weights[at]) * columns[j][at];
          sums[j][y - top][cell] = sum;
        }
      }
#pragma unroll
      for (int j = 0; j < kClasses; ++j) row[j] = A(0);
    };

    Tap<A> own = {};  // of the row that stands `lane` after the last multiple of kWarp
    for (int64_t y = first_y; y < last_y; ++y) {
      const int turn = static_cast<int>(y - first_y) % kWarp;
      if (turn == 0) own = tap<A>(min(y + lane, height - 1), in_height, height);
      const Tap<A> ty = {__shfl_sync(~0u, own.low, turn), __shfl_sync(~0u, own.high, turn),
                         __shfl_sync(~0u, own.weight, turn)};
      const int64_t pixel = (n * height + y) * width + x;
      const A share = inside ? pixels.share[pixel] : A(0);
      if (!__any_sync(~0u, share != A(0))) continue;
      if (ty.low != current) {
        if (current >= 0) finish_row(current, to_above);
        const bool next = current >= 0 && ty.low == current + 1;
        if (current >= 0 && !next) finish_row(current + 1, to_below);
#pragma unroll
        for (int j = 0; j < kClasses; ++j) {
          to_above[j] = next ? to_below[j] : A(0);
          to_below[j] = A(0);
        }
        load_row(ty.low, above);
        load_row(ty.high, below);
        current = ty.low;
      }
      if (share == A(0)) continue;
      const A maximum = pixels.maximum[pixel], factor = pixels.share_over_sum[pixel];
      const int64_t label = labels.value(n, y, x);
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        const A logit = blend(above[j], below[j], ty.weight);
        const A expected = label == k0 + j ? share : A(0);
        const A gradient = exp<A>(logit - maximum) * factor - expected;
        to_above[j] += (A(1) - ty.weight) * gradient;
        to_below[j] += ty.weight * gradient;
      }
    }
    if (current >= 0) {
      finish_row(current, to_above);
      finish_row(current + 1, to_below);
    }
  }

  __syncwarp();
  for (int i = lane; i < kClasses * rows * cells; i += kWarp) {
    const int cell = i % cells, row = i / cells % rows, j = i / cells / rows;
    if (k0 + j < classes && top + row < bottom)
      grad.data[n * grad.stride[0] + (k0 + j) * grad.stride[1] + (top + row) * grad.stride[2] +
                (left + cell) * grad.stride[3]] = static_cast<T>(sums[j][row][cell]);
  }
}

}  // namespace blpseg::device
