// A call of lam_two_grids or its backward: tensors, numbers, kernels, and the memory of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/lam/lam_tile_io.h"
#include "cpu/parallel.h"
#include "tensor.h"
#include "two_grids_kernels.h"

namespace blpseg {

template <typename T>
struct TwoGridsCall {
  using A = accumulate_t<T>;

  const Tensor& like;                  // has the device of new tensors
  View4<T> queries, features, values;  // [N, D, H, W], [N, D, h, w], [N, C, h, w]
  View<A, 1> inv_two_sigma_sq;         // [N]
  TwoGridsParams<A> params;
  LamGrid keys;  // tiles of 8 x 8
  const TwoGridsKernels<A>& kernels;
  bool backward;
  int64_t threads;

  int64_t key_count() const { return keys.height * keys.width; }
  int64_t key_tiles() const { return keys.rows * keys.columns; }
  int64_t query_tiles() const { return params.queries.rows * params.queries.columns; }

  Tensor allocate(int64_t size) const {
    return torch::stable::new_empty(
        like, {size}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  }

  // Calls visit(worker, i) for each i < count, on any free thread.
  template <typename Visit>
  void for_each(int64_t count, const Visit& visit) const {
    share_work(threads, count, [&](int64_t worker, const auto& next) {
      for (int64_t i = next(); i >= 0; i = next()) visit(worker, i);
    });
  }
};

inline LamGrid grid_of_tiles(int64_t height, int64_t width, int64_t rows, int64_t columns) {
  return {
      height, width, rows, columns, (height + rows - 1) / rows, (width + columns - 1) / columns};
}

inline int64_t round_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// A piece of memory that is handed out in whole cache lines.
template <typename A>
class Pieces {
 public:
  // Call twice with the same sizes: take() first counts; after allocate() it hands out.
  A* take(int64_t size) {
    A* piece = next_;
    const int64_t lines = round_up(size, 64 / sizeof(A));
    if (next_) next_ += lines;
    total_ += lines;
    return piece;
  }
  template <typename T>
  void allocate(const TwoGridsCall<T>& call) {
    tensor_.emplace(call.allocate(total_));
    next_ = static_cast<A*>(tensor_->mutable_data_ptr());
  }

 private:
  std::optional<Tensor> tensor_;
  A* next_ = nullptr;
  int64_t total_ = 0;
};

// The memory of one thread.
template <typename T>
class QueryWorker {
 public:
  using A = accumulate_t<T>;

  explicit QueryWorker(const TwoGridsCall<T>& call) : flags_(call.keys.height + call.keys.width) {
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) pieces_.allocate(call);
      const int64_t dims = call.params.dims, channels = call.params.channels;
      const int64_t h = call.keys.height, w = call.keys.width, backward = call.backward;
      scratch.queries = pieces_.take(dims * kTile);
      scratch.output = pieces_.take(channels * kTile);
      scratch.log_denominator = pieces_.take(kTile);
      scratch.upstream = pieces_.take(backward * channels * kTile);
      scratch.delta = pieces_.take(kTile);
      scratch.excess = pieces_.take(kTile);
      scratch.grad_queries = pieces_.take(backward * dims * kTile);
      scratch.queries_t = pieces_.take(backward * round_up(dims, kPitch) * kTile);
      scratch.upstream_t = pieces_.take(backward * round_up(channels, kPitch) * kTile);
      scratch.pairs = pieces_.take(kBlockKeys * kTile);
      scratch.more_pairs = pieces_.take(backward * 2 * kBlockKeys * kTile);
      scratch.sq_y = pieces_.take(h * kQueryRows);
      scratch.sq_x = pieces_.take(w * kQueryColumns);
      scratch.log_y = pieces_.take(h * kQueryRows);
      scratch.log_x = pieces_.take(w * kQueryColumns);
      scratch.max_log_y = pieces_.take(h);
      scratch.max_log_x = pieces_.take(w);
      scratch.tile_bound = pieces_.take(call.key_tiles());
    }
    scratch.near_y = flags_.data();
    scratch.near_x = flags_.data() + call.keys.height;
  }

  QueryScratch<A> scratch;

 private:
  Pieces<A> pieces_;
  std::vector<uint8_t> flags_;
};

// Image n's keys, packed.
template <typename T>
class PackedKeys {
 public:
  using A = accumulate_t<T>;

