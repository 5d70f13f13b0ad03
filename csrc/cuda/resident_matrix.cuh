// Engines of resident.cuh on tensor cores: y W^T as (W y^T)^T, so that a tile of 8 sequences is the narrow side of an
// mma.
//
//   acc^T [H, 8] = W [H, H] y^T [H, 8]        mma m16n8k16 (16-bit), m16n8k8 (TF32)
//
// W is the mma's left operand and stays in registers: a warp has kRows blocks of 16 of W's rows and all columns. y is
// the right one, and comes from shared memory. With y on the left, as the formula suggests, 8 of the mma's 16 rows
// would be empty. Accumulators then lie transposed, acc^T[hidden g][sequence 2q]; how they get to rows of H contiguous
// elements is what the two engines differ in. Lane = 4 g + q throughout.
//
// H is padded with zeros to kH. Padded elements of the state are kept at zero by `update`, so that an infinity in the
// state meets no 0 * inf that wouldn't be there without padding.
#pragma once

#include "numbers.cuh"
#include "ptx.cuh"

namespace rnnfast {
namespace cuda {

template <class Engine>
struct Place;  // resident.cuh

constexpr int kTileOfMma = 8;

// ---- 16-bit elements -------------------------------------------------------------------------------

// Words are pairs of neighbours in H, (sequence g, hidden units 2q and 2q + 1), as they lie in memory: four lanes make
// 16 contiguous bytes and two words of a lane 32. movmatrix turns pairs of accumulators (hidden g, sequences 2q and 2q
// + 1) into such words, and back, exactly: the values have been rounded to 16 bits by then.
template <class T, int kWidth, int kWarps>
class MatrixEngine16 {
 public:
  using Element = T;
  using Word = uint32_t;
  static constexpr int kH = kWidth, kThreads = 32 * kWarps, kTile = kTileOfMma;
  static constexpr int kColumns = kH / 16, kRows = kColumns / kWarps;  // blocks of 16 that a warp has of W
  static constexpr int kWords = 2 * kRows, kValues = 4 * kRows, kSlots = 1;
  static constexpr int kBlocks = kH <= 128 ? 2 : 1;  // a multiprocessor holds at least
  static_assert(kRows * kWarps * 16 == kH && kColumns % 2 == 0, "whole blocks a warp, and pairs of them for ldmatrix");

  struct Shared {
    // 8 more than kH: the eight rows that ldmatrix reads at once then lie in different banks.
    __align__(16) T y[2][kTile][kH + 8];
  };
  static_assert((kH + 8) % 8 == 0, "rows begin at multiples of 16 bytes");

  __device__ __forceinline__ MatrixEngine16(const void* w, int64_t H, bool transposed)
      : H_(int(H)), whole_(H == kH), paired_(H % 2 == 0), g_(int(threadIdx.x) % 32 / 4), q_(int(threadIdx.x) % 4) {
    warp_ = int(threadIdx.x) / 32;
    if (whole_) {  // once for all, rather than for each of the loads
      load_weights<true>(static_cast<const T*>(w), transposed);
    } else {
      load_weights<false>(static_cast<const T*>(w), transposed);
    }
  }

  __device__ __forceinline__ int sequence(int) const { return g_; }
  static __device__ __forceinline__ constexpr int slot(int) { return 0; }
  __device__ __forceinline__ int hidden(int w) const { return (warp_ * kRows + w / 2) * 16 + w % 2 * 8 + 2 * q_; }

