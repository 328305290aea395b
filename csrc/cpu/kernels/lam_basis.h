// A basis of few directions for the features of an image, from a sample of its pixels.
//
// The first kAxes directions are (nearly) principal: bounds are made of a pixel's coordinates in
// them and of the norm of the rest. More directions follow, each along the sample that the others
// leave the most of, until nothing is left. Where they are few, products can be had from the
// coordinates; what the directions leave of the pixels outside the sample is measured, not hoped
// for (lam_pack.h). So nothing here needs to be exact but that the directions are orthonormal.
#pragma once

#include "lam_image.h"
#include "simd.h"

namespace blpseg::BLPSEG_CAPABILITY {

inline double inner(const double* a, const double* b, int64_t size) {
  constexpr int width = kWidth<double>;
  Vector<double> sum = {};
  int64_t i = 0;
  for (; i + width <= size; i += width) sum += load(a + i) * load(b + i);
  double total = 0;
  for (int lane = 0; lane < width; ++lane) total += sum[lane];
  for (; i < size; ++i) total += a[i] * b[i];
  return total;
}

// to += factor * from
inline void add(double* to, double factor, const double* from, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] += factor * from[i];
}

// Takes from `vector` its parts along the first `count` directions and makes it a unit vector;
// twice is enough to make it orthogonal to rounding. All zero where nothing but rounding is left.
inline void orthonormalise(double* vector, const double* directions, int64_t count, int64_t dims) {
  const double before = __builtin_sqrt(inner(vector, vector, dims));
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t k = 0; k < count; ++k)
      add(vector, -inner(vector, directions + k * dims, dims), directions + k * dims, dims);
  }
  const double norm = __builtin_sqrt(inner(vector, vector, dims));
  const double factor = norm > 1e-10 * before ? 1 / norm : 0;
  for (int64_t i = 0; i < dims; ++i) vector[i] *= factor;
}

// How much of a feature f may be dropped (squared; given |f|^2): so little that it changes neither
// a score nor a gradient by more than rounding of the pixel's own score does.
template <typename A>
double droppable(double square, double scale) {
  const double unit = sizeof(A) == 4 ? 1.0 / (1LL << 24) : 1.0 / (1LL << 53);
  const double size = scale < 0 ? -scale : scale, score = size * square;
  const double relative = unit * (score > 64 ? score / 8 : 8);
  const double for_gradient = relative * relative * square;
  const double for_score = unit * (score > 1 ? score : 1) / 8 / size;
  return for_gradient < for_score ? for_gradient : for_score;
}

// The sample of which most is left, and how much (squared), in units of what may be.
inline int64_t largest(const double* sample, int64_t count, int64_t dims, const double* allowed,
                       double* most) {
  int64_t index = 0;
  *most = 0;
  for (int64_t s = 0; s < count; ++s) {
    const double square = inner(sample + s * dims, sample + s * dims, dims);
    if (square > *most * allowed[s]) *most = square / allowed[s], index = s;
  }
  return index;
}

inline void take_out(double* sample, int64_t count, const double* direction, int64_t dims) {
  for (int64_t s = 0; s < count; ++s) {
    double* x = sample + s * dims;
    add(x, -inner(x, direction, dims), direction, dims);
  }
}

// The centre of the smallest ball around the sample, nearly: each step goes towards the sample that
// is farthest, and less far than the step before (Badoiu and Clarkson 2003). Products of features
// relative to it are as small as a shift can make the largest of them, and so is their rounding.
// Zero, if that would be to the cost of any sample: one that is small as it is would gain nothing
// but the rounding of large numbers.
inline void find_centre(const double* sample, int64_t count, int64_t dims, double* centre,
                        double* difference) {
  for (int64_t i = 0; i < dims; ++i) centre[i] = 0;
  for (int64_t s = 0; s < count; ++s) add(centre, 1.0 / count, sample + s * dims, dims);
  for (int step = 1; step <= 16; ++step) {
    int64_t farthest = 0;
    double most = -1;
    for (int64_t s = 0; s < count; ++s) {
      for (int64_t i = 0; i < dims; ++i) difference[i] = sample[s * dims + i] - centre[i];
      const double squared = inner(difference, difference, dims);
      if (squared > most) most = squared, farthest = s;
    }
    for (int64_t i = 0; i < dims; ++i)
      centre[i] += (sample[farthest * dims + i] - centre[i]) / (step + 1);
  }
  bool shrinks = true;
  for (int64_t s = 0; s < count; ++s) {
    const double* x = sample + s * dims;  // |x - centre| <= |x|, in other words:
    shrinks = shrinks && inner(centre, centre, dims) <= 2 * inner(centre, x, dims);
  }
  for (int64_t i = 0; i < dims && !shrinks; ++i) centre[i] = 0;
}

