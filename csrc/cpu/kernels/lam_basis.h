// An orthonormal basis for the features of an image, computed from a sample of its pixels.
//
// The first kAxes directions are (nearly) principal ones: upper bounds use the coordinates along
// them. Further directions follow, each along the sample with the largest residual, until every
// residual is tolerated. If they are few, scores are computed from the coordinates. The residuals
// of all other pixels are measured later (lam_tile_features.h), so nothing here has to be exact but
// that the directions are orthonormal.
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

// Makes `vector` a unit vector orthogonal to the first `count` directions. Two passes make it
// orthogonal up to rounding. Returns zeros if only rounding remains.
inline void orthonormalize(double* vector, const double* directions, int64_t count, int64_t dims) {
  const double before = __builtin_sqrt(inner(vector, vector, dims));
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t k = 0; k < count; ++k)
      add(vector, -inner(vector, directions + k * dims, dims), directions + k * dims, dims);
  }
  const double norm = __builtin_sqrt(inner(vector, vector, dims));
  const double factor = norm > 1e-10 * before ? 1 / norm : 0;
  for (int64_t i = 0; i < dims; ++i) vector[i] *= factor;
}

// Returns the squared norm that may be dropped of a feature f with |f|^2 = square: it changes a
// score or a gradient by less than rounding of the pixel's own score does.
template <typename A>
double tolerated_sq_residual(double square, double scale) {
  const double unit = sizeof(A) == 4 ? 1.0 / (1LL << 24) : 1.0 / (1LL << 53);
  const double size = scale < 0 ? -scale : scale, score = size * square;
  const double relative = unit * (score > 64 ? score / 8 : 8);
  const double for_gradient = relative * relative * square;
  const double for_score = unit * (score > 1 ? score : 1) / 8 / size;
  return for_gradient < for_score ? for_gradient : for_score;
}

// Returns the sample with the largest residual; *most = squared residual / tolerated squared
// residual.
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

inline void project_out(double* sample, int64_t count, const double* direction, int64_t dims) {
  for (int64_t s = 0; s < count; ++s) {
    double* x = sample + s * dims;
    add(x, -inner(x, direction, dims), direction, dims);
  }
}

// Computes nearly the center of the smallest ball around the sample: each step goes towards the
// farthest sample, by less than the step before (Badoiu and Clarkson 2003). No other center makes
// the largest |f - center|, and so the rounding of scores, smaller. Returns 0 if that would enlarge
// any sample: a small one would get the rounding errors of large numbers.
inline void find_center(const double* sample, int64_t count, int64_t dims, double* center,
                        double* difference) {
  for (int64_t i = 0; i < dims; ++i) center[i] = 0;
  for (int64_t s = 0; s < count; ++s) add(center, 1.0 / count, sample + s * dims, dims);
  for (int step = 1; step <= 16; ++step) {
    int64_t farthest = 0;
    double most = -1;
    for (int64_t s = 0; s < count; ++s) {
      for (int64_t i = 0; i < dims; ++i) difference[i] = sample[s * dims + i] - center[i];
      const double squared = inner(difference, difference, dims);
      if (squared > most) most = squared, farthest = s;
    }
    for (int64_t i = 0; i < dims; ++i)
      center[i] += (sample[farthest * dims + i] - center[i]) / (step + 1);
  }
  bool shrinks = true;
  for (int64_t s = 0; s < count; ++s) {
    const double* x = sample + s * dims;  // |x - center| <= |x|, in other words:
    shrinks = shrinks && inner(center, center, dims) <= 2 * inner(center, x, dims);
  }
  for (int64_t i = 0; i < dims && !shrinks; ++i) center[i] = 0;
}

// Subspace iteration: each round turns the directions towards the leading eigenvectors of the
// sample's covariance. Three rounds are enough for bounds.
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
      orthonormalize(directions + k * dims, directions, k, dims);
    }
  }
}

// See LamKernels. sample: [count + most_directions + kMoreCoordinates, dims], of which `count` rows
// are given and the others are work space.
template <typename A>
void find_basis(LamImage<A>& image, const LamParams<A>& params, double* sample, int64_t count,
                int64_t most_directions) {
  const int64_t dims = params.dims;
  double* directions = sample + count * dims;
  double* scratch = directions + most_directions * dims;

  double allowed[kMostSamples];
  for (int64_t s = 0; s < count; ++s)
    allowed[s] = tolerated_sq_residual<A>(inner(sample + s * dims, sample + s * dims, dims),
                                          double(params.scale));

  double* center = scratch;
  find_center(sample, count, dims, center, scratch + dims);
  for (int64_t i = 0; i < dims; ++i) image.center[i] = A(center[i]);
  for (int64_t s = 0; s < count; ++s) add(sample + s * dims, -1, center, dims);

  const int64_t axes = most_directions > params.principal_axes ? params.principal_axes : kAxes;
  // Start of the iteration: vectors of random signs.
  for (int64_t k = 0; k < axes; ++k) {
    uint32_t state = 2654435769u * uint32_t(k + 1);
    for (int64_t i = 0; i < dims; ++i) {
      state = state * 1664525u + 1013904223u;
      directions[k * dims + i] = state >> 31 ? 1 : -1;
    }
  }
  turn_to_principal(directions, scratch, axes, sample, count, dims);

  constexpr double kEnough = 0.25;  // samples: half (squared) of the tolerance of other pixels
  double left = 0;
  int64_t found = 0, next = 0;
  while (found < kAxes || (found < axes && left > kEnough)) {
    project_out(sample, count, directions + found * dims, dims);
    if (++found >= kAxes) next = largest(sample, count, dims, allowed, &left);
  }
  while (left > kEnough && found < most_directions) {
    double* direction = directions + found * dims;
    for (int64_t i = 0; i < dims; ++i) direction[i] = sample[next * dims + i];
    orthonormalize(direction, directions, found, dims);
    project_out(sample, count, direction, dims);
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
