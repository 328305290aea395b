// blpseg::blp_loss, annotation_loss, pseudo_labels and blp_objective on the CPU, with their
// backwards. blpseg_ops/ops/<op>.py calls them; blpseg_ops/reference/<op>.py defines them.
//
// This file has the order of work. Forward: threads take bands of rows; a row that is too wide for
// a core's cache, with all classes, is cut into segments. Each band has sums, which are added in
// order at the end. Backward: a thread owns a block of the logits' cells and visits all pixels that
// touch it. loss_segment.h has the work per row.

#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/capability.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "loss_ops.h"
#include "loss_segment.h"

namespace blpseg {
namespace {

constexpr int64_t kBandRows = 32;       // of output pixels, in forward
constexpr int64_t kCellBlockRows = 16;  // of the logits' cells, in backward

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Return the number of threads, each of which must have enough work to pay for its start.
template <typename T>
int64_t threads_for(const CpuLossCall<T>& call) {
  const int64_t logits =
      call.target.size(0) * call.target.size(1) * call.target.size(2) * call.any().size[1];
  return std::min<int64_t>(torch::stable::get_num_threads(), 1 + logits / (int64_t{1} << 15));
}

// Call visit(rows, segment, n, y, sums) for each row of pixels; return the sums per image.
template <typename T, typename Visit>
std::vector<LossSums> sum_rows(const CpuLossCall<T>& call, const Visit& visit) {
  using A = accumulate_t<T>;
  const int64_t images = call.target.size(0), height = call.target.size(1);
  const int64_t width = call.target.size(2), bands = divide_up(height, kBandRows);
  const int64_t columns = columns_per_segment(call.classes + 1, width);
  std::vector<LossSums> per_band(images * bands), per_image(images);
  for (int64_t x = 0; x < width; x += columns) {
    const RowSegment<A> segment(x, std::min(columns, width - x), call.any().size[3], width);
    share_work(threads_for(call), images * bands, [&](int64_t, const auto& next) {
      LossSegment<T> rows(call, segment);
      for (int64_t band = next(); band >= 0; band = next()) {
        const int64_t n = band / bands, first = band % bands * kBandRows;
        for (int64_t y = first; y < std::min(first + kBandRows, height); ++y)
          visit(rows, segment, n, y, per_band[band]);
      }
    });
  }
  for (int64_t band = 0; band < images * bands; ++band) per_image[band / bands].add(per_band[band]);
  return per_image;
}

// Add the gradients to the tensors in `grads`, which are zero.
template <typename T, typename ScalesOf>
void gather_gradients(const CpuLossCall<T>& call, const Gradients& grads,
                      const ScalesOf& scales_of) {
  using A = accumulate_t<T>;
  const View4<T>& logits = call.any();
  const int64_t images = call.target.size(0), height = call.target.size(1);
  const int64_t width = call.target.size(2), in_height = logits.size[2], in_width = logits.size[3];
  const int64_t blocks = divide_up(in_height, kCellBlockRows);
  const int64_t columns = columns_per_segment(call.classes + 1, width);
  const int64_t cells = std::max<int64_t>(1, columns * in_width / width);
  for (int64_t left = 0; left < in_width; left += cells) {
    const int64_t right = std::min(left + cells, in_width);
    const PixelRange across(left, right, in_width, width);
    if (across.first == across.last) continue;  // no pixel depends on these cells
    const RowSegment<A> segment(across.first, across.last - across.first, in_width, width);
    share_work(threads_for(call), images * blocks, [&](int64_t, const auto& next) {
      LossSegment<T> rows(call, segment);
      std::optional<GradientRows<T>> to_seg, to_annotation;
      const auto gather = [&](auto& to, const auto& grad, const auto& logits) {
        if (grad) to.emplace(OutputView4<T>(*grad), *logits, segment, left, right, call.kernels);
      };
      gather(to_seg, grads.seg, call.seg);
      gather(to_annotation, grads.annotation, call.annotation);
      for (int64_t block = next(); block >= 0; block = next()) {
        const int64_t n = block / blocks, top = block % blocks * kCellBlockRows;
        const int64_t bottom = std::min(top + kCellBlockRows, in_height);
        const PixelRange down(top, bottom, in_height, height);
        const LossGradScales scales = scales_of(n);
        if (to_seg) to_seg->begin(n, top, bottom);
        if (to_annotation) to_annotation->begin(n, top, bottom);
        for (int64_t y = down.first; y < down.last; ++y)
          rows.add_gradients(n, y, scales, to_seg ? &*to_seg : nullptr,
                             to_annotation ? &*to_annotation : nullptr);
        if (to_seg) to_seg->finish();
        if (to_annotation) to_annotation->finish();
      }
    });
  }
}

void refuse_wrong_label(const LossInputs& inputs, const WrongLabel& wrong) {
  if (wrong.place == WrongLabel().place) return;
  const std::string unlabeled = std::to_string(inputs.classes());
  // blpseg_ops/_targets.py has the same words, and makes it a ValueError again.
  throw std::invalid_argument(std::string(inputs.op) + ": target must hold 0.." +
                              std::to_string(inputs.classes() - 1) + " (a class), " + unlabeled +
                              " (unlabeled) or " + std::to_string(inputs.ignore_index) +
                              " (ignore), got " + std::to_string(wrong.value));
}

double scalar_at(const Tensor& tensor, int64_t index = 0) {
  const int64_t place = tensor.dim() > 0 ? index * tensor.stride(0) : 0;
  if (tensor.scalar_type() == ScalarType::Double)
    return static_cast<const double*>(tensor.const_data_ptr())[place];
  return static_cast<const float*>(tensor.const_data_ptr())[place];
}

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& size,
                  const std::vector<double>& values) {
  Tensor tensor = torch::stable::new_empty(like, size, wide_dtype(like));
  for (size_t i = 0; i < values.size(); ++i) {
    if (wide_dtype(like) == ScalarType::Double)
      static_cast<double*>(tensor.mutable_data_ptr())[i] = values[i];
    else
      static_cast<float*>(tensor.mutable_data_ptr())[i] = static_cast<float>(values[i]);
  }
  return tensor;
}

template <typename T>
CpuLossCall<T> make_call(const LossInputs& inputs) {
  using A = accumulate_t<T>;
  CpuLossCall<T> call = {LabelMap(*inputs.target, inputs.classes(), inputs.ignore_index),
                         loss_kernels<A>(cpu_capability())};
  if (inputs.seg) call.seg.emplace(*inputs.seg);
  if (inputs.annotation) call.annotation.emplace(*inputs.annotation);
  call.classes = inputs.classes();
  call.gamma = static_cast<A>(inputs.gamma);
  return call;
}

// Make the pseudo labels and the sums per image.
template <typename T>
std::vector<LossSums> label_and_sum_rows(const CpuLossCall<T>& call, const LossTerms& terms,
                                         int64_t ignore_index, PseudoLabels& pseudo) {
  const View<bool, 2> view(pseudo.present);
  const int64_t images = view.size[0], height = call.target.size(1), width = call.target.size(2);
  const std::unique_ptr<bool[]> present(new bool[images * call.classes]);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < call.classes; ++k) present[n * call.classes + k] = *view.at(n, k);
  std::vector<LossSums> per_image;
  dispatch_label(pseudo.labels.scalar_type(), [&](auto label) {
    auto* out = static_cast<decltype(label)*>(pseudo.labels.mutable_data_ptr());
    per_image =
        sum_rows(call, [&](auto& rows, const auto& segment, int64_t n, int64_t y, auto& sums) {
          const int32_t* row = rows.label(n, y, terms, present.get() + n * call.classes,
                                          static_cast<accumulate_t<T>>(pseudo.threshold), sums);
          write_labels(row, segment.count, ignore_index,
                       out + (n * height + y) * width + segment.first);
        });
  });
  return per_image;
}

