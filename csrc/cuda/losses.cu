// blpseg::blp_loss, annotation_loss, pseudo_labels and blp_objective on CUDA, with their backwards.
// Called by blpseg_ops/ops/<op>.py; the references are blpseg_ops/reference/<op>.py.
//
// Forward: a kernel over all pixels (loss_pixels.cuh) leaves the sums of each tile, and one block
// adds them up. Backward: the same kernel leaves what each pixel's gradients are made of, and a
// second one gathers them (loss_gradients.cuh). Nothing waits for the device.

#include <algorithm>
#include <optional>

#include "loss_gradients.cuh"
#include "loss_ops.h"
#include "loss_pixels.cuh"
#include "stream.h"

namespace blpseg {
namespace device {

// Adds up the tiles' sums of every image, and makes the losses of them. One block.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_losses(const A* sums_of_tile, int64_t tiles, int64_t images, A unlabeled_weight,
                  A* blp_loss, A* blp_weight_sum, A* annotation_loss, A* annotation_weight_sum) {
  __shared__ double of_warp[kWarps][kSums];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double all[kSums] = {};  // the images of this warp; kBlp: their losses
  for (int64_t n = warp; n < images; n += kWarps) {
    double sums[kSums] = {};
    for (int64_t tile = lane; tile < tiles; tile += kWarp)
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += sums_of_tile[(n * tiles + tile) * kSums + i];
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      for (int distance = kWarp / 2; distance > 0; distance /= 2)
        sums[i] += __shfl_down_sync(~0u, sums[i], distance);
    if (lane == 0 && blp_weight_sum) blp_weight_sum[n] = static_cast<A>(sums[kBlpWeight]);
    sums[kBlp] /= sums[kBlpWeight] + kGuard;
#pragma unroll
    for (int i = 0; i < kSums; ++i) all[i] += sums[i];
  }
  if (lane == 0)
    for (int i = 0; i < kSums; ++i) of_warp[warp][i] = all[i];
  __syncthreads();
  if (threadIdx.x > 0) return;
  double sums[kSums] = {};
  for (int other = 0; other < kWarps; ++other)
    for (int i = 0; i < kSums; ++i) sums[i] += of_warp[other][i];
  if (blp_loss) *blp_loss = static_cast<A>(sums[kBlp] / (images > 0 ? images : 1));
  if (!annotation_loss) return;
  const double weight = sums[kLabelledCount] + unlabeled_weight * sums[kUnlabelledCount];
  const double total = sums[kLabelled] + unlabeled_weight * sums[kUnlabelled];
  *annotation_loss = static_cast<A>(total / (weight > 0 ? weight : 1));
  *annotation_weight_sum = static_cast<A>(weight);
}

// Null pointers stand for a loss that is not asked for.
template <typename A>
__global__ void make_shares(const A* grad_blp_loss, const A* blp_weight_sum,
                            const A* grad_annotation_loss, const A* annotation_weight_sum,
                            A unlabeled_weight, int64_t images, int64_t stride,
                            Shares<A>* shares_of_image) {
  for (int64_t n = threadIdx.x; n < images; n += blockDim.x) {
    Shares<A> shares = {};
    if (grad_blp_loss)
      shares.blp = *grad_blp_loss / ((blp_weight_sum[n * stride] + A(kGuard)) * images);
    if (grad_annotation_loss) {
      const A weight = *annotation_weight_sum;
      shares.labelled = *grad_annotation_loss / (weight > A(0) ? weight : A(1));
      shares.unlabelled = unlabeled_weight * shares.labelled;
    }
    shares_of_image[n] = shares;
  }
}

}  // namespace device

