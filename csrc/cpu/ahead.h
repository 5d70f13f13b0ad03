// Asking for memory before it is needed.
//
// What lies beyond a core's own caches takes hundreds of cycles to come. Asked for all at once, just before it is
// needed, it takes up the places for outstanding misses, and a tile that reads its panel from the second level waits
// behind it. So a tile takes along a list of addresses and asks for one of them at each k. On Zen 4, one thread, in a
// virtual machine that gets 4 MiB of the third level and has its memory 150 ns away, the recurrence went from 70 to 88%
// of the FMA peak at B = 32, H = 256 and from 63 to 83% at B = 256, H = 128; with everything at hand it reaches the
// same.
#pragma once

#include <stdint.h>

#include "vec.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Addresses of cache lines that will be wanted soon; `own`, if no other core will want them, so that they can be had
// for writing at once.
struct Wanted {
  static constexpr int kMost = 128;
  int64_t count = 0;
  bool own = false;
  const char* at[kMost];

  // The line at p; what the list has no room for has to do without.
  INLINE void add(const void* p) {
    if (count < kMost) at[count++] = static_cast<const char*>(p);
  }

  // The lines of `rows` rows of `bytes` bytes, `stride` bytes from one to the next: all of them or, where there is no
  // room, none. From both ends at once, so that there is no stride to be followed. Writing the list is part of a tile's
  // price: with a loop over rows around one over lines the recurrence took 1 to 2% longer (Zen 3, H = 128).
  INLINE void add_rows(const void* p, int64_t stride, int64_t rows, int64_t bytes) {
    const char* low = static_cast<const char*>(p);
    const int64_t into = stride % 64 ? 63 : int64_t(reinterpret_cast<uintptr_t>(p) % 64);  // its line, at most
    const int64_t lines = (into + bytes + 63) / 64;
    if (count + rows * lines > kMost) return;
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
  INLINE void ask(int64_t i) const {
    const char* line = *(at + i);
    if (own)
      __builtin_prefetch(line, 1, 3);
    else
      __builtin_prefetch(line, 0, 3);
  }
};

// Walks over the lines of a matrix that is read once: `bytes` bytes at row(r) for r in [next, end).
template <class Row>
struct Ahead {
  Row row;
  int64_t next, end, bytes, at = 0;

  // Adds the next `count` lines to the list.
  INLINE void add(int64_t count, Wanted& wanted) {
    for (; count > 0 && next < end; --count) {
      wanted.add(reinterpret_cast<const char*>(row(next)) + at);
      at += 64;
      if (at >= bytes) {
        at = 0;
        ++next;
      }
    }
  }
  // Asks at once for all lines that are left.
  void ask() {
    for (; next < end; ++next, at = 0)
      for (; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(row(next)) + at, 0, 2);
  }
};
template <class Row>
Ahead(Row, int64_t, int64_t, int64_t) -> Ahead<Row>;

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
