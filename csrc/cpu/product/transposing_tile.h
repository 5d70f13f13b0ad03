// A tile of a product for few rows, which reads W^T as it is, [N, K]: a square block of it at a time is transposed in
// registers and multiplied at once. The order of additions is that of tile.h, so the bits are the same.
//
// Each block of 16 x 16 floats takes 64 shuffles for each multiplication by up to four rows, so a weight that is read
// often is better packed. One that comes from the third cache level or from memory takes little more time than packed:
// 44 and 42 GB/s on two threads of a Xeon with AVX-512 (Emerald Rapids) at H = 3000, B = 1.
#pragma once

#include "../simd/lanes.h"
#include "tile.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int kTransposingRows = 4;  // MR at most: the block takes as many registers as a vector has lanes

template <class S, int MR>
__attribute__((noinline)) void transposing_tile(const Unit<S>* a, int64_t lda,  // [MR, K], rows `lda` units apart
                                                const S* w, int64_t ldw,        // [filled, K], rows `ldw` values apart
                                                int filled,                     // columns of c that are there
                                                int64_t K,                      // values
                                                bool add,                       // add to c rather than overwrite it
                                                Compute<S>* c) {                // [MR, one vector]
  using U = Unit<S>;
  using C = Compute<S>;
  constexpr int L = kLanes<U>, P = kPerUnit<S>;
  constexpr int64_t kPrefetchDistance = 512 / int64_t(sizeof(S));  // values; rows begin in different pages
  Vec<C> acc[MR] = {};
  int64_t k = 0;
  if (filled == L)
    for (; k + L * P <= K; k += L * P, a += L) {
      Vec<U> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        block[i] = load_units(w + i * ldw + k, L * P);
        __builtin_prefetch(w + i * ldw + k + kPrefetchDistance, 0, 2);
      }
      transpose<U>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
#pragma GCC unroll 4
        for (int r = 0; r < MR; ++r) multiply_add(acc[r], broadcast(a[r * lda + i]), block[i]);
    }
  for (; k < K; k += L * P, a += L) {  // what is ragged
    Vec<U> block[L];
    for (int i = 0; i < L; ++i) block[i] = i < filled ? load_units(w + i * ldw + k, K - k) : Vec<U>{};
    transpose<U>(block);
    for (int i = 0; i < L && i * P < K - k; ++i)
      for (int r = 0; r < MR; ++r) multiply_add(acc[r], broadcast(a[r * lda + i]), block[i]);
  }
  for (int r = 0; r < MR; ++r) store(c + r * L, add ? load(c + r * L) + acc[r] : acc[r]);
}

template <class S>
using TransposingTileFn = void (*)(const Unit<S>*, int64_t, const S*, int64_t, int, int64_t, bool, Compute<S>*);

// The kernel for 1 to kTransposingRows rows.
template <class S>
TransposingTileFn<S> pick_transposing_tile(int rows) {
  switch (rows) {
    case 1:
      return transposing_tile<S, 1>;
    case 2:
      return transposing_tile<S, 2>;
    case 3:
      return transposing_tile<S, 3>;
    default:
      return transposing_tile<S, 4>;
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
