// The two activations and their derivatives, on vectors.
//
//   tanh(x)   float32: x P(x^2) / Q(x^2), degree 4 over 4, fitted (Lawson-weighted least squares) to tanh(x)/x on
//             |x| <= 9.02 with a relative error of 2.1e-8, a third of an ulp; beyond, tanh rounds to +-1.
//             float64: e / (e + 2) with e = expm1(2|x|), which keeps full relative accuracy near 0.
//   relu(x)   x < 0 ? 0 : x, so that NaN passes as it does in torch.
//
// Derivatives need only the output h: tanh' = 1 - h^2, relu' = [h > 0].
#pragma once

#include "vec.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class C>
INLINE Vec<C> clamp(Vec<C> x, C bound) {  // NaN stays NaN: both comparisons are false
  const Vec<C> hi = broadcast(bound), lo = broadcast(-bound);
  x = x > hi ? hi : x;
  return x < lo ? lo : x;
}
// One instruction a side instead of a comparison and a blend; each returns its second operand if either is NaN.
#if defined(__AVX512F__)
template <>
INLINE Vec<float> clamp(Vec<float> x, float bound) {
  return (Vec<float>)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-bound),
                                         _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(bound), (__m512)x));
}
#elif defined(__AVX2__)
template <>
INLINE Vec<float> clamp(Vec<float> x, float bound) {
  return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(-bound), _mm256_min_ps(_mm256_set1_ps(bound), (__m256)x));
}
#endif

INLINE Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  // 14 bits and one Newton step (28 bits): 4 instructions where a zmm division blocks its port for 16 cycles.
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return r + r * (1.0f - x * r);
#else
  return 1.0f / x;
#endif
}

INLINE Vec<float> tanh(Vec<float> x) {
  x = clamp(x, 9.02f);
  const Vec<float> u = x * x;
  Vec<float> p = u * 1.33175656527e-8f + 2.05824096219e-5f;
  p = p * u + 3.49397113197e-3f;
  p = p * u + 0.133796654851f;
  p = p * u + 0.999999979212f;
  Vec<float> q = u * 7.76140592895e-7f + 3.28298768874e-4f;
  q = q * u + 2.58708346112e-2f;
  q = q * u + 0.467129808039f;
  q = q * u + 1.0f;
  // The clamp keeps 1 - h^2 from going negative where rounding carries the quotient past 1.
  return clamp(x * p * reciprocal(q), 1.0f);
}

INLINE Vec<double> tanh(Vec<double> x) {
  const Bits<double> sign_bit = Bits<double>{} + INT64_MIN;
  const Bits<double> sign = bit_cast<Bits<double>>(x) & sign_bit;
  // 2 tanh(20) rounds to 2, so nothing beyond 20 need be told apart.
  const Vec<double> y = 2.0 * clamp(bit_cast<Vec<double>>(bit_cast<Bits<double>>(x) & ~sign_bit), 20.0);
  // expm1(y) = 2^k (1 + expm1(r)) - 1 with y = k ln2 + r, |r| <= ln2 / 2
  const double to_integer = 0x1.8p52;  // adding it leaves round(v) in the low mantissa bits
  const Vec<double> shifted = y * 1.4426950408889634 + to_integer;
  const Vec<double> k = shifted - to_integer;
  const Vec<double> r = (y - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  Vec<double> p = broadcast(1.0 / 87178291200.0);  // Taylor to r^14: the rest is below 2^-58
  p = p * r + 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r;
  const Bits<double> exponent = (bit_cast<Bits<double>>(shifted) + 1023) << 52;
  const Vec<double> scale = bit_cast<Vec<double>>(exponent);
  const Vec<double> e = scale * p + (scale - 1.0);
  const Vec<double> h = e / (e + 2.0);
  return bit_cast<Vec<double>>(bit_cast<Bits<double>>(h) | sign);
}

struct Tanh {
  template <class V>
  static INLINE V value(V x) {
    return tanh(x);
  }
  template <class V>
  static INLINE V backward(V grad, V h) {
    return grad * (1.0f - h * h);
  }
};

struct Relu {
  template <class V>
  static INLINE V value(V x) {
    return x < V{} ? V{} : x;
  }
  template <class V>
  static INLINE V backward(V grad, V h) {
    return h <= V{} ? V{} : grad;
  }
};

struct Identity {
  template <class V>
  static INLINE V value(V x) {
    return x;
  }
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