// Subspace iteration: each round turns the directions towards the leading eigenvectors of the
// sample's covariance. A few rounds separate what is worth separating.
// directions: [axes, dims], any start; scratch: the same size.
inline void turn_to_principal(double* directions, double* scratch, int64_t axes,
                              const double* sample, int64_t count, int64_t dims) {
  for (int round = 0; round < 3; ++round) {
    for (int64_t i = 0; i < axes * dims; ++i) scratch[i] = 0;
    for (int64_t s = 0; s < count; ++s) {
      const double* x = sample + s * dims;
      for (int64_t k = 0; k < axes; ++k)
        add(scratch + k * dims, inner(x, directions + k * dims, dims), x, dims);
    }
    for (int64_t k = 0; k < axes; ++k) {
      for (int64_t i = 0; i < dims; ++i) directions[k * dims + i] = scratch[k * dims + i];
      orthonormalise(directions + k * dims, directions, k, dims);
    }
  }
}

// See LamKernels. sample: [count + most_directions + kAxes, dims], of which `count` rows are given
// and the others are room to work in.
template <typename A>
void find_basis(LamImage<A>& image, const LamNumbers<A>& numbers, double* sample, int64_t count,
                int64_t most_directions) {
  const int64_t dims = numbers.dims;
  double* directions = sample + count * dims;
  double* scratch = directions + most_directions * dims;

  double allowed[kMostSamples];
  for (int64_t s = 0; s < count; ++s)
    allowed[s] =
        droppable<A>(inner(sample + s * dims, sample + s * dims, dims), double(numbers.scale));

  double* centre = scratch;
  find_centre(sample, count, dims, centre, scratch + dims);
  for (int64_t i = 0; i < dims; ++i) image.centre[i] = A(centre[i]);
  for (int64_t s = 0; s < count; ++s) add(sample + s * dims, -1, centre, dims);

  // A start for the principal directions: unit vectors, each with its own pattern of signs.
  for (int64_t k = 0; k < kAxes; ++k) {
    uint32_t state = 2654435769u * uint32_t(k + 1);
    for (int64_t i = 0; i < dims; ++i) {
      state = state * 1664525u + 1013904223u;
      directions[k * dims + i] = state >> 31 ? 1 : -1;
    }
  }
  turn_to_principal(directions, scratch, kAxes, sample, count, dims);
  for (int64_t k = 0; k < kAxes; ++k) take_out(sample, count, directions + k * dims, dims);

  int64_t found = kAxes;
  constexpr double kEnough = 0.25;  // half, squared, of what may be left of pixels
  double left;
  int64_t next = largest(sample, count, dims, allowed, &left);
  while (left > kEnough && found < most_directions) {
    double* direction = directions + found * dims;
    for (int64_t i = 0; i < dims; ++i) direction[i] = sample[next * dims + i];
    orthonormalise(direction, directions, found, dims);
    take_out(sample, count, direction, dims);
    ++found;
    next = largest(sample, count, dims, allowed, &left);
  }
  image.projected = left <= kEnough && found < dims;
  image.directions = image.projected ? found : kAxes;
  for (int64_t k = 0; k < image.directions; ++k) {
    for (int64_t i = 0; i < dims; ++i) {
      image.basis[k * dims + i] = A(directions[k * dims + i]);
      image.transposed[i * image.directions + k] = A(directions[k * dims + i]);
    }
  }
}

}  // namespace blpseg::BLPSEG_CAPABILITY
