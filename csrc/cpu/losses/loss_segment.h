// The losses of a row segment of pixels: terms of the sums in forward, gradients in backward. Begin
// here. csrc/losses.h has the formulas of a pixel, resized_logits.h and loss_rows.h evaluate rows,
// gradient_rows.h sums gradients per cell of the logits.
#pragma once

#include <optional>
#include <vector>

#include "gradient_rows.h"
#include "label_map.h"
#include "loss_rows.h"

namespace blpseg {

// The arguments of an operator. The BLP loss needs both logits, the annotation loss
// annotation_logits, pseudo labels seg_logits.
template <typename T>
struct CpuLossCall {
  using A = accumulate_t<T>;

  LabelMap target;  // of the annotation loss and the pseudo labels
  const LossKernels<A>& kernels;
  std::optional<View4<T>> seg = {};         // [N, K, h, w]
  std::optional<View4<T>> annotation = {};  // [N, K + 1, h, w]
  std::optional<LabelMap> blp_target = {};  // if it is not `target`
  int64_t classes = 0;                      // K
  A gamma = 0;

  const View4<T>& any() const { return seg ? *seg : *annotation; }
};

// Which losses are asked for.
struct LossTerms {
  bool blp, annotation;
};

struct LossSums {
  double blp = 0, blp_weight = 0;     // sums of weight * cross entropy, and of weights
  double labeled = 0, unlabeled = 0;  // cross entropy of the annotation loss, without class weights
  int64_t labeled_count = 0, unlabeled_count = 0;
  WrongLabel wrong;

  void add(const LossSums& more) {
    blp += more.blp;
    blp_weight += more.blp_weight;
    labeled += more.labeled;
    unlabeled += more.unlabeled;
    labeled_count += more.labeled_count;
    unlabeled_count += more.unlabeled_count;
    if (more.wrong.place < wrong.place) wrong = more.wrong;
  }
};

// Upstream gradient / normalizer of each loss, for one image.
struct LossGradScales {
  double blp = 0;  // times the pixel's weight
  double labeled = 0, unlabeled = 0;
};

template <typename T>
class LossSegment {
 public:
  using A = accumulate_t<T>;

  LossSegment(const CpuLossCall<T>& call, const RowSegment<A>& segment)
      : call_(call),
        segment_(segment),
        labels_(segment.pitch(), kIgnored),
        pseudo_(segment.pitch(), kIgnored),
        classes_(segment.pitch()),
        log_p_(segment.pitch()),
        weight_(segment.pitch()),
        coefficient_(segment.pitch()) {
    const int64_t height = call.target.size(1);
    if (call.seg) seg_.emplace(*call.seg, height, segment, call.kernels);
    if (call.annotation) annotation_.emplace(*call.annotation, height, segment, call.kernels);
    for (int64_t x = 0; x < segment.count; ++x) all_.push_back(static_cast<int32_t>(x));
  }

  // Add the terms of a row.
  void add_terms(int64_t n, int64_t y, const LossTerms& terms, LossSums& sums) {
    read_targets(n, y, sums.wrong);
    if (terms.annotation) add_annotation_terms(n, y, sums);
    if (terms.blp) add_blp_terms(n, y, blp_labels_, sums);
  }

  // Make the row's pseudo labels, then add the terms of the row; the BLP loss learns the pseudo
  // labels. present [K]: the classes of image n.
  const int32_t* label(int64_t n, int64_t y, const LossTerms& terms, const bool* present,
                       A threshold, LossSums& sums) {
    read_targets(n, y, sums.wrong);
    if (terms.annotation) add_annotation_terms(n, y, sums);
    make_pseudo_labels(n, y, present, threshold);
    if (terms.blp) add_blp_terms(n, y, pseudo_.data(), sums);
    return pseudo_.data();
  }

  // Add the gradients of a row.
  void add_gradients(int64_t n, int64_t y, const LossGradScales& scales, GradientRows<T>* to_seg,
                     GradientRows<T>* to_annotation) {
    WrongLabel wrong;  // forward has refused it
    read_targets(n, y, wrong);
    if (to_annotation) add_annotation_gradients(n, y, scales, *to_annotation);
    if (to_seg) add_blp_gradients(n, y, scales, *to_seg);
  }

 private:
  void read_targets(int64_t n, int64_t y, WrongLabel& wrong) {
    call_.target.read(n, y, segment_.first, segment_.count, labels_.data(), wrong);
    blp_labels_ = labels_.data();
    if (!call_.blp_target) return;
    call_.blp_target->read(n, y, segment_.first, segment_.count, pseudo_.data(), wrong);
    blp_labels_ = pseudo_.data();
  }

  bool is_class(int32_t label) const { return label >= 0 && label < call_.classes; }
  bool any_counts() const {
    return std::any_of(labels_.begin(), labels_.end(), [](int32_t l) { return l != kIgnored; });
  }

  void add_annotation_terms(int64_t n, int64_t y, LossSums& sums) {
    if (!any_counts()) return;
    annotation_->evaluate_row(n, y);
    for (int64_t x = 0; x < segment_.count; ++x) classes_[x] = std::max(labels_[x], 0);
    call_.kernels.log_probability(annotation_->gather_at(all_, classes_.data()),
                                  padded(segment_.count), log_p_.data());
    for (int64_t x = 0; x < segment_.count; ++x) {
      if (labels_[x] == kIgnored) continue;
      const bool labeled = labels_[x] < call_.classes;
      (labeled ? sums.labeled : sums.unlabeled) -= log_p_[x];
      ++(labeled ? sums.labeled_count : sums.unlabeled_count);
    }
  }