  __device__ __forceinline__ void load(Word (&words)[kWords], const void* matrix,
                                       const Place<MatrixEngine16>& place) const {
    const T* row = static_cast<const T*>(matrix) + place.at[0];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = 0;
    if (!place.alive[0]) return;
    if (whole_) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[w] = ptx::load<uint32_t>(row + hidden(w));
    } else {
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[w] = load_pair(row, hidden(w));
    }
  }
  __device__ __forceinline__ void store(const Word (&words)[kWords], void* matrix,
                                        const Place<MatrixEngine16>& place) const {
    T* row = static_cast<T*>(matrix) + place.at[0];
    if (!place.alive[0]) return;
    if (whole_) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) ptx::store<uint32_t>(row + hidden(w), words[w]);
    } else {
#pragma unroll
      for (int w = 0; w < kWords; ++w) store_pair(row, hidden(w), words[w]);
    }
  }
  // Replaces the words of sequences that have a row, but for padding.
  __device__ __forceinline__ void update(Word (&words)[kWords], const Word (&by)[kWords],
                                         const Place<MatrixEngine16>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const Word mask = whole_ || hidden(w) + 1 < H_ ? 0xffffffffu : hidden(w) < H_ ? 0xffffu : 0;
      if (place.alive[0]) words[w] = by[w] & mask;
    }
  }

  __device__ __forceinline__ void unpack(float (&values)[kValues], const Word (&words)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t pair = ptx::movmatrix(words[w]);
      values[2 * w] = lower<T>(pair);
      values[2 * w + 1] = upper<T>(pair);
    }
  }
  __device__ __forceinline__ void pack(Word (&words)[kWords], const float (&values)[kValues]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = ptx::movmatrix(cuda::pack<T>(values[2 * w], values[2 * w + 1]));
  }

  __device__ __forceinline__ void publish(Shared& shared, int buffer, const Word (&words)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) ptx::store<uint32_t>(&shared.y[buffer][g_][hidden(w)], words[w]);
  }

  // Even and odd columns of blocks have accumulators of their own, so that an mma needn't wait for the one before it.
  using Sum = float[kRows][2][4];
  __device__ __forceinline__ void begin(Sum& sum, const float (&values)[kValues]) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      sum[v / 4][0][v % 4] = values[v];
      sum[v / 4][1][v % 4] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(Sum& sum, const Shared& shared, int buffer) const {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < kColumns; k += 2) {
      uint32_t y[4];
      ptx::ldmatrix(y, &shared.y[buffer][lane % 8][16 * k + lane / 8 * 8]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        ptx::mma<T>(sum[m][0], w_[m][k], y[0], y[1]);
        ptx::mma<T>(sum[m][1], w_[m][k + 1], y[2], y[3]);
      }
    }
  }
  __device__ __forceinline__ void finish(float (&values)[kValues], const Sum& sum) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) values[v] = sum[v / 4][0][v % 4] + sum[v / 4][1][v % 4];
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void load_weights(const T* w, bool transposed) {
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int k = 0; k < kColumns; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = (warp_ * kRows + m) * 16 + 8 * (j % 2), column = 16 * k + 8 * (j / 2);
          // Of W^T, the 8x8 block at (row, column) is W's at (column, row), transposed.
          const int from_row = (transposed ? column : row) + g_, from_column = (transposed ? row : column) + 2 * q_;
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

  __device__ __forceinline__ uint32_t load_pair(const T* row, int column) const {
    if (column >= H_) return 0;
    if (paired_) return ptx::load<uint32_t>(row + column);
    return row[column].bits | (column + 1 < H_ ? uint32_t(row[column + 1].bits) << 16 : 0);
  }
  __device__ __forceinline__ void store_pair(T* row, int column, uint32_t pair) const {
    if (column >= H_) return;
    if (paired_) return ptx::store<uint32_t>(row + column, pair);
    row[column] = T{uint16_t(pair)};
    if (column + 1 < H_) row[column + 1] = T{uint16_t(pair >> 16)};
  }

  int H_;
  bool whole_;   // no padding
  bool paired_;  // rows begin at multiples of a pair
  int g_, q_, warp_;
  uint32_t w_[kRows][kColumns][4];
};

// ---- TF32 ------------------------------------------------------------------------------------------

// Words are single elements, where the accumulators have them: (hidden g, sequence 2q). The eight lanes of equal q make
// 32 contiguous bytes, which is all that a sector of memory asks for, so nothing is transposed.
template <int kWidth, int kWarps>
class MatrixEngineTf32 {
 public:
  using Element = float;
  using Word = float;
  static constexpr int kH = kWidth, kThreads = 32 * kWarps, kTile = kTileOfMma;
  static constexpr int kRows = kH / 16 / kWarps, kColumns = kH / 8;  // blocks of 16 rows, of 8 columns
  static constexpr int kWords = 4 * kRows, kValues = kWords, kSlots = 2;
  static constexpr int kBlocks = kH <= 64 ? 2 : 1;
  static_assert(kRows * kWarps * 16 == kH && kColumns % 2 == 0, "whole blocks a warp, and two accumulators");

