// Moves values between the lanes of several vectors: a square transpose and a transposing sum. Both work by halves:
// each stage exchanges one bit of the lane number with one bit of the vector number.
#pragma once

#include <utility>

#include "vec.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Selects from the lanes of a (numbered 0 .. L-1) and b (L .. 2L-1): with Upper those whose lane number has the bit
// Half set, else the others. Lanes of a go to the lower places of each pair of halves, lanes of b to the upper ones.
template <bool Upper, int Half, class C, int... Lane>
INLINE Vec<C> interleave(Vec<C> a, Vec<C> b, std::integer_sequence<int, Lane...>) {
  constexpr int L = kLanes<C>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b,
                                 ((Lane & Half) ? L + (Upper ? Lane : Lane - Half) : (Upper ? Lane + Half : Lane))...);
#else
  return __builtin_shuffle(
      a, b, Bits<C>{((Lane & Half) ? L + (Upper ? Lane : Lane - Half) : (Upper ? Lane + Half : Lane))...});
#endif
}

// block[i][j] becomes block[j][i].
template <class C, int Half = kLanes<C> / 2>
INLINE void transpose(Vec<C> (&block)[kLanes<C>]) {
  constexpr int L = kLanes<C>;
  using Lanes = std::make_integer_sequence<int, L>;
  if constexpr (Half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & Half)) {
        const Vec<C> a = block[i], b = block[i + Half];
        block[i] = interleave<false, Half, C>(a, b, Lanes{});
        block[i + Half] = interleave<true, Half, C>(a, b, Lanes{});
      }
    transpose<C, Half / 2>(block);
  }
}

// Lane i of the result is the sum of all lanes of block[i], each by the same fixed tree. A sum takes 3 instructions
// this way; adding up one vector at a time takes about 20.
template <class C, int Half = kLanes<C> / 2>
INLINE Vec<C> sum_each(Vec<C> (&block)[kLanes<C>]) {
  constexpr int L = kLanes<C>;
  using Lanes = std::make_integer_sequence<int, L>;
  if constexpr (Half == 0) {
    return block[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < Half; ++i) {
      const Vec<C> a = block[i], b = block[i + Half];
      block[i] = interleave<false, Half, C>(a, b, Lanes{}) + interleave<true, Half, C>(a, b, Lanes{});
    }
    return sum_each<C, Half / 2>(block);
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
