// Vectors as wide as the variant that this file is compiled for: csrc/cpu/kernels/lam_kernels.cpp
// is built once per capability (see CMakeLists.txt), and all it contains lives in a namespace of
// that name.
//
// The compilers' own vector extension does the arithmetic, so that one source serves x86 and arm;
// intrinsics are left to what it cannot say. No header of the standard library or of torch may be
// included where these are: an inline function of theirs, compiled for AVX-512 here, could be the
// copy that the linker keeps for everyone.
#pragma once

#include <stdint.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if !defined(BLPSEG_CAPABILITY)
#error "BLPSEG_CAPABILITY names the variant: portable, avx2 or avx512"
#endif

#define BLPSEG_INLINE inline

namespace blpseg::BLPSEG_CAPABILITY {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorsAcross = 4;  // of a register block: 4 x 4 accumulators fit in 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kVectorsAcross = 2;  // 4 x 2 accumulators fit in 16 registers
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorsAcross = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorsAcross = 2;
#endif

template <typename A>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));  // which wrap around
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kOne = 127u << kMantissa;  // the bits of 1.0
  static constexpr float kRound = 12582912.0f;         // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLeast = -__FLT_MAX__;        // of all finite numbers
  static constexpr float kLowest = -87.33f;            // below, exp leaves the normal numbers: 0
  static constexpr float kSmallest = __FLT_MIN__;      // of the normal numbers
  static constexpr uint32_t kRootHalf = 0x3f3504f3;    // the bits of sqrt(1/2)
  static constexpr int kAtanhTerms = 5;                // of log's series: the next is below 1e-9
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;
  // (exp(r) - 1 - r) / r^2 interpolated at the Chebyshev nodes of |r| <= ln(2) / 2: error 1e-8.
  static constexpr float kPolynomial[] = {0.5f, 0.166665770256f, 0.0416665546621f,
                                          0.00836317307451f, 0.00139261761199f};
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kOne = uint64_t{1023} << kMantissa;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLeast = -__DBL_MAX__;
  static constexpr double kLowest = -708.39;
  static constexpr double kSmallest = __DBL_MIN__;
  static constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  static constexpr int kAtanhTerms = 11;
  static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723e-6;
  // As above: error 1.7e-17.
  static constexpr double kPolynomial[] = {0.500000000000000102,     0.166666666666666675,
                                           0.0416666666666241619,    0.00833333333333006445,
                                           0.00138888889171967191,   0.000198412698630405453,
                                           0.0000248015213223686933, 2.75572684803100255e-6,
                                           2.76200758799833666e-7,   2.51003758325612337e-8};
};

template <typename A>
using Vector = typename Simd<A>::Vector;

template <typename A>
constexpr int kWidth = kVectorBytes / sizeof(A);

