// The engine of resident.cuh for exact float32: plain multiply-adds.
//
// Eight lanes share kRows rows of W, a slice of the columns each: lane `slice` holds columns 4 (8 j + slice) .. + 3 for
// every j, so that the eight read 128 contiguous bytes of y at a time, which all warps' other lanes read too. Every
// lane makes kRows * kTile = 8 partial sums; in three exchanges that halve what is left each, the eight lanes come out
// with one finished sum each, in an order that depends on nothing but H.
#pragma once

#include "numbers.cuh"
#include "ptx.cuh"

namespace rnnfast {
namespace cuda {

template <class Engine>
struct Place;  // resident.cuh

template <int kWidth, int kSequences>
class FmaEngine {
 public:
  using Element = float;
  using Word = float;
  static constexpr int kH = kWidth, kTile = kSequences;
  static constexpr int kSlices = 8, kRows = kSlices / kTile;  // one finished sum a lane
  static constexpr int kColumns = kH / kSlices;               // of a lane
  static constexpr int kThreads = kH / kRows * kSlices;
  static constexpr int kWords = 1, kValues = 1, kSlots = 1;
  static constexpr int kBlocks = kH <= 64 || kTile == 2 && kH <= 128 ? 2 : 1;  // a multiprocessor holds at least
  static_assert(kH % 32 == 0, "whole groups of four columns for each slice");

  struct Shared {
    __align__(16) float y[2][kTile][kH];
  };

  __device__ __forceinline__ FmaEngine(const void* w, int64_t H, bool transposed)
      : H_(int(H)), slice_(int(threadIdx.x) % kSlices), row_(int(threadIdx.x) / kSlices * kRows) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int row = row_ + r, column = 4 * (k / 4 * kSlices + slice_) + k % 4;
        const int at = transposed ? column * H_ + row : row * H_ + column;
        w_[r][k] = row < H_ && column < H_ ? static_cast<const float*>(w)[at] : 0.0f;
      }
  }

  // The finished sum of lane `slice`: sums are numbered kRows * sequence + row.
  __device__ __forceinline__ int sequence(int) const { return slice_ / kRows; }
  static __device__ __forceinline__ constexpr int slot(int) { return 0; }
  __device__ __forceinline__ int hidden(int) const { return row_ + slice_ % kRows; }

  __device__ __forceinline__ void load(Word (&words)[kWords], const void* matrix, const Place<FmaEngine>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const bool inside = place.alive[slot(w)] && hidden(w) < H_;
      words[w] = inside ? static_cast<const float*>(matrix)[place.at[slot(w)] + hidden(w)] : 0.0f;
    }
  }
  __device__ __forceinline__ void store(const Word (&words)[kWords], void* matrix,
                                        const Place<FmaEngine>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      if (place.alive[slot(w)] && hidden(w) < H_) static_cast<float*>(matrix)[place.at[slot(w)] + hidden(w)] = words[w];
  }
  // Replaces the words of sequences that have a row, but for padding.
  __device__ __forceinline__ void update(Word (&words)[kWords], const Word (&by)[kWords],
                                         const Place<FmaEngine>& place) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      if (place.alive[slot(w)] && hidden(w) < H_) words[w] = by[w];
  }
  __device__ __forceinline__ void unpack(float (&values)[1], const Word (&words)[1]) const { values[0] = words[0]; }
  __device__ __forceinline__ void pack(Word (&words)[1], const float (&values)[1]) const { words[0] = values[0]; }
  __device__ __forceinline__ void publish(Shared& shared, int buffer, const Word (&words)[1]) const {
    shared.y[buffer][sequence(0)][hidden(0)] = words[0];
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
  __device__ __forceinline__ void multiply(Sum& sum, const Shared& shared, int buffer) const {
#pragma unroll
    for (int k = 0; k < kColumns; k += 4)
#pragma unroll
      for (int b = 0; b < kTile; ++b) {
        const auto y = ptx::load<float4>(&shared.y[buffer][b][4 * (k / 4 * kSlices + slice_)]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float& s = sum.partial[b * kRows + r];
          s = fmaf(w_[r][k], y.x, s);
          s = fmaf(w_[r][k + 1], y.y, s);
          s = fmaf(w_[r][k + 2], y.z, s);
          s = fmaf(w_[r][k + 3], y.w, s);
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
  int H_;
  int slice_, row_;
  float w_[kRows][kColumns];
};

}  // namespace cuda
}  // namespace rnnfast
