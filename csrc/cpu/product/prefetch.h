// Prefetching: cache lines are requested while a tile computes, before the next tile needs them.
//
// A line from beyond a core's own caches takes hundreds of cycles to arrive. Requests made all at once, just before the
// data is needed, fill the places for outstanding misses, and a tile that reads its panel from the second cache level
// waits behind them. A tile therefore gets a list of addresses and prefetches one of them at each k. On one thread of
// Zen 4, in a virtual machine with 4 MiB of third-level cache and memory at 150 ns, the recurrence went from 70 to 88%
// of the FMA peak at B = 32, H = 256 and from 63 to 83% at B = 256, H = 128; with all data in the nearest cache it
// reaches the same.
#pragma once

#include <stdint.h>

#include "../simd/vec.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Addresses of cache lines that will be needed soon. They are requested for writing if no other core will use them.
struct PrefetchList {
  static constexpr int kCapacity = 128;
  int64_t count = 0;
  bool for_writing = false;
  const char* at[kCapacity];

  // Adds the line at p, or nothing if the list is full.
  INLINE void add(const void* p) {
    if (count < kCapacity) at[count++] = static_cast<const char*>(p);
  }

  // Adds the lines of `rows` rows of `bytes` bytes, `stride` bytes from one to the next: all of them or, if they do not
  // fit, none. The order alternates between both ends, so that the hardware prefetcher finds no stride to continue.
  // Writing the list is part of a tile's cost: as a loop over rows around a loop over lines the recurrence took 1 to 2%
  // longer (Zen 3, H = 128).
  INLINE void add_rows(const void* p, int64_t stride, int64_t rows, int64_t bytes) {
    const char* low = static_cast<const char*>(p);
    // The offset of a row in its line, or an upper bound of it.
    const int64_t into = stride % 64 ? 63 : int64_t(reinterpret_cast<uintptr_t>(p) % 64);
    const int64_t lines = (into + bytes + 63) / 64;
    if (count + rows * lines > kCapacity) return;
    for (int64_t i = 0; i < lines; ++i) {
      const char **first = at + count, **last = first + rows;
      count += rows;
      for (const char *from = low + 64 * i, *to = from + (rows - 1) * stride; first < last;
           from += stride, to -= stride) {
        *first++ = from;
        if (first < last) *first++ = to;
      }
    }
  }
  INLINE void request(int64_t i) const {
    const char* line = *(at + i);
    if (for_writing)
      __builtin_prefetch(line, 1, 3);
    else
      __builtin_prefetch(line, 0, 3);
  }
};

// Iterates over the lines of a matrix that is read once: `bytes` bytes at row(r) for r in [next, end).
template <class Row>
struct PrefetchCursor {
  Row row;
  int64_t next, end, bytes, at = 0;

  // Adds the next `count` lines to the list.
  INLINE void add(int64_t count, PrefetchList& prefetches) {
    for (; count > 0 && next < end; --count) {
      prefetches.add(reinterpret_cast<const char*>(row(next)) + at);
      at += 64;
      if (at >= bytes) {
        at = 0;
        ++next;
      }
    }
  }
  // Prefetches all remaining lines at once.
  void request_rest() {
    for (; next < end; ++next, at = 0)
      for (; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(row(next)) + at, 0, 2);
  }
};
template <class Row>
PrefetchCursor(Row, int64_t, int64_t, int64_t) -> PrefetchCursor<Row>;

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
