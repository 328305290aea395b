// A call of lam or lam_backward: its tensors, numbers and kernels, and the memory that it
// allocates.
#pragma once

#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/kernels/lam_image.h"
#include "lam_tile_io.h"
#include "tensor.h"

namespace blpseg {

// The further inputs of backward.
template <typename T>
struct LamUpstream {
  View4<T> grad_output, output;              // [N, C, h, w]
  View<accumulate_t<T>, 3> log_denominator;  // [N, h, w]
};

// The arguments of a call, as kernels use them.
template <typename T>
struct LamCall {
  using A = accumulate_t<T>;

  const Tensor& like;         // has the device and dtype of new tensors
  View4<T> features, values;  // [N, D, h, w], [N, C, h, w]
  LamParams<A> params;
  LamGrid grid;
  const LamKernels<A>& kernels;
  std::optional<LamUpstream<T>> upstream;  // in backward
  bool sums_t_apart = false;               // whether T is summed apart from Z (lam-error.md)

  LamCall(const Tensor& f, const Tensor& v, const LamParams<A>& p, const LamKernels<A>& k)
      : like(f),
        features(f),
        values(v),
        params(p),
        grid(make_grid(f.size(2), f.size(3))),
        kernels(k) {}

  int64_t tiles() const { return grid.rows * grid.columns; }

  // torch's allocator aligns to cache lines, and reports clearly if memory runs out.
  Tensor allocate(std::vector<int64_t> size) const {
    return torch::stable::new_empty(
        like, size, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  }
};

template <typename A>
A* data_ptr(const Tensor& tensor) {
  return static_cast<A*>(tensor.mutable_data_ptr());
}

// Allocates arrays of these sizes in one piece: small images spend their time on allocations.
template <typename T>
Tensor allocate(const LamCall<T>& call,
                std::initializer_list<std::pair<accumulate_t<T>**, int64_t>> arrays) {
  using A = accumulate_t<T>;
  constexpr int64_t kLine = 64 / sizeof(A);
  const auto whole_lines = [](int64_t size) { return (size + kLine - 1) / kLine * kLine; };
  int64_t total = 0;
  for (const auto& [array, size] : arrays) total += whole_lines(size);
  Tensor tensor = call.allocate({total});
  A* next = data_ptr<A>(tensor);
  for (const auto& [array, size] : arrays) {
    *array = next;
    next += whole_lines(size);
  }
  return tensor;
}

}  // namespace blpseg
