// blpseg::lam and blpseg::lam_backward on the CPU. Called by blpseg_ops/ops/lam.py; the reference is
// blpseg_ops/reference/lam.py.
//
// Here is memory and order: tensors are read into tiles and written from them, tiles are shared out
// to threads. The arithmetic is in the files that lam_kernels.cpp lists; begin with lam_image.h, then
// lam_forward.h.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "capability.h"
#include "lam_kernels.h"
#include "tensor.h"

namespace blpseg {
namespace {

template <typename A>
const LamKernels<A>& kernels() {
  const auto of = [](const LamKernels<float>& f, const LamKernels<double>& d) -> const auto& {
    if constexpr (std::is_same_v<A, float>)
      return f;
    else
      return d;
  };
#ifdef __x86_64__
  if (cpu_capability() == Capability::avx512) return of(avx512::kLamFloat, avx512::kLamDouble);
  if (cpu_capability() == Capability::avx2) return of(avx2::kLamFloat, avx2::kLamDouble);
#endif
  return of(portable::kLamFloat, portable::kLamDouble);
}

// Images of at most this many tiles are computed plainly: finding out what to skip costs more.
constexpr int64_t kPlainTiles = 4;
constexpr int64_t kSample = 256;         // pixels that a basis is found from
constexpr int kAttempts = 4;             // at a basis for products, with a larger sample each time
constexpr int64_t kMostDirections = 128;  // of a basis that products are made in

// Tiles are 8 x 8 pixels; flatter where the image is.
LamGrid make_grid(int64_t height, int64_t width) {
  LamGrid grid = {height, width, 8, 8, 0, 0};
  while (grid.tile_height > 1 && grid.tile_height / 2 >= height) grid.tile_height /= 2;
  while (grid.tile_height < kTile && kTile / grid.tile_height / 2 >= width) grid.tile_height *= 2;
  grid.tile_width = kTile / grid.tile_height;
  grid.rows = (height + grid.tile_height - 1) / grid.tile_height;
  grid.columns = (width + grid.tile_width - 1) / grid.tile_width;
  return grid;
}

// Calls visit(offset into a channel's plane or row, lane) for each pixel of a tile; pixels over the
// image's edge repeat the edge's.
template <typename Visit>
void for_each_pixel(const LamGrid& grid, int64_t tile, const Visit& visit) {
  const int64_t top = tile / grid.columns * grid.tile_height;
  const int64_t left = tile % grid.columns * grid.tile_width;
  for (int lane = 0; lane < kTile; ++lane) {
    const int64_t y = top + lane / grid.tile_width, x = left + lane % grid.tile_width;
    visit(y, x, lane, y < grid.height && x < grid.width);
  }
}

// Reads a tile of image n, [channels, kTile]; returns whether all numbers are finite.
template <typename T, typename A>
bool load_tile(const View4<T>& view, int64_t n, const LamGrid& grid, int64_t tile, A* out) {
  const T* image = view.data + n * view.stride[0];
  int64_t offset[kTile];
  for_each_pixel(grid, tile, [&](int64_t y, int64_t x, int lane, bool) {
    offset[lane] = std::min(y, grid.height - 1) * view.stride[2] +
                   std::min(x, grid.width - 1) * view.stride[3];
  });
  bool finite = true;
  for (int64_t c = 0; c < view.size[1]; ++c) {
    const T* channel = image + c * view.stride[1];
    A largest = 0;
    for (int lane = 0; lane < kTile; ++lane) {
      const A number = static_cast<A>(channel[offset[lane]]);
      out[c * kTile + lane] = number;
      largest += number - number;  // NaN where the number is not finite
    }
    finite = finite && largest == 0;
  }
  return finite;
}

// Writes a tile [channels, kTile] into a contiguous tensor [N, channels, h, w].
template <typename T, typename A>
void store_tile(const A* in, int64_t channels, int64_t n, const LamGrid& grid, int64_t tile,
                T* out) {
  const int64_t plane = grid.height * grid.width;
  T* image = out + n * channels * plane;
  for_each_pixel(grid, tile, [&](int64_t y, int64_t x, int lane, bool inside) {
    if (!inside) return;
    for (int64_t c = 0; c < channels; ++c)
      image[c * plane + y * grid.width + x] = static_cast<T>(in[c * kTile + lane]);
  });
}

// The tensors of a call, in tiles, and the threads that work on them.
template <typename T>
class Lam {
 public:
  using A = accumulate_t<T>;

