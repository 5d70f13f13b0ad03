// The engine of resident.cuh for exact float32: plain multiply-adds.
//
// Eight lanes share kRows rows of W, a slice of the columns each. Lane `slice` holds columns 4 (8 j + slice) .. + 3 for
// every j, so that the eight read 128 contiguous bytes of y at a time, the same as all other lanes read. Every lane
// makes kRows * kTile = 8 partial sums. In three exchanges, each of which halves the number of sums a lane has left,
// the eight lanes get one finished sum each, in an order that depends on H alone. Of wide layers the registers hold
// kHeld of a lane's columns, and shared memory the rest, in the order in which the lanes read it.
#pragma once

#include "../numbers.cuh"
#include "../ptx.cuh"
#include "rows.cuh"

namespace rnnfast {
namespace cuda {

template <int kWidth, int kSequences, int kHeld = kWidth / 8>
class FmaEngine {
 public:
  using Element = float;
  static constexpr int kH = kWidth, kTile = kSequences;
  static constexpr int kSlices = 8, kRows = kSlices / kTile;  // one finished sum a lane
  static constexpr int kColumns = kH / kSlices;               // of a lane
  static constexpr int kThreads = kH / kRows * kSlices;
  static constexpr int kValues = 1;
  // Blocks that a multiprocessor holds at least.
  static constexpr int kBlocks = kH <= 64 || kTile == 2 && kH <= 128 ? 2 : 1;
  static constexpr int kPitch = kH + 4;
  static_assert(kH % 32 == 0 && kHeld % 4 == 0, "whole groups of four columns for each slice");

  struct State {
    __align__(16) float y[kTile][kH];
  };
  using Words = float[1];
  template <int kGroups, class = void>
  struct RestOf {
    __align__(16) float4 w[kGroups][kRows][kThreads];
  };
  template <class Dummy>
  struct RestOf<0, Dummy> {};
  using Rest = RestOf<(kColumns - kHeld) / 4>;

  template <bool kPacked>
  __device__ __forceinline__ FmaEngine(Rest& rest, const void* w, int64_t H, uint32_t stride, const Tile<kPacked>& tile,
                                       bool transposed)
      : stride_(stride),
        slice_(int(threadIdx.x) % kSlices),
        row_(int(threadIdx.x) / kSlices * kRows),
        padding_(unit(0) >= H),
        window_(tile, sequence(0)) {
    const int rows = int(H);
    const auto weight = [&](int r, int k) {
      const int row = row_ + r, column = 4 * (k / 4 * kSlices + slice_) + k % 4;
      const int at = transposed ? column * rows + row : row * rows + column;
      return row < rows && column < rows ? static_cast<const float*>(w)[at] : 0.0f;
    };
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int k = 0; k < kHeld; ++k) w_[r][k] = weight(r, k);
    if constexpr (kHeld < kColumns)  // only this thread reads what it writes
      for (int r = 0; r < kRows; ++r)
        for (int k = kHeld; k < kColumns; k += 4)
          rest.w[(k - kHeld) / 4][r][threadIdx.x] =
              make_float4(weight(r, k), weight(r, k + 1), weight(r, k + 2), weight(r, k + 3));
  }

  // The sequence and unit of the finished sum of lane `slice`: sums are numbered kRows * sequence + row.
  __device__ __forceinline__ int sequence(int) const { return slice_ / kRows; }
  __device__ __forceinline__ int unit(int) const { return row_ + slice_ % kRows; }
  __device__ __forceinline__ bool begins(int, int i) const { return window_.has(i) && i == window_.begin; }

  __device__ __forceinline__ int stored() const { return sequence(0); }

  __device__ __forceinline__ void read(float (&values)[1], const float (&tile)[kTile][kPitch]) const {
    values[0] = tile[sequence(0)][unit(0)];
  }
  // Stores the state of the i-th step taken, given as published and in words; `row` is that of sequence `stored()`.
  __device__ __forceinline__ void store(void* matrix, uint32_t row, int i, const State&, const Words& words) const {
    ptx::store_if(window_.has(i) && uint32_t(unit(0)) < stride_, element<uint32_t>(matrix, row, stride_, unit(0)),
                  ptx::as_bits(words[0]));
  }
  __device__ __forceinline__ void round(Words& words, const float (&values)[1]) const { words[0] = values[0]; }
  __device__ __forceinline__ void values(float (&values)[1], const Words& words) const { values[0] = words[0]; }
  // Replaces the word of a sequence that has a row at step i, except in the padding.
  template <bool kPacked>
  __device__ __forceinline__ void update(Words& words, const float (&values)[1], int i) const {
    if (!padding_ && (!kPacked || window_.has(i))) words[0] = values[0];
  }
  __device__ __forceinline__ void publish(State& state, const Words& words) const {
    state.y[sequence(0)][unit(0)] = words[0];
  }

  struct Sum {
    float partial[kTile * kRows];
    float initial;
  };
  __device__ __forceinline__ void begin(Sum& sum, const float (&values)[1]) const {
#pragma unroll
    for (int i = 0; i < kTile * kRows; ++i) sum.partial[i] = 0.0f;
    sum.initial = values[0];
  }
  __device__ __forceinline__ void multiply(Sum& sum, const State& state, const Rest& rest) const {
#pragma unroll
    for (int k = 0; k < kHeld; k += 4)
#pragma unroll
      for (int b = 0; b < kTile; ++b) {
        const float4 y = group(state, k, b);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          add(sum.partial[b * kRows + r], make_float4(w_[r][k], w_[r][k + 1], w_[r][k + 2], w_[r][k + 3]), y);
      }
    if constexpr (kHeld < kColumns) {
#pragma unroll 1  // unrolled, more is loaded ahead than there are registers for
      for (int k = kHeld; k < kColumns; k += 4) {
        float4 y[kTile];
#pragma unroll
        for (int b = 0; b < kTile; ++b) y[b] = group(state, k, b);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const auto w = ptx::load<float4>(&rest.w[(k - kHeld) / 4][r][threadIdx.x]);
#pragma unroll
          for (int b = 0; b < kTile; ++b) add(sum.partial[b * kRows + r], w, y[b]);
        }
      }
    }
  }
  // Each exchange keeps the half of the sums that the lane's bit names and gives away the other.
  __device__ __forceinline__ void finish(float (&values)[1], Sum& sum) const {
    float(&s)[kTile * kRows] = sum.partial;
#pragma unroll
    for (int half = kSlices / 2; half > 0; half /= 2) {
      const bool high = slice_ & half;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = high ? s[i + half] : s[i], given = high ? s[i] : s[i + half];
        s[i] = kept + ptx::shuffle_xor(given, half);
      }
    }
    values[0] = sum.initial + s[0];
  }

 private:
  // The state of sequence b at this lane's columns k .. k + 3.
  __device__ __forceinline__ float4 group(const State& state, int k, int b) const {
    return ptx::load<float4>(&state.y[b][4 * (k / 4 * kSlices + slice_)]);
  }
  static __device__ __forceinline__ void add(float& sum, float4 w, float4 y) {
    sum = fmaf(w.x, y.x, sum);
    sum = fmaf(w.y, y.y, sum);
    sum = fmaf(w.z, y.z, sum);
    sum = fmaf(w.w, y.w, sum);
  }

  uint32_t stride_;
  int slice_, row_;
  bool padding_;
  Window window_;
  float w_[kRows][kHeld];
};

}  // namespace cuda
}  // namespace rnnfast
