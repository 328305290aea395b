// Packs an image's tensors into the tiles that kernels work on (kernels/lam_image.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "lam_call.h"

namespace blpseg {

// Images of at most this many tiles are computed plainly: finding out what to skip costs more.
constexpr int64_t kPlainTiles = 4;
// Pixels that a basis is found from, and how many directions it may have to make products in.
constexpr int64_t kSample = 256, kSampleMore = 64, kMostDirections = 128;
// How often such a basis is looked for, each time with more samples, before products are made of
// the features as they are.
constexpr int kAttempts = 4;
static_assert(kSample + (kAttempts - 1) * kSampleMore <= kMostSamples);

// Image n of a call, packed in these steps (pack_images() in lam.cpp; tiles in parallel):
//  1. read_values() of each tile;
//  2. choose_coordinates(): a basis from the samples;
//  3. allocate_coordinates(), then pack() of each tile;
//  4. accept_or_resample(): if the basis is too small, more samples, and again from 2.
template <typename T>
class PackedImage {
 public:
  using A = accumulate_t<T>;

  PackedImage(const LamCall<T>& call, int64_t n)
      : call_(call), n_(n), sizes_(call.tiles() * 2 * call.params.channels), found_(call.tiles()) {
    const int64_t tiles = call.tiles(), dims = call.params.dims;
    most_directions_ = dims >= 4 * kAxes ? std::min(dims / 2, kMostDirections) : int64_t{kAxes};
    image_.grid = call.grid;
    image_.prune = tiles > kPlainTiles;
    const int64_t pixels = tiles * kTile, channels = call.params.channels;
    const bool prune = image_.prune, backward = call.upstream.has_value();
    held_ = allocate<T>(call, {{&image_.center, dims},
                               {&image_.basis, prune * most_directions_ * dims},
                               {&image_.transposed, prune * dims * most_directions_},
                               {&image_.values, pixels * channels},
                               {&image_.half_sq_norm, pixels},
                               {&image_.key_bias, pixels},
                               {&image_.query_bias, pixels},
                               {&image_.log_denominator, pixels},
                               {&image_.key_log_bound, pixels},
                               {&image_.query_log_bound, pixels},
                               {&image_.bound, prune * pixels * kBoundRows},
                               {&image_.low, prune * kAxes * tiles},
                               {&image_.high, prune * kAxes * tiles},
                               {&image_.key_max_bound, tiles},
                               {&image_.query_max_bound, tiles},
                               {&image_.upstream, backward * pixels * channels},
                               {&image_.delta, backward * pixels}});
    // Steps of the golden ratio spread any number of samples evenly.
    const int64_t inside = call.grid.height * call.grid.width;
    for (int64_t s = 0; s < std::min(kSample, inside); ++s) {
      const double turns = 0.6180339887498949 * static_cast<double>(s);
      samples_.push_back(static_cast<int64_t>((turns - std::floor(turns)) * inside));
    }
  }

  LamImage<A>& image() { return image_; }
  const LamImage<A>& image() const { return image_; }
  int64_t index() const { return n_; }

  // Size of a thread's scratch.coordinates per pixel.
  static int64_t most_coordinates(const LamCall<T>& call) {
    return std::max(call.params.dims, int64_t{kAxes});
  }

  void read_values(int64_t tile) {
    const int64_t channels = call_.params.channels, size = channels * kTile;
    bool finite = load_tile(call_.values, n_, call_.grid, tile, image_.values + tile * size);
    if (call_.upstream) {
      const View4<T>& out = call_.upstream->output;
      A* g = image_.upstream + tile * size;
      A* delta = image_.delta + tile * kTile;
      finite &= load_tile(call_.upstream->grad_output, n_, call_.grid, tile, g);
      for_each_pixel(call_.grid, tile, [&](int lane, int64_t y, int64_t x, bool inside) {
        delta[lane] = 0;
        if (!inside) return;
        const T* pixel = out.data + n_ * out.stride[0] + y * out.stride[2] + x * out.stride[3];
        for (int64_t c = 0; c < channels; ++c)
          delta[lane] += g[c * kTile + lane] * static_cast<A>(pixel[c * out.stride[1]]);
        finite &= std::isfinite(delta[lane]);
      });
    }
    found_[tile].finite = finite;
    add_sizes(tile, image_.values + tile * size, 0);
    if (call_.upstream) add_sizes(tile, image_.upstream + tile * size, channels);
  }