  Lam(const Tensor& features, const Tensor& values, double sigma, double eps, double scale)
      : features_(features),
        values_(values),
        like_(features),
        grid_(make_grid(features.size(2), features.size(3))),
        tiles_(grid_.rows * grid_.columns),
        workers_(std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(),
                                                        features.size(0) * tiles_))),
        images_(features.size(0)),
        kernels_(kernels<A>()) {
    numbers_.dims = features.size(1);
    numbers_.channels = values.size(1);
    numbers_.scale = static_cast<A>(scale);
    numbers_.minus_half_precision = static_cast<A>(-1 / (2 * sigma * sigma));
    numbers_.log_eps = static_cast<A>(std::log(eps));

    const int64_t dims = numbers_.dims, channels = numbers_.channels;
    const int64_t n = features.size(0);
    most_directions_ =
        dims >= 4 * kAxes ? std::min(dims / 2, kMostDirections) : int64_t{kAxes};
    centre_ = room({n, dims});
    basis_ = room({n, most_directions_, dims});
    transposed_ = room({n, dims, most_directions_});
    packed_values_ = room({n, tiles_, channels, kTile});
    source_ = room({n, tiles_, kTile});
    target_ = room({n, tiles_, kTile});
    bound_ = room({n, tiles_, kBoundRows, kTile});
    boxes_ = room({n, 2 * kAxes + 2, tiles_});
    x_.resize(n, centre_);
    samples_.resize(n);
    attempts_.resize(n);
    tolerance_.resize(n);

    candidates_ = torch::stable::new_empty(like_, {workers_, tiles_}, ScalarType::Int);
    // features, coordinates, values, log_denominator, reach
    const int64_t rows = dims + std::max(dims, most_directions_) + channels + 1;
    scratch_numbers_ = rows * kTile + tiles_;
    scratch_ = room({workers_, scratch_numbers_});
  }

  std::tuple<Tensor, Tensor> forward() {
    const int64_t n = values_.size[0], channels = numbers_.channels;
    Tensor output = torch::stable::new_empty(like_, {n, channels, grid_.height, grid_.width});
    Tensor log_denominator =
        torch::stable::new_empty(like_, {n, grid_.height, grid_.width}, dtype());
    prepare();
    T* out = static_cast<T*>(output.mutable_data_ptr());
    A* log_out = numbers_of(log_denominator);
    for_each_tile(all_images(), [&](int64_t image, int64_t tile, const LamScratch<A>& scratch) {
      kernels_.forward_tile(images_[image], numbers_, tile, scratch);
      store_tile(scratch.values, channels, image, grid_, tile, out);
      store_tile(scratch.log_denominator, 1, image, grid_, tile, log_out);
    });
    return {output, log_denominator};
  }

