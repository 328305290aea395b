// blpseg::blp_loss, annotation_loss, pseudo_labels and blp_objective on CUDA, with their backwards.
// Called by blpseg_ops/ops/<op>.py; the references are blpseg_ops/reference/<op>.py.
//
// Forward: a kernel over all pixels (loss_pixels.cuh) leaves the sums of each tile, and one block
// adds them up. Backward: the same kernel leaves what each pixel's gradients are made of, and a
// second one gathers them (loss_gradients.cuh). Nothing waits for the device.

#include <optional>
#include <tuple>

#include "loss_checks.h"
#include "loss_gradients.cuh"
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

// What an operator was called with, before the type of its logits is known. Null where an operator
// has no such tensor.
struct LossInputs {
  const char* op;
  const Tensor* seg;
  const Tensor* annotation;
  const Tensor& target;
  bool wants_blp, wants_annotation;
  int64_t ignore_index;
  double gamma = 0, unlabeled_weight = 0;

  const Tensor& any() const { return seg ? *seg : *annotation; }
  int64_t images() const { return target.size(0); }
  int64_t classes() const { return seg ? seg->size(1) : annotation->size(1) - 1; }

  int64_t tiles() const {  // of an image
    return device::divide_up(target.size(1), device::kRows) *
           device::divide_up(target.size(2), device::kThreads);
  }

  unsigned blocks(int64_t of_image) const {
    const int64_t count = images() * of_image;
    STD_TORCH_CHECK(count < int64_t{1} << 31, op, ": a batch of ", count,
                    " tiles is more than a CUDA grid can have");
    return static_cast<unsigned>(count);
  }

  Tensor room(const std::vector<int64_t>& size) const {
    return torch::stable::new_empty(any(), size, wide_dtype(any()));
  }

  template <typename T>
  LossCall<T> call() const {
    const View4<T> seg_view(seg ? *seg : *annotation),
        annotation_view(annotation ? *annotation : *seg);
    LossCall<T> call = {seg_view,       annotation_view,
                        wants_blp,      wants_annotation,
                        Labels(target), Labels(),
                        images(),       classes(),
                        any().size(2),  any().size(3),
                        target.size(1), target.size(2),
                        ignore_index,   static_cast<accumulate_t<T>>(gamma)};
    return call;
  }
};

// Pseudo labels to be made on the way.
struct LabelsToMake {
  Tensor present;  // [N, K] bool, contiguous
  double threshold;
  Tensor labels;
};

struct Losses {
  std::optional<Tensor> blp, blp_weight_sum, annotation, annotation_weight_sum;
};