  void choose_coordinates() {
    if (image_.prune) image_.prune = all_finite();
    if (image_.prune && typical_size_.empty()) find_typical_sizes();
    if (image_.prune) {
      find_basis();
      // A sample may lie in the bounds' few directions where the image does not.
      image_.projected = image_.projected && attempts_ < kAttempts;
    } else {
      image_.projected = false;
      std::fill_n(image_.center, call_.params.dims, A(0));
    }
    image_.rank = image_.projected ? image_.directions : call_.params.dims;
  }

  void allocate_coordinates() {
    x_ = call_.allocate({call_.tiles(), image_.rank, kTile});
    image_.x = data_ptr<A>(*x_);
  }

  void pack(int64_t tile, const LamScratch<A>& scratch) {
    read_log_denominator(tile);
    const int64_t channels = call_.params.channels, at = tile * channels * kTile;
    log_excess(image_.values + at, typical_size_.data(), image_.key_log_bound + tile * kTile);
    log_excess(call_.upstream ? image_.upstream + at : nullptr, typical_size_.data() + channels,
               image_.query_log_bound + tile * kTile);
    load_tile(call_.features, n_, call_.grid, tile, scratch.features);
    found_[tile] = call_.kernels.pack_tile(image_, call_.params, tile, scratch);
  }

  // How much upper bounds of a logarithm may err by rounding.
  A bound_margin() const { return bound_margin_; }

  // The log of the relative error that rounding makes of a pixel's weights: u max(1, S_b / 4).
  A log_rounding(int64_t tile, int lane) const {
    const A score = 2 * image_.half_sq_norm[tile * kTile + lane];
    return std::log(static_cast<A>(rounding())) + std::log(std::max(A(1), score / 4));
  }

  // In backward: sum_c mean |g_c| mean |v_c| over channels, the unit of delta's errors.
  A delta_unit() const {
    const int64_t channels = call_.params.channels;
    A sum = 0;
    for (int64_t c = 0; c < channels; ++c)
      sum += (typical_size_[c] / 4) * (typical_size_[channels + c] / 4);
    return sum;
  }

  // Returns whether the basis is good enough; if not, adds the worst pixels to the samples.
  bool accept_or_resample() {
    double residual = 0, magnitude = 0;
    for (const LamPacked& tile : found_) {
      residual = std::max(residual, tile.residual);
      magnitude = std::max(magnitude, tile.magnitude);
    }
    // Even if all pixels were skipped, what is skipped would stay below rounding. Bounds err by as
    // much as rounding lets them.
    const int64_t pixels = call_.grid.height * call_.grid.width;
    bound_margin_ = static_cast<A>(magnitude / (1 << 17));
    image_.log_skip_threshold = static_cast<A>(std::log(rounding() / pixels)) - bound_margin_;
    if (!image_.prune) return true;
    if (!all_finite()) return false;
    if (!image_.projected || residual <= 1) return true;
    // Pixels outside the sample have directions of their own: the next sample has the worst of
    // them.
    ++attempts_;
    std::vector<LamPacked> worst = found_;
    const auto more = worst.begin() + std::min<int64_t>(worst.size(), kSampleMore);
    std::partial_sort(worst.begin(), more, worst.end(), [](const auto& a, const auto& b) {
      return a.residual != b.residual ? a.residual > b.residual : a.worst < b.worst;
    });
    for (auto tile = worst.begin(); tile != more; ++tile) samples_.push_back(tile->worst);
    return false;
  }

 private:
  static constexpr double rounding() { return std::numeric_limits<A>::epsilon() / 2; }

  bool all_finite() const {
    return std::all_of(found_.begin(), found_.end(), [](const auto& tile) { return tile.finite; });
  }

