// The activations and their derivatives, on vectors.
//
//   tanh(x)   float32: x P(x^2) / Q(x^2), degree 4 over 4, fitted (Lawson-weighted least squares) to tanh(x)/x on
//             |x| <= 9.02 with a relative error of 2.1e-8, a third of an ulp; beyond, tanh rounds to +-1.
//             float64: e / (e + 2) with e = expm1(2|x|), which keeps full relative accuracy near 0.
//   relu(x)   x < 0 ? 0 : x, so that NaN passes as it does in torch.
//   sigmoid(x)    1 / (1 + e) or, of a negative x, e / (1 + e), with e = exp(-|x|): relative accuracy at both ends
//   softplus(x)   max(x, 0) + log1p(e), without the threshold from which on torch.nn.Softplus returns x
//
// Derivatives need only the output h; ../../common.h has them.
#pragma once

#include "../../common.h"
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

// The constants of exp(x) = 2^k (1 + expm1(r)) with x = k ln2 + r, |r| <= ln2 / 2.
template <class C>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kToInteger = 0x1.8p23f;  // adding it leaves round(v) in the low mantissa bits
  static constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kMost = 104.0f;  // exp(-104) rounds to 0
  static constexpr int32_t kBias = 127, kMantissa = 23;
};
template <>
struct Exp<double> {
  static constexpr double kToInteger = 0x1.8p52;
  static constexpr double kLog2e = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                          kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kMost = 746.0;
  static constexpr int64_t kBias = 1023, kMantissa = 52;
};

// expm1(r) for |r| <= ln2 / 2, as Taylor series: of degree 7, whose relative remainder is 1.6e-8, and 14, 2^-58.
INLINE Vec<float> expm1_near_0(Vec<float> r) {
  Vec<float> p = broadcast(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  return p * r * r + r;
}
INLINE Vec<double> expm1_near_0(Vec<double> r) {
  Vec<double> p = broadcast(1.0 / 87178291200.0);
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
  return p * r * r + r;
}

INLINE Vec<double> tanh(Vec<double> x) {
  const Bits<double> sign_bit = Bits<double>{} + INT64_MIN;
  const Bits<double> sign = bit_cast<Bits<double>>(x) & sign_bit;
  // tanh(20) rounds to 1, so that |x| may be limited to 20.
  const Vec<double> y = 2.0 * at_most(bit_cast<Vec<double>>(bit_cast<Bits<double>>(x) & ~sign_bit), broadcast(20.0));
  // expm1(y) = 2^k (1 + expm1(r)) - 1
  const Vec<double> shifted = y * Exp<double>::kLog2e + Exp<double>::kToInteger;
  const Vec<double> k = shifted - Exp<double>::kToInteger;
  const Vec<double> r = (y - k * Exp<double>::kLn2High) - k * Exp<double>::kLn2Low;
  const Vec<double> p = expm1_near_0(r);
  const Bits<double> exponent = (bit_cast<Bits<double>>(shifted) + 1023) << 52;
  const Vec<double> scale = bit_cast<Vec<double>>(exponent);
  const Vec<double> e = scale * p + (scale - 1.0);
  const Vec<double> h = e / (e + 2.0);
  return bit_cast<Vec<double>>(bit_cast<Bits<double>>(h) | sign);
}

// exp(-y) = 2^k (1 + p) for y >= 0. A NaN makes p NaN.
template <class C>
struct Power {
  Vec<C> p;
  Bits<C> k;

  INLINE explicit Power(Vec<C> y) {
    const Vec<C> x = -y;
    const Vec<C> shifted = x * Exp<C>::kLog2e + Exp<C>::kToInteger;
    const Vec<C> rounded = shifted - Exp<C>::kToInteger;
    p = expm1_near_0((x - rounded * Exp<C>::kLn2High) - rounded * Exp<C>::kLn2Low);
    k = bit_cast<Bits<C>>(shifted) - bit_cast<Bits<C>>(Vec<C>{} + Exp<C>::kToInteger);
  }
  static INLINE Vec<C> power_of_2(Bits<C> exponent) {
    return bit_cast<Vec<C>>((exponent + Exp<C>::kBias) << int(Exp<C>::kMantissa));
  }
};

template <class C>
INLINE Vec<C> magnitude(Vec<C> x) {
  return bit_cast<Vec<C>>(bit_cast<Bits<C>>(x) & (~Bits<C>{} ^ bit_cast<Bits<C>>(-Vec<C>{})));
}

// exp(-|x|), down to the subnormal numbers, whose power of two is taken in two factors.
template <class C>
INLINE Vec<C> exp_of_minus(Vec<C> x) {
  const Power<C> e(at_most(magnitude<C>(x), broadcast(Exp<C>::kMost)));
  const Bits<C> half = e.k >> 1;
  return (e.p + C(1)) * Power<C>::power_of_2(half) * Power<C>::power_of_2(e.k - half);
}

// 1 - exp(-h) for h >= 0. From h = 40 on it rounds to 1.
template <class C>
INLINE Vec<C> minus_expm1_of_minus(Vec<C> h) {
  const Power<C> e(at_most(h, broadcast(C(40))));
  const Vec<C> scale = Power<C>::power_of_2(e.k);
  return (C(1) - scale) - scale * e.p;
}

template <class C>
INLINE Vec<C> sigmoid(Vec<C> x) {
  const Vec<C> e = exp_of_minus<C>(x), one = broadcast(C(1));
  return (x < Vec<C>{} ? e : one) / (one + e);
}

// log1p(e) = 2 atanh(s) with s = e / (2 + e) <= 1/3, as a series in s^2 whose remainder is below the last bit.
template <class C>
INLINE Vec<C> softplus(Vec<C> x) {
  constexpr int kTerms = sizeof(C) == 4 ? 8 : 17;
  const Vec<C> e = exp_of_minus<C>(x), s = e / (e + C(2)), z = s * s;
  Vec<C> sum = broadcast(C(2.0 / (2 * kTerms + 1)));
#pragma GCC unroll 16
  for (int i = kTerms - 1; i > 0; --i) sum = sum * z + C(2.0 / (2 * i + 1));
  const Vec<C> log1p = s * z * sum + C(2) * s;
  return (x > Vec<C>{} ? x : Vec<C>{}) + log1p;
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

// Those that are rarer than tanh and relu are no part of the loop that calls them.
template <class C>
__attribute__((noinline)) void apply_rarer(Activation activation, Vec<C>* x) {
  *x = activation == Activation::kSigmoid ? sigmoid<C>(*x) : softplus<C>(*x);
}
template <class C>
__attribute__((noinline)) void differentiate_softplus(Vec<C>* h) {
  *h = minus_expm1_of_minus<C>(*h);
}

// The activation chosen at run time.
template <class C>
INLINE Vec<C> activate(Activation activation, Vec<C> x) {
  if (activation == Activation::kTanh) return tanh(x);
  if (activation == Activation::kRelu) return Relu::value(x);
  if (activation != Activation::kIdentity) apply_rarer<C>(activation, &x);
  return x;
}

// grad act'(h), of h = act(x).
template <class C>
INLINE Vec<C> differentiate(Activation activation, Vec<C> grad, Vec<C> h) {
  if (activation == Activation::kTanh) return Tanh::backward(grad, h);
  if (activation == Activation::kRelu) return Relu::backward(grad, h);
  if (activation == Activation::kIdentity) return grad;
  if (activation == Activation::kSigmoid) return grad * (h * (C(1) - h));
  differentiate_softplus<C>(&h);
  return grad * h;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
