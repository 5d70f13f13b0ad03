// The engine of resident.cuh for 16-bit elements, on tensor cores: y W^T as (W y^T)^T, so that a tile of 8 sequences is
// the narrow side of an mma.
//
//   acc^T [H, 8] = W [H, H] y^T [H, 8]        mma m16n8k16
//
// W is the mma's left operand and stays in registers: a warp has kRows blocks of 16 of W's rows and all columns. y is
// the right operand and comes from shared memory. With y on the left, as the formula suggests, 8 of the mma's 16 rows
// would be empty. The accumulators are transposed, acc^T[unit g][sequence 2q], and are the thread's values.
// Lane = 4 g + q throughout.
//
// H is padded with zeros to kH. Padded units of the state are kept at zero by `update`, so that an infinity in the
// state meets no 0 * inf that wouldn't be there without padding.
#pragma once

#include "../numbers.cuh"
#include "../ptx.cuh"
#include "rows.cuh"

namespace rnnfast {
namespace cuda {

constexpr int kTileOfMma = 8;

// Words are pairs of sequences, 2q and 2q + 1, of one unit. Nothing has to be transposed between an accumulator and the
// operand of the next step, since ldmatrix transposes as it reads; nor between words and rows in memory.
template <class T, int kWidth, int kWarps>
class MatrixEngine16 {
 public:
  using Element = T;
  static constexpr int kH = kWidth, kThreads = 32 * kWarps, kTile = kTileOfMma;
  static constexpr int kColumns = kH / 16, kRows = kColumns / kWarps;  // blocks of 16 that a warp has of W
  static constexpr int kValues = 4 * kRows;
  static constexpr int kBlocks = kH <= 128 ? 2 : 1;  // blocks that a multiprocessor holds at least
  static constexpr int kPitch = kH + 8;              // + 8: eight rows that are read at once are in different banks
  static_assert(kRows * kWarps * 16 == kH && kColumns % 2 == 0, "whole blocks a warp, and pairs of them for ldmatrix");
  static_assert(kRows <= 2, "an ldmatrix reads all of a warp's units");

  struct State {
    // The state is transposed, 16 bytes a unit. Two rows stay free after every eight, so that the rows read at once are
    // in different banks: eight neighbours for a product, pairs from four groups of eight for `store`.
    //
    // Shared memory has 32 banks of 4 bytes. A row takes four of them, so row r begins in bank 4 (r % 8). An ldmatrix
    // reads eight rows at a time, and is fast if r % 8 is different for all of them:
    //
    //                        units                     rows                       r % 8
    //   for a product        0 1 2 3 4 5 6 7           0 1 2 3 4 5 6 7            all different
    //   `store`, kRows = 2   0 1, 8 9, 16 17, 24 25    0 1, 10 11, 20 21, 30 31   0 1, 2 3, 4 5, 6 7
    //   `store`, kRows = 1   0 1, 4 5, 8 9, 12 13      0 1, 4 5, 10 11, 14 15     0 1, 4 5, 2 3, 6 7
    //
    // Without the free rows, the four pairs of the second line would all be in the same banks.
    __align__(16) T y[kH / 8 * 10][kTile];
    static __device__ __forceinline__ int row(int unit) { return unit + unit / 8 * 2; }
  };
  using Words = uint32_t[2 * kRows];
  struct Rest {};  // all of W is in registers

  template <bool kPacked>
  __device__ __forceinline__ MatrixEngine16(Rest&, const void* w, int64_t H, uint32_t stride, const Tile<kPacked>& tile,
                                            bool transposed)
      : H_(int(H)),
        stride_(stride),
        lane_(int(threadIdx.x) % 32),
        first_(int(threadIdx.x) / 32 * kRows * 16),
        row_(tile, lane_ / 4) {
#pragma unroll
    for (int s = 0; s < 2; ++s) window_[s] = Window(tile, sequence(s));
    if (H_ == kH) {  // decided once rather than at each load
      load_weights<true>(static_cast<const T*>(w), transposed);
    } else {
      load_weights<false>(static_cast<const T*>(w), transposed);
    }
  }

  // The sequence and the unit of value v.
  __device__ __forceinline__ int sequence(int v) const { return lane_ % 4 * 2 + v % 2; }
  __device__ __forceinline__ int unit(int v) const { return first_ + v / 2 * 8 + lane_ / 4; }
  __device__ __forceinline__ bool begins(int v, int i) const {
    return window_[v % 2].has(i) && i == window_[v % 2].begin;
  }

  __device__ __forceinline__ int stored() const { return lane_ / 4; }

