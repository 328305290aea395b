// Packing: an image's tensors, read into the tiles that kernels work on (lam_image.h), and the
// choice of the coordinates that its features are held in.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/kernels/lam_image.h"
#include "lam_tiles.h"
#include "tensor.h"

namespace blpseg {

// Images of at most this many tiles are computed plainly: finding out what to skip costs more.
constexpr int64_t kPlainTiles = 4;
// Pixels that a basis is found from, and how many directions it may have to make products in.
constexpr int64_t kSample = 256, kSampleMore = 64, kMostDirections = 128;
// How often such a basis is looked for, each time with more samples, before products are made of
// the features as they are.
constexpr int kAttempts = 4;
static_assert(kSample + (kAttempts - 1) * kSampleMore <= kMostSamples);

// What backward is told besides the inputs of forward.
template <typename T>
struct LamUpstream {
  View4<T> grad_output, output;              // [N, C, h, w]
  View<accumulate_t<T>, 3> log_denominator;  // [N, h, w]
};

// A call of the op.
template <typename T>
struct LamCall {
  using A = accumulate_t<T>;

  const Tensor& like;         // has the device and dtype of new tensors
  View4<T> features, values;  // [N, D, h, w], [N, C, h, w]
  LamNumbers<A> numbers;
  LamGrid grid;
  const LamKernels<A>& kernels;
  std::optional<LamUpstream<T>> upstream;  // in backward

  int64_t tiles() const { return grid.rows * grid.columns; }

  // torch's allocator aligns to cache lines, and says clearly when there is no memory.
  Tensor room(std::vector<int64_t> size) const {
    return torch::stable::new_empty(
        like, size, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  }
};

template <typename A>
A* numbers_of(const Tensor& tensor) {
  return static_cast<A*>(tensor.mutable_data_ptr());
}

// Image n of a call. First read_values() of each tile, then, until settle() is content:
// choose_coordinates(), make_room() and pack() of each tile. What is done to a tile may be done to
// others at the same time.
template <typename T>
class PackedImage {
 public:
  using A = accumulate_t<T>;

  PackedImage(const LamCall<T>& call, int64_t n)
      : call_(call), n_(n), sizes_(call.tiles() * 2 * call.numbers.channels), found_(call.tiles()) {
    const int64_t tiles = call.tiles(), dims = call.numbers.dims;
    most_directions_ = dims >= 4 * kAxes ? std::min(dims / 2, kMostDirections) : int64_t{kAxes};
    image_.grid = call.grid;
    image_.prune = tiles > kPlainTiles;
    const int64_t pixels = tiles * kTile, channels = call.numbers.channels;
    const bool prune = image_.prune, backward = call.upstream.has_value();
    make_room({{&image_.centre, dims},
               {&image_.basis, prune * most_directions_ * dims},
               {&image_.transposed, prune * dims * most_directions_},
               {&image_.values, pixels * channels},
               {&image_.half, pixels},
               {&image_.source, pixels},
               {&image_.target, pixels},
               {&image_.log_denominator, pixels},
               {&image_.source_bound, pixels},
               {&image_.target_bound, pixels},
               {&image_.bound, prune * pixels * kBoundRows},
               {&image_.low, prune * kAxes * tiles},
               {&image_.high, prune * kAxes * tiles},
               {&image_.source_peak, tiles},
               {&image_.target_peak, tiles},
               {&image_.upstream, backward * pixels * channels},
               {&image_.delta, backward * pixels}});
    // Steps of the golden ratio spread any number of samples evenly.
    const int64_t inside = call.grid.height * call.grid.width;
    for (int64_t s = 0; s < std::min(kSample, inside); ++s) {
      const double turns = 0.6180339887498949 * static_cast<double>(s);
      samples_.push_back(static_cast<int64_t>((turns - std::floor(turns)) * inside));
    }
  }

  const LamImage<A>& image() const { return image_; }
  int64_t index() const { return n_; }

  // Numbers that a thread's scratch.coordinates must hold a pixel.
  static int64_t most_coordinates(const LamCall<T>& call) {
    return std::max(call.numbers.dims, int64_t{kAxes});
  }

  void read_values(int64_t tile) {
    const int64_t channels = call_.numbers.channels, size = channels * kTile;
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
    if (image_.prune && usual_.empty()) find_usual_sizes();
    if (image_.prune) {
      find_basis();
      // A sample may lie in the bounds' few directions where the image does not.
      image_.projected = image_.projected && attempts_ < kAttempts;
    } else {
      image_.projected = false;
      std::fill_n(image_.centre, call_.numbers.dims, A(0));
    }
    image_.rank = image_.projected ? image_.directions : call_.numbers.dims;
  }

  void make_room() {
    x_ = call_.room({call_.tiles(), image_.rank, kTile});
    image_.x = numbers_of<A>(*x_);
  }

