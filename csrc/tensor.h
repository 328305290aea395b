// How kernels take tensors from torch: element types and strided views.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace blpseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type to compute in: float64 for float64 inputs, else float32.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Call visit(T{}) with the C++ type T of a floating-point dtype; errors name the tensor `argument`.
template <typename F>
void dispatch_floating(const char* op, const char* argument, ScalarType dtype, F&& visit) {
  switch (dtype) {
    case ScalarType::Float:
      return visit(float{});
    case ScalarType::Double:
      return visit(double{});
    case ScalarType::Half:
      return visit(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return visit(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected ", argument,
                      " of float16, bfloat16, float32 or float64, got ",
                      torch::headeronly::toString(dtype));
  }
}

// Return the dtype of label maps that ops make: uint8 if the classes and ignore_index fit, else
// int32. blpseg_ops/_checks.py has the same rule.
inline ScalarType label_dtype(int64_t classes, int64_t ignore_index = 0) {
  const bool fits = classes <= 255 && 0 <= ignore_index && ignore_index <= 255;
  return fits ? ScalarType::Byte : ScalarType::Int;
}

// Call visit(T{}) with the C++ type T of such a label map.
template <typename F>
void dispatch_label(ScalarType dtype, F&& visit) {
  return dtype == ScalarType::Byte ? visit(uint8_t{}) : visit(int32_t{});
}

// A tensor as kernels see it, to read (View) or to write (OutputView). It keeps the strides, so
// that no layout needs a copy.
template <typename T, int axes>
struct StridedView {
  T* data;
  int64_t size[axes];
  int64_t stride[axes];

  explicit StridedView(const Tensor& tensor) : data(data_of(tensor)) {
    for (int axis = 0; axis < axes; ++axis) {
      size[axis] = tensor.size(axis);
      stride[axis] = tensor.stride(axis);
    }
  }

  // Return the address of these indices along the first axes, and 0 along the others.
  template <typename... Index>
  BLPSEG_HOST_DEVICE T* at(Index... index) const {
    static_assert(sizeof...(index) <= axes);
    int axis = 0;
    int64_t offset = 0;
    ((offset += index * stride[axis++]), ...);
    return data + offset;
  }

 private:
  static T* data_of(const Tensor& tensor) {
    if constexpr (std::is_const_v<T>)
      return static_cast<T*>(tensor.const_data_ptr());
    else
      return static_cast<T*>(tensor.mutable_data_ptr());
  }
};

template <typename T, int axes>
using View = StridedView<const T, axes>;
template <typename T>
using View4 = View<T, 4>;  // [N, C, H, W]
template <typename T, int axes>
using OutputView = StridedView<T, axes>;
template <typename T>
using OutputView4 = OutputView<T, 4>;

}  // namespace blpseg