namespace {

using device::Labels;
using device::LossCall;
using device::PixelGradients;
using device::Shares;

template <typename A>
A* data_of(std::optional<Tensor>& tensor) {
  return tensor ? static_cast<A*>(tensor->mutable_data_ptr()) : nullptr;
}

template <typename A>
const A* data_of(const Tensor* tensor) {
  return tensor ? static_cast<const A*>(tensor->const_data_ptr()) : nullptr;
}

int64_t tiles_of_image(const LossInputs& inputs) {
  return device::divide_up(inputs.target.size(1), device::kRows) *
         device::divide_up(inputs.target.size(2), device::kThreads);
}

unsigned blocks(const LossInputs& inputs, int64_t of_image) {
  const int64_t count = inputs.images() * of_image;
  STD_TORCH_CHECK(count < int64_t{1} << 31, inputs.op, ": a batch of ", count,
                  " tiles is more than a CUDA grid can have");
  return static_cast<unsigned>(count);
}

Tensor room(const LossInputs& inputs, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(inputs.any(), size, wide_dtype(inputs.any()));
}

template <typename T>
LossCall<T> make_call(const LossInputs& inputs) {
  const Tensor &any = inputs.any(), &target = inputs.target;
  return {View4<T>(inputs.seg ? *inputs.seg : any),
          View4<T>(inputs.annotation ? *inputs.annotation : any),
          inputs.wants_blp,
          inputs.wants_annotation,
          Labels(target),
          Labels(),
          inputs.images(),
          inputs.classes(),
          any.size(2),
          any.size(3),
          target.size(1),
          target.size(2),
          inputs.ignore_index,
          static_cast<accumulate_t<T>>(inputs.gamma)};
}

Losses forward(const LossInputs& inputs, LabelsToMake* to_make) {
  Losses losses;
  if (inputs.wants_blp) {
    losses.blp = room(inputs, {});
    losses.blp_weight_sum = room(inputs, {inputs.images()});
  }
  if (inputs.wants_annotation) {
    losses.annotation = room(inputs, {});
    losses.annotation_weight_sum = room(inputs, {});
  }
  const LaunchOn on(inputs.any(), inputs.op);
  const int64_t tiles = tiles_of_image(inputs);
  std::optional<Tensor> present;  // contiguous
  if (to_make) present = torch::stable::contiguous(to_make->present);
  Tensor sums = room(inputs, {inputs.images(), tiles, device::kSums});
  dispatch_floating(inputs.op, inputs.name_of_any(), inputs.any().scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    LossCall<T> call = make_call<T>(inputs);
    call.checks_target = true;
    if (to_make) {
      call.present = static_cast<const bool*>(present->const_data_ptr());
      call.threshold = static_cast<A>(to_make->threshold);
      if (to_make->labels.scalar_type() == ScalarType::Byte)
        call.labels8 = static_cast<uint8_t*>(to_make->labels.mutable_data_ptr());
      else
        call.labels32 = static_cast<int32_t*>(to_make->labels.mutable_data_ptr());
    }
    A* sums_of_tile = static_cast<A*>(sums.mutable_data_ptr());
    if (inputs.images() > 0)
      device::loss_pixels<T, false><<<blocks(inputs, tiles), device::kThreads, 0, on.stream>>>(
          call, nullptr, sums_of_tile, {}, {});
    on.check();
    if (!inputs.wants_blp && !inputs.wants_annotation) return;
    device::finish_losses<A><<<1, device::kThreads, 0, on.stream>>>(
        sums_of_tile, tiles, inputs.images(), static_cast<A>(inputs.unlabeled_weight),
        data_of<A>(losses.blp), data_of<A>(losses.blp_weight_sum), data_of<A>(losses.annotation),
        data_of<A>(losses.annotation_weight_sum));
    on.check();
  });
  return losses;
}

// Room for PixelGradients of [N, H, W] pixels.
class PixelRoom {
 public:
  explicit PixelRoom(const LossInputs& inputs)
      : plane_(inputs.target.numel()), numbers_(room(inputs, {3, plane_})) {}

