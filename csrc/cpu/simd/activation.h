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

template <class V>
INLINE V at_most(V x, V bound) {  // a NaN compares false and so stays NaN
  return x > bound ? bound : x;
}
#if defined(__AVX512F__)
// The instruction returns its second operand if either is NaN.
INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)bound, (__m512)x);
}
#elif defined(__AVX2__)
INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return (Vec<float>)_mm256_min_ps((__m256)bound, (__m256)x);
}
#endif

// a / b for b > 0, limited to magnitude 1. The result is NaN if both are NaN, and may be a number if only one is.
INLINE Vec<float> ratio_to_1(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  a = (Vec<float>)_mm512_maskz_range_ps(0xffff, (__m512)a, (__m512)b, 2);  // the smaller magnitude, with a's sign
  // The reciprocal has 14 bits and one Newton step on the quotient makes it 28. These are 4 instructions; a zmm
  // division occupies its port for 16 cycles. For a = b the quotient is 1 - 2^-28, which rounds to 1, so no result
  // exceeds 1. The order of the signs keeps -0 as it is.
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);
  const Vec<float> h = a * r, excess = h * b - a;
  return h - excess * r;
#else
  return -at_most(-at_most(a, b), b) / b;
#endif
}

INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> u = at_most(x * x, broadcast(81.3604f));  // beyond it x P exceeds Q and the ratio is 1
  Vec<float> p = u * 1.715926486e-2f + 2.651820785e1f;
  p = p * u + 4.501444869e3f;
  p = p * u + 1.723737365e5f;
  p = p * u + 1.288320511e6f;
  Vec<float> q = u + 4.229687350e2f;
  q = q * u + 3.333027042e4f;
  q = q * u + 6.018136831e5f;
  q = q * u + 1.288320538e6f;
  return ratio_to_1(x * p, q);
}

INLINE Vec<double> tanh(Vec<double> x) {
  const Bits<double> sign_bit = Bits<double>{} + INT64_MIN;
  const Bits<double> sign = bit_cast<Bits<double>>(x) & sign_bit;
  // tanh(20) rounds to 1, so that |x| may be limited to 20.
  const Vec<double> y = 2.0 * at_most(bit_cast<Vec<double>>(bit_cast<Bits<double>>(x) & ~sign_bit), broadcast(20.0));
  // expm1(y) = 2^k (1 + expm1(r)) - 1 with y = k ln2 + r, |r| <= ln2 / 2
  const double to_integer = 0x1.8p52;  // adding it leaves round(v) in the low mantissa bits
  const Vec<double> shifted = y * 1.4426950408889634 + to_integer;
  const Vec<double> k = shifted - to_integer;
  const Vec<double> r = (y - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  Vec<double> p = broadcast(1.0 / 87178291200.0);  // Taylor series to r^14; the remainder is below 2^-58
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

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
