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
#include <tuple>

#include "capability.h"
#include "loss_checks.h"
#include "loss_strip.h"
#include "parallel.h"

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

// Sums the gradients of each logits that there is a tensor for; both are contiguous and zero.
template <typename T, typename SharesOf>
void gather_gradients(const LossCall<T>& call, T* grad_seg, T* grad_annotation,
                      const SharesOf& shares_of) {
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
      if (grad_seg) to_seg.emplace(grad_seg, *call.seg, strip, left, right, call.kernels);
      if (grad_annotation)
        to_annotation.emplace(grad_annotation, *call.annotation, strip, left, right, call.kernels);
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

void refuse_wrong(const char* op, const std::vector<LossSums>& of_image, int64_t classes,
                  int64_t ignore_index) {
  LossSums all;
  for (const LossSums& sums : of_image) all.add(sums);
  if (all.wrong.place == WrongLabel().place) return;
  // As blpseg_ops/_checks.py says it; pybind11 makes it a ValueError.
  throw std::invalid_argument(
      std::string(op) + ": target must hold 0.." + std::to_string(classes - 1) + " (a class), " +
      std::to_string(classes) + " (unlabelled) or " + std::to_string(ignore_index) +
      " (ignore), got " + std::to_string(all.wrong.value));
}

// --- Numbers in and out -------------------------------------------------------------------------

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

// The BLP loss and its weight sums [N].
std::tuple<Tensor, Tensor> finish_blp(const Tensor& like, const std::vector<LossSums>& of_image) {
  double loss = 0;
  std::vector<double> weight_sums;
  for (const LossSums& sums : of_image) {
    loss += sums.blp / (sums.blp_weight + kGuard);
    weight_sums.push_back(sums.blp_weight);
  }
  const int64_t images = of_image.size();
  return {write_numbers(like, {}, {loss / std::max<int64_t>(images, 1)}),
          write_numbers(like, {images}, weight_sums)};
}

// The annotation loss and its weight sum [].
std::tuple<Tensor, Tensor> finish_annotation(const Tensor& like,
                                             const std::vector<LossSums>& of_image,
                                             double unlabeled_weight) {
  LossSums all;
  for (const LossSums& sums : of_image) all.add(sums);
  const double weight_sum = all.labelled_count + unlabeled_weight * all.unlabelled_count;
  const double total = all.labelled + unlabeled_weight * all.unlabelled;
  return {write_numbers(like, {}, {total / (weight_sum > 0 ? weight_sum : 1)}),
          write_numbers(like, {}, {weight_sum})};
}

double blp_share(const Tensor& grad_loss, const Tensor& weight_sum, int64_t n) {
  return number_at(grad_loss) / ((number_at(weight_sum, n) + kGuard) * weight_sum.numel());
}

double annotation_share(const Tensor& grad_loss, const Tensor& weight_sum) {
  const double normaliser = number_at(weight_sum);
  return number_at(grad_loss) / (normaliser > 0 ? normaliser : 1);
}

template <typename T>
LossCall<T> make_call(const Tensor* seg, const Tensor* annotation, const Tensor& target,
                      int64_t classes, int64_t ignore_index, double gamma = 0) {
  using A = accumulate_t<T>;
  const auto view = [](const Tensor* logits) {
    return logits ? std::optional<View4<T>>(*logits) : std::nullopt;
  };
  return {view(seg), view(annotation),      LabelMap(target, classes, ignore_index), std::nullopt,
          classes,   static_cast<A>(gamma), loss_kernels<A>(cpu_capability())};
}

// Makes the terms of each row, after its pseudo labels, which `labels` receives.
template <typename T>
std::vector<LossSums> sum_labelled_rows(const LossCall<T>& call, const LossTerms& terms,
                                        const Tensor& class_present, double threshold,
                                        int64_t ignore_index, Tensor& labels) {
  const View<bool, 2> view(class_present);
  const int64_t images = view.size[0], height = call.target.size(1), width = call.target.size(2);
  const std::unique_ptr<bool[]> present(new bool[images * call.classes]);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < call.classes; ++k) present[n * call.classes + k] = *view.at(n, k);
  std::vector<LossSums> of_image;
  dispatch_label(labels.scalar_type(), [&](auto label) {
    auto* out = static_cast<decltype(label)*>(labels.mutable_data_ptr());
    of_image = sum_rows(call, [&](auto& rows, const auto& strip, int64_t n, int64_t y, auto& sums) {
      const int32_t* row = rows.label(n, y, terms, present.get() + n * call.classes,
                                      static_cast<accumulate_t<T>>(threshold), sums);
      write_labels(row, strip.count, ignore_index, out + (n * height + y) * width + strip.first);
    });
  });
  return of_image;
}

