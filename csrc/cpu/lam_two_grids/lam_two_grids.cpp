// blpseg::lam_two_grids and its backward on the CPU. Called by blpseg_ops/ops/lam_two_grids.py; the
// reference is blpseg_ops/reference/lam.py.
//
// The order of work, for each image: keys are packed (two_grids_call.h); then any free thread takes
// the next tile of queries (kernels/two_grids_forward.h) or, in backward, the next chunk of tiles
// (kernels/two_grids_backward.h, two_grids_chunks.h). kernels/two_grids.h explains the data.

#include <tuple>

#include "cpu/huge_pages.h"
#include "two_grids_call.h"
#include "two_grids_chunks.h"

namespace blpseg {
namespace {

void check_maps(const char* op, const Tensor& queries, const Tensor& features, const Tensor& values,
                const Tensor& inv_two_sigma_sq, std::optional<double> radius) {
  for (const Tensor* maps : {&queries, &features, &values}) {
    STD_TORCH_CHECK(maps->dim() == 4, op, ": expected queries [N, D, H, W], features [N, D, h, w] ",
                    "and values [N, C, h, w], got ", maps->dim(), " dimensions");
    for (const int axis : {1, 2, 3})
      STD_TORCH_CHECK(maps->size(axis) > 0, op, ": expected D, C, h, w, H, W >= 1");
    STD_TORCH_CHECK(maps->size(0) == features.size(0), op, ": batch sizes differ");
    STD_TORCH_CHECK(maps->scalar_type() == features.scalar_type(), op, ": dtypes differ");
  }
  STD_TORCH_CHECK(queries.size(1) == features.size(1), op,
                  ": queries and features differ in channels: ", queries.size(1), " and ",
                  features.size(1));
  for (const int axis : {2, 3})
    STD_TORCH_CHECK(features.size(axis) == values.size(axis), op,
                    ": features and values differ along axis ", axis, ": ", features.size(axis),
                    " and ", values.size(axis));
  const ScalarType wide =
      features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(inv_two_sigma_sq.dim() == 1 && inv_two_sigma_sq.size(0) == features.size(0) &&
                      inv_two_sigma_sq.scalar_type() == wide,
                  op, ": expected inv_two_sigma_sq [N], float64 for float64 and else float32");
  STD_TORCH_CHECK(!radius || *radius >= 0.5, op, ": expected radius >= 0.5, got ", *radius);
}

// The window's reach in units of 1 / (2 queries).
int64_t reach(std::optional<double> radius, int64_t keys, int64_t queries) {
  const double farthest = static_cast<double>(keys);  // no key is farther
  return static_cast<int64_t>(std::floor(2.0 * queries * std::min(*radius, farthest)));
}

template <typename T>
TwoGridsCall<T> make_call(const Tensor& queries, const Tensor& features, const Tensor& values,
                          const Tensor& inv_two_sigma_sq, double eps, double scale,
                          std::optional<double> radius, bool backward) {
  using A = accumulate_t<T>;
  const int64_t h = features.size(2), w = features.size(3);
  const int64_t height = queries.size(2), width = queries.size(3);
  TwoGridsParams<A> params;
  params.dims = features.size(1);
  params.channels = values.size(1);
  params.scale = static_cast<A>(scale);
  params.log_eps = static_cast<A>(std::log(eps));
  params.has_window = radius.has_value() && *radius < std::max(h, w);
  params.reach_y = params.has_window ? reach(radius, h, height) : 0;
  params.reach_x = params.has_window ? reach(radius, w, width) : 0;
  params.queries = grid_of_tiles(height, width, kQueryRows, kQueryColumns);
  const int64_t tiles = params.queries.rows * params.queries.columns;
  return TwoGridsCall<T>{features,
                         View4<T>(queries),
                         View4<T>(features),
                         View4<T>(values),
                         View<A, 1>(inv_two_sigma_sq),
                         params,
                         grid_of_tiles(h, w, 8, 8),
                         two_grids_kernels<A>(cpu_capability()),
                         backward,
                         std::min<int64_t>(torch::stable::get_num_threads(), tiles)};
}

template <typename T>
std::vector<QueryWorker<T>> make_workers(const TwoGridsCall<T>& call) {
  std::vector<QueryWorker<T>> workers;
  for (int64_t i = 0; i < call.threads; ++i) workers.emplace_back(call);
  return workers;
}

// Returns whether the axes are dense in memory in this order, the last one first.
bool is_dense(const Tensor& tensor, std::initializer_list<int> axes) {
  int64_t expected = 1;
  for (const int axis : axes) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return false;
    expected *= tensor.size(axis);
  }
  return true;
}

// Returns an empty [N, C, H, W], in channels_last if the values are, else contiguous.
Tensor make_output(const Tensor& values, int64_t height, int64_t width) {
  const int64_t n = values.size(0), channels = values.size(1);
  const bool contiguous = n == 0 || is_dense(values, {3, 2, 1, 0});
  if (contiguous || !is_dense(values, {1, 3, 2, 0}))
    return in_huge_pages(torch::stable::new_empty(values, {n, channels, height, width}));
  const Tensor pixels =
      in_huge_pages(torch::stable::new_empty(values, {n, height, width, channels}));
  return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);
}