  void pack(int64_t tile, const LamScratch<A>& scratch) {
    read_log_denominator(tile);
    const int64_t channels = call_.numbers.channels, at = tile * channels * kTile;
    log_excess(image_.values + at, usual_.data(), image_.source_bound + tile * kTile);
    log_excess(call_.upstream ? image_.upstream + at : nullptr, usual_.data() + channels,
               image_.target_bound + tile * kTile);
    load_tile(call_.features, n_, call_.grid, tile, scratch.features);
    found_[tile] = call_.kernels.pack_tile(image_, call_.numbers, tile, scratch);
  }

  // Draws the conclusions; returns whether the packing stands.
  bool settle() {
    double residual = 0, magnitude = 0;
    for (const LamPacked& tile : found_) {
      residual = std::max(residual, tile.residual);
      magnitude = std::max(magnitude, tile.magnitude);
    }
    // Even if all pixels were skipped, what is skipped would stay below rounding. Bounds err by as
    // much as rounding lets them.
    const int64_t pixels = call_.grid.height * call_.grid.width;
    image_.log_skip = static_cast<A>(std::log(rounding() / pixels) - magnitude / (1 << 17));
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

  // In one piece: small images spend their time on allocations.
  void make_room(std::initializer_list<std::pair<A**, int64_t>> arrays) {
    constexpr int64_t kLine = 64 / sizeof(A);
    const auto whole_lines = [](int64_t size) { return (size + kLine - 1) / kLine * kLine; };
    int64_t total = 0;
    for (const auto& [array, size] : arrays) total += whole_lines(size);
    held_ = call_.room({total});
    A* next = numbers_of<A>(*held_);
    for (const auto& [array, size] : arrays) {
      *array = next;
      next += whole_lines(size);
    }
  }

  bool all_finite() const {
    return std::all_of(found_.begin(), found_.end(), [](const auto& tile) { return tile.finite; });
  }

  // Adds up the sizes of a tile's numbers in each channel, from sizes_[tile][first] on.
  void add_sizes(int64_t tile, const A* numbers, int64_t first) {
    const int64_t channels = call_.numbers.channels;
    double* sizes = sizes_.data() + tile * 2 * channels + first;
    for_each_pixel(call_.grid, tile, [&](int lane, int64_t, int64_t, bool inside) {
      for (int64_t c = 0; c < channels && inside; ++c)
        sizes[c] += std::abs(static_cast<double>(numbers[c * kTile + lane]));
    });
  }

  // A number of usual size is at most 4 times the channel's mean.
  void find_usual_sizes() {
    const int64_t channels = 2 * call_.numbers.channels;
    const double pixels = call_.grid.height * call_.grid.width;
    usual_.assign(channels, 0);
    for (int64_t tile = 0; tile < call_.tiles(); ++tile) {
      for (int64_t c = 0; c < channels; ++c)
        usual_[c] += static_cast<A>(4 * sizes_[tile * channels + c] / pixels);
    }
  }

  // The log of how many times a pixel's numbers are larger than usual, in the channel where they
  // are most; 0 where they are not. What is skipped is then small beside usual numbers, not just
  // beside the largest.
  void log_excess(const A* numbers, const A* usual, A* out) const {
    std::fill_n(out, kTile, A(0));
    if (!numbers || !image_.prune) return;
    for (int64_t c = 0; c < call_.numbers.channels; ++c) {
      for (int lane = 0; lane < kTile; ++lane) {
        const A size = std::abs(numbers[c * kTile + lane]);
        if (size > usual[c]) out[lane] = std::max(out[lane], std::log(size / usual[c]));
      }
    }
  }

  void find_basis() {
    const View4<T>& features = call_.features;
    const int64_t dims = call_.numbers.dims, count = samples_.size();
    std::vector<double> sample((count + most_directions_ + kAxes) * dims);
    for (int64_t s = 0; s < count; ++s) {
      const T* pixel = features.data + n_ * features.stride[0] +
                       samples_[s] / call_.grid.width * features.stride[2] +
                       samples_[s] % call_.grid.width * features.stride[3];
      for (int64_t d = 0; d < dims; ++d)
        sample[s * dims + d] = static_cast<A>(pixel[d * features.stride[1]]);
    }
    call_.kernels.find_basis(image_, call_.numbers, sample.data(), count,
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
      const A* g = image_.upstream + tile * call_.numbers.channels * kTile + lane;
      bool active = !image_.prune;
      for (int64_t c = 0; c < call_.numbers.channels; ++c) active |= g[c * kTile] != 0;
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
  std::vector<A> usual_;          // [2 C]: the largest that is usual
  std::vector<LamPacked> found_;  // by packing each tile
  std::vector<int64_t> samples_;  // pixels that the basis is found from
  int attempts_ = 0;
};

}  // namespace blpseg
