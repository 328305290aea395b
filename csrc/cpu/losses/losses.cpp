// blpseg::blp_loss, annotation_loss, pseudo_labels and blp_objective on the CPU, with their
// backwards. Called by blpseg_ops/ops/<op>.py; the references are blpseg_ops/reference/<op>.py.
//
// Here is the order of work: pixels are shared out in bands of rows, and strips of columns where a
// row of all classes is too wide for a core's cache. Forward adds up each band's terms, and then
// the bands in their order. In backward a thread owns a patch of the logits' cells and goes through
// all pixels that touch it. What happens in a row is in loss_strip.h.

#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "loss_ops.h"
#include "loss_strip.h"

namespace blpseg {
namespace {

constexpr int64_t kBandRows = 32;   // of output pixels, in forward
constexpr int64_t kPatchRows = 16;  // of the logits' cells, in backward

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// No more threads than there is work to pay for starting them.
template <typename T>
int64_t threads_for(const LossCall<T>& call) {
  const int64_t logits =
      call.target.size(0) * call.target.size(1) * call.target.size(2) * call.any().size[1];
  return std::min<int64_t>(torch::stable::get_num_threads(), 1 + logits / (int64_t{1} << 15));
}

// Calls visit(strip, n, y, sums) for each row of pixels; returns the sums of each image.
template <typename T, typename Visit>
std::vector<LossSums> sum_rows(const LossCall<T>& call, const Visit& visit) {
  using A = accumulate_t<T>;
  const int64_t images = call.target.size(0), height = call.target.size(1);
  const int64_t width = call.target.size(2), bands = divide_up(height, kBandRows);
  const int64_t columns = columns_of_strip(call.classes + 1, width);
  std::vector<LossSums> of_band(images * bands), of_image(images);
  for (int64_t x = 0; x < width; x += columns) {
    const Strip<A> strip(x, std::min(columns, width - x), call.any().size[3], width);
    share_work(threads_for(call), images * bands, [&](int64_t, const auto& next) {
      LossStrip<T> rows(call, strip);
      for (int64_t band = next(); band >= 0; band = next()) {
        const int64_t n = band / bands, first = band % bands * kBandRows;
        for (int64_t y = first; y < std::min(first + kBandRows, height); ++y)
          visit(rows, strip, n, y, of_band[band]);
      }
    });
  }
  for (int64_t band = 0; band < images * bands; ++band) of_image[band / bands].add(of_band[band]);
  return of_image;
}

// Sums the gradients of each logits that there is a tensor for; both are zero.
template <typename T, typename SharesOf>
void gather_gradients(const LossCall<T>& call, const Gradients& grads, const SharesOf& shares_of) {
  using A = accumulate_t<T>;
  const View4<T>& logits = call.any();
  const int64_t images = call.target.size(0), height = call.target.size(1);
  const int64_t width = call.target.size(2), in_height = logits.size[2], in_width = logits.size[3];
  const int64_t patches = divide_up(in_height, kPatchRows);
  const int64_t columns = columns_of_strip(call.classes + 1, width);
  const int64_t cells = std::max<int64_t>(1, columns * in_width / width);
  for (int64_t left = 0; left < in_width; left += cells) {
    const int64_t right = std::min(left + cells, in_width);
    const PixelRange across(left, right, in_width, width);
    if (across.first == across.last) continue;  // no pixel is blended from these
    const Strip<A> strip(across.first, across.last - across.first, in_width, width);
    share_work(threads_for(call), images * patches, [&](int64_t, const auto& next) {
      LossStrip<T> rows(call, strip);
      std::optional<GradientRows<T>> to_seg, to_annotation;
      const auto gather = [&](auto& to, const auto& grad, const auto& logits) {
        if (grad) to.emplace(OutputView4<T>(*grad), *logits, strip, left, right, call.kernels);
      };
      gather(to_seg, grads.seg, call.seg);
      gather(to_annotation, grads.annotation, call.annotation);
      for (int64_t patch = next(); patch >= 0; patch = next()) {
        const int64_t n = patch / patches, top = patch % patches * kPatchRows;
        const int64_t bottom = std::min(top + kPatchRows, in_height);
        const PixelRange down(top, bottom, in_height, height);
        const LossShares shares = shares_of(n);
        if (to_seg) to_seg->begin(n, top, bottom);
        if (to_annotation) to_annotation->begin(n, top, bottom);
        for (int64_t y = down.first; y < down.last; ++y)
          rows.add_gradients(n, y, shares, to_seg ? &*to_seg : nullptr,
                             to_annotation ? &*to_annotation : nullptr);
        if (to_seg) to_seg->finish();
        if (to_annotation) to_annotation->finish();
      }
    });
  }
}

void refuse_wrong(const LossInputs& inputs, const WrongLabel& wrong) {
  if (wrong.place == WrongLabel().place) return;
  const std::string unlabelled = std::to_string(inputs.classes());
  // As blpseg_ops/_targets.py says it, which makes it a ValueError again.
  throw std::invalid_argument(std::string(inputs.op) + ": target must hold 0.." +
                              std::to_string(inputs.classes() - 1) + " (a class), " + unlabelled +
                              " (unlabeled) or " + std::to_string(inputs.ignore_index) +
                              " (ignore), got " + std::to_string(wrong.value));
}

double number_at(const Tensor& tensor, int64_t index = 0) {
  const int64_t place = tensor.dim() > 0 ? index * tensor.stride(0) : 0;
  if (tensor.scalar_type() == ScalarType::Double)
    return static_cast<const double*>(tensor.const_data_ptr())[place];
  return static_cast<const float*>(tensor.const_data_ptr())[place];
}

Tensor write_numbers(const Tensor& like, const std::vector<int64_t>& size,
                     const std::vector<double>& numbers) {
  Tensor tensor = torch::stable::new_empty(like, size, wide_dtype(like));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (wide_dtype(like) == ScalarType::Double)
      static_cast<double*>(tensor.mutable_data_ptr())[i] = numbers[i];
    else
      static_cast<float*>(tensor.mutable_data_ptr())[i] = static_cast<float>(numbers[i]);
  }
  return tensor;
}

template <typename T>
LossCall<T> make_call(const LossInputs& inputs) {
  using A = accumulate_t<T>;
  const auto view = [](const Tensor* logits) {
    return logits ? std::optional<View4<T>>(*logits) : std::nullopt;
  };
  return {view(inputs.seg),
          view(inputs.annotation),
          LabelMap(inputs.target, inputs.classes(), inputs.ignore_index),
          std::nullopt,
          inputs.classes(),
          static_cast<A>(inputs.gamma),
          loss_kernels<A>(cpu_capability())};
}

// Makes the terms of each row, after its pseudo labels.
template <typename T>
std::vector<LossSums> label_and_sum_rows(const LossCall<T>& call, const LossTerms& terms,
                                         int64_t ignore_index, LabelsToMake& to_make) {
  const View<bool, 2> view(to_make.present);
  const int64_t images = view.size[0], height = call.target.size(1), width = call.target.size(2);
  const std::unique_ptr<bool[]> present(new bool[images * call.classes]);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < call.classes; ++k) present[n * call.classes + k] = *view.at(n, k);
  std::vector<LossSums> of_image;
  dispatch_label(to_make.labels.scalar_type(), [&](auto label) {
    auto* out = static_cast<decltype(label)*>(to_make.labels.mutable_data_ptr());
    of_image = sum_rows(call, [&](auto& rows, const auto& strip, int64_t n, int64_t y, auto& sums) {
      const int32_t* row = rows.label(n, y, terms, present.get() + n * call.classes,
                                      static_cast<accumulate_t<T>>(to_make.threshold), sums);
      write_labels(row, strip.count, ignore_index, out + (n * height + y) * width + strip.first);
    });
  });
  return of_image;
}