template <typename T>
std::vector<LossSums> sum_plain_rows(const LossCall<T>& call, const LossTerms& terms) {
  return sum_rows(call, [&](auto& rows, const auto&, int64_t n, int64_t y, auto& sums) {
    rows.add_terms(n, y, terms, sums);
  });
}

Tensor new_gradient(const Tensor& logits) {
  return torch::stable::new_zeros(logits,
                                  {logits.size(0), logits.size(1), logits.size(2), logits.size(3)});
}

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// --- The operators -------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> blp_loss(const Tensor& seg, const Tensor& annotation,
                                    const Tensor& target, double gamma, int64_t ignore_index) {
  check_both("blp_loss", seg, annotation);
  check_label_map("blp_loss", "target", target, seg);
  const int64_t classes = seg.size(1);
  std::vector<LossSums> of_image;
  dispatch_floating("blp_loss", "seg_logits", seg.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call = make_call<T>(&seg, &annotation, target, classes, ignore_index, gamma);
    of_image = sum_plain_rows(call, {true, false});
  });
  refuse_wrong("blp_loss", of_image, classes, ignore_index);
  return finish_blp(seg, of_image);
}

Tensor blp_loss_backward(const Tensor& grad_loss, const Tensor& seg, const Tensor& annotation,
                         const Tensor& target, const Tensor& weight_sum, double gamma,
                         int64_t ignore_index) {
  const char* const op = "blp_loss_backward";
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  check_wide(op, "grad_loss", grad_loss, seg, {});
  check_wide(op, "weight_sum", weight_sum, seg, {seg.size(0)});
  Tensor grad = new_gradient(seg);
  dispatch_floating(op, "seg_logits", seg.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call = make_call<T>(&seg, &annotation, target, seg.size(1), ignore_index, gamma);
    gather_gradients<T>(call, data_of<T>(grad), nullptr, [&](int64_t n) {
      return LossShares{blp_share(grad_loss, weight_sum, n), 0, 0};
    });
  });
  return grad;
}

std::tuple<Tensor, Tensor> annotation_loss(const Tensor& annotation, const Tensor& target,
                                           double unlabeled_weight, int64_t ignore_index) {
  check_maps("annotation_loss", "annotation_logits", annotation, 2);
  check_label_map("annotation_loss", "target", target, annotation);
  const int64_t classes = annotation.size(1) - 1;
  std::vector<LossSums> of_image;
  const ScalarType dtype = annotation.scalar_type();
  dispatch_floating("annotation_loss", "annotation_logits", dtype, [&](auto element) {
    using T = decltype(element);
    const auto call = make_call<T>(nullptr, &annotation, target, classes, ignore_index);
    of_image = sum_plain_rows(call, {false, true});
  });
  refuse_wrong("annotation_loss", of_image, classes, ignore_index);
  return finish_annotation(annotation, of_image, unlabeled_weight);
}

