// Backward of an image: queries are cut into chunks of tiles. Each chunk has sums of its own for
// the keys' gradients, which are added up in order at the end. So neither results nor memory depend
// on the number of threads, and no two threads write to one sum.
#pragma once

#include "two_grids_call.h"

namespace blpseg {

template <typename T>
class QueryChunks {
 public:
  using A = accumulate_t<T>;

  QueryChunks(const TwoGridsCall<T>& call, const Tensor& grad_output, const Tensor& output,
              const Tensor& log_denominator, const std::vector<QueryWorker<T>>& workers)
      : call_(call),
        grad_output_(grad_output),
        output_(output),
        log_denominator_(log_denominator),
        workers_(workers),
        x_pitch_(round_up(call.params.dims, kPitch)),
        value_pitch_(round_up(call.params.channels, kPitch)),
        count_(number_of_chunks()),
        sums_(call.allocate(count_ * sums_per_chunk())),
        upstream_sizes_(count_ * call.params.channels) {}

  // Computes the gradients of image n; returns sum_ab m_ab |p_a - p_b|^2.
  double differentiate(int64_t n, KeyMaps<A>& keys, const OutputView4<T>& grad_queries) {
    find_typical_upstream(n, keys);
    const double terms =
        std::max(call_.key_count(), call_.params.queries.height * call_.params.queries.width);
    keys.skip_prob = static_cast<A>(std::numeric_limits<A>::epsilon() / 2 / terms);
    std::vector<double> by_distance(count_);
    call_.for_each(count_, [&](int64_t worker, int64_t chunk) {
      const QueryScratch<A>& scratch = workers_[worker].scratch;
      const KeyGradients<A> gradients = gradients_of(chunk);
      std::fill_n(gradients.x, sums_per_chunk(), A(0));
      for (int64_t tile = first_tile(chunk); tile < first_tile(chunk + 1); ++tile) {
        load(n, tile, scratch);
        by_distance[chunk] +=
            call_.kernels.backward_tile(keys, call_.params, tile, scratch, gradients);
        store_queries(scratch.grad_queries, call_.params.dims, n, call_.params.queries, tile,
                      grad_queries);
      }
    });
    double total = 0;
    for (const double part : by_distance) total += part;
    return total;
  }

