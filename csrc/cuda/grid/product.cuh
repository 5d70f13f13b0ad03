// Products of a slice of the weights, which stays in registers, with the states of a tile of sequences.
//
//   part[r, b] = sum over the k of one warp of W[r, k] h[b, k]          r < kRows, b < kTile
//
// A block has kRows rows of W; its warps share K, kDepth each. A warp's h arrives as vectors of 16 bytes: lane 4 g + q
// has, of sequence g, the kElements elements that start at k = v * kSpan + q * kElements, for v < kVectors.
//
//   Mma    on tensor cores: bfloat16, float16 and (float) TF32. A vector is four words, two for each of two mma, and is
//          the mma's B fragment as it arrives. The order of k within an mma is free as long as both operands share
//          it, so W, the A operand, is loaded in the order in which h arrives.
//   Ffma   float32 exactly. Lane 8 i + j holds kRows / 4 rows, those of i, and every eighth group of four k, those of
//          j. h goes through shared memory, a part for each warp, since every lane needs all sequences.
//
// Both add up in an order that depends on the instantiation alone: the same bits from run to run, whatever the batch.
#pragma once

#include <stdint.h>

#include "../numbers.cuh"
#include "../ptx.cuh"

namespace rnnfast {
namespace cuda {
namespace grid {

constexpr int kTile = 8;  // sequences of a tile: the N of the mma

// W or its transpose from some element on, with zeros beyond its last row and column.
template <class T>
struct Weights {
  const T* corner;
  int64_t row_stride, k_stride;
  int rows, ks;

  __device__ __forceinline__ Weights(const T* w, int H, bool transposed)  // w [H, H]
      : corner(w), row_stride(transposed ? 1 : H), k_stride(transposed ? H : 1), rows(H), ks(H) {}
  __device__ __forceinline__ void move(int row, int k) {
    corner += row * row_stride + k * k_stride;
    rows -= row;
    ks -= k;
  }
  __device__ __forceinline__ T operator()(int row, int k) const {
    return row < rows && k < ks ? corner[row * row_stride + k * k_stride] : T{};
  }
};

// The word of T that is in W at (row, k): two elements of 16 bits, or one float as the tensor cores take it.
template <class T>
__device__ __forceinline__ uint32_t fragment(const Weights<T>& weights, int row, int k) {
  return uint32_t(weights(row, k).bits) | uint32_t(weights(row, k + 1).bits) << 16;
}
template <>
__device__ __forceinline__ uint32_t fragment<float>(const Weights<float>& weights, int row, int k) {
  return ptx::round_tf32(weights(row, k));
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ptx::mma<T>(c, a, b0, b1);
}
template <>
__device__ __forceinline__ void multiply_add<float>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ptx::mma_tf32(c, a, ptx::round_tf32(ptx::as_float(b0)), ptx::round_tf32(ptx::as_float(b1)));
}

template <class Element, int kRows_, int kVectors_, int kWarps_>
class Mma {
 public:
  using T = Element;
  static constexpr int kRows = kRows_, kVectors = kVectors_, kWarps = kWarps_;
  static constexpr int kElements = 16 / sizeof(T), kSpan = 4 * kElements, kDepth = kVectors * kSpan;
  static_assert(kRows % 16 == 0, "an mma has 16 rows");
  struct Scratch {};

  __device__ __forceinline__ void load(Weights<T> weights, int lane) {
    weights.move(lane / 4, lane % 4 * kElements);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // word i of the vector
        const int k = v * kSpan + i * (kElements / 4);
#pragma unroll
        for (int m = 0; m < kRows / 16; ++m) {
          a_[m][2 * v + i / 2][2 * (i % 2)] = fragment(weights, m * 16, k);
          a_[m][2 * v + i / 2][2 * (i % 2) + 1] = fragment(weights, m * 16 + 8, k);
        }
      }
  }