std::tuple<Tensor, Tensor> lam_two_grids(const Tensor& queries, const Tensor& features,
                                         const Tensor& values, const Tensor& inv_two_sigma_sq,
                                         double eps, double scale, std::optional<double> radius) {
  check_maps("lam_two_grids", queries, features, values, inv_two_sigma_sq, radius);
  const int64_t n = queries.size(0), height = queries.size(2), width = queries.size(3);
  Tensor output = make_output(values, height, width);
  std::optional<Tensor> log_denominator;
  dispatch_floating("lam_two_grids", "features", features.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const auto call = make_call<T>(queries, features, values, inv_two_sigma_sq, eps, scale, radius,
                                   /*backward=*/false);
    log_denominator = torch::stable::new_empty(
        features, {n, height, width},
        std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    const OutputView4<T> out(output);
    const OutputView<A, 3> log_out(*log_denominator);
    const LamGrid& grid = call.params.queries;
    const auto workers = make_workers(call);
    PackedKeys<T> keys(call);
    for (int64_t i = 0; i < n; ++i) {
      keys.pack(i, workers);
      keys.maps().skip_prob = std::numeric_limits<A>::epsilon() / 2 / call.key_count();
      call.for_each(call.query_tiles(), [&](int64_t worker, int64_t tile) {
        const QueryScratch<A>& scratch = workers[worker].scratch;
        load_queries(call.queries, i, grid, tile, scratch.queries);
        call.kernels.forward_tile(keys.maps(), call.params, tile, scratch);
        store_queries(scratch.output, call.params.channels, i, grid, tile, out);
        store_tile(scratch.log_denominator, 1, i, grid, tile, log_out);
      });
    }
  });
  return {output, *log_denominator};
}

void check_like(const char* name, const Tensor& tensor, const std::vector<int64_t>& size,
                ScalarType dtype) {
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(size.size());
  for (size_t axis = 0; fits && axis < size.size(); ++axis) fits = tensor.size(axis) == size[axis];
  STD_TORCH_CHECK(fits, "lam_two_grids_backward: ", name,
                  " has another shape or dtype than forward's");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lam_two_grids_backward(
    const Tensor& grad_output, const Tensor& queries, const Tensor& features, const Tensor& values,
    const Tensor& output, const Tensor& log_denominator, const Tensor& inv_two_sigma_sq, double eps,
    double scale, std::optional<double> radius) {
  check_maps("lam_two_grids_backward", queries, features, values, inv_two_sigma_sq, radius);
  const int64_t n = queries.size(0), c = values.size(1);
  const int64_t height = queries.size(2), width = queries.size(3);
  const ScalarType dtype = values.scalar_type();
  check_like("grad_output", grad_output, {n, c, height, width}, dtype);
  check_like("output", output, {n, c, height, width}, dtype);
  check_like("log_denominator", log_denominator, {n, height, width},
             dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  Tensor grad_queries = in_huge_pages(torch::stable::empty_like(queries));
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(features));
  Tensor grad_values = in_huge_pages(torch::stable::empty_like(values));
  Tensor grad_inv = torch::stable::new_empty(inv_two_sigma_sq, {n});
  dispatch_floating("lam_two_grids_backward", "features", dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const auto call = make_call<T>(queries, features, values, inv_two_sigma_sq, eps, scale, radius,
                                   /*backward=*/true);
    const auto workers = make_workers(call);
    PackedKeys<T> keys(call);
    QueryChunks<T> chunks(call, grad_output, output, log_denominator, workers);
    const OutputView4<T> to_queries(grad_queries), to_features(grad_features),
        to_values(grad_values);
    const OutputView<A, 1> to_inv(grad_inv);
    for (int64_t i = 0; i < n; ++i) {
      keys.pack(i, workers);
      *to_inv.at(i) = static_cast<A>(-chunks.differentiate(i, keys.maps(), to_queries));
      chunks.store_key_gradients(i, to_features, to_values);
    }
  });
  return {grad_queries, grad_features, grad_values, grad_inv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  library.impl("lam_two_grids", TORCH_BOX(&lam_two_grids));
  library.impl("lam_two_grids_backward", TORCH_BOX(&lam_two_grids_backward));
}

}  // namespace blpseg