template <typename A>
inline Vector<A> load(const A* from) {
  Vector<A> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename A>
inline void store(A* to, Vector<A> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <typename A>
inline Vector<A> broadcast(A value) {
  return value - Vector<A>{};
}

// Return a * b + c, rounded once; portable x86 code lacks the instruction and rounds twice. It is
// explicit since -ffp-contract leaves open which product of a * b + x * y is fused.
#if defined(__AVX512F__)
inline Simd<float>::Vector multiply_add(Simd<float>::Vector a, Simd<float>::Vector b,
                                        Simd<float>::Vector c) {
  return (Simd<float>::Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

inline Simd<double>::Vector multiply_add(Simd<double>::Vector a, Simd<double>::Vector b,
                                         Simd<double>::Vector c) {
  return (Simd<double>::Vector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
inline Simd<float>::Vector multiply_add(Simd<float>::Vector a, Simd<float>::Vector b,
                                        Simd<float>::Vector c) {
  return (Simd<float>::Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

inline Simd<double>::Vector multiply_add(Simd<double>::Vector a, Simd<double>::Vector b,
                                         Simd<double>::Vector c) {
  return (Simd<double>::Vector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
template <typename V>
inline V multiply_add(V a, V b, V c) {
#if defined(__aarch64__)
  asm("" : "+w"(c));  // hides the product in c, so that a * b is the one that is fused
#endif
  return a * b + c;
}
#endif

// The larger of each pair; b where either is NaN.
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

template <typename V>
inline V smaller(V a, V b) {
  return a < b ? a : b;
}

// Whether any lane of a is above that of b.
template <typename V>
inline bool any_above(V a, V b) {
  auto above = a > b;
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)above) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)above) != 0;
#else
  typedef int64_t Halves __attribute__((vector_size(16)));
  const Halves halves = (Halves)above;
  return (halves[0] | halves[1]) != 0;
#endif
}

// Lane i of the result is lane index[i] - first of v, where the machine has an instruction for
// that.
template <typename A>
Vector<A> permute(Vector<A> v, const int32_t* index, int32_t first);

#if defined(__AVX512F__)
template <typename A>
constexpr bool kPermutes = true;

template <>
inline Vector<float> permute<float>(Vector<float> v, const int32_t* index, int32_t first) {
  const __m512i lanes = _mm512_sub_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(first));
  return _mm512_maskz_permutexvar_ps(0xffff, lanes, v);  // without a mask gcc 12 warns
}

template <>
inline Vector<double> permute<double>(Vector<double> v, const int32_t* index, int32_t first) {
  const __m256i lanes =
      _mm256_sub_epi32(_mm256_loadu_si256((const __m256i*)index), _mm256_set1_epi32(first));
  return _mm512_maskz_permutexvar_pd(0xff, _mm512_maskz_cvtepi32_epi64(0xff, lanes), v);
}
#elif defined(__AVX2__)
template <typename A>
constexpr bool kPermutes = sizeof(A) == 4;

template <>
inline Vector<float> permute<float>(Vector<float> v, const int32_t* index, int32_t first) {
  const __m256i lanes =
      _mm256_sub_epi32(_mm256_loadu_si256((const __m256i*)index), _mm256_set1_epi32(first));
  return _mm256_permutevar8x32_ps(v, lanes);
}
#else
template <typename A>
constexpr bool kPermutes = false;
#endif

// exp, to the last place or two; 0 below the normal numbers; NaN for NaN.
template <typename A>
inline Vector<A> exp(Vector<A> x) {
  using S = Simd<A>;
  using Words = typename S::Words;
  const Vector<A> shifted = x * A(1.4426950408889634) + S::kRound;
  const Vector<A> n = shifted - S::kRound;
  Vector<A> r = x - n * S::kLn2High;
  r = r - n * S::kLn2Low;
  constexpr int terms = sizeof(S::kPolynomial) / sizeof(A);
  Vector<A> q = broadcast(S::kPolynomial[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) q = q * r + S::kPolynomial[i];
  const Vector<A> mantissa = (r * r) * q + r + A(1);
  // The low bits of `shifted` hold n; in the exponent's place they make 2^n.
  const Words exponent = ((Words)shifted << S::kMantissa) + S::kOne;
  return x < S::kLowest ? Vector<A>{} : mantissa * (Vector<A>)exponent;
}

constexpr double kRoughError = 1e-4;

// exp with a relative error below kRoughError, in 2/3 of exp's instructions; 0 below the normal
// numbers. x must be finite or -infinity, and exp(x) finite.
template <typename A>
inline Vector<A> exp_roughly(Vector<A> x) {
  using S = Simd<A>;
  using Words = typename S::Words;
  const Vector<A> power = x * A(1.4426950408889634);
  const Vector<A> shifted = power + S::kRound;
  const Vector<A> f = power - (shifted - S::kRound);
  // 2^f for |f| <= 1/2, with the smallest relative error that 4 terms allow: 7.5e-5.
  const Vector<A> mantissa =
      ((f * A(0.05517167) + A(0.24261112)) * f + A(0.69326099)) * f + A(0.99992807);
  // The low bits of `shifted` hold n; added to the exponent they multiply by 2^n.
  const Words bits = (Words)mantissa + ((Words)shifted << S::kMantissa);
  return x < S::kLowest ? Vector<A>{} : (Vector<A>)bits;
}

// log of a number >= 0, to the last place or two; -inf for 0; NaN for NaN. What is smaller than the
// normal numbers counts as 0.
template <typename A>
inline Vector<A> log(Vector<A> x) {
  using S = Simd<A>;
  using Bits = typename S::Bits;
  using Words = typename S::Words;
  // x = 2^n m with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh((m - 1) / (m + 1)).
  const Bits exponent = (Bits)((Words)x - S::kRootHalf) >> S::kMantissa;
  const Vector<A> m = (Vector<A>)((Words)x - ((Words)exponent << S::kMantissa));
  const Vector<A> n = __builtin_convertvector(exponent, Vector<A>);
  const Vector<A> f = m - A(1);
  const Vector<A> t = f / (f + A(2));
  const Vector<A> t2 = t * t;
  Vector<A> series = broadcast(A(1) / (2 * S::kAtanhTerms + 1));
#pragma GCC unroll 16
  for (int i = S::kAtanhTerms - 1; i >= 1; --i) series = series * t2 + A(1) / (2 * i + 1);
  const Vector<A> tail = (t + t) * (t2 * series) + n * S::kLn2Low;
  const Vector<A> result = n * S::kLn2High + ((t + t) + tail);
  const Vector<A> infinity = broadcast(A(__builtin_inf()));
  const Vector<A> regular = x < infinity ? result : x;  // inf and NaN stay
  return x < S::kSmallest ? -infinity : regular;
}

}  // namespace blpseg::BLPSEG_CAPABILITY
