// Sums over whole images without a Gaussian, as eps > 0 needs them: T in forward, R in backward.
// The memory and the order of pixels of LamAlikeTiles. The sums themselves are made in
// cpu/kernels/lam_softmax_sum.h and cpu/kernels/lam_softmax_gradient.h.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "lam_packed_image.h"

namespace blpseg {

// The pixels of an image in an order in which each kTile of them are alike: pixels are halved along
// the principal coordinate in which they differ most, until kTile are left.
template <typename A>
class AlikeOrder {
 public:
  explicit AlikeOrder(const LamImage<A>& image) {
    const int64_t tiles = image.grid.rows * image.grid.columns;
    for (int64_t pixel = 0; pixel < tiles * kTile; ++pixel) {
      const int64_t tile = pixel / kTile, lane = pixel % kTile;
      if (image.key_bias[pixel] == -std::numeric_limits<A>::infinity()) continue;
      Point point = {{}, static_cast<int32_t>(pixel)};
      for (int k = 0; k < kAxes; ++k)
        point.y[k] = image.bound[(tile * kBoundRows + k) * kTile + lane];
      points_.push_back(point);
    }
    split(points_.begin(), points_.end());
  }

  // Writes the pixels' indices; those behind the last are -1.
  void write(int32_t* pixel, int64_t count) const {
    std::fill_n(pixel, count, -1);
    for (const Point& point : points_) *pixel++ = point.pixel;
  }

 private:
  struct Point {
    A y[kAxes];
    int32_t pixel;
  };
  using Iterator = typename std::vector<Point>::iterator;

  void split(Iterator first, Iterator last) {
    if (last - first <= kTile) return;
    Point low = *first, high = *first;
    for (Iterator point = first; point != last; ++point) {
      for (int k = 0; k < kAxes; ++k) {
        low.y[k] = std::min(low.y[k], point->y[k]);
        high.y[k] = std::max(high.y[k], point->y[k]);
      }
    }
    int axis = 0;
    for (int k = 1; k < kAxes; ++k)
      if (high.y[k] - low.y[k] > high.y[axis] - low.y[axis]) axis = k;
    const Iterator middle = first + ((last - first) / kTile + 1) / 2 * kTile;
    std::nth_element(first, middle, last, [axis](const Point& a, const Point& b) {
      return a.y[axis] != b.y[axis] ? a.y[axis] < b.y[axis] : a.pixel < b.pixel;
    });
    split(first, middle);
    split(middle, last);
  }

  std::vector<Point> points_;
};

// The memory of an image's LamAlikeTiles, and what the image itself needs for their sums.
template <typename T>
class AlikeTiles {
 public:
  using A = accumulate_t<T>;

  AlikeTiles(const LamCall<T>& call, PackedImage<T>& packed) : packed_(packed) {
    LamImage<A>& image = packed.image();
    const int64_t pixels = call.grid.height * call.grid.width, rank = image.rank;
    const bool backward = call.upstream.has_value();
    alike_.tiles = (pixels + kTile - 1) / kTile;
    alike_.rank = rank;
    alike_.levels = 0;
    alike_.bound_margin = packed.bound_margin();
    if (rank > kAxes) alike_.level_rank[alike_.levels++] = kAxes;
    if (image.projected && rank > kMoreCoordinates)
      alike_.level_rank[alike_.levels++] = kMoreCoordinates;
    alike_.level_rank[alike_.levels++] = rank;
    static_assert(sizeof(A) >= sizeof(int32_t));
    A* pixel = nullptr;
    const int64_t all = alike_.tiles * kTile, in_image = call.tiles() * kTile;
    held_ = allocate<T>(call, {{&pixel, all},
                               {&alike_.x, all * rank},
                               {&alike_.bound, all * kBoundRows},
                               {&alike_.rest, all * kLevels},
                               {&alike_.max_rest, alike_.tiles * kLevels},
                               {&alike_.key_bias, all},
                               {&alike_.query_bias, all},
                               {&alike_.log_tolerance, all},
                               {&alike_.key_log_bound, all},
                               {&alike_.query_log_bound, all},
                               {&alike_.key_max_bound, alike_.tiles},
                               {&alike_.query_max_bound, alike_.tiles},
                               {&alike_.exchanged_key_max_bound, alike_.tiles},
                               {&alike_.exchanged_query_max_bound, alike_.tiles},
                               {&alike_.low, kAxes * alike_.tiles},
                               {&alike_.high, kAxes * alike_.tiles},
                               {&image.log_tolerance, in_image}});
    alike_.pixel = reinterpret_cast<int32_t*>(pixel);
    if (backward) {
      results_ = allocate<T>(call, {{&image.softmax_gradient, in_image * rank},
                                    {&image.softmax_total, in_image},
                                    {&alike_.sign, all}});
      alike_.bound_margin += std::log(A(2));  // a pair counts twice, with key and query exchanged
      alike_.delta_unit = packed.delta_unit();
      alike_.log_delta_unit = call.params.log_eps - std::log(alike_.delta_unit);
      // The gradient is measured in the largest |f|, which is at least half of the largest |x|.
      const A half_sq_norm = *std::max_element(image.half_sq_norm, image.half_sq_norm + in_image);
      alike_.rest_cost = 2 / std::sqrt(std::max(2 * half_sq_norm, std::numeric_limits<A>::min()));
    } else {
      results_ =
          allocate<T>(call, {{&image.softmax_base, in_image}, {&image.softmax_sum, in_image}});
      image.eps = std::exp(call.params.log_eps);
    }
  }