  std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& output,
                                      const Tensor& log_denominator) {
    const int64_t n = values_.size[0], dims = numbers_.dims, channels = numbers_.channels;
    Tensor grad_features = torch::stable::new_empty(like_, {n, dims, grid_.height, grid_.width});
    Tensor grad_values = torch::stable::new_empty(like_, {n, channels, grid_.height, grid_.width});
    upstream_ = room({n, tiles_, channels, kTile});
    delta_ = room({n, tiles_, kTile});
    log_denominator_ = static_cast<const A*>(log_denominator.const_data_ptr());
    const View4<T> upstream(grad_output), out(output);
    upstream_view_ = &upstream;
    output_view_ = &out;
    prepare();
    T* to_features = static_cast<T*>(grad_features.mutable_data_ptr());
    T* to_values = static_cast<T*>(grad_values.mutable_data_ptr());
    for_each_tile(all_images(), [&](int64_t image, int64_t tile, const LamScratch<A>& scratch) {
      kernels_.backward_tile(images_[image], numbers_, tile, scratch);
      store_tile(scratch.features, dims, image, grid_, tile, to_features);
      store_tile(scratch.values, channels, image, grid_, tile, to_values);
    });
    return {grad_features, grad_values};
  }

 private:
  std::vector<int64_t> all_images() const {
    std::vector<int64_t> all(images_.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  static constexpr ScalarType dtype() {
    return std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  }
  // torch's allocator aligns to cache lines and says clearly when there is no memory.
  Tensor room(std::vector<int64_t> size) const {
    return torch::stable::new_empty(like_, size, dtype());
  }
  static A* numbers_of(const Tensor& tensor) { return static_cast<A*>(tensor.mutable_data_ptr()); }
  // The part of a tensor [N, ...] that belongs to image n.
  static A* part(const Tensor& tensor, int64_t n) {
    return tensor.numel() ? numbers_of(tensor) + n * (tensor.numel() / tensor.size(0)) : nullptr;
  }

  LamScratch<A> scratch_of(int64_t worker) const {
    A* at = numbers_of(scratch_) + worker * scratch_numbers_;
    const auto take = [&](int64_t rows) {
      A* taken = at;
      at += rows * kTile;
      return taken;
    };
    LamScratch<A> scratch;
    scratch.candidates =
        static_cast<int32_t*>(candidates_.mutable_data_ptr()) + worker * tiles_;
    scratch.features = take(numbers_.dims);
    scratch.coordinates = take(std::max(numbers_.dims, most_directions_));
    scratch.values = take(numbers_.channels);
    scratch.log_denominator = take(1);
    scratch.reach = at;
    return scratch;
  }

  // Tiles go to whichever thread is free, since they differ in work. No result depends on it.
  template <typename Visit>
  void for_each_tile(const std::vector<int64_t>& images, const Visit& visit) const {
    const int64_t count = static_cast<int64_t>(images.size()) * tiles_;
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers_, 1, [&](int64_t first, int64_t last) {
      for (int64_t worker = first; worker < last; ++worker) {
        const LamScratch<A> scratch = scratch_of(worker);
        for (int64_t i = next++; i < count; i = next++)
          visit(images[i / tiles_], i % tiles_, scratch);
      }
    });
  }

  // Reads the tensors into tiles. How an image's features are best held shows in the reading, so it
  // may take more than one attempt.
  void prepare() {
    const int64_t n = static_cast<int64_t>(images_.size());
    for (int64_t i = 0; i < n; ++i) lay_out(i);
    std::vector<int64_t> open = all_images();
    std::vector<char> finite(n * tiles_);
    for_each_tile(open, [&](int64_t i, int64_t tile, const LamScratch<A>&) {
      finite[i * tiles_ + tile] = read_values(i, tile);
    });
    for (int64_t i = 0; i < n; ++i) {
      const auto first = finite.begin() + i * tiles_;
      images_[i].prune = tiles_ > kPlainTiles && std::count(first, first + tiles_, 0) == 0;
    }
    std::vector<LamPacked> packed(n * tiles_);
    while (!open.empty()) {
      torch::stable::parallel_for(0, open.size(), 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) choose_coordinates(open[i]);
      });
      for (const int64_t i : open) {
        x_[i] = room({tiles_, images_[i].rank, kTile});
        images_[i].x = numbers_of(x_[i]);
      }
      for_each_tile(open, [&](int64_t i, int64_t tile, const LamScratch<A>& scratch) {
        read_log_denominator(i, tile, scratch.log_denominator);
        load_tile(features_, i, grid_, tile, scratch.features);
        packed[i * tiles_ + tile] = kernels_.pack_tile(images_[i], numbers_, tile, scratch);
      });
      const auto settled = [&](int64_t i) { return settle(i, packed.data() + i * tiles_); };
      open.erase(std::remove_if(open.begin(), open.end(), settled), open.end());
    }
  }

  void lay_out(int64_t n) {
    LamImage<A>& image = images_[n];
    image = {};
    image.grid = grid_;
    image.centre = part(centre_, n);
    image.basis = part(basis_, n);
    image.transposed = part(transposed_, n);
    image.values = part(packed_values_, n);
    image.source = part(source_, n);
    image.target = part(target_, n);
    image.bound = part(bound_, n);
    image.low = part(boxes_, n);
    image.high = image.low + kAxes * tiles_;
    image.source_peak = image.high + kAxes * tiles_;
    image.target_peak = image.source_peak + tiles_;
    if (upstream_view_) {
      image.upstream = part(upstream_, n);
      image.delta = part(delta_, n);
    }
    // Steps of the golden ratio spread any number of samples evenly.
    const int64_t pixels = grid_.height * grid_.width;
    for (int64_t s = 0; s < std::min(kSample, pixels); ++s) {
      const double turn = 0.6180339887498949 * static_cast<double>(s);
      samples_[n].push_back(static_cast<int64_t>((turn - std::floor(turn)) * pixels));
    }
  }

  void choose_coordinates(int64_t n) {
    LamImage<A>& image = images_[n];
    if (image.prune) {
      find_basis(n);
    } else {
      image.projected = false;
      image.directions = kAxes;
      std::fill_n(image.centre, numbers_.dims, A(0));
      std::fill_n(image.basis, kAxes * numbers_.dims, A(0));
      std::fill_n(image.transposed, kAxes * numbers_.dims, A(0));
    }
    image.rank = image.projected ? image.directions : numbers_.dims;
  }

  void find_basis(int64_t n) {
    const int64_t dims = numbers_.dims, count = samples_[n].size();
    std::vector<double> sample((count + most_directions_ + kAxes) * dims);
    double largest = 0;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t pixel = samples_[n][s];
      const T* from = features_.data + n * features_.stride[0] +
                      pixel / grid_.width * features_.stride[2] +
                      pixel % grid_.width * features_.stride[3];
      double square = 0;
      for (int64_t d = 0; d < dims; ++d) {
        const double number = static_cast<A>(from[d * features_.stride[1]]);
        sample[s * dims + d] = number;
        square += number * number;
      }
      largest = std::max(largest, square);
    }
    // What is left of features may be dropped where it changes neither a product nor a gradient by
    // more than the rounding of products does: about `score` units in the last place of 1.
    const double size = std::abs(static_cast<double>(numbers_.scale)), score = size * largest;
    tolerance_[n] = std::min(rounding() * std::max(4.0, score / 8) * std::sqrt(largest),
                             std::sqrt(rounding() * std::max(1.0, score) / 8 / size));
    kernels_.find_basis(images_[n], numbers_, sample.data(), count,
                        attempts_[n] < kAttempts ? most_directions_ : int64_t{kAxes},
                        tolerance_[n] / 2);
  }

  // Draws the conclusions of an attempt at packing; returns whether it stands.
  bool settle(int64_t n, const LamPacked* packed) {
    LamImage<A>& image = images_[n];
    LamPacked all = {0, 0, 0, true};
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      all.residual = std::max(all.residual, packed[tile].residual);
      all.magnitude = std::max(all.magnitude, packed[tile].magnitude);
      all.finite = all.finite && packed[tile].finite;
    }
    // What is skipped is below rounding even where all pixels are; bounds err by as much as
    // rounding lets them.
    image.log_skip = static_cast<A>(std::log(rounding() / (grid_.height * grid_.width)) -
                                    all.magnitude / (1 << 19));
    if (!image.prune) return true;
    if (!all.finite) {
      image.prune = false;
      return false;
    }
    if (!image.projected || all.residual <= tolerance_[n]) return true;
    // Pixels outside the sample have directions of their own: the next sample has the worst of them.
    ++attempts_[n];
    std::vector<int64_t> order(tiles_);
    std::iota(order.begin(), order.end(), 0);
    const int64_t more = std::min(tiles_, kSample / 4);
    std::partial_sort(order.begin(), order.begin() + more, order.end(), [&](int64_t a, int64_t b) {
      return packed[a].residual > packed[b].residual;
    });
    for (int64_t i = 0; i < more; ++i) samples_[n].push_back(packed[order[i]].worst);
    return false;
  }

  static constexpr double rounding() { return std::numeric_limits<A>::epsilon() / 2; }

  // Packs a tile's values and, in backward, upstream gradients; returns whether all are finite.
  bool read_values(int64_t n, int64_t tile) const {
    const LamImage<A>& image = images_[n];
    const int64_t channels = numbers_.channels, numbers = channels * kTile;
    bool finite = load_tile(values_, n, grid_, tile, image.values + tile * numbers);
    if (!upstream_view_) return finite;
    const View4<T>& out = *output_view_;
    A* g = image.upstream + tile * numbers;
    A* delta = image.delta + tile * kTile;
    finite = load_tile(*upstream_view_, n, grid_, tile, g) && finite;
    for_each_pixel(grid_, tile, [&](int64_t y, int64_t x, int lane, bool inside) {
      delta[lane] = 0;
      if (!inside) return;
      const T* pixel = out.data + n * out.stride[0] + y * out.stride[2] + x * out.stride[3];
      A sum = 0;
      for (int64_t c = 0; c < channels; ++c)
        sum += g[c * kTile + lane] * static_cast<A>(pixel[c * out.stride[1]]);
      delta[lane] = sum;
      finite = finite && std::isfinite(sum);
    });
    return finite;
  }

  // In backward, log((Z + eps T) / w_bb), and infinity where a pixel has no gradient to hand on: all
  // shares of it count for nothing then. In forward nothing is known yet.
  void read_log_denominator(int64_t n, int64_t tile, A* out) const {
    const int64_t plane = grid_.height * grid_.width;
    for_each_pixel(grid_, tile, [&](int64_t y, int64_t x, int lane, bool inside) {
      out[lane] = 0;
      if (!inside || !upstream_view_) return;
      out[lane] = log_denominator_[n * plane + y * grid_.width + x];
      if (!images_[n].prune) return;
      const A* g = images_[n].upstream + tile * numbers_.channels * kTile + lane;
      bool active = false;
      for (int64_t c = 0; c < numbers_.channels; ++c) active = active || g[c * kTile] != 0;
      if (!active) out[lane] = std::numeric_limits<A>::infinity();
    });
  }

  const View4<T> features_, values_;
  const Tensor like_;  // new tensors have its device, and its dtype unless told
  const LamGrid grid_;
  const int64_t tiles_, workers_;
  LamNumbers<A> numbers_;
  int64_t most_directions_, scratch_numbers_;
  Tensor centre_, basis_, transposed_, packed_values_, source_, target_, bound_, boxes_;
  Tensor upstream_, delta_, candidates_, scratch_;
  std::vector<Tensor> x_;  // of each image, since ranks differ
  std::vector<LamImage<A>> images_;
  std::vector<std::vector<int64_t>> samples_;  // pixels that the basis is found from
  std::vector<int> attempts_;                  // at a basis of few directions
  std::vector<double> tolerance_;
  const LamKernels<A>& kernels_;
  const View4<T>* upstream_view_ = nullptr;
  const View4<T>* output_view_ = nullptr;
  const A* log_denominator_ = nullptr;
};