  explicit PackedKeys(const TwoGridsCall<T>& call) : call_(call) {
    const int64_t tiles = call.key_tiles(), keys = call.key_count(), dims = call.params.dims;
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) pieces_.allocate(call);
      maps_.center = pieces_.take(dims);
      maps_.axes = pieces_.take(kAxes * dims);
      maps_.x = pieces_.take(keys * dims);
      maps_.values = pieces_.take(keys * call.params.channels);
      maps_.inverse_excess = pieces_.take(keys);
      maps_.bound = pieces_.take(tiles * kBoundRows * kTile);
      maps_.log_excess = pieces_.take(tiles * kTile);
      maps_.low = pieces_.take(kAxes * tiles);
      maps_.high = pieces_.take(kAxes * tiles);
      maps_.max_rest = pieces_.take(tiles);
      maps_.max_log_excess = pieces_.take(tiles);
    }
    maps_.grid = call.keys;
  }

  KeyMaps<A>& maps() { return maps_; }

  void pack(int64_t n, const std::vector<QueryWorker<T>>& workers) {
    const int64_t channels = call_.params.channels;
    maps_.inv_two_sigma_sq = *call_.inv_two_sigma_sq.at(n);
    maps_.prune = maps_.inv_two_sigma_sq >= 0;  // not NaN
    find_axes(n);
    std::vector<double> sizes(call_.key_tiles() * channels);
    std::vector<uint8_t> finite(call_.key_tiles());
    call_.for_each(call_.key_tiles(), [&](int64_t worker, int64_t tile) {
      A* features = workers[worker].scratch.queries;
      bool all_finite = load_tile(call_.features, n, call_.keys, tile, features);
      all_finite &= call_.kernels.pack_keys(maps_, call_.params, tile, features);
      for_each_pixel(call_.keys, tile, [&](int, int64_t y, int64_t x, bool inside) {
        if (!inside) return;
        A* row = maps_.values + (y * call_.keys.width + x) * channels;
        const T* from = call_.values.at(n, 0, y, x);
        for (int64_t c = 0; c < channels; ++c) {
          row[c] = static_cast<A>(from[c * call_.values.stride[1]]);
          sizes[tile * channels + c] += std::abs(static_cast<double>(row[c]));
        }
      });
      for (int64_t c = 0; c < channels; ++c)
        all_finite &= std::isfinite(sizes[tile * channels + c]);
      finite[tile] = all_finite;
    });
    maps_.prune &= std::all_of(finite.begin(), finite.end(), [](uint8_t each) { return each; });
    find_excess(sizes);
  }

 private:
  void find_axes(int64_t n) {
    const int64_t dims = call_.params.dims, keys = call_.key_count();
    const int64_t count = std::min<int64_t>(keys, 256);
    std::vector<double> sample((count + 2 * kAxes) * dims);
    for (int64_t s = 0; s < count; ++s) {
      // Steps of the golden ratio spread any number of samples evenly.
      const double turns = 0.6180339887498949 * static_cast<double>(s);
      const int64_t key =
          keys <= 256 ? s : static_cast<int64_t>((turns - std::floor(turns)) * keys);
      const T* from = call_.features.at(n, 0, key / call_.keys.width, key % call_.keys.width);
      for (int64_t d = 0; d < dims; ++d)
        sample[s * dims + d] = static_cast<A>(from[d * call_.features.stride[1]]);
    }
    call_.kernels.find_axes(maps_, call_.params, sample.data(), count);
  }

  // A_a = max(1, |v_ac| / (4 mean |v_c|)) over the channels.
  void find_excess(const std::vector<double>& sizes) {
    const int64_t channels = call_.params.channels, tiles = call_.key_tiles();
    std::vector<double> inverse_typical(channels);
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) sum += sizes[tile * channels + c];
      inverse_typical[c] = sum > 0 ? call_.key_count() / (4 * sum) : 0;
    }
    call_.for_each(tiles, [&](int64_t, int64_t tile) {
      A highest = -std::numeric_limits<A>::infinity();
      for_each_pixel(call_.keys, tile, [&](int lane, int64_t y, int64_t x, bool inside) {
        A* log_excess = maps_.log_excess + tile * kTile + lane;
        *log_excess = -std::numeric_limits<A>::infinity();
        if (!inside) return;
        const int64_t key = y * call_.keys.width + x;
        double excess = 1;
        for (int64_t c = 0; c < channels; ++c)
          excess =
              std::max(excess, std::abs(static_cast<double>(maps_.values[key * channels + c])) *
                                   inverse_typical[c]);
        maps_.inverse_excess[key] = static_cast<A>(1 / excess);
        *log_excess = static_cast<A>(std::log(excess));
        highest = std::max(highest, *log_excess);
      });
      maps_.max_log_excess[tile] = highest;
    });
  }

  const TwoGridsCall<T>& call_;
  KeyMaps<A> maps_ = {};
  Pieces<A> pieces_;
};

// Reads a tile of queries of image n into [channels, kTile]. Padding repeats the edge's pixels.
template <typename T, typename A>
void load_queries(const View4<T>& view, int64_t n, const LamGrid& grid, int64_t tile, A* out) {
  if constexpr (std::is_same_v<T, A>) {
    const int64_t top = tile / grid.columns * kQueryRows;
    const int64_t left = tile % grid.columns * kQueryColumns;
    if (view.stride[3] == 1 && top + kQueryRows <= grid.height &&
        left + kQueryColumns <= grid.width) {  // rows are copied whole
      for (int64_t c = 0; c < view.size[1]; ++c) {
        for (int64_t y = 0; y < kQueryRows; ++y)
          std::memcpy(out + c * kTile + y * kQueryColumns, view.at(n, c, top + y) + left,
                      kQueryColumns * sizeof(T));
      }
      return;
    }
  }
  load_tile(view, n, grid, tile, out);
}

// Writes a tile of queries [channels, kTile] to image n of a tensor [N, channels, H, W].
template <typename T, typename A>
void store_queries(const A* in, int64_t channels, int64_t n, const LamGrid& grid, int64_t tile,
                   const OutputView4<T>& out) {
  const int64_t top = tile / grid.columns * kQueryRows, left = tile % grid.columns * kQueryColumns;
  if constexpr (std::is_same_v<T, A>) {
    if (out.stride[3] == 1) {  // rows are copied whole
      const int64_t rows = std::min<int64_t>(kQueryRows, grid.height - top);
      const int64_t columns = std::min<int64_t>(kQueryColumns, grid.width - left);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t y = 0; y < rows; ++y) {
          T* to = out.at(n, c, top + y) + left;
          const A* from = in + c * kTile + y * kQueryColumns;
          if (columns == kQueryColumns)
            std::memcpy(to, from, kQueryColumns * sizeof(T));
          else
            std::memcpy(to, from, columns * sizeof(T));
        }
      }
      return;
    }
  }
  store_tile(in, channels, n, grid, tile, out);
}

}  // namespace blpseg
