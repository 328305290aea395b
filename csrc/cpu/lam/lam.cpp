// blpseg::lam and blpseg::lam_backward on the CPU. Called by blpseg_ops/ops/lam.py; the reference
// is blpseg_ops/reference/lam.py.
//
// The order of work: images are packed into tiles (lam_packed_image.h); with eps > 0, T or R of a
// large image is summed (lam_softmax_sums.h); then any free thread computes the next tile's results
// (kernels/lam_forward.h, kernels/lam_backward.h). kernels/lam_image.h explains the data.

#include <atomic>
#include <tuple>

#include "cpu/capability.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "lam_kernels.h"
#include "lam_packed_image.h"
#include "lam_settings.h"
#include "lam_softmax_sums.h"
#include "tensor.h"

namespace blpseg {
namespace {

std::atomic<int64_t> min_tiles{512};

template <typename T>
LamCall<T> make_call(const Tensor& features, const Tensor& values, double sigma, double eps,
                     double scale, std::optional<int64_t> radius) {
  using A = accumulate_t<T>;
  STD_TORCH_CHECK(radius.value_or(0) >= 0, "lam: expected radius >= 0, got ", *radius);
  // Finite for any sigma > 0, since distance 0 times it must be 0.
  const double inv_sigma_sq = std::min(1 / (sigma * sigma), double{std::numeric_limits<A>::max()});
  const int64_t side = std::max(features.size(2), features.size(3));
  LamParams<A> params;
  params.dims = features.size(1);
  params.channels = values.size(1);
  params.scale = static_cast<A>(scale);
  params.minus_inv_two_sigma_sq = static_cast<A>(-inv_sigma_sq / 2);
  params.log_eps = static_cast<A>(std::log(eps));
  params.radius = std::min(radius.value_or(side), side);
  LamCall<T> call(features, values, params, lam_kernels<A>(cpu_capability()));
  const bool has_window = params.radius < side - 1;
  call.sums_t_apart = eps > 0 && !has_window && call.tiles() >= min_tiles_to_sum_apart();
  // T is summed from the leading coordinates. Forward and backward use the same basis, so that a
  // score has the same bits in both.
  call.params.principal_axes = call.sums_t_apart ? kMoreCoordinates : kAxes;
  return call;
}

// For images whose sums over T or R were made before.
template <typename A>
LamParams<A> without_eps(LamParams<A> params) {
  params.log_eps = -std::numeric_limits<A>::infinity();
  return params;
}

// Threads, each with memory to work on a tile.
template <typename T>
class Workers {
 public:
  using A = accumulate_t<T>;

  explicit Workers(const LamCall<T>& call)
      : tiles_(call.tiles()),
        count_(std::min<int64_t>(torch::stable::get_num_threads(), tiles_ * call.features.size[0])),
        dims_(call.params.dims),
        coordinates_(PackedImage<T>::most_coordinates(call)),
        channels_(call.params.channels),
        numbers_(
            call.allocate({count_, (dims_ + coordinates_ + channels_ + 1) * kTile + 2 * tiles_})) {}

  // Calls visit(image, tile, scratch) for each tile of the images.
  template <typename Image, typename Visit>
  void for_each_tile(std::vector<Image>& images, const Visit& visit) const {
    const int64_t total = static_cast<int64_t>(images.size()) * tiles_;
    share_work(count_, total, [&](int64_t worker, const auto& next) {
      const LamScratch<A> scratch = scratch_of(worker);
      for (int64_t i = next(); i >= 0; i = next()) visit(images[i / tiles_], i % tiles_, scratch);
    });
  }

 private:
  LamScratch<A> scratch_of(int64_t worker) const {
    LamScratch<A> scratch;
    scratch.features = data_ptr<A>(numbers_) + worker * numbers_.size(1);
    scratch.coordinates = scratch.features + dims_ * kTile;
    scratch.values = scratch.coordinates + coordinates_ * kTile;
    scratch.log_denominator = scratch.values + channels_ * kTile;
    scratch.distance_bound = scratch.log_denominator + kTile;
    static_assert(sizeof(A) >= sizeof(int32_t));
    scratch.candidates = reinterpret_cast<int32_t*>(scratch.distance_bound + tiles_);
    return scratch;
  }

  const int64_t tiles_, count_, dims_, coordinates_, channels_;
  const Tensor numbers_;
};

template <typename T>
std::vector<PackedImage<T>> pack_images(const LamCall<T>& call, const Workers<T>& workers) {
  using A = accumulate_t<T>;
  std::vector<PackedImage<T>> images;
  for (int64_t n = 0; n < call.features.size[0]; ++n) images.emplace_back(call, n);
  std::vector<PackedImage<T>*> open;
  for (PackedImage<T>& image : images) open.push_back(&image);
  workers.for_each_tile(open, [](PackedImage<T>* image, int64_t tile, const LamScratch<A>&) {
    image->read_values(tile);
  });
  while (!open.empty()) {
    torch::stable::parallel_for(0, open.size(), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) open[i]->choose_coordinates();
    });
    for (PackedImage<T>* image : open) image->allocate_coordinates();
    workers.for_each_tile(open, [](PackedImage<T>* image, int64_t tile,
                                   const LamScratch<A>& scratch) { image->pack(tile, scratch); });
    const auto settled = [](PackedImage<T>* image) { return image->accept_or_resample(); };
    open.erase(std::remove_if(open.begin(), open.end(), settled), open.end());
  }
  return images;
}