  template <typename A>
  PixelGradients<A> get() {
    A* numbers = static_cast<A*>(numbers_.mutable_data_ptr());
    return {numbers, numbers + plane_, numbers + 2 * plane_};
  }

 private:
  int64_t plane_;
  Tensor numbers_;
};

// As many columns of cells for a warp as make good use of it: its pixels, those beyond the patch's
// edges among them, shall fill whole runs of 32 columns.
int64_t patch_columns(int64_t in, int64_t out) {
  const int64_t scale = device::divide_up(out, in);
  const int64_t pixels = scale <= 4 ? device::kWarp : 4 * device::kWarp;
  return std::clamp<int64_t>(pixels * in / out - 1, 1, device::kWarp - 1);
}

template <typename T>
void gather(const LossInputs& inputs, const Tensor& logits, const Tensor& labels,
            const PixelGradients<accumulate_t<T>>& pixels, const LaunchOn& on, Tensor& grad) {
  using A = accumulate_t<T>;
  const int64_t columns = patch_columns(logits.size(3), labels.size(2));
  const int64_t patches = device::divide_up(logits.size(3), columns) *
                          device::divide_up(logits.size(2), device::kPatchRows<A>) *
                          device::divide_up(logits.size(1), device::kClasses * device::kWarps);
  device::loss_gradients<T><<<blocks(inputs, patches), device::kThreads, 0, on.stream>>>(
      View4<T>(logits), Labels(labels), labels.size(1), labels.size(2), pixels, columns,
      OutputView4<T>(grad));
  on.check();
}

Gradients backward(const LossInputs& inputs, const Tensor& blp_target, const Upstream& of_blp,
                   const Upstream& of_annotation) {
  Gradients grads;
  if (inputs.wants_blp) grads.seg = torch::stable::empty_like(*inputs.seg);
  if (inputs.wants_annotation) grads.annotation = torch::stable::empty_like(*inputs.annotation);
  if (inputs.images() == 0) return grads;

  const LaunchOn on(inputs.any(), inputs.op);
  Tensor shares = room(inputs, {inputs.images(), 3});
  std::optional<PixelRoom> seg_room, annotation_room;
  if (inputs.wants_blp) seg_room.emplace(inputs);
  if (inputs.wants_annotation) annotation_room.emplace(inputs);
  dispatch_floating(inputs.op, inputs.name_of_any(), inputs.any().scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    static_assert(sizeof(Shares<A>) == 3 * sizeof(A));
    auto* shares_of_image = static_cast<Shares<A>*>(shares.mutable_data_ptr());
    device::make_shares<A><<<1, device::kThreads, 0, on.stream>>>(
        data_of<A>(of_blp.grad_loss), data_of<A>(of_blp.weight_sum),
        data_of<A>(of_annotation.grad_loss), data_of<A>(of_annotation.weight_sum),
        static_cast<A>(inputs.unlabeled_weight), inputs.images(),
        of_blp.weight_sum ? of_blp.weight_sum->stride(0) : 0, shares_of_image);
    on.check();
    LossCall<T> call = make_call<T>(inputs);
    call.blp_target = Labels(blp_target);
    const auto to_seg = seg_room ? seg_room->get<A>() : PixelGradients<A>{};
    const auto to_annotation = annotation_room ? annotation_room->get<A>() : PixelGradients<A>{};
    device::loss_pixels<T, true>
        <<<blocks(inputs, tiles_of_image(inputs)), device::kThreads, 0, on.stream>>>(
            call, shares_of_image, nullptr, to_seg, to_annotation);
    on.check();
    if (grads.seg) gather<T>(inputs, *inputs.seg, blp_target, to_seg, on, *grads.seg);
    if (grads.annotation)
      gather<T>(inputs, *inputs.annotation, inputs.target, to_annotation, on, *grads.annotation);
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CUDA, library) {
  LossOperators<forward, backward>::attach_to(library);
}

}  // namespace blpseg
