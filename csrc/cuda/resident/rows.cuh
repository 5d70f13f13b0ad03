// The rows of a block's tile in the order of its steps, and the ring in shared memory through which they arrive.
#pragma once

#include "../contract.h"
#include "../ptx.cuh"
#include "../sequences.cuh"

namespace rnnfast {
namespace cuda {

template <bool kPacked>
struct Tile {
  const Sequences& sequences;
  int64_t first;    // the tile's first sequence, the longest
  int steps;        // its length
  bool descending;  // from the last step to the first

  __device__ __forceinline__ Tile(const Sequences& sequences_, int64_t first_, bool descending_)
      : sequences(sequences_), first(first_), steps(length(sequences_, first_)), descending(descending_) {}

  static __device__ __forceinline__ int length(const Sequences& sequences, int64_t b) {
    return int(kPacked ? cuda::length(sequences, b) : b < sequences.B ? sequences.T : 0);
  }
};

// The steps of the tile at which a sequence has a row: [begin, begin + length).
struct Window {
  int begin = 0, length = 0;

  Window() = default;
  template <bool kPacked>
  __device__ __forceinline__ Window(const Tile<kPacked>& tile, int sequence)
      : length(Tile<kPacked>::length(tile.sequences, tile.first + sequence)) {
    begin = kPacked && tile.descending ? tile.steps - length : 0;
  }
  __device__ __forceinline__ bool has(int i) const { return unsigned(i - begin) < unsigned(length); }
};

// Iterates over the rows of one of the tile's sequences, step by step. Rows after the last step are meaningless.
template <bool kPacked>
class Rows {
 public:
  __device__ __forceinline__ Rows(const Tile<false>& tile, int sequence)
      : row_(uint32_t(tile.first + sequence + (tile.descending ? (tile.steps - 1) * tile.sequences.B : 0))),
        step_(uint32_t(tile.descending ? -tile.sequences.B : tile.sequences.B)) {}
  __device__ __forceinline__ uint32_t next() {
    const uint32_t row = row_;
    row_ += step_;
    return row;
  }

 private:
  uint32_t row_, step_;
};

// The lanes of a warp hold the next 32 offsets and load the 32 after them, so that no step waits for memory.
template <>
class Rows<true> {
 public:
  __device__ __forceinline__ Rows(const Tile<true>& tile, int sequence)
      : from_(tile.sequences.offsets + (tile.descending ? tile.steps - 1 : 0)),
        steps_(tile.steps),
        descending_(tile.descending),
        sequence_(uint32_t(tile.first + sequence)),
        here_(offset_of(0)),
        coming_(offset_of(kLanes)) {}
  __device__ __forceinline__ uint32_t next() {
    if (i_ % kLanes == 0 && i_ > 0) {
      here_ = coming_;
      coming_ = offset_of(i_ + kLanes);
    }
    return sequence_ + ptx::shuffle(here_, i_++ % kLanes);
  }

 private:
  static constexpr int kLanes = 32;

  __device__ __forceinline__ uint32_t offset_of(int i) const {
    i += int(threadIdx.x) % kLanes;
    const int step = i < steps_ ? i : steps_ - 1;
    return uint32_t(from_[descending_ ? -step : step]);
  }

  const int64_t* from_;  // the offset of the first step taken
  int steps_;
  bool descending_;
  uint32_t sequence_, here_, coming_;
  int i_ = 0;
};

// The address of an element of a row. The row number and the bytes of a row have 32 bits: one multiplication.
template <class T>
__device__ __forceinline__ T* element(void* matrix, uint32_t row, uint32_t stride, int unit) {
  return reinterpret_cast<T*>(static_cast<char*>(matrix) + unit * sizeof(T) +
                              uint64_t(row) * (stride * uint32_t(sizeof(T))));
}
template <class T>
__device__ __forceinline__ const T* element(const void* matrix, uint32_t row, uint32_t stride, int unit) {
  return element<T>(const_cast<void*>(matrix), row, stride, unit);
}

// Tiles [kTile, H] of one matrix: that of the i-th step taken is in at[i % kTiles].
template <class Engine>
struct Ring {
  using T = typename Engine::Element;
  // The ring hides the latency of device memory, about 1000 cycles; a step of a narrow layer takes 250.
  static constexpr int kTiles = Engine::kH <= 128 ? 16 : 8;
  static constexpr int kAhead = kTiles - 1;    // tiles that are copied before the first step
  static constexpr int kPending = kTiles - 3;  // groups of copies that may be under way at the end of a step
  __align__(16) T at[kTiles][Engine::kTile][Engine::kPitch];
};

// One thread's part in copying a tile: 16 bytes of it, or nothing.
template <class Engine, bool kPacked>
class Copier {
 public:
  __device__ __forceinline__ Copier(const Tile<kPacked>& tile, uint32_t stride)
      : stride_(stride),
        sequence_(int(threadIdx.x) / kChunks),
        unit_(int(threadIdx.x) % kChunks * kElements),
        rows_(tile, sequence_),
        row_(rows_.next()),
        takes_part_(sequence_ < Engine::kTile) {
    if (takes_part_ && uint32_t(unit_) < stride) window_ = Window(tile, sequence_);
  }
  // Copies this step's rows of `matrix`, or zeros where there is no row or the matrix is not `real`.
  __device__ __forceinline__ void to(Ring<Engine>& ring, const void* matrix, bool real = true) const {
    ptx::copy_if(takes_part_, &ring.at[i_ % Ring<Engine>::kTiles][sequence_][unit_],
                 element<T>(matrix, row_, stride_, unit_), real && window_.has(i_));
  }
  __device__ __forceinline__ void next() {
    ptx::copy_commit();
    ++i_;
    row_ = rows_.next();
  }

 private:
  using T = typename Engine::Element;
  static constexpr int kElements = 16 / sizeof(T), kChunks = Engine::kH / kElements;
  static_assert(Engine::kTile * kChunks <= Engine::kThreads, "a thread copies at most once");

  uint32_t stride_;
  int sequence_, unit_;
  Rows<kPacked> rows_;
  uint32_t row_;
  bool takes_part_;
  Window window_;
  int i_ = 0;
};

}  // namespace cuda
}  // namespace rnnfast