  struct Shared {
    // Rounded to TF32. 8 more than kH: four rows of two-float loads then lie in different banks.
    __align__(16) uint32_t y[2][kTile][kH + 8];
  };

  __device__ __forceinline__ MatrixEngineTf32(const void* w, int64_t H, bool transposed)
      : H_(int(H)), g_(int(threadIdx.x) % 32 / 4), q_(int(threadIdx.x) % 4), warp_(int(threadIdx.x) / 32) {
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int k = 0; k < kColumns; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // The order of a sum's terms is free: column q of a block is taken for 2q, q + 4 for 2q + 1, so that a lane
          // finds its two elements of y side by side.
          const int row = (warp_ * kRows + m) * 16 + g_ + 8 * (j % 2), column = 8 * k + 2 * q_ + j / 2;
          const int at = transposed ? column * H_ + row : row * H_ + column;
          w_[m][k][j] = row < H_ && column < H_ ? ptx::round_tf32(static_cast<const float*>(w)[at]) : 0;
        }
  }

  __device__ __forceinline__ int sequence(int s) const { return 2 * q_ + s; }
  static __device__ __forceinline__ constexpr int slot(int w) { return w % 2; }
  __device__ __forceinline__ int hidden(int w) const { return (warp_ * kRows + w / 4) * 16 + w % 4 / 2 * 8 + g_; }

  __device__ __forceinline__ void load(Word (&words)[kWords], const void* matrix,
                                       const Place<MatrixEngineTf32>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const bool inside = place.alive[slot(w)] && hidden(w) < H_;
      words[w] = inside ? static_cast<const float*>(matrix)[place.at[slot(w)] + hidden(w)] : 0.0f;
    }
  }
  __device__ __forceinline__ void store(const Word (&words)[kWords], void* matrix,
                                        const Place<MatrixEngineTf32>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      if (place.alive[slot(w)] && hidden(w) < H_) static_cast<float*>(matrix)[place.at[slot(w)] + hidden(w)] = words[w];
  }
  // Replaces the words of sequences that have a row, but for padding.
  __device__ __forceinline__ void update(Word (&words)[kWords], const Word (&by)[kWords],
                                         const Place<MatrixEngineTf32>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      if (place.alive[slot(w)] && hidden(w) < H_) words[w] = by[w];
  }
  __device__ __forceinline__ void unpack(float (&values)[kValues], const Word (&words)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) values[w] = words[w];
  }
  __device__ __forceinline__ void pack(Word (&words)[kWords], const float (&values)[kValues]) const {
    unpack(words, values);
  }
  __device__ __forceinline__ void publish(Shared& shared, int buffer, const Word (&words)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) shared.y[buffer][sequence(slot(w))][hidden(w)] = ptx::round_tf32(words[w]);
  }

  using Sum = float[kRows][2][4];
  __device__ __forceinline__ void begin(Sum& sum, const float (&values)[kValues]) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      sum[v / 4][0][v % 4] = values[v];
      sum[v / 4][1][v % 4] = 0.0f;
    }
  }
  __device__ __forceinline__ void multiply(Sum& sum, const Shared& shared, int buffer) const {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const auto y = ptx::load<uint2>(&shared.y[buffer][g_][8 * k + 2 * q_]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) ptx::mma_tf32(sum[m][k % 2], w_[m][k], y.x, y.y);
    }
  }
  __device__ __forceinline__ void finish(float (&values)[kValues], const Sum& sum) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) values[v] = sum[v / 4][0][v % 4] + sum[v / 4][1][v % 4];
  }

 private:
  int H_;
  int g_, q_, warp_;
  uint32_t w_[kRows][kColumns][4];
};

}  // namespace cuda
}  // namespace rnnfast
