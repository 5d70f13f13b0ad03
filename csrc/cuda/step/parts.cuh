// What the fused step's kernels share: operands in 16-byte pieces, their products, and the sum over a block's warps.
//
// A step is bound by reading the weights once, from L2 or memory, so operands are loaded into registers, 16 bytes a
// lane and load, without shared memory between. The order of a sum's terms is free. It is chosen so that the 16 bytes
// that a lane loads are the elements that the mma needs from it: of row g, lane = 4 g + q takes columns from
// k + q * kPiece on.
//
// A block's warps share the K dimension: warp w takes chunks w, w + kWarps, ... and the partial sums are added in
// shared memory at the end. The order of every sum depends on K alone.
#pragma once

#include "../contract.h"
#include "../numbers.cuh"
#include "../ptx.cuh"

namespace rnnfast {
namespace cuda {

struct Tf32 {};  // the kind of product: float elements, TF32 arithmetic

template <class Kind>
struct Product {  // bf16, f16
  using Element = Kind;
  static constexpr int kPiece = 8;           // elements in 16 bytes
  static constexpr int kChunk = 4 * kPiece;  // columns that a warp takes at a time

  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma<Kind>(c, a, b0, b1);
  }
  static __device__ __forceinline__ uint32_t rounded(uint32_t word) { return word; }

  // dpre of the two elements of a word, from dout and out.
  static __device__ __forceinline__ uint32_t derivative(uint32_t dout, uint32_t out, Activation activation) {
    return pack<Kind>(lower<Kind>(dout) * derivative_of(activation, lower<Kind>(out)),
                      upper<Kind>(dout) * derivative_of(activation, upper<Kind>(out)));
  }

  // Fragments of W^T are made from loads of W, 16 bytes along a row. Of piece j, lane (g, q) loads row row(j, g, q),
  // columns from column(g, q). After `turn`, word p of piece j belongs to W^T's row transposed_row(p, g), columns q *
  // kPiece + 2j and + 2j + 1, as if pieces had been loaded from W^T.
  static __device__ __forceinline__ int row(int j, int g, int) { return g / 2 * kPiece + 2 * j + g % 2; }
  static __device__ __forceinline__ int column(int, int q) { return 8 * q; }
  static __device__ __forceinline__ int transposed_row(int p, int g) { return g / 2 * 8 + 2 * p + g % 2; }
  static __device__ __forceinline__ uint32_t turn(uint32_t word) { return ptx::movmatrix(word); }
};

template <>
struct Product<Tf32> {
  using Element = float;
  static constexpr int kPiece = 4;
  static constexpr int kChunk = 4 * kPiece;

  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_tf32(c, a, b0, b1);
  }
  static __device__ __forceinline__ uint32_t rounded(uint32_t word) { return ptx::round_tf32(ptx::as_float(word)); }
  static __device__ __forceinline__ uint32_t derivative(uint32_t dout, uint32_t out, Activation activation) {
    return ptx::as_bits(ptx::as_float(dout) * derivative_of(activation, ptx::as_float(out)));
  }

  // A word is one element, so lanes exchange nothing: word p of piece j is W^T's row 4 g + p, column 4 q + j.
  static __device__ __forceinline__ int row(int j, int, int q) { return q * kPiece + j; }
  static __device__ __forceinline__ int column(int g, int) { return 4 * g; }
  static __device__ __forceinline__ int transposed_row(int p, int g) { return 4 * g + p; }
  static __device__ __forceinline__ uint32_t turn(uint32_t word) { return word; }
};

// c[16, 8] += a[16, kChunk] b[kChunk, 8]: pieces of rows g and g + 8 of a, and of column g of b.
template <class P>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a0)[4], const uint32_t (&a8)[4],
                                         const uint32_t (&b)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t a[4] = {a0[i], a8[i], a0[i + 1], a8[i + 1]};
    P::mma(c, a, b[i], b[i + 1]);
  }
}

// Loads the elements at .. at + 16 bytes of a row of `size` elements, zeros beyond its end and if not `valid`.
// `aligned`: every row begins at a multiple of 16 bytes and its length is one.
template <class T>
__device__ __forceinline__ void load_piece(uint32_t (&piece)[4], const T* row, int64_t at, int64_t size, bool aligned,
                                           bool valid) {
  constexpr int kPiece = 16 / sizeof(T), kPerWord = 4 / sizeof(T);
#pragma unroll
  for (int i = 0; i < 4; ++i) piece[i] = 0;
  if (!valid || at >= size) return;
  if (aligned) {
    const auto v = ptx::load<uint4>(row + at);
    piece[0] = v.x, piece[1] = v.y, piece[2] = v.z, piece[3] = v.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPiece; ++i)
    if (at + i < size) piece[i / kPerWord] |= bits_of(row[at + i]) << (32 / kPerWord * (i % kPerWord));
}

template <class T>
__device__ __forceinline__ void store_piece(T* row, int64_t at, int64_t size, bool aligned,
                                            const uint32_t (&piece)[4]) {
  constexpr int kPiece = 16 / sizeof(T), kPerWord = 4 / sizeof(T);
  if (at >= size) return;
  if (aligned) return ptx::store<uint4>(row + at, make_uint4(piece[0], piece[1], piece[2], piece[3]));
#pragma unroll
  for (int i = 0; i < kPiece; ++i)
    if (at + i < size) from_bits(row[at + i], piece[i / kPerWord] >> (32 / kPerWord * (i % kPerWord)));
}

inline bool aligned_rows(const void* matrix, int64_t columns, int element) {
  return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && columns * element % 16 == 0;
}

// The warps' partial sums of a tile of kSequences rows of kUnits elements.
template <int kSequences, int kUnits, int kWarps>
struct Partial {
  float sums[kWarps][kSequences][kUnits + 1];  // + 1: the lanes of a warp write a column without bank conflicts

  __device__ __forceinline__ float total(int sequence, int unit) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][sequence][unit];
    return sum;
  }
};

}  // namespace cuda
}  // namespace rnnfast