Tensor annotation_loss_backward(const Tensor& grad_loss, const Tensor& annotation,
                                const Tensor& target, const Tensor& weight_sum,
                                double unlabeled_weight, int64_t ignore_index) {
  const char* const op = "annotation_loss_backward";
  check_maps(op, "annotation_logits", annotation, 2);
  check_label_map(op, "target", target, annotation);
  check_wide(op, "grad_loss", grad_loss, annotation, {});
  check_wide(op, "weight_sum", weight_sum, annotation, {});
  Tensor grad = new_gradient(annotation);
  const double share = annotation_share(grad_loss, weight_sum);
  dispatch_floating(op, "annotation_logits", annotation.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call =
        make_call<T>(nullptr, &annotation, target, annotation.size(1) - 1, ignore_index);
    gather_gradients<T>(call, nullptr, data_of<T>(grad),
                        [&](int64_t) { return LossShares{0, share, share * unlabeled_weight}; });
  });
  return grad;
}

Tensor pseudo_labels(const Tensor& seg, const Tensor& target, const Tensor& class_present,
                     double threshold, int64_t ignore_index) {
  check_maps("pseudo_labels", "seg_logits", seg, 1);
  check_label_map("pseudo_labels", "target", target, seg);
  check_present("pseudo_labels", class_present, seg);
  const int64_t classes = seg.size(1);
  Tensor labels = new_labels(target, classes, ignore_index);
  std::vector<LossSums> of_image;
  dispatch_floating("pseudo_labels", "seg_logits", seg.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call = make_call<T>(&seg, nullptr, target, classes, ignore_index);
    of_image =
        sum_labelled_rows(call, {false, false}, class_present, threshold, ignore_index, labels);
  });
  refuse_wrong("pseudo_labels", of_image, classes, ignore_index);
  return labels;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> blp_objective(
    const Tensor& seg, const Tensor& annotation, const Tensor& target,
    std::optional<Tensor> class_present, double gamma, double unlabeled_weight, double threshold,
    int64_t ignore_index) {
  const char* const op = "blp_objective";
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  if (class_present) check_present(op, *class_present, seg);
  const int64_t classes = seg.size(1);
  Tensor labels = class_present
                      ? new_labels(target, classes, ignore_index)
                      : torch::stable::new_empty(target, {0}, label_dtype(classes, ignore_index));
  std::vector<LossSums> of_image;
  dispatch_floating(op, "seg_logits", seg.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call = make_call<T>(&seg, &annotation, target, classes, ignore_index, gamma);
    of_image = class_present ? sum_labelled_rows(call, {true, true}, *class_present, threshold,
                                                 ignore_index, labels)
                             : sum_plain_rows(call, {true, true});
  });
  refuse_wrong(op, of_image, classes, ignore_index);
  const auto [blp, blp_weights] = finish_blp(seg, of_image);
  const auto [annotated, annotation_weight] =
      finish_annotation(annotation, of_image, unlabeled_weight);
  return {blp, annotated, blp_weights, annotation_weight, labels};
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
  Tensor grad_seg = new_gradient(seg), grad_annotation = new_gradient(annotation);
  const double share = annotation_share(grad_annotation_loss, annotation_weight_sum);
  dispatch_floating(op, "seg_logits", seg.scalar_type(), [&](auto element) {
    using T = decltype(element);
    auto call = make_call<T>(&seg, &annotation, target, seg.size(1), ignore_index, gamma);
    call.blp_target.emplace(blp_target, seg.size(1), ignore_index);
    gather_gradients<T>(call, data_of<T>(grad_seg), data_of<T>(grad_annotation), [&](int64_t n) {
      return LossShares{blp_share(grad_blp_loss, blp_weight_sum, n), share,
                        share * unlabeled_weight};
    });
  });
  return {grad_seg, grad_annotation};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(blpseg, CPU, library) {
  library.impl("blp_loss", TORCH_BOX(&blp_loss));
  library.impl("blp_loss_backward", TORCH_BOX(&blp_loss_backward));
  library.impl("annotation_loss", TORCH_BOX(&annotation_loss));
  library.impl("annotation_loss_backward", TORCH_BOX(&annotation_loss_backward));
  library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels));
  library.impl("blp_objective", TORCH_BOX(&blp_objective));
  library.impl("blp_objective_backward", TORCH_BOX(&blp_objective_backward));
}

}  // namespace blpseg
