// blpseg::blp_loss, annotation_loss, pseudo_labels and blp_objective on CUDA, with their backwards.
// blpseg_ops/ops/<op>.py calls them; blpseg_ops/reference/<op>.py defines them.
//
// Forward: a kernel over all pixels (loss_pixels.cuh) leaves the sums of each pixel block and what
// backward needs per pixel; two small ones add the sums up (finish_losses.cuh). Backward: one
// kernel per loss gathers the gradients (gather_gradients.cuh). Nothing waits for the device.

#include <algorithm>
#include <cmath>
#include <optional>

#include "finish_losses.cuh"
#include "gather_gradients.cuh"
#include "loss_ops.h"
#include "loss_pixels.cuh"
#include "stream.h"

namespace blpseg {
namespace {

using device::CudaLossCall;
using device::GatherCall;
using device::LabelMap;
using device::LossResults;

template <typename A>
A* data_ptr(const Tensor& tensor) {
  return static_cast<A*>(tensor.mutable_data_ptr());
}

template <typename A>
const A* const_data_ptr(const Tensor& tensor) {
  return static_cast<const A*>(tensor.const_data_ptr());
}

Tensor allocate(const LossInputs& inputs, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(inputs.any_logits(), size, wide_dtype(inputs.any_logits()));
}

// The planes that forward saves per loss, and the sizes of what it returns.
std::vector<int64_t> pixels_size(const LossInputs& inputs, int64_t planes) {
  const Tensor& target = *inputs.target;
  return {planes, target.size(0), target.size(1), target.size(2)};
}

constexpr int64_t kBlpPlanes = 2, kAnnotationPlanes = 1;  // of SavedPixels

template <typename A>
device::SavedPixels<A> saved_pixels(A* pixels, const Tensor& target, int64_t planes) {
  return {pixels, planes > 1 ? pixels + target.numel() : nullptr};
}

unsigned grid_size(const LossInputs& inputs, int64_t blocks) {
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, inputs.op, ": the batch needs ", blocks,
                  " CUDA blocks, more than a grid can have; use a smaller batch");
  return static_cast<unsigned>(blocks);
}

// Indices along one axis are 32 bits wide in the kernels.
void check_kernel_sizes(const char* op, const Tensor& logits, const Tensor& labels) {
  for (const Tensor* tensor : {&logits, &labels})
    for (int64_t axis = 0; axis < tensor->dim(); ++axis)
      STD_TORCH_CHECK(tensor->size(axis) < int64_t{1} << 30, op,
                      ": the CUDA kernels take sizes below 2^30, got ", tensor->size(axis));
}

template <typename T>
CudaLossCall<T> make_call(const LossInputs& inputs) {
  const Tensor &logits = inputs.any_logits(), &target = *inputs.target;
  CudaLossCall<T> call = {View4<T>(inputs.seg ? *inputs.seg : logits),
                          View4<T>(inputs.annotation ? *inputs.annotation : logits)};
  call.wants_blp = inputs.wants_blp;
  call.wants_annotation = inputs.wants_annotation;
  call.target = LabelMap(target);
  check_kernel_sizes(inputs.op, logits, target);
  call.classes = static_cast<int>(inputs.classes());
  call.in_height = static_cast<int>(logits.size(2));
  call.in_width = static_cast<int>(logits.size(3));
  call.height = static_cast<int>(target.size(1));
  call.width = static_cast<int>(target.size(2));
  // Pixel blocks start where the pixels between the first two cell rows do, modulo their height:
  // with a factor of 4 (or 8, ...) all rows of a block then lie between the same two cell rows.
  const auto between = static_cast<int>(first_pixel(1, call.in_height, call.height));
  call.first_row = -((device::kRows - between % device::kRows) % device::kRows);
  call.ignore_index = inputs.ignore_index;
  call.gamma = static_cast<accumulate_t<T>>(inputs.gamma);
  call.log_unlabeled_weight = static_cast<accumulate_t<T>>(std::log(inputs.unlabeled_weight));
  return call;
}

template <typename T>
int64_t pixel_blocks_per_image(const CudaLossCall<T>& call) {
  return device::divide_up(call.height - call.first_row, device::kRows) *
         device::divide_up(call.width, device::kThreads);
}

Losses allocate_losses(const LossInputs& inputs) {
  Losses losses;
  if (inputs.wants_blp)
    losses.blp = Loss{allocate(inputs, {}), allocate(inputs, {inputs.images()}),
                      allocate(inputs, pixels_size(inputs, kBlpPlanes))};
  if (inputs.wants_annotation)
    losses.annotation = Loss{allocate(inputs, {}), allocate(inputs, {}),
                             allocate(inputs, pixels_size(inputs, kAnnotationPlanes))};
  return losses;
}

template <typename T>
void launch_forward(const LossInputs& inputs, const Losses& losses, const Tensor* present,
                    const PseudoLabels* pseudo, const LaunchOn& on) {
  using A = accumulate_t<T>;
  CudaLossCall<T> call = make_call<T>(inputs);
  LossResults<A> results;
  if (losses.blp) {
    results.blp = data_ptr<A>(losses.blp->value);
    call.blp_pixels = saved_pixels(data_ptr<A>(losses.blp->pixels), *inputs.target, kBlpPlanes);
  }
  if (losses.annotation) {
    results.annotation = data_ptr<A>(losses.annotation->value);
    results.annotation_weight_sum = data_ptr<A>(losses.annotation->weight_sum);
    call.annotation_pixels =
        saved_pixels(data_ptr<A>(losses.annotation->pixels), *inputs.target, kAnnotationPlanes);
  }
  if (pseudo) {
    call.present = const_data_ptr<bool>(*present);
    call.threshold = static_cast<A>(pseudo->threshold);
    if (pseudo->labels.scalar_type() == ScalarType::Byte)
      call.labels8 = data_ptr<uint8_t>(pseudo->labels);
    else
      call.labels32 = data_ptr<int32_t>(pseudo->labels);
  }
  const int64_t images = inputs.images(), blocks = pixel_blocks_per_image(call);
  const Tensor block_sums = allocate(inputs, {images, blocks, device::kLossSums});
  const Tensor image_sums = torch::stable::new_empty(
      inputs.any_logits(), {images, device::kLossSums}, ScalarType::Double);
  A* sums_of_block = data_ptr<A>(block_sums);
  double* sums_of_image = data_ptr<double>(image_sums);
  if (images > 0) {
    const unsigned grid = grid_size(inputs, images * blocks);
    if (pseudo)
      device::loss_pixels<T, true><<<grid, device::kThreads, 0, on.stream>>>(call, sums_of_block);
    else
      device::loss_pixels<T, false><<<grid, device::kThreads, 0, on.stream>>>(call, sums_of_block);
    on.check();
  }
  if (!losses.blp && !losses.annotation) return;
  A* blp_weight_sum = losses.blp ? data_ptr<A>(losses.blp->weight_sum) : nullptr;
  if (images > 0) {
    device::sum_images<A><<<grid_size(inputs, images), device::kThreads, 0, on.stream>>>(
        sums_of_block, blocks, sums_of_image, blp_weight_sum);
    on.check();
  }
  device::finish_losses<A><<<1, device::kThreads, 0, on.stream>>>(sums_of_image, images, kGuard,
                                                                  inputs.unlabeled_weight, results);
  on.check();
}

Losses forward(const LossInputs& inputs, PseudoLabels* pseudo) {
  const LaunchOn on(inputs.any_logits(), inputs.op);
  const Losses losses = allocate_losses(inputs);
  std::optional<Tensor> present;
  if (pseudo) present = torch::stable::contiguous(pseudo->present);
  dispatch_floating(inputs.op, inputs.name_of_any_logits(), inputs.any_logits().scalar_type(),
                    [&](auto element) {
                      launch_forward<decltype(element)>(inputs, losses,
                                                        present ? &*present : nullptr, pseudo, on);
                    });
  return losses;
}

// How gather_gradients shares out the cells.
struct GatherGrid {
  int cell_rows = device::kMaxCellRows, cell_columns;
  int64_t threads, blocks;