  // Whether the sums of an image are made over alike tiles; otherwise they are made with Z or P. In
  // backward only coordinates in a basis can be left out.
  static bool fits(const LamCall<T>& call, const PackedImage<T>& packed) {
    if (!call.sums_t_apart || !packed.image().prune) return false;
    return !call.upstream || (packed.image().projected && packed.delta_unit() > 0);
  }

  const LamAlikeTiles<A>& alike() const { return alike_; }
  const LamImage<A>& image() const { return packed_.image(); }

  void order_pixels() { AlikeOrder<A>(image()).write(alike_.pixel, alike_.tiles * kTile); }

  // Writes the log of a sum's tolerated error, for each pixel b of a tile of the image. The sum is
  // T_b / w_bb in forward, and the sum of R's terms / delta_unit in backward.
  void set_tolerances(const LamCall<T>& call, int64_t tile) {
    const LamImage<A>& image = packed_.image();
    A* log_tolerance = image.log_tolerance + tile * kTile;
    if (call.upstream)
      std::fill_n(log_tolerance, kTile, std::log(A(2)));
    else
      call.kernels.sum_neighborhood(image, call.params, tile, log_tolerance);
    const A log_eps = call.upstream ? A(0) : call.params.log_eps;
    for (int lane = 0; lane < kTile; ++lane)
      log_tolerance[lane] += packed_.log_rounding(tile, lane) - log_eps;
  }

 private:
  PackedImage<T>& packed_;
  LamAlikeTiles<A> alike_ = {};
  std::optional<Tensor> held_, results_;
};

// Sums T, or R in backward, of all images in which pairs are left out.
template <typename T, typename Workers>
std::vector<AlikeTiles<T>> sum_over_alike_tiles(const LamCall<T>& call, const Workers& workers,
                                                std::vector<PackedImage<T>>& images) {
  std::vector<AlikeTiles<T>> sums;
  sums.reserve(images.size());
  for (PackedImage<T>& image : images)
    if (AlikeTiles<T>::fits(call, image)) sums.emplace_back(call, image);
  workers.for_each_tile(
      sums, [&](auto& image, int64_t tile, const auto&) { image.set_tolerances(call, tile); });
  torch::stable::parallel_for(0, sums.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) sums[i].order_pixels();
  });
  workers.for_each_tile(sums, [&](const auto& image, int64_t tile, const auto&) {
    if (tile < image.alike().tiles)
      call.kernels.gather_alike_tile(image.image(), call.params, image.alike(), tile);
  });
  const auto sum =
      call.upstream ? call.kernels.differentiate_alike_tile : call.kernels.sum_alike_tile;
  workers.for_each_tile(sums, [&](const auto& image, int64_t tile, const auto& scratch) {
    if (tile < image.alike().tiles) sum(image.image(), call.params, image.alike(), tile, scratch);
  });
  return sums;
}

}  // namespace blpseg