Losses forward(const LossInputs& inputs, PseudoLabels* pseudo) {
  const LossTerms terms = {inputs.wants_blp, inputs.wants_annotation};
  std::vector<LossSums> per_image;
  dispatch_floating(
      inputs.op, inputs.name_of_any_logits(), inputs.any_logits().scalar_type(), [&](auto element) {
        const auto call = make_call<decltype(element)>(inputs);
        if (pseudo)
          per_image = label_and_sum_rows(call, terms, inputs.ignore_index, *pseudo);
        else
          per_image = sum_rows(call, [&](auto& rows, const auto&, int64_t n, int64_t y,
                                         auto& sums) { rows.add_terms(n, y, terms, sums); });
      });

  LossSums all;
  double blp = 0;
  std::vector<double> weight_sums;
  for (const LossSums& sums : per_image) {
    all.add(sums);
    blp += sums.blp / (sums.blp_weight + kGuard);
    weight_sums.push_back(sums.blp_weight);
  }
  refuse_wrong_label(inputs, all.wrong);
  const Tensor& like = inputs.any_logits();
  const auto no_pixels = [&] { return new_tensor(like, {0}, {}); };  // backward recomputes them
  Losses losses;
  if (inputs.wants_blp)
    losses.blp = Loss{new_tensor(like, {}, {blp / std::max<int64_t>(inputs.images(), 1)}),
                      new_tensor(like, {inputs.images()}, weight_sums), no_pixels()};
  if (inputs.wants_annotation) {
    const double weight = all.labeled_count + inputs.unlabeled_weight * all.unlabeled_count;
    const double total = all.labeled + inputs.unlabeled_weight * all.unlabeled;
    losses.annotation = Loss{new_tensor(like, {}, {total / (weight > 0 ? weight : 1)}),
                             new_tensor(like, {}, {weight}), no_pixels()};
  }
  return losses;
}

LossGradScales grad_scales(const LossInputs& inputs, const LossGrad& blp,
                           const LossGrad& annotation, int64_t n) {
  LossGradScales scales;
  if (inputs.wants_blp)
    scales.blp =
        scalar_at(*blp.grad_loss) / ((scalar_at(*blp.weight_sum, n) + kGuard) * inputs.images());
  if (inputs.wants_annotation) {
    const double weight = scalar_at(*annotation.weight_sum);
    scales.labeled = scalar_at(*annotation.grad_loss) / (weight > 0 ? weight : 1);
    scales.unlabeled = inputs.unlabeled_weight * scales.labeled;
  }
  return scales;
}

std::optional<Tensor> zeros_like(bool wanted, const Tensor* logits) {
  if (!wanted) return std::nullopt;
  Tensor zeros = in_huge_pages(torch::stable::empty_like(*logits));
  return torch::stable::zero_(zeros);
}

Gradients backward(const LossInputs& inputs, const Tensor& blp_target, const LossGrad& blp,
                   const LossGrad& annotation) {
  Gradients grads = {zeros_like(inputs.wants_blp, inputs.seg),
                     zeros_like(inputs.wants_annotation, inputs.annotation)};
  dispatch_floating(
      inputs.op, inputs.name_of_any_logits(), inputs.any_logits().scalar_type(), [&](auto element) {
        using T = decltype(element);
        auto call = make_call<T>(inputs);
        if (&blp_target != inputs.target)
          call.blp_target.emplace(blp_target, inputs.classes(), inputs.ignore_index);
        gather_gradients<T>(call, grads,
                            [&](int64_t n) { return grad_scales(inputs, blp, annotation, n); });
      });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  LossOperators<forward, backward>::attach_to(library);
}

}  // namespace blpseg