void check_maps(const char* op, const Tensor& features, const Tensor& values) {
  STD_TORCH_CHECK(features.dim() == 4 && values.dim() == 4, op,
                  ": expected features [N, D, h, w] and values [N, C, h, w], got ", features.dim(),
                  " and ", values.dim(), " dimensions");
  for (const int axis : {0, 2, 3})
    STD_TORCH_CHECK(features.size(axis) == values.size(axis), op,
                    ": features and values differ along axis ", axis, ": ", features.size(axis),
                    " and ", values.size(axis));
  for (const int axis : {1, 2, 3})
    STD_TORCH_CHECK(features.size(axis) > 0 && values.size(axis) > 0, op,
                    ": expected D, C, h, w >= 1");
  STD_TORCH_CHECK(features.scalar_type() == values.scalar_type(), op,
                  ": features and values differ in dtype");
}

std::tuple<Tensor, Tensor> lam(const Tensor& features, const Tensor& values, double sigma,
                               double eps, double scale, std::optional<int64_t> radius) {
  check_maps("lam", features, values);
  const std::vector<int64_t> plane = {values.size(0), values.size(2), values.size(3)};
  Tensor output = in_huge_pages(torch::stable::empty_like(values));
  std::optional<Tensor> log_denominator;
  dispatch_floating("lam", "features", features.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const LamCall<T> call = make_call<T>(features, values, sigma, eps, scale, radius);
    const Workers<T> workers(call);
    std::vector<PackedImage<T>> images = pack_images(call, workers);
    const std::vector<AlikeTiles<T>> sums = sum_over_alike_tiles(call, workers, images);
    const LamParams<A> params_without_eps = without_eps(call.params);
    log_denominator = call.allocate(plane);
    const OutputView4<T> out(output);
    const OutputView<A, 3> log_out(*log_denominator);
    workers.for_each_tile(images, [&](const auto& image, int64_t tile, const auto& scratch) {
      const int64_t n = image.index();
      const bool has_sums = image.image().softmax_sum != nullptr;
      call.kernels.forward_tile(image.image(), has_sums ? params_without_eps : call.params, tile,
                                scratch);
      store_tile(scratch.values, call.params.channels, n, call.grid, tile, out);
      store_tile(scratch.log_denominator, 1, n, call.grid, tile, log_out);
    });
  });
  return {output, *log_denominator};
}

void check_like(const char* name, const Tensor& tensor, const std::vector<int64_t>& size,
                ScalarType dtype) {
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(size.size());
  for (size_t axis = 0; fits && axis < size.size(); ++axis) fits = tensor.size(axis) == size[axis];
  STD_TORCH_CHECK(fits, "lam_backward: ", name, " has another shape or dtype than forward's");
}

std::tuple<Tensor, Tensor> lam_backward(const Tensor& grad_output, const Tensor& features,
                                        const Tensor& values, const Tensor& output,
                                        const Tensor& log_denominator, double sigma, double eps,
                                        double scale, std::optional<int64_t> radius) {
  check_maps("lam_backward", features, values);
  const int64_t n = values.size(0), c = values.size(1), h = values.size(2), w = values.size(3);
  const ScalarType dtype = values.scalar_type();
  check_like("grad_output", grad_output, {n, c, h, w}, dtype);
  check_like("output", output, {n, c, h, w}, dtype);
  check_like("log_denominator", log_denominator, {n, h, w},
             dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(features));
  Tensor grad_values = in_huge_pages(torch::stable::empty_like(values));
  dispatch_floating("lam_backward", "features", features.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    LamCall<T> call = make_call<T>(features, values, sigma, eps, scale, radius);
    call.upstream.emplace(
        LamUpstream<T>{View4<T>(grad_output), View4<T>(output), View<A, 3>(log_denominator)});
    const Workers<T> workers(call);
    std::vector<PackedImage<T>> images = pack_images(call, workers);
    const std::vector<AlikeTiles<T>> sums = sum_over_alike_tiles(call, workers, images);
    const LamParams<A> params_without_eps = without_eps(call.params);
    const OutputView4<T> to_features(grad_features), to_values(grad_values);
    workers.for_each_tile(images, [&](const auto& image, int64_t tile, const auto& scratch) {
      const int64_t i = image.index();
      const bool has_sums = image.image().softmax_gradient != nullptr;
      call.kernels.backward_tile(image.image(), has_sums ? params_without_eps : call.params, tile,
                                 scratch);
      store_tile(scratch.features, call.params.dims, i, call.grid, tile, to_features);
      store_tile(scratch.values, call.params.channels, i, call.grid, tile, to_values);
    });
  });
  return {grad_features, grad_values};
}

}  // namespace

int64_t min_tiles_to_sum_apart() { return min_tiles; }
void set_min_tiles_to_sum_apart(int64_t tiles) { min_tiles = tiles; }

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  library.impl("lam", TORCH_BOX(&lam));
  library.impl("lam_backward", TORCH_BOX(&lam_backward));
}

}  // namespace blpseg
