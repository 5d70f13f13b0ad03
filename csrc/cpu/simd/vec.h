// Short vectors, one width per instruction set, written with the compiler's vector extension so that the same source
// builds for SSE2, AVX2+FMA, AVX-512 and NEON.
#pragma once

#if defined(__AVX2__) || defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "numbers.h"

namespace rnnfast {
namespace RNNFAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class C>
constexpr int kLanes = kVectorBytes / int(sizeof(C));

template <class C>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<Bf16Pair> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vec = typename VecOf<C>::type;
template <class C>
using Bits = typename VecOf<C>::bits;

typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));

template <class C>
INLINE Vec<C> broadcast(C value) {
  return value - Vec<C>{};  // -0.0 and NaN survive: x - 0 == x
}
INLINE Vec<Bf16Pair> broadcast(Bf16Pair value) { return Vec<Bf16Pair>{} + int32_t(value.bits); }

// Whether a comparison holds for any lane.
template <class B>
INLINE bool any(B holds) {
  int64_t words[sizeof(B) / sizeof(int64_t)], either = 0;
  memcpy(words, &holds, sizeof(words));
  for (const int64_t word : words) either |= word;
  return either != 0;
}

template <class V>
INLINE void multiply_add(V& sum, V a, V b) {
  sum += a * b;
}
#if defined(__AVX512BF16__)
INLINE void multiply_add(Vec<float>& sum, Vec<Bf16Pair> a, Vec<Bf16Pair> b) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// ---- a vector --------------------------------------------------------------------------------------

template <class C>
INLINE Vec<C> load(const C* p) {
  Vec<C> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <class C>
INLINE void store(C* p, Vec<C> v) {
  memcpy(p, &v, sizeof(v));
}

INLINE Vec<float> load(const bf16* p) {
  U16 narrow_bits;
  memcpy(&narrow_bits, p, sizeof(narrow_bits));
  return bit_cast<Vec<float>>(__builtin_convertvector(narrow_bits, U32) << 16);
}
INLINE void store(bf16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh narrow_bits = _mm512_cvtneps_pbh((__m512)v);
#else
  const U32 u = bit_cast<U32>(v);
  const U32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U32 bits = (v != v) ? (u - u + 0x7fc0u) : rounded;
  const U16 narrow_bits = __builtin_convertvector(bits, U16);
#endif
  memcpy(p, &narrow_bits, sizeof(narrow_bits));
}

INLINE Vec<float> load(const f16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}
INLINE void store(f16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < kLanes<float>; ++i) narrow(v[i], p + i);
#endif
}

// ---- the first n lanes of a vector, 0 <= n <= lanes; nothing outside them is touched ---------------

template <class S>
INLINE Vec<Compute<S>> load_n(const S* p, int n) {
  S lanes[kLanes<Compute<S>>];
  memset(lanes, 0, sizeof(lanes));
  memcpy(lanes, p, size_t(n) * sizeof(S));
  return load(lanes);
}
template <class S>
INLINE void store_n(S* p, Vec<Compute<S>> v, int n) {
  S lanes[kLanes<Compute<S>>];
  store(lanes, v);
  memcpy(p, lanes, size_t(n) * sizeof(S));
}
#if defined(__AVX512F__)
template <>
INLINE Vec<float> load_n(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1u), p);
}
template <>
INLINE void store_n(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1u), (__m512)v);
}
template <>
INLINE Vec<double> load_n(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1u), p);
}
template <>
INLINE void store_n(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1u), (__m512d)v);
}
#elif defined(__AVX2__)
// The first n lanes are set, all bits of each.
INLINE __m256i first_of_8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE __m256i first_of_4(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
template <>
INLINE Vec<float> load_n(const float* p, int n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_of_8(n));
}
template <>
INLINE void store_n(float* p, Vec<float> v, int n) {
  _mm256_maskstore_ps(p, first_of_8(n), (__m256)v);
}
template <>
INLINE Vec<double> load_n(const double* p, int n) {
  return (Vec<double>)_mm256_maskload_pd(p, first_of_4(n));
}
template <>
INLINE void store_n(double* p, Vec<double> v, int n) {
  _mm256_maskstore_pd(p, first_of_4(n), (__m256d)v);
}
#endif