  void store_key_gradients(int64_t n, const OutputView4<T>& grad_features,
                           const OutputView4<T>& grad_values) const {
    const int64_t width = call_.keys.width;
    call_.for_each(call_.keys.height, [&](int64_t, int64_t y) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t key = y * width + x;
        T* to = grad_features.at(n, 0, y, x);
        for (int64_t d = 0; d < call_.params.dims; ++d)
          to[d * grad_features.stride[1]] =
              static_cast<T>(call_.params.scale * total(key * x_pitch_ + d));
        to = grad_values.at(n, 0, y, x);
        const int64_t first = call_.key_count() * x_pitch_ + key * value_pitch_;
        for (int64_t c = 0; c < call_.params.channels; ++c)
          to[c * grad_values.stride[1]] = static_cast<T>(total(first + c));
      }
    });
  }

 private:
  // Enough for many threads, as long as their sums are small.
  int64_t number_of_chunks() const {
    constexpr int64_t kBytes = int64_t{32} << 20, kFewest = 4, kMost = 64;
    const int64_t fitting = kBytes / (sums_per_chunk() * static_cast<int64_t>(sizeof(A)));
    return std::min(std::clamp(fitting, kFewest, kMost), call_.query_tiles());
  }
  int64_t sums_per_chunk() const { return call_.key_count() * (x_pitch_ + value_pitch_); }
  int64_t first_tile(int64_t chunk) const { return call_.query_tiles() * chunk / count_; }

  KeyGradients<A> gradients_of(int64_t chunk) const {
    A* sums = static_cast<A*>(sums_.mutable_data_ptr()) + chunk * sums_per_chunk();
    return {sums, sums + call_.key_count() * x_pitch_, x_pitch_, value_pitch_};
  }
  A total(int64_t at) const {
    const A* sums = static_cast<const A*>(sums_.const_data_ptr()) + at;
    A sum = sums[0];
    for (int64_t chunk = 1; chunk < count_; ++chunk) sum += sums[chunk * sums_per_chunk()];
    return sum;
  }

  // Four times the mean absolute upstream gradient of each channel. Turns pruning off where the
  // gradient is not finite.
  void find_typical_upstream(int64_t n, KeyMaps<A>& keys) {
    const int64_t channels = call_.params.channels;
    const LamGrid& grid = call_.params.queries;
    std::fill(upstream_sizes_.begin(), upstream_sizes_.end(), 0.0);
    call_.for_each(count_, [&](int64_t worker, int64_t chunk) {
      A* upstream = workers_[worker].scratch.upstream;
      for (int64_t tile = first_tile(chunk); tile < first_tile(chunk + 1); ++tile) {
        load_queries(grad_output_, n, grid, tile, upstream);
        clear_padding(tile, upstream);
        for (int64_t c = 0; c < channels; ++c) {
          A sum = 0;
          for (int lane = 0; lane < kTile; ++lane) sum += std::abs(upstream[c * kTile + lane]);
          upstream_sizes_[chunk * channels + c] += sum;
        }
      }
    });
    inverse_typical_.assign(channels, 0);
    const double queries = grid.height * grid.width;
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < count_; ++chunk) sum += upstream_sizes_[chunk * channels + c];
      inverse_typical_[c] = static_cast<A>(sum > 0 ? queries / (4 * sum) : 0);
      keys.prune &= std::isfinite(sum) && std::isfinite(inverse_typical_[c]);
    }
  }

  void clear_padding(int64_t tile, A* upstream) const {
    const LamGrid& grid = call_.params.queries;
    if ((tile / grid.columns + 1) * kQueryRows <= grid.height &&
        (tile % grid.columns + 1) * kQueryColumns <= grid.width)
      return;
    for_each_pixel(grid, tile, [&](int lane, int64_t, int64_t, bool inside) {
      for (int64_t c = 0; c < call_.params.channels && !inside; ++c) upstream[c * kTile + lane] = 0;
    });
  }

  void load(int64_t n, int64_t tile, const QueryScratch<A>& scratch) const {
    const LamGrid& grid = call_.params.queries;
    load_queries(call_.queries, n, grid, tile, scratch.queries);
    load_queries(grad_output_, n, grid, tile, scratch.upstream);
    load_queries(output_, n, grid, tile, scratch.output);
    clear_padding(tile, scratch.upstream);
    for_each_pixel(grid, tile, [&](int lane, int64_t y, int64_t x, bool) {
      scratch.log_denominator[lane] =
          *log_denominator_.at(n, std::min(y, grid.height - 1), std::min(x, grid.width - 1));
    });
    std::fill_n(scratch.delta, kTile, A(0));
    std::fill_n(scratch.excess, kTile, A(0));
    A largest[kTile] = {};
    for (int64_t c = 0; c < call_.params.channels; ++c) {
      const A* g = scratch.upstream + c * kTile;
      const A* out = scratch.output + c * kTile;
      const A inverse = inverse_typical_[c];
      for (int lane = 0; lane < kTile; ++lane) {
        const A size = std::abs(g[lane]), excess = size * inverse;
        scratch.delta[lane] += g[lane] * out[lane];
        largest[lane] = size > largest[lane] ? size : largest[lane];
        scratch.excess[lane] = excess > scratch.excess[lane] ? excess : scratch.excess[lane];
      }
    }
    for (int lane = 0; lane < kTile; ++lane)
      scratch.excess[lane] = largest[lane] > 0 ? std::max(A(1), scratch.excess[lane]) : A(0);
  }

  const TwoGridsCall<T>& call_;
  const View4<T> grad_output_, output_;
  const View<A, 3> log_denominator_;
  const std::vector<QueryWorker<T>>& workers_;
  const int64_t x_pitch_, value_pitch_, count_;
  const Tensor sums_;                   // [chunks, h w, x_pitch + value_pitch]
  std::vector<double> upstream_sizes_;  // [chunks, C]
  std::vector<A> inverse_typical_;      // [C]
};

}  // namespace blpseg