Losses forward(const LossInputs& inputs, LabelsToMake* to_make) {
  const LossTerms terms = {inputs.wants_blp, inputs.wants_annotation};
  std::vector<LossSums> of_image;
  dispatch_floating(inputs.op, inputs.name_of_any(), inputs.any().scalar_type(), [&](auto element) {
    const auto call = make_call<decltype(element)>(inputs);
    if (to_make)
      of_image = label_and_sum_rows(call, terms, inputs.ignore_index, *to_make);
    else
      of_image = sum_rows(call, [&](auto& rows, const auto&, int64_t n, int64_t y, auto& sums) {
        rows.add_terms(n, y, terms, sums);
      });
  });

  LossSums all;
  double blp = 0;
  std::vector<double> weight_sums;
  for (const LossSums& sums : of_image) {
    all.add(sums);
    blp += sums.blp / (sums.blp_weight + kGuard);
    weight_sums.push_back(sums.blp_weight);
  }
  refuse_wrong(inputs, all.wrong);
  const Tensor& like = inputs.any();
  Losses losses;
  if (inputs.wants_blp) {
    losses.blp = write_numbers(like, {}, {blp / std::max<int64_t>(inputs.images(), 1)});
    losses.blp_weight_sum = write_numbers(like, {inputs.images()}, weight_sums);
  }
  if (inputs.wants_annotation) {
    const double weight = all.labelled_count + inputs.unlabeled_weight * all.unlabelled_count;
    const double total = all.labelled + inputs.unlabeled_weight * all.unlabelled;
    losses.annotation = write_numbers(like, {}, {total / (weight > 0 ? weight : 1)});
    losses.annotation_weight_sum = write_numbers(like, {}, {weight});
  }
  return losses;
}

LossShares shares_of(const LossInputs& inputs, const Upstream& of_blp,
                     const Upstream& of_annotation, int64_t n) {
  LossShares shares = {};
  if (inputs.wants_blp)
    shares.blp = number_at(*of_blp.grad_loss) /
                 ((number_at(*of_blp.weight_sum, n) + kGuard) * inputs.images());
  if (inputs.wants_annotation) {
    const double weight = number_at(*of_annotation.weight_sum);
    shares.labelled = number_at(*of_annotation.grad_loss) / (weight > 0 ? weight : 1);
    shares.unlabelled = inputs.unlabeled_weight * shares.labelled;
  }
  return shares;
}

std::optional<Tensor> zeros_like(bool wanted, const Tensor* logits) {
  if (!wanted) return std::nullopt;
  Tensor zeros = torch::stable::empty_like(*logits);
  return torch::stable::zero_(zeros);
}

Gradients backward(const LossInputs& inputs, const Tensor& blp_target, const Upstream& of_blp,
                   const Upstream& of_annotation) {
  Gradients grads = {zeros_like(inputs.wants_blp, inputs.seg),
                     zeros_like(inputs.wants_annotation, inputs.annotation)};
  dispatch_floating(inputs.op, inputs.name_of_any(), inputs.any().scalar_type(), [&](auto element) {
    using T = decltype(element);
    auto call = make_call<T>(inputs);
    if (&blp_target != &inputs.target)
      call.blp_target.emplace(blp_target, inputs.classes(), inputs.ignore_index);
    gather_gradients<T>(call, grads,
                        [&](int64_t n) { return shares_of(inputs, of_blp, of_annotation, n); });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  LossOperators<forward, backward>::attach_to(library);
}

}  // namespace blpseg