  // List the row's labeled pixels in `labeled_`; compute log p and the BLP weight of each.
  void find_labeled(int64_t n, int64_t y, const int32_t* labels) {
    labeled_.clear();
    for (int64_t x = 0; x < segment_.count; ++x)
      if (is_class(labels[x])) labeled_.push_back(static_cast<int32_t>(x));
    if (labeled_.empty()) return;
    seg_->evaluate_at(n, y, labeled_);
    annotation_->evaluate_at(n, y, labeled_);
    call_.kernels.blp(seg_->gather_at(labeled_, labels), annotation_->gather_at(labeled_, labels),
                      call_.gamma, padded(labeled_.size()), log_p_.data(), weight_.data());
  }

  void add_blp_terms(int64_t n, int64_t y, const int32_t* labels, LossSums& sums) {
    find_labeled(n, y, labels);
    for (size_t i = 0; i < labeled_.size(); ++i) {
      sums.blp -= static_cast<double>(weight_[i]) * log_p_[i];
      sums.blp_weight += weight_[i];
    }
  }

  void make_pseudo_labels(int64_t n, int64_t y, const bool* present, A threshold) {
    pseudo_ = labels_;
    if (std::find(labels_.begin(), labels_.end(), call_.classes) == labels_.end()) return;
    seg_->evaluate_row(n, y);
    SoftmaxRow<A> of_best = seg_->softmax();
    call_.kernels.best_class(seg_->resized(), present, of_best.logit, classes_.data());
    A* p = weight_.data();
    call_.kernels.probability(of_best, padded(segment_.count), p);
    for (int64_t x = 0; x < segment_.count; ++x) {
      if (labels_[x] != call_.classes) continue;
      const int32_t winner = p[x] > 0 ? classes_[x] : 0;  // of probabilities 0, the lowest class
      pseudo_[x] = p[x] >= threshold ? winner : kIgnored;
    }
  }

  void add_annotation_gradients(int64_t n, int64_t y, const LossGradScales& scales,
                                GradientRows<T>& to) {
    if (!any_counts()) return;
    annotation_->evaluate_row(n, y);
    for (int64_t x = 0; x < segment_.count; ++x)
      coefficient_[x] =
          labels_[x] == kIgnored
              ? A(0)
              : static_cast<A>(is_class(labels_[x]) ? scales.labeled : scales.unlabeled);
    scatter_row(*annotation_, y, to);
    subtract(all_, labels_.data(), y, *annotation_, to);
  }

  void add_blp_gradients(int64_t n, int64_t y, const LossGradScales& scales, GradientRows<T>& to) {
    find_labeled(n, y, blp_labels_);
    if (labeled_.empty()) return;
    std::fill(coefficient_.begin(), coefficient_.end(), A(0));
    std::fill(weight_.begin() + labeled_.size(), weight_.end(), A(0));
    for (size_t i = 0; i < labeled_.size(); ++i)
      coefficient_[labeled_[i]] = weight_[i] = static_cast<A>(weight_[i] * scales.blp);
    if (seg_->has_whole_row())
      scatter_row(*seg_, y, to);
    else
      scatter_columns(y, to);
    subtract(labeled_, blp_labels_, y, *seg_, to);
  }

  // Add coefficient * p per class and pixel.
  void scatter_row(RowSoftmax<T>& of, int64_t y, GradientRows<T>& to) {
    const auto rows = to.at(of.vertical_tap(y));
    call_.kernels.scatter_softmax_grad(of.resized(), of.softmax(), coefficient_.data(), rows.upper,
                                       rows.lower);
  }

  // The same for the labeled pixels alone, if only these are evaluated.
  void scatter_columns(int64_t y, GradientRows<T>& to) {
    const Tap<A> t = seg_->vertical_tap(y);
    const auto rows = to.at(t);
    const ResizedRow<A>& side_by_side = seg_->resized();
    const int64_t count = labeled_.size();
    gathered_.assign(side_by_side.classes * side_by_side.pitch, A(0));
    call_.kernels.scatter_softmax_grad(side_by_side, seg_->softmax(), weight_.data(),
                                       gathered_.data(), nullptr);
    for (int64_t k = 0; k < side_by_side.classes; ++k) {
      const A* gradient = gathered_.data() + k * side_by_side.pitch;
      for (int64_t i = 0; i < count; ++i)
        rows.add(k * segment_.pitch() + labeled_[i], t.weight, gradient[i]);
    }
  }

  // Subtract the coefficient from the class of each pixel.
  void subtract(const std::vector<int32_t>& columns, const int32_t* labels, int64_t y,
                const RowSoftmax<T>& of, GradientRows<T>& to) {
    const Tap<A> t = of.vertical_tap(y);
    const auto rows = to.at(t);
    for (const int32_t x : columns) {
      if (labels[x] == kIgnored) continue;
      rows.add(labels[x] * segment_.pitch() + x, t.weight, -coefficient_[x]);
    }
  }

  const CpuLossCall<T>& call_;
  const RowSegment<A>& segment_;
  std::optional<RowSoftmax<T>> seg_, annotation_;
  std::vector<int32_t> all_, labeled_;              // columns
  std::vector<int32_t> labels_, pseudo_, classes_;  // of each column
  const int32_t* blp_labels_ = nullptr;
  std::vector<A> log_p_, weight_, coefficient_;
  std::vector<A> gathered_;  // [K, pitch of the labeled columns]
};

}  // namespace blpseg
