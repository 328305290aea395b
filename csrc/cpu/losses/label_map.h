// Targets: label maps of any integer type, read row by row.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "tensor.h"

namespace blpseg {

// A value that no target may hold, and its position; errors name the first one of a target.
struct WrongLabel {
  int64_t place = std::numeric_limits<int64_t>::max();
  int64_t value = 0;
};

constexpr int32_t kIgnored = -1;

// A label map [N, H, W]: 0..K-1 is a class, K is unlabeled, ignore_index is ignored.
class LabelMap {
 public:
  LabelMap(const Tensor& tensor, int64_t classes, int64_t ignore_index)
      : tensor_(tensor), dtype_(tensor.scalar_type()), classes_(classes), ignore_(ignore_index) {}

  int64_t size(int axis) const { return tensor_.size(axis); }

  // Read columns first, first + 1, ... of row y of image n. ignore_index and wrong values become
  // kIgnored.
  void read(int64_t n, int64_t y, int64_t first, int64_t count, int32_t* labels,
            WrongLabel& wrong) const {
    switch (dtype_) {
      case ScalarType::Byte:
        return read_as<uint8_t>(n, y, first, count, labels, wrong);
      case ScalarType::Short:
        return read_as<int16_t>(n, y, first, count, labels, wrong);
      case ScalarType::Int:
        return read_as<int32_t>(n, y, first, count, labels, wrong);
      default:
        return read_as<int64_t>(n, y, first, count, labels, wrong);
    }
  }

 private:
  template <typename I>
  void read_as(int64_t n, int64_t y, int64_t first, int64_t count, int32_t* labels,
               WrongLabel& wrong) const {
    const View<I, 3> view(tensor_);
    const I* in = view.at(n, y, first);
    for (int64_t x = 0; x < count; ++x) {
      const int64_t value = in[x * view.stride[2]];
      const bool counts = (value >= 0) & (value <= classes_);
      labels[x] = counts ? static_cast<int32_t>(value) : kIgnored;
      if (!counts && value != ignore_) {
        const int64_t place = (n * view.size[1] + y) * view.size[2] + first + x;
        if (place < wrong.place) wrong = {place, value};
      }
    }
  }

  const Tensor tensor_;
  const ScalarType dtype_;
  const int64_t classes_, ignore_;
};

// Write a row of labels to a contiguous label map [N, H, W]; kIgnored becomes ignore_index.
template <typename Label>
void write_labels(const int32_t* labels, int64_t count, int64_t ignore_index, Label* out) {
  for (int64_t x = 0; x < count; ++x)
    out[x] = static_cast<Label>(labels[x] == kIgnored ? ignore_index : labels[x]);
}

}  // namespace blpseg
