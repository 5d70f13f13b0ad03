// Short vectors, one width per instruction set, written with the compiler's vector extension so that the same source
// builds for SSE2, AVX2+FMA, AVX-512 and NEON.
//
// Everything is in a namespace named after the instruction set (RNNFAST_ISA). If the linker merged one inline function
// that was compiled for two sets, a machine without AVX-512 could be given AVX-512 code. For the same reason no header
// that is compiled per set includes a C++ library header with inline functions.
//
// The 16-bit types are stored only and all arithmetic on them is float32, so float16 takes half the memory of float32
// and as much time. (torch takes 7 times as long as that forward and 27 times in training at T = 100, B = 32, H = 256
// on Zen 4.) bfloat16 is like it unless the machine multiplies pairs (AVX512-BF16): then it takes 0.4 to 0.6 of
// float32's time, and that instruction treats subnormal numbers as zero.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
// For functions that `python -m rnnfast.inspect` finds by their names.
#if defined(__clang__)
#define KEPT __attribute__((noinline))
#else
#define KEPT __attribute__((noinline, noclone))
#endif

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

// Storage types; float and double are the others.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;
template <class S>
constexpr bool kNarrow = sizeof(S) != sizeof(Compute<S>);

// Two bfloat16 that are consecutive in k, the first in the lower half.
struct __attribute__((packed, aligned(2))) Pair {
  uint32_t bits;
};

// The operand of a multiply-add for storage type S, the number of values in it, and the type in which the recurrence
// carries its state. A unit is one value in compute precision or, where the machine multiplies bfloat16 in pairs and
// adds both products to a float32, a pair.
template <class S>
struct UnitOf {
  using type = Compute<S>;
  using carried = Compute<S>;
  static constexpr int values = 1;
};
#if defined(__AVX512BF16__)
template <>
struct UnitOf<bf16> {
  using type = Pair;
  using carried = bf16;
  static constexpr int values = 2;
};
#endif
template <class S>
using Unit = typename UnitOf<S>::type;
template <class S>
using Carried = typename UnitOf<S>::carried;
template <class S>
constexpr int kPerUnit = UnitOf<S>::values;
template <class S>
constexpr int64_t units(int64_t values) {
  return (values + kPerUnit<S> - 1) / kPerUnit<S>;
}

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
struct VecOf<Pair> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vec = typename VecOf<C>::type;
template <class C>
using Bits = typename VecOf<C>::bits;

typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));

template <class To, class From>
INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class C>
INLINE Vec<C> broadcast(C value) {
  return value - Vec<C>{};  // -0.0 and NaN survive: x - 0 == x
}
INLINE Vec<Pair> broadcast(Pair value) { return Vec<Pair>{} + int32_t(value.bits); }

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
INLINE void multiply_add(Vec<float>& sum, Vec<Pair> a, Vec<Pair> b) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// ---- one value -------------------------------------------------------------------------------------

INLINE float widen(float v) { return v; }
INLINE double widen(double v) { return v; }
INLINE float widen(bf16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
INLINE float widen(f16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu;
  float f = bit_cast<float>(magnitude << 13) * 0x1p112f;  // changes the exponent's bias, of subnormals too
  if (magnitude >= 0x7c00u) f = bit_cast<float>(bit_cast<uint32_t>(f) | 0x7f800000u);
  return bit_cast<float>(bit_cast<uint32_t>(f) | (uint32_t(v.bits & 0x8000u) << 16));
}

INLINE void narrow(float v, float* p) { *p = v; }
INLINE void narrow(double v, double* p) { *p = v; }
INLINE void narrow(float v, bf16* p) {  // round to nearest even
  const uint32_t u = bit_cast<uint32_t>(v);
  p->bits = v != v ? 0x7fc0 : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
INLINE void narrow(float v, f16* p) {  // round to nearest even
  const uint32_t u = bit_cast<uint32_t>(v), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u)
    h = 0x7e00u;
  else if (magnitude >= 0x477ff000u)  // 65520 and above round to infinity
    h = 0x7c00u;
  else if (magnitude < 0x38800000u)  // subnormal: adding 0.5 leaves the rounded result in the low bits
    h = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  else
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  p->bits = uint16_t(h | sign);
}

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
