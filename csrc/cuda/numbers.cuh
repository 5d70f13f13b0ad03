// Numbers: storage types and their conversions, in ones and in pairs, and the activations.
//
// All arithmetic is float32. `tanh` is as exact as its result is stored: bfloat16 keeps 8 bits, which tanh.approx
// (relative error 2^-11) delivers; float16 keeps 11, for which ex2 and rcp suffice; float32 takes the library's tanhf.
#pragma once

#include <stdint.h>

#include "contract.h"
#include "ptx.cuh"

namespace rnnfast {
namespace cuda {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Two neighbours in memory as one word, the lower address in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float lower, float upper);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float lower, float upper) {
  return ptx::pack_bf16(lower, upper);
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float lower, float upper) {
  return ptx::pack_f16(lower, upper);
}

template <class T>
__device__ __forceinline__ float lower(uint32_t word);
template <class T>
__device__ __forceinline__ float upper(uint32_t word);
template <>
__device__ __forceinline__ float lower<bf16>(uint32_t word) {
  return ptx::as_float(word << 16);
}
template <>
__device__ __forceinline__ float upper<bf16>(uint32_t word) {
  return ptx::as_float(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ float lower<f16>(uint32_t word) {
  return ptx::unpack_f16(uint16_t(word));
}
template <>
__device__ __forceinline__ float upper<f16>(uint32_t word) {
  return ptx::unpack_f16(uint16_t(word >> 16));
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return lower<bf16>(x.bits); }
__device__ __forceinline__ float to_float(f16 x) { return lower<f16>(x.bits); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  return T{uint16_t(pack<T>(x, 0.0f))};
}
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

__device__ __forceinline__ uint32_t bits_of(float x) { return ptx::as_bits(x); }
__device__ __forceinline__ uint32_t bits_of(bf16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(f16 x) { return x.bits; }
__device__ __forceinline__ void from_bits(float& x, uint32_t bits) { x = ptx::as_float(bits); }
__device__ __forceinline__ void from_bits(bf16& x, uint32_t bits) { x.bits = uint16_t(bits); }
__device__ __forceinline__ void from_bits(f16& x, uint32_t bits) { x.bits = uint16_t(bits); }

// ---- activations -----------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ float tanh_for(float x) {
  return tanhf(x);
}
template <class T>
__device__ __forceinline__ double tanh_for(double x) {
  return tanh(x);
}
template <>
__device__ __forceinline__ float tanh_for<bf16>(float x) {
  return ptx::tanh_approx(x);
}
// 1 - 2 / (1 + e^2|x|) loses its leading digits near 0, where x - x^3/3 replaces it. e^2|x| may overflow, which is
// right: 1 - 2/inf is 1.
template <>
__device__ __forceinline__ float tanh_for<f16>(float x) {
  constexpr float kTwoLog2E = 2.885390082f;
  const float a = fabsf(x);
  const float large = fmaf(-2.0f, ptx::rcp_approx(1.0f + ptx::exp2_approx(kTwoLog2E * a)), 1.0f);
  const float small = fmaf(a * a * a, -0.33333333f, a);
  return copysignf(a < 0.0625f ? small : large, x);  // NaN takes `large`, and stays NaN
}

// The activation of a kernel for type T. NaN passes through both, as it does in torch.
template <class T>
struct Tanh {
  static __device__ __forceinline__ float value(float x) { return tanh_for<T>(x); }
};
template <class T>
struct Relu {
  static __device__ __forceinline__ float value(float x) { return x <= 0.0f ? 0.0f : x; }
};

// The activation chosen at run time, for kernels in which one more branch costs nothing; it halves their number.
template <class T, class Number>
__device__ __forceinline__ Number activate(Activation activation, Number x) {
  if (activation == Activation::kTanh) return tanh_for<T>(x);
  return x <= 0 ? Number(0) : x;
}
// act'(x) from h = act(x).
template <class Number>
__device__ __forceinline__ Number derivative_of(Activation activation, Number h) {
  if (activation == Activation::kTanh) return fma(-h, h, Number(1));
  return h > 0 ? Number(1) : Number(0);
}

}  // namespace cuda
}  // namespace rnnfast