Losses forward(const LossInputs& inputs, LabelsToMake* to_make) {
  Losses losses;
  if (inputs.wants_blp) {
    losses.blp = inputs.room({});
    losses.blp_weight_sum = inputs.room({inputs.images()});
  }
  if (inputs.wants_annotation) {
    losses.annotation = inputs.room({});
    losses.annotation_weight_sum = inputs.room({});
  }
  const LaunchOn on(inputs.any(), inputs.op);
  const int64_t tiles = inputs.tiles();
  Tensor sums = inputs.room({inputs.images(), tiles, device::kSums});
  dispatch_floating(inputs.op, "logits", inputs.any().scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    LossCall<T> call = inputs.call<T>();
    call.checks_target = true;
    if (to_make) {
      call.present = static_cast<const bool*>(to_make->present.const_data_ptr());
      call.threshold = static_cast<A>(to_make->threshold);
      if (to_make->labels.scalar_type() == ScalarType::Byte)
        call.labels8 = static_cast<uint8_t*>(to_make->labels.mutable_data_ptr());
      else
        call.labels32 = static_cast<int32_t*>(to_make->labels.mutable_data_ptr());
    }
    A* sums_of_tile = static_cast<A*>(sums.mutable_data_ptr());
    if (inputs.images() > 0)
      device::loss_pixels<T, false><<<inputs.blocks(tiles), device::kThreads, 0, on.stream>>>(
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

// What comes back to an operator: an upstream gradient, and a normaliser that forward returned.
struct Upstream {
  const Tensor* grad_loss = nullptr;
  const Tensor* weight_sum = nullptr;
};

// Room for PixelGradients of [N, H, W] pixels.
class PixelRoom {
 public:
  explicit PixelRoom(const LossInputs& inputs)
      : plane_(inputs.target.numel()), numbers_(inputs.room({3, plane_})) {}

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
  device::loss_gradients<T><<<inputs.blocks(patches), device::kThreads, 0, on.stream>>>(
      View4<T>(logits), Labels(labels), labels.size(1), labels.size(2), pixels, columns,
      static_cast<T*>(grad.mutable_data_ptr()));
  on.check();
}

struct Gradients {
  std::optional<Tensor> seg, annotation;
};

Gradients backward(const LossInputs& inputs, const Tensor& blp_target, const Upstream& of_blp,
                   const Upstream& of_annotation) {
  const auto new_gradient = [](const Tensor& logits) {
    return torch::stable::new_empty(
        logits, {logits.size(0), logits.size(1), logits.size(2), logits.size(3)});
  };
  Gradients grads;
  if (inputs.wants_blp) grads.seg = new_gradient(*inputs.seg);
  if (inputs.wants_annotation) grads.annotation = new_gradient(*inputs.annotation);
  if (inputs.images() == 0) return grads;

  const LaunchOn on(inputs.any(), inputs.op);
  Tensor shares = inputs.room({inputs.images(), 3});
  std::optional<PixelRoom> seg_room, annotation_room;
  if (inputs.wants_blp) seg_room.emplace(inputs);
  if (inputs.wants_annotation) annotation_room.emplace(inputs);
  dispatch_floating(inputs.op, "logits", inputs.any().scalar_type(), [&](auto element) {
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
    LossCall<T> call = inputs.call<T>();
    call.blp_target = Labels(blp_target);
    const auto to_seg = seg_room ? seg_room->get<A>() : PixelGradients<A>{};
    const auto to_annotation = annotation_room ? annotation_room->get<A>() : PixelGradients<A>{};
    device::loss_pixels<T, true><<<inputs.blocks(inputs.tiles()), device::kThreads, 0, on.stream>>>(
        call, shares_of_image, nullptr, to_seg, to_annotation);
    on.check();
    if (grads.seg) gather<T>(inputs, *inputs.seg, blp_target, to_seg, on, *grads.seg);
    if (grads.annotation)
      gather<T>(inputs, *inputs.annotation, inputs.target, to_annotation, on, *grads.annotation);
  });
  return grads;
}

// --- The operators -------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> blp_loss(const Tensor& seg, const Tensor& annotation,
                                    const Tensor& target, double gamma, int64_t ignore_index) {
  const char* const op = "blp_loss";
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  const Losses losses =
      forward({op, &seg, &annotation, target, true, false, ignore_index, gamma}, nullptr);
  return {*losses.blp, *losses.blp_weight_sum};
}

Tensor blp_loss_backward(const Tensor& grad_loss, const Tensor& seg, const Tensor& annotation,
                         const Tensor& target, const Tensor& weight_sum, double gamma,
                         int64_t ignore_index) {
  const char* const op = "blp_loss_backward";
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  check_wide(op, "grad_loss", grad_loss, seg, {});
  check_wide(op, "weight_sum", weight_sum, seg, {seg.size(0)});
  return *backward({op, &seg, &annotation, target, true, false, ignore_index, gamma}, target,
                   {&grad_loss, &weight_sum}, {})
              .seg;
}

std::tuple<Tensor, Tensor> annotation_loss(const Tensor& annotation, const Tensor& target,
                                           double unlabeled_weight, int64_t ignore_index) {
  const char* const op = "annotation_loss";
  check_maps(op, "annotation_logits", annotation, 2);
  check_label_map(op, "target", target, annotation);
  const Losses losses = forward(
      {op, nullptr, &annotation, target, false, true, ignore_index, 0, unlabeled_weight}, nullptr);
  return {*losses.annotation, *losses.annotation_weight_sum};
}

Tensor annotation_loss_backward(const Tensor& grad_loss, const Tensor& annotation,
                                const Tensor& target, const Tensor& weight_sum,
                                double unlabeled_weight, int64_t ignore_index) {
  const char* const op = "annotation_loss_backward";
  check_maps(op, "annotation_logits", annotation, 2);
  check_label_map(op, "target", target, annotation);
  check_wide(op, "grad_loss", grad_loss, annotation, {});
  check_wide(op, "weight_sum", weight_sum, annotation, {});
  return *backward(
              {op, nullptr, &annotation, target, false, true, ignore_index, 0, unlabeled_weight},
              target, {}, {&grad_loss, &weight_sum})
              .annotation;
}

Tensor pseudo_labels(const Tensor& seg, const Tensor& target, const Tensor& class_present,
                     double threshold, int64_t ignore_index) {
  const char* const op = "pseudo_labels";
  check_maps(op, "seg_logits", seg, 1);
  check_label_map(op, "target", target, seg);
  check_present(op, class_present, seg);
  LabelsToMake to_make = {torch::stable::contiguous(class_present), threshold,
                          new_labels(target, seg.size(1), ignore_index)};
  forward({op, &seg, nullptr, target, false, false, ignore_index}, &to_make);
  return to_make.labels;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> blp_objective(
    const Tensor& seg, const Tensor& annotation, const Tensor& target,
    std::optional<Tensor> class_present, double gamma, double unlabeled_weight, double threshold,
    int64_t ignore_index) {
  const char* const op = "blp_objective";
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  const LossInputs inputs = {op,   &seg,         &annotation, target,          true,
                             true, ignore_index, gamma,       unlabeled_weight};
  const int64_t classes = seg.size(1);
  if (!class_present) {
    const Losses losses = forward(inputs, nullptr);
    Tensor none = torch::stable::new_empty(target, {0}, label_dtype(classes, ignore_index));
    return {*losses.blp, *losses.annotation, *losses.blp_weight_sum, *losses.annotation_weight_sum,
            none};
  }
  check_present(op, *class_present, seg);
  LabelsToMake to_make = {torch::stable::contiguous(*class_present), threshold,
                          new_labels(target, classes, ignore_index)};
  const Losses losses = forward(inputs, &to_make);
  return {*losses.blp, *losses.annotation, *losses.blp_weight_sum, *losses.annotation_weight_sum,
          to_make.labels};
}

std::tuple<Tensor, Tensor> blp_objective_backward(const Tensor& grad_blp_loss,
                                                  const Tensor& grad_annotation_loss,
                                                  const Tensor& seg, const Tensor& annotation,
                                                  const Tensor& blp_target, const Tensor& target,
                                                  const Tensor& blp_weight_sum,
                                                  const Tensor& annotation_weight_sum, double gamma,
                                                  double unlabeled_weight, int64_t ignore_index) {
  const char* const op = "blp_objective_backward";
  check_objective(op, grad_blp_loss, grad_annotation_loss, seg, annotation, blp_target, target,
                  blp_weight_sum, annotation_weight_sum);
  const Gradients grads =
      backward({op, &seg, &annotation, target, true, true, ignore_index, gamma, unlabeled_weight},
               blp_target, {&grad_blp_loss, &blp_weight_sum},
               {&grad_annotation_loss, &annotation_weight_sum});
  return {*grads.seg, *grads.annotation};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CUDA, library) {
  library.impl("blp_loss", TORCH_BOX(&blp_loss));
  library.impl("blp_loss_backward", TORCH_BOX(&blp_loss_backward));
  library.impl("annotation_loss", TORCH_BOX(&annotation_loss));
  library.impl("annotation_loss_backward", TORCH_BOX(&annotation_loss_backward));
  library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels));
  library.impl("blp_objective", TORCH_BOX(&blp_objective));
  library.impl("blp_objective_backward", TORCH_BOX(&blp_objective_backward));
}

}  // namespace blpseg
