// Reads and writes tiles of a tensor, and says which pixels a tile holds.
#pragma once

#include <algorithm>

#include "cpu/kernels/lam_image.h"
#include "tensor.h"

namespace blpseg {

// Tiles are 8 x 8 pixels; flatter or narrower if the image is.
inline LamGrid make_grid(int64_t height, int64_t width) {
  int64_t tile_height = 8;
  while (tile_height > 1 && tile_height / 2 >= height) tile_height /= 2;
  while (tile_height < kTile && kTile / tile_height / 2 >= width) tile_height *= 2;
  const int64_t tile_width = kTile / tile_height;
  return {height,
          width,
          tile_height,
          tile_width,
          (height + tile_height - 1) / tile_height,
          (width + tile_width - 1) / tile_width};
}

// Calls visit(lane, y, x, inside) for each pixel of a tile. Where the tile reaches over the image's
// edge, inside is false.
template <typename Visit>
void for_each_pixel(const LamGrid& grid, int64_t tile, const Visit& visit) {
  const int64_t top = tile / grid.columns * grid.tile_height;
  const int64_t left = tile % grid.columns * grid.tile_width;
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t y = top + lane / grid.tile_width, x = left + lane % grid.tile_width;
    visit(lane, y, x, y < grid.height && x < grid.width);
  }
}

// Reads a tile of image n into [channels, kTile]. Padding repeats the edge's pixels. Returns
// whether all numbers are finite.
template <typename T, typename A>
bool load_tile(const View4<T>& view, int64_t n, const LamGrid& grid, int64_t tile, A* out) {
  int64_t offset[kTile];
  for_each_pixel(grid, tile, [&](int lane, int64_t y, int64_t x, bool) {
    offset[lane] = n * view.stride[0] + std::min(y, grid.height - 1) * view.stride[2] +
                   std::min(x, grid.width - 1) * view.stride[3];
  });
  A nothing[kTile] = {};  // of each lane, so that no sum waits for another
  for (int64_t c = 0; c < view.size[1]; ++c) {
    const T* channel = view.data + c * view.stride[1];
    for (int lane = 0; lane < kTile; ++lane) {
      const A number = static_cast<A>(channel[offset[lane]]);
      out[c * kTile + lane] = number;
      nothing[lane] += number - number;  // NaN where the number is not finite
    }
  }
  return std::all_of(nothing, nothing + kTile, [](A sum) { return sum == 0; });
}

// Writes the part of a tile [channels, kTile] that lies inside to image n of a tensor
// [N, channels, h, w], or [N, h, w] of one channel.
template <typename T, int axes, typename A>
void store_tile(const A* in, int64_t channels, int64_t n, const LamGrid& grid, int64_t tile,
                const StridedView<T, axes>& out) {
  const int64_t of_channel = axes == 4 ? out.stride[1] : 0;
  int lanes[kTile], inside = 0;
  int64_t offset[kTile];
  for_each_pixel(grid, tile, [&](int lane, int64_t y, int64_t x, bool within) {
    if (!within) return;
    lanes[inside] = lane;
    offset[inside++] = y * out.stride[axes - 2] + x * out.stride[axes - 1];
  });
  for (int64_t c = 0; c < channels; ++c) {
    T* channel = out.at(n) + c * of_channel;
    for (int i = 0; i < inside; ++i) channel[offset[i]] = static_cast<T>(in[c * kTile + lanes[i]]);
  }
}

}  // namespace blpseg