  // groups: of classes.
  GatherGrid(int64_t images, int64_t groups, const Tensor& logits, const Tensor& labels) {
    constexpr int64_t kEnoughWarps = 2048;  // 4 per scheduler of a large GPU
    constexpr int64_t kMost = device::kGatherThreads;
    const int64_t in_width = logits.size(3), width = labels.size(2);
    // A block has a thread per column of the gaps around its cells, and one cell if a gap is wider.
    const int64_t cells = std::max<int64_t>(1, kMost / device::divide_up(width, in_width) - 1);
    const int64_t across =
        std::max(width, in_width) <= kMost ? 1 : device::divide_up(in_width, cells);
    cell_columns = static_cast<int>(device::divide_up(in_width, across));
    int64_t columns = 1;
    for (int64_t left = 0; left < in_width; left += cell_columns)
      columns = std::max(columns, first_pixel(left + cell_columns, in_width, width) -
                                      first_pixel(left - 1, in_width, width));
    threads = std::min(device::divide_up(columns, device::kWarp) * device::kWarp, kMost);
    const auto count = [&] {
      return images * groups * device::divide_up(in_width, cell_columns) *
             device::divide_up(logits.size(2), cell_rows);
    };
    while (cell_rows > 1 && count() * threads < kEnoughWarps * device::kWarp) cell_rows /= 2;
    blocks = count();
  }
};

// Gathers the gradients of one loss. labels: [N, H, W]; pixels: what forward saved.
template <typename T>
void launch_gather(const LossInputs& inputs, const Tensor& logits, const Tensor& labels,
                   const LossGrad& loss, int64_t planes, const LaunchOn& on, const Tensor& grad) {
  using A = accumulate_t<T>;
  const std::vector<int64_t> size = pixels_size(inputs, planes);
  check_wide(inputs.op, "what forward saved per pixel", *loss.pixels, logits, size);
  const Tensor pixels = torch::stable::contiguous(*loss.pixels);
  const GatherGrid grid(inputs.images(), device::divide_up(logits.size(1), device::kGroup<A>),
                        logits, labels);
  check_kernel_sizes(inputs.op, logits, labels);
  GatherCall<T> call = {View4<T>(logits), OutputView4<T>(grad)};
  call.labels = LabelMap(labels);
  call.pixels = saved_pixels(const_data_ptr<A>(pixels), labels, planes);
  call.scales.grad_loss = const_data_ptr<A>(*loss.grad_loss);
  call.scales.weight_sum = const_data_ptr<A>(*loss.weight_sum);
  if (planes == kBlpPlanes) {
    call.scales.weight_sum_stride = loss.weight_sum->stride(0);
    call.scales.images = inputs.images();
    call.scales.guard = static_cast<A>(kGuard);
  }
  call.unlabeled_weight = static_cast<A>(inputs.unlabeled_weight);
  call.unlabeled = static_cast<int>(inputs.classes());
  call.classes = static_cast<int>(logits.size(1));
  call.in_height = static_cast<int>(logits.size(2));
  call.in_width = static_cast<int>(logits.size(3));
  call.height = static_cast<int>(labels.size(1));
  call.width = static_cast<int>(labels.size(2));
  call.cell_rows = grid.cell_rows;
  call.cell_columns = grid.cell_columns;
  const auto threads = static_cast<unsigned>(grid.threads);
  const unsigned blocks = grid_size(inputs, grid.blocks);
  if (labels.scalar_type() == ScalarType::Byte)
    device::gather_gradients<T, uint8_t><<<blocks, threads, 0, on.stream>>>(call);
  else
    device::gather_gradients<T, void><<<blocks, threads, 0, on.stream>>>(call);
  on.check();
}

Gradients backward(const LossInputs& inputs, const Tensor& blp_target, const LossGrad& blp,
                   const LossGrad& annotation) {
  Gradients grads;
  if (inputs.wants_blp) grads.seg = torch::stable::empty_like(*inputs.seg);
  if (inputs.wants_annotation) grads.annotation = torch::stable::empty_like(*inputs.annotation);
  if (inputs.images() == 0) return grads;
  const LaunchOn on(inputs.any_logits(), inputs.op);
  dispatch_floating(
      inputs.op, inputs.name_of_any_logits(), inputs.any_logits().scalar_type(), [&](auto element) {
        using T = decltype(element);
        if (grads.seg)
          launch_gather<T>(inputs, *inputs.seg, blp_target, blp, kBlpPlanes, on, *grads.seg);
        if (grads.annotation)
          launch_gather<T>(inputs, *inputs.annotation, *inputs.target, annotation,
                           kAnnotationPlanes, on, *grads.annotation);
      });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CUDA, library) {
  LossOperators<forward, backward>::attach_to(library);
}

}  // namespace blpseg