  // Reads the thread's values from a tile's rows [kTile, kPitch].
  __device__ __forceinline__ void read(float (&values)[kValues], const T (&tile)[kTile][kPitch]) const {
    uint32_t words[4];
    ptx::ldmatrix_transposed(words, &tile[lane_ % 8][first_ + lane_ / 8 % (2 * kRows) * 8]);
#pragma unroll
    for (int w = 0; w < 2 * kRows; ++w) {
      values[2 * w] = lower<T>(words[w]);
      values[2 * w + 1] = upper<T>(words[w]);
    }
  }
  // Stores the state of the i-th step taken, given as published and in words; `row` is that of sequence `stored()`.
  __device__ __forceinline__ void store(void* matrix, uint32_t row, int i, const State& state, const Words&) const {
    // A lane gets kVector neighbours, of sequence g from unit kVector q on: stores of 4 bytes would keep the memory
    // unit busy longer than all else in a step.
    constexpr int kVector = 4 * kRows;
    const int pair = lane_ / 8 % (2 * kRows), corner = lane_ % 8;
    uint32_t words[4];
    ptx::ldmatrix_transposed(words, state.y[State::row(first_ + corner / 2 * kVector + 2 * pair + corner % 2)]);
    const int unit = first_ + lane_ % 4 * kVector;
    T* to = element<T>(matrix, row, stride_, unit);
    const bool wanted = row_.has(i) && uint32_t(unit) < stride_;
    if constexpr (kRows == 2) {
      ptx::store_if(wanted, reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
    } else {
      ptx::store_if(wanted, reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
    }
  }

  __device__ __forceinline__ void round(Words& words, const float (&values)[kValues]) const {
#pragma unroll
    for (int w = 0; w < 2 * kRows; ++w) words[w] = pack<T>(values[2 * w], values[2 * w + 1]);
  }
  __device__ __forceinline__ void values(float (&values)[kValues], const Words& words) const {
#pragma unroll
    for (int w = 0; w < 2 * kRows; ++w) {
      values[2 * w] = lower<T>(words[w]);
      values[2 * w + 1] = upper<T>(words[w]);
    }
  }
  // Replaces the words of sequences that have a row at step i, except in the padding.
  template <bool kPacked>
  __device__ __forceinline__ void update(Words& words, const float (&values)[kValues], int i) const {
    uint32_t mask = ~0u;
    if (kPacked) mask = (window_[0].has(i) ? 0xffffu : 0) | (window_[1].has(i) ? 0xffff0000u : 0);
    Words by;
    round(by, values);
#pragma unroll
    for (int w = 0; w < 2 * kRows; ++w) {
      const uint32_t taken = unit(2 * w) < H_ ? mask : 0;
      words[w] = (by[w] & taken) | (words[w] & ~taken);
    }
  }
  __device__ __forceinline__ void publish(State& state, const Words& words) const {
#pragma unroll
    for (int w = 0; w < 2 * kRows; ++w) ptx::store<uint32_t>(&state.y[State::row(unit(2 * w))][sequence(0)], words[w]);
  }

  // Columns of blocks alternate between accumulators of their own, so that an mma does not wait for the one before it.
  static constexpr int kChains = 4 / kRows < kColumns ? 4 / kRows : kColumns;
  using Sum = float[kRows][kChains][4];
  __device__ __forceinline__ void begin(Sum& sum, const float (&values)[kValues]) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      sum[v / 4][0][v % 4] = values[v];
#pragma unroll
      for (int c = 1; c < kChains; ++c) sum[v / 4][c][v % 4] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(Sum& sum, const State& state, const Rest&) const {
#pragma unroll
    for (int k = 0; k < kColumns; k += 2) {
      uint32_t y[4];
      ptx::ldmatrix_transposed(y, state.y[State::row(16 * k + lane_)]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        ptx::mma<T>(sum[m][k % kChains], w_[m][k], y[0], y[1]);
        ptx::mma<T>(sum[m][(k + 1) % kChains], w_[m][k + 1], y[2], y[3]);
      }
    }
  }
  __device__ __forceinline__ void finish(float (&values)[kValues], const Sum& sum) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const auto part = [&](int c) { return sum[v / 4][c][v % 4]; };
      values[v] = kChains == 2 ? part(0) + part(1) : (part(0) + part(1)) + (part(kChains - 2) + part(kChains - 1));
    }
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void load_weights(const T* w, bool transposed) {
    const int g = lane_ / 4, q = lane_ % 4;
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int k = 0; k < kColumns; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = first_ + 16 * m + 8 * (j % 2), column = 16 * k + 8 * (j / 2);
          // The 8x8 block of W^T at (row, column) is W's block at (column, row), transposed.
          const int from_row = (transposed ? column : row) + g, from_column = (transposed ? row : column) + 2 * q;
          uint32_t pair = 0;
          if (kWhole) {
            pair = ptx::load<uint32_t>(w + from_row * kH + from_column);
          } else if (from_row < H_) {
            const T* from = w + from_row * H_ + from_column;
            pair = (from_column < H_ ? from[0].bits : 0) | (from_column + 1 < H_ ? uint32_t(from[1].bits) << 16 : 0);
          }
          w_[m][k][j] = transposed ? ptx::movmatrix(pair) : pair;
        }
  }

  int H_;
  uint32_t stride_;
  int lane_, first_;  // the warp's first unit
  Window row_;        // of sequence g, which this thread stores
  Window window_[2];  // of the sequences of its values
  uint32_t w_[kRows][kColumns][4];
};

}  // namespace cuda
}  // namespace rnnfast