  template <int kStride>
  __device__ __forceinline__ void multiply(const uint4 (&h)[kVectors], int, int lane, Scratch&,
                                           float (&part)[kTile][kStride]) const {
    float c[kRows / 16][kChains][4] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int m = 0; m < kRows / 16; ++m) {
        multiply_add<T>(c[m][0], a_[m][2 * v], h[v].x, h[v].y);
        multiply_add<T>(c[m][kChains - 1], a_[m][2 * v + 1], h[v].z, h[v].w);
      }
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        part[2 * q + i % 2][m * 16 + g + 8 * (i / 2)] = kChains == 1 ? c[m][0][i] : c[m][0][i] + c[m][kChains - 1][i];
  }

 private:
  // The latency of an mma is five times the interval at which a tensor core starts them. With fewer than five chains in
  // each quarter of the SM there are two chains for every 16 rows.
  static constexpr int kChains = kRows / 16 * kWarps / 4 >= 5 ? 1 : 2;

  uint32_t a_[kRows / 16][2 * kVectors][4];
};

template <int kRows_, int kVectors_, int kWarps_>
class Ffma {
 public:
  using T = float;
  static constexpr int kRows = kRows_, kVectors = kVectors_, kWarps = kWarps_;
  static constexpr int kElements = 4, kSpan = 16, kDepth = kVectors * kSpan;
  static constexpr int kOwnRows = kRows / 4, kOwnVectors = kDepth / 32;  // of a lane
  static_assert(kOwnRows == 4 && kDepth % 32 == 0, "sum_over_lanes takes four rows from each of eight lanes");
  struct Scratch {
    float h[kWarps][kTile][kDepth + 16];  // 16: stores of two sequences go to different banks
  };

  __device__ __forceinline__ void load(Weights<float> weights, int lane) {
    weights.move(lane / 8 * kOwnRows, lane % 8 * 4);
#pragma unroll
    for (int v = 0; v < kOwnVectors; ++v) {
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) w_[r][v][e] = weights(r, v * 32 + e);
    }
  }

  // Only the first `rows` sequences have a state.
  template <int kStride>
  __device__ __forceinline__ void multiply(const uint4 (&h)[kVectors], int rows, int lane, Scratch& scratch,
                                           float (&part)[kTile][kStride]) const {
    auto& own = scratch.h[threadIdx.x / 32];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) ptx::store(&own[lane / 4][v * kSpan + lane % 4 * kElements], h[v]);
    ptx::sync_warp();
#pragma unroll 1
    for (int b = 0; b < rows && b < kTile; b += 2) {  // two at a time: more sums that do not wait for each other
      float sum[2][kOwnRows] = {};
#pragma unroll
      for (int v = 0; v < kOwnVectors; ++v)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 x = ptx::load<float4>(&own[b + i][v * 32 + lane % 8 * 4]);
#pragma unroll
          for (int r = 0; r < kOwnRows; ++r) {
            sum[i][r] = fmaf(w_[r][v][0], x.x, sum[i][r]);
            sum[i][r] = fmaf(w_[r][v][1], x.y, sum[i][r]);
            sum[i][r] = fmaf(w_[r][v][2], x.z, sum[i][r]);
            sum[i][r] = fmaf(w_[r][v][3], x.w, sum[i][r]);
          }
        }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float total = sum_over_lanes(sum[i], lane);
        if (lane % 2 == 0) part[b + i][lane / 8 * kOwnRows + lane % 8 / 2] = total;
      }
    }
  }

 private:
  // Four sums over eight lanes with four shuffles: lanes 2r and 2r + 1 of the eight get the sum of row r.
  static __device__ __forceinline__ float sum_over_lanes(const float (&sum)[4], int lane) {
    const bool upper = lane & 4, odd = lane & 2;
    const float first = (upper ? sum[2] : sum[0]) + ptx::shuffle_xor(upper ? sum[0] : sum[2], 4);
    const float second = (upper ? sum[3] : sum[1]) + ptx::shuffle_xor(upper ? sum[1] : sum[3], 4);
    const float row = (odd ? second : first) + ptx::shuffle_xor(odd ? first : second, 2);
    return row + ptx::shuffle_xor(row, 1);
  }

  float w_[kOwnRows][kOwnVectors][4];
};

}  // namespace grid
}  // namespace cuda
}  // namespace rnnfast
