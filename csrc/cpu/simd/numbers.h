// The types that are stored and those that are computed with, and conversions of one value.
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

#define INLINE inline __attribute__((always_inline))
// For functions that `python -m rnnfast.inspect` finds by their names.
#if defined(__clang__)
#define KEPT __attribute__((noinline))
#else
#define KEPT __attribute__((noinline, noclone))
#endif

namespace rnnfast {
namespace RNNFAST_ISA {

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
struct __attribute__((packed, aligned(2))) Bf16Pair {
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
  using type = Bf16Pair;
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

template <class To, class From>
INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

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

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
