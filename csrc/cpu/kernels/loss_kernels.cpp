// The loss kernels for one capability of the CPU: loops over pixels and classes. CMakeLists.txt
// compiles this file once per capability; csrc/losses.h has the formulas.

#include "argmax.h"
#include "bilinear.h"
#include "losses.h"
#include "resized_row.h"

namespace blpseg::BLPSEG_CAPABILITY {

// Return the cells with these indices, all between `first` and `last`. A row that is enlarged has
// few per vector: they are loaded once and permuted.
template <typename A>
inline Vector<A> columns(const A* cells, const int32_t* index, int32_t first, int32_t last) {
  if constexpr (kPermutes<A>) {
    if (last - first < kWidth<A>) return permute<A>(load(cells + first), index, first);
  }
  Vector<A> gathered;
  for (int lane = 0; lane < kWidth<A>; ++lane) gathered[lane] = cells[index[lane]];
  return gathered;
}

template <typename A>
void resize_row(const HorizontalTaps<A>& taps, const A* cells, A* row) {
  for (int64_t x = 0; x < taps.count; x += kWidth<A>) {
    const int32_t first = taps.low[x], last = taps.high[x + kWidth<A> - 1];
    const Vector<A> low = columns(cells, taps.low + x, first, last);
    const Vector<A> high = columns(cells, taps.high + x, first, last);
    store<A>(row + x, lerp<A>(low, high, load(taps.weight + x)));
  }
}

template <typename A>
void resize_columns(const A* corners, const A* weights, A weight_of_lower, int64_t count,
                    A* resized) {
  for (int64_t x = 0; x < count; x += kWidth<A>) {
    const auto corner = [&](int64_t i) { return load(corners + i * count + x); };
    const Vector<A> weight = load(weights + x);
    const Vector<A> upper = lerp<A>(corner(0), corner(1), weight);
    const Vector<A> lower = lerp<A>(corner(2), corner(3), weight);
    store<A>(resized + x, lerp<A>(upper, lower, weight_of_lower));
  }
}

template <typename A>
void resize_row_adjoint(const CellWeights<A>& of, const A* row, A* cells) {
  for (int64_t cell = 0; cell < of.cells; ++cell) {
    const A* weights = of.weights + of.begin[cell];
    const A* from = row + of.first[cell];
    const int64_t count = of.begin[cell + 1] - of.begin[cell];
    A sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weights[i] * from[i];
    cells[cell] = sum;
  }
}

template <typename A>
inline Vector<A> resized(const ResizedRow<A>& row, int64_t k, int64_t x) {
  return lerp<A>(load(row.upper + k * row.pitch + x), load(row.lower + k * row.pitch + x),
                 row.weight);
}

template <typename A>
inline Softmax<A> load_softmax(const SoftmaxRow<A>& row, int64_t x) {
  return {load(row.maximum + x), load(row.sum + x)};
}

template <typename A>
void softmax(const ResizedRow<A>& row, const SoftmaxRow<A>& result) {
  constexpr int width = kWidth<A>;
  for (int64_t x = 0; x < row.count; x += 2 * width) {  // two independent chains hide latency
    Softmax<A> left = no_classes<A>(), right = left;
    for (int64_t k = 0; k < row.classes; ++k) {
      add<A>(left, resized(row, k, x));
      add<A>(right, resized(row, k, x + width));
    }
    store<A>(result.maximum + x, left.maximum);
    store<A>(result.maximum + x + width, right.maximum);
    store<A>(result.sum + x, left.sum);
    store<A>(result.sum + x + width, right.sum);
  }
}

// The lerp is that of softmax(): if a class has the maximum, its logit equals the maximum exactly.
template <typename A>
void gather_at(const ResizedRow<A>& row, const SoftmaxRow<A>& of_row, const int32_t* places,
               const int32_t* classes, int64_t count, const SoftmaxRow<A>& gathered) {
  for (int64_t i = 0; i < count; i += kWidth<A>) {
    Vector<A> upper, lower, maximum, sum;
    for (int lane = 0; lane < kWidth<A>; ++lane) {
      const int64_t x = places[i + lane], at = classes[i + lane] * row.pitch + x;
      upper[lane] = row.upper[at];
      lower[lane] = row.lower[at];
      maximum[lane] = of_row.maximum[x];
      sum[lane] = of_row.sum[x];
    }
    store<A>(gathered.logit + i, lerp<A>(upper, lower, row.weight));
    store<A>(gathered.maximum + i, maximum);
    store<A>(gathered.sum + i, sum);
  }
}

template <typename A>
void probability_row(const SoftmaxRow<A>& row, int64_t count, A* p) {
  for (int64_t x = 0; x < count; x += kWidth<A>)
    store<A>(p + x, probability<A>(load_softmax(row, x), load(row.logit + x)));
}

template <typename A>
void log_probability_row(const SoftmaxRow<A>& row, int64_t count, A* log_p) {
  for (int64_t x = 0; x < count; x += kWidth<A>)
    store<A>(log_p + x, log_probability<A>(load_softmax(row, x), load(row.logit + x)));
}

template <typename A>
void blp(const SoftmaxRow<A>& seg, const SoftmaxRow<A>& annotation, A gamma, int64_t count,
         A* log_p, A* weight) {
  log_probability_row(seg, count, log_p);
  for (int64_t x = 0; x < count; x += kWidth<A>) {
    const Vector<A> p = probability<A>(load_softmax(seg, x), load(seg.logit + x));
    const Vector<A> q = probability<A>(load_softmax(annotation, x), load(annotation.logit + x));
    store<A>(weight + x, blp_weight<A>(p, q, gamma));
  }
}

template <typename A>
void scatter_softmax_grad(const ResizedRow<A>& row, const SoftmaxRow<A>& softmax,
                          const A* coefficient, A* upper, A* lower) {
  for (int64_t x = 0; x < row.count; x += kWidth<A>) {
    const Softmax<A> at = load_softmax(softmax, x);
    const Vector<A> factor = load(coefficient + x) / at.sum;
    for (int64_t k = 0; k < row.classes; ++k) {
      const Vector<A> gradient = exp<A>(resized(row, k, x) - at.maximum) * factor;
      A* up = upper + k * row.pitch + x;
      A* low = lower + k * row.pitch + x;
      store<A>(up, load(up) + (A(1) - row.weight) * gradient);
      if (row.weight != A(0)) store<A>(low, load(low) + row.weight * gradient);
    }
  }
}

template <typename A>
void best_class(const ResizedRow<A>& row, const bool* present, A* best, int32_t* winner) {
  constexpr int width = kWidth<A>;
  for (int64_t x = 0; x < row.count; x += width) {
    Vector<A> leader = broadcast(-A(__builtin_inf()));
    typename Simd<A>::Bits label = {};
    for (int64_t k = 0; k < row.classes; ++k) {
      if (present && !present[k]) continue;
      const Vector<A> logit = resized(row, k, x);
      const auto wins = beats(logit, leader);
      leader = wins ? logit : leader;
      label = wins ? typename Simd<A>::Bits{} + static_cast<int32_t>(k) : label;
    }
    store<A>(best + x, leader);
    for (int lane = 0; lane < width; ++lane) winner[x + lane] = static_cast<int32_t>(label[lane]);
  }
}

template <typename A>
const LossKernels<A>& loss_kernels() {
  static constexpr LossKernels<A> kernels = [] {
    LossKernels<A> table = {};
    table.resize_row = resize_row<A>;
    table.resize_columns = resize_columns<A>;
    table.resize_row_adjoint = resize_row_adjoint<A>;
    table.softmax = softmax<A>;
    table.gather_at = gather_at<A>;
    table.probability = probability_row<A>;
    table.log_probability = log_probability_row<A>;
    table.blp = blp<A>;
    table.scatter_softmax_grad = scatter_softmax_grad<A>;
    table.best_class = best_class<A>;
    return table;
  }();
  return kernels;
}

template const LossKernels<float>& loss_kernels<float>();
template const LossKernels<double>& loss_kernels<double>();

}  // namespace blpseg::BLPSEG_CAPABILITY