  // Sums the absolute values of each channel of a tile into sizes_[tile][first ...].
  void add_sizes(int64_t tile, const A* array, int64_t first) {
    const int64_t channels = call_.params.channels;
    double* sizes = sizes_.data() + tile * 2 * channels + first;
    for_each_pixel(call_.grid, tile, [&](int lane, int64_t, int64_t, bool inside) {
      for (int64_t c = 0; c < channels && inside; ++c)
        sizes[c] += std::abs(static_cast<double>(array[c * kTile + lane]));
    });
  }

  // Typical size of a channel: 4 times its mean absolute value.
  void find_typical_sizes() {
    const int64_t channels = 2 * call_.params.channels;
    const double pixels = call_.grid.height * call_.grid.width;
    typical_size_.assign(channels, 0);
    for (int64_t tile = 0; tile < call_.tiles(); ++tile) {
      for (int64_t c = 0; c < channels; ++c)
        typical_size_[c] += static_cast<A>(4 * sizes_[tile * channels + c] / pixels);
    }
  }

  // The log of how many times a pixel's numbers are larger than usual, in the channel where they
  // are most; 0 where they are not. What is skipped is then small beside usual values, not just
  // beside the largest.
  void log_excess(const A* array, const A* usual, A* out) const {
    std::fill_n(out, kTile, A(0));
    if (!array || !image_.prune) return;
    for (int64_t c = 0; c < call_.params.channels; ++c) {
      for (int lane = 0; lane < kTile; ++lane) {
        const A size = std::abs(array[c * kTile + lane]);
        if (size > usual[c]) out[lane] = std::max(out[lane], std::log(size / usual[c]));
      }
    }
  }

  void find_basis() {
    const View4<T>& features = call_.features;
    const int64_t dims = call_.params.dims, count = samples_.size();
    std::vector<double> sample((count + most_directions_ + kMoreCoordinates) * dims);
    for (int64_t s = 0; s < count; ++s) {
      const T* pixel = features.data + n_ * features.stride[0] +
                       samples_[s] / call_.grid.width * features.stride[2] +
                       samples_[s] % call_.grid.width * features.stride[3];
      for (int64_t d = 0; d < dims; ++d)
        sample[s * dims + d] = static_cast<A>(pixel[d * features.stride[1]]);
    }
    call_.kernels.find_basis(image_, call_.params, sample.data(), count,
                             attempts_ < kAttempts ? most_directions_ : int64_t{kAxes});
  }

  // In backward, what forward found, and infinity where a pixel has no gradient to hand on: shares
  // of it count for nothing then. In forward nothing is known yet.
  void read_log_denominator(int64_t tile) const {
    A* out = image_.log_denominator + tile * kTile;
    for_each_pixel(call_.grid, tile, [&](int lane, int64_t y, int64_t x, bool inside) {
      out[lane] = 0;
      if (!inside || !call_.upstream) return;
      const auto& log_denominator = call_.upstream->log_denominator;
      const int64_t* stride = log_denominator.stride;
      out[lane] = log_denominator.data[n_ * stride[0] + y * stride[1] + x * stride[2]];
      const A* g = image_.upstream + tile * call_.params.channels * kTile + lane;
      bool active = !image_.prune;
      for (int64_t c = 0; c < call_.params.channels; ++c) active |= g[c * kTile] != 0;
      if (!active) out[lane] = std::numeric_limits<A>::infinity();
    });
  }

  const LamCall<T>& call_;
  const int64_t n_;
  LamImage<A> image_ = {};
  int64_t most_directions_;
  std::optional<Tensor> held_;    // the memory that image_ points to
  std::optional<Tensor> x_;       // and that of image_.x, whose size is found out
  std::vector<double> sizes_;     // [tiles, 2 C]: sums of the sizes of values and upstream
  std::vector<A> typical_size_;   // [2 C]: the largest that is usual
  std::vector<LamPacked> found_;  // by packing each tile
  std::vector<int64_t> samples_;  // pixels that the basis is found from
  A bound_margin_ = 0;
  int attempts_ = 0;
};

}  // namespace blpseg