template <class S>
INLINE Vec<Compute<S>> load_lanes(const S* p, int lanes) {
  return lanes == kLanes<Compute<S>> ? load(p) : load_n(p, lanes);
}
template <class S>
INLINE void store_lanes(S* p, Vec<Compute<S>> v, int lanes) {
  if (lanes == kLanes<Compute<S>>)
    store(p, v);
  else
    store_n(p, v, lanes);
}

// What a value becomes when it is written as S and read again.
template <class S>
INLINE Vec<Compute<S>> round_to(Vec<Compute<S>> v) {
  S lanes[kLanes<Compute<S>>];
  store(lanes, v);
  return load(lanes);
}
template <>
INLINE Vec<float> round_to<float>(Vec<float> v) {
  return v;
}
template <>
INLINE Vec<double> round_to<double>(Vec<double> v) {
  return v;
}

// ---- units -----------------------------------------------------------------------------------------
//
// A unit is what one lane multiplies in one instruction (numbers.h). For float32 and float64, and for 16-bit types that
// are widened first, it is a value. Where the machine multiplies bfloat16 in pairs it is two values that are neighbours
// in k, and the lane adds both products to one float:
//
//   unit = value       sum[lane] += a[k] * w[k][lane]
//   unit = pair        sum[lane] += a[2u] * w[2u][lane] + a[2u + 1] * w[2u + 1][lane]
//
// A sum over K values is then one over units<S>(K) = ceil(K / 2) units. If K is odd the last pair ends with a zero. In
// a row of A, neighbours in k are neighbours in memory, so a row of pairs is the row itself. In W they are in two rows,
// which `unite` interleaves: lane i gets w[2u][i] in its lower half and w[2u + 1][i] in its upper half.

// The first unit of `count` values that are consecutive in k, from p on.
template <class S>
INLINE Unit<S> unit_at(const S* p, int64_t count) {
  if constexpr (kPerUnit<S> == 1)
    return widen(*p);
  else
    return {p[0].bits | (count > 1 ? uint32_t(p[1].bits) << 16 : 0)};
}

// The first vector of units of `count` values that are consecutive in k, from p on.
template <class S>
INLINE Vec<Unit<S>> load_units(const S* p, int64_t count) {
  constexpr int64_t kMost = kLanes<Unit<S>> * kPerUnit<S>;
  if constexpr (kPerUnit<S> == 1) {
    return load_lanes(p, count < kMost ? int(count) : int(kMost));
  } else {
    Vec<Unit<S>> v{};
    memcpy(&v, p, size_t(count < kMost ? count : kMost) * sizeof(S));
    return v;
  }
}

// A vector of units from one row or, for pairs, two rows that are consecutive in k: `lanes` columns of them and zeros
// after. `second` may be null, for zeros.
template <class S>
INLINE Vec<Unit<S>> unite(const S* first, const S* second, int lanes) {
  if constexpr (kPerUnit<S> == 1) {
    return load_lanes(first, lanes);
  } else {
    U16 low{}, high{};
    if (lanes == kLanes<Unit<S>>) {
      memcpy(&low, first, sizeof(low));
      if (second) memcpy(&high, second, sizeof(high));
    } else {
      memcpy(&low, first, size_t(lanes) * sizeof(S));
      if (second) memcpy(&high, second, size_t(lanes) * sizeof(S));
    }
    const U32 both = __builtin_convertvector(low, U32) | __builtin_convertvector(high, U32) << 16;
    return bit_cast<Vec<Unit<S>>>(both);
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
