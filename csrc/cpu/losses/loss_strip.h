// The losses of a strip of pixels, a row at a time: terms of the sums in forward, gradients in
// backward. Begin here; a pixel's arithmetic is csrc/losses.h's, rows of it are made in
// resized_logits.h and loss_rows.h, and gradients reach the logits' cells in gradient_rows.h.
#pragma once

#include <optional>
#include <vector>

#include "gradient_rows.h"
#include "label_map.h"
#include "loss_rows.h"

namespace blpseg {

// What an operator was called with. The BLP loss needs both logits, the annotation loss its own,
// pseudo labels those of the classes.
template <typename T>
struct LossCall {
  using A = accumulate_t<T>;

  std::optional<View4<T>> seg;         // [N, K, h, w]
  std::optional<View4<T>> annotation;  // [N, K + 1, h, w]
  LabelMap target;                     // of the annotation loss, and of the pseudo labels
  std::optional<LabelMap> blp_target;  // where it is another
  int64_t classes;                     // K
  A gamma;
  const LossKernels<A>& kernels;

  const View4<T>& any() const { return seg ? *seg : *annotation; }
};

// Which losses' terms are asked for.
struct LossTerms {
  bool blp, annotation;
};

struct LossSums {
  double blp = 0, blp_weight = 0;       // of an image: weighted cross entropy, weights
  double labelled = 0, unlabelled = 0;  // cross entropy of the annotation loss, not yet weighted
  int64_t labelled_count = 0, unlabelled_count = 0;
  WrongLabel wrong;

  void add(const LossSums& more) {
    blp += more.blp;
    blp_weight += more.blp_weight;
    labelled += more.labelled;
    unlabelled += more.unlabelled;
    labelled_count += more.labelled_count;
    unlabelled_count += more.unlabelled_count;
    if (more.wrong.place < wrong.place) wrong = more.wrong;
  }
};

// How much an image's pixels add to the gradients: upstream gradient over the normaliser.
struct LossShares {
  double blp;  // times the pixel's weight
  double labelled, unlabelled;
};

template <typename T>
class LossStrip {
 public:
  using A = accumulate_t<T>;

  LossStrip(const LossCall<T>& call, const Strip<A>& strip)
      : call_(call),
        strip_(strip),
        labels_(strip.pitch(), kIgnored),
        pseudo_(strip.pitch(), kIgnored),
        classes_(strip.pitch()),
        log_p_(strip.pitch()),
        weight_(strip.pitch()),
        coefficient_(strip.pitch()) {
    const int64_t height = call.target.size(1);
    if (call.seg) seg_.emplace(*call.seg, height, strip, call.kernels);
    if (call.annotation) annotation_.emplace(*call.annotation, height, strip, call.kernels);
    for (int64_t x = 0; x < strip.count; ++x) all_.push_back(static_cast<int32_t>(x));
  }

  // Adds the terms of a row.
  void add_terms(int64_t n, int64_t y, const LossTerms& terms, LossSums& sums) {
    read_targets(n, y, sums.wrong);
    if (terms.annotation) add_annotation_terms(n, y, sums);
    if (terms.blp) add_blp_terms(n, y, blp_labels_, sums);
  }

  // As add_terms(), after making the row's pseudo labels, which the BLP loss then takes. present:
  // [K], the classes of image n.
  const int32_t* label(int64_t n, int64_t y, const LossTerms& terms, const bool* present,
                       A threshold, LossSums& sums) {
    read_targets(n, y, sums.wrong);
    if (terms.annotation) add_annotation_terms(n, y, sums);
    make_pseudo_labels(n, y, present, threshold);
    if (terms.blp) add_blp_terms(n, y, pseudo_.data(), sums);
    return pseudo_.data();
  }

  // Adds the gradients of a row.
  void add_gradients(int64_t n, int64_t y, const LossShares& shares, GradientRows<T>* to_seg,
                     GradientRows<T>* to_annotation) {
    WrongLabel wrong;  // forward has refused it
    read_targets(n, y, wrong);
    if (to_annotation) add_annotation_gradients(n, y, shares, *to_annotation);
    if (to_seg) add_blp_gradients(n, y, shares, *to_seg);
  }

 private:
  void read_targets(int64_t n, int64_t y, WrongLabel& wrong) {
    call_.target.read(n, y, strip_.first, strip_.count, labels_.data(), wrong);
    blp_labels_ = labels_.data();
    if (!call_.blp_target) return;
    call_.blp_target->read(n, y, strip_.first, strip_.count, pseudo_.data(), wrong);
    blp_labels_ = pseudo_.data();
  }

  bool is_class(int32_t label) const { return label >= 0 && label < call_.classes; }
  bool any_counts() const {
    return std::any_of(labels_.begin(), labels_.end(), [](int32_t l) { return l != kIgnored; });
  }

  void add_annotation_terms(int64_t n, int64_t y, LossSums& sums) {
    if (!any_counts()) return;
    annotation_->cover_all(n, y);
    for (int64_t x = 0; x < strip_.count; ++x) classes_[x] = std::max(labels_[x], 0);
    call_.kernels.log_probability(annotation_->pick(all_, classes_.data()), padded(strip_.count),
                                  log_p_.data());
    for (int64_t x = 0; x < strip_.count; ++x) {
      if (labels_[x] == kIgnored) continue;
      const bool labelled = labels_[x] < call_.classes;
      (labelled ? sums.labelled : sums.unlabelled) -= log_p_[x];
      ++(labelled ? sums.labelled_count : sums.unlabelled_count);
    }
  }