void check_maps(const char* op, const Tensor& features, const Tensor& values) {
  STD_TORCH_CHECK(features.dim() == 4 && values.dim() == 4, op,
                  ": expected features [N, D, h, w] and values [N, C, h, w], got ", features.dim(),
                  " and ", values.dim(), " dimensions");
  for (const int axis : {0, 2, 3})
    STD_TORCH_CHECK(features.size(axis) == values.size(axis), op,
                    ": features and values differ along axis ", axis, ": ", features.size(axis),
                    " and ", values.size(axis));
  STD_TORCH_CHECK(features.scalar_type() == values.scalar_type(), op,
                  ": features and values differ in dtype");
  for (const int axis : {1, 2, 3})
    STD_TORCH_CHECK(features.size(axis) > 0 && values.size(axis) > 0, op,
                    ": expected D, C, h, w >= 1");
}

std::tuple<Tensor, Tensor> lam(const Tensor& features, const Tensor& values, double sigma,
                               double eps, double scale) {
  check_maps("lam", features, values);
  std::tuple<Tensor, Tensor> results = {features, features};
  dispatch_floating("lam", features.scalar_type(), [&](auto element) {
    results = Lam<decltype(element)>(features, values, sigma, eps, scale).forward();
  });
  return results;
}

std::tuple<Tensor, Tensor> lam_backward(const Tensor& grad_output, const Tensor& features,
                                        const Tensor& values, const Tensor& output,
                                        const Tensor& log_denominator, double sigma, double eps,
                                        double scale) {
  check_maps("lam_backward", features, values);
  std::tuple<Tensor, Tensor> results = {features, features};
  dispatch_floating("lam_backward", features.scalar_type(), [&](auto element) {
    results = Lam<decltype(element)>(features, values, sigma, eps, scale)
                  .backward(grad_output, output, log_denominator);
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  library.impl("lam", TORCH_BOX(&lam));
  library.impl("lam_backward", TORCH_BOX(&lam_backward));
}

}  // namespace blpseg