  // The classes' log p and weights of the row's labelled pixels, which `labelled_` lists.
  void find_labelled(int64_t n, int64_t y, const int32_t* labels) {
    labelled_.clear();
    for (int64_t x = 0; x < strip_.count; ++x)
      if (is_class(labels[x])) labelled_.push_back(static_cast<int32_t>(x));
    if (labelled_.empty()) return;
    seg_->cover(n, y, labelled_);
    annotation_->cover(n, y, labelled_);
    call_.kernels.blp(seg_->pick(labelled_, labels), annotation_->pick(labelled_, labels),
                      call_.gamma, padded(labelled_.size()), log_p_.data(), weight_.data());
  }

  void add_blp_terms(int64_t n, int64_t y, const int32_t* labels, LossSums& sums) {
    find_labelled(n, y, labels);
    for (size_t i = 0; i < labelled_.size(); ++i) {
      sums.blp -= static_cast<double>(weight_[i]) * log_p_[i];
      sums.blp_weight += weight_[i];
    }
  }

  void make_pseudo_labels(int64_t n, int64_t y, const bool* present, A threshold) {
    pseudo_ = labels_;
    if (std::find(labels_.begin(), labels_.end(), call_.classes) == labels_.end()) return;
    seg_->cover_all(n, y);
    SoftmaxRow<A> of_best = seg_->softmax();
    call_.kernels.best_class(seg_->resized(), present, of_best.logit, classes_.data());
    A* p = weight_.data();
    call_.kernels.probability(of_best, padded(strip_.count), p);
    for (int64_t x = 0; x < strip_.count; ++x) {
      if (labels_[x] != call_.classes) continue;
      const int32_t winner = p[x] > 0 ? classes_[x] : 0;  // of probabilities 0, the lowest class
      pseudo_[x] = p[x] >= threshold ? winner : kIgnored;
    }
  }

  void add_annotation_gradients(int64_t n, int64_t y, const LossShares& shares,
                                GradientRows<T>& to) {
    if (!any_counts()) return;
    annotation_->cover_all(n, y);
    for (int64_t x = 0; x < strip_.count; ++x)
      coefficient_[x] =
          labels_[x] == kIgnored
              ? A(0)
              : static_cast<A>(is_class(labels_[x]) ? shares.labelled : shares.unlabelled);
    spread_row(*annotation_, y, to);
    subtract(all_, labels_.data(), y, *annotation_, to);
  }

  void add_blp_gradients(int64_t n, int64_t y, const LossShares& shares, GradientRows<T>& to) {
    find_labelled(n, y, blp_labels_);
    if (labelled_.empty()) return;
    std::fill(coefficient_.begin(), coefficient_.end(), A(0));
    std::fill(weight_.begin() + labelled_.size(), weight_.end(), A(0));
    for (size_t i = 0; i < labelled_.size(); ++i)
      coefficient_[labelled_[i]] = weight_[i] = static_cast<A>(weight_[i] * shares.blp);
    if (seg_->covers_all())
      spread_row(*seg_, y, to);
    else
      spread_columns(y, to);
    subtract(labelled_, blp_labels_, y, *seg_, to);
  }

  // Adds coefficient * p of every class and pixel.
  void spread_row(RowSoftmax<T>& of, int64_t y, GradientRows<T>& to) {
    const auto rows = to.at(of.vertical_tap(y));
    call_.kernels.spread(of.resized(), of.softmax(), coefficient_.data(), rows.upper, rows.lower);
  }

  // The same for the labelled pixels alone, where only these are covered.
  void spread_columns(int64_t y, GradientRows<T>& to) {
    const Tap<A> t = seg_->vertical_tap(y);
    const auto rows = to.at(t);
    const ResizedRow<A>& side_by_side = seg_->resized();
    const int64_t count = labelled_.size();
    gathered_.assign(side_by_side.classes * side_by_side.pitch, A(0));
    call_.kernels.spread(side_by_side, seg_->softmax(), weight_.data(), gathered_.data(), nullptr);
    for (int64_t k = 0; k < side_by_side.classes; ++k) {
      const A* gradient = gathered_.data() + k * side_by_side.pitch;
      for (int64_t i = 0; i < count; ++i)
        rows.add(k * strip_.pitch() + labelled_[i], t.weight, gradient[i]);
    }
  }

  // Subtracts the coefficient from every pixel's own class.
  void subtract(const std::vector<int32_t>& columns, const int32_t* labels, int64_t y,
                const RowSoftmax<T>& of, GradientRows<T>& to) {
    const Tap<A> t = of.vertical_tap(y);
    const auto rows = to.at(t);
    for (const int32_t x : columns) {
      if (labels[x] == kIgnored) continue;
      rows.add(labels[x] * strip_.pitch() + x, t.weight, -coefficient_[x]);
    }
  }

  const LossCall<T>& call_;
  const Strip<A>& strip_;
  std::optional<RowSoftmax<T>> seg_, annotation_;
  std::vector<int32_t> all_, labelled_;             // columns
  std::vector<int32_t> labels_, pseudo_, classes_;  // of each column
  const int32_t* blp_labels_ = nullptr;
  std::vector<A> log_p_, weight_, coefficient_;
  std::vector<A> gathered_;  // [K, pitch of the labelled columns]
};

}  // namespace blpseg
