// The innermost loop of all CPU products but the fused step: a register tile of a matrix product.
//
//   C[i, j] (+)= sum_k A(i, k) W[k, j]        i < MR rows, j < NV vectors, k < K <= kChunk units
//
// MR x NV accumulators stay in registers over the whole of k; one element of A is broadcast against NV vectors of W.
// Every element of C is one chain of fused multiply-adds in the order of k, starting from zero, and longer products add
// up such chains in order. The order does not depend on the tile's shape, so results are bitwise the same for any batch
// size, any number of threads and any way of cutting the work. Short chains keep rounding errors small: at H >= 256
// outputs are closer to float64 than torch's with kChunk = 128 (0.8 to 0.9 of the RMS error), and are not with 256.
//
// On a machine that issues two FMAs a cycle with a latency of 4, eight accumulators hide the latency; loads are
// (NV + MR) per MR * NV FMAs, so 12 x 2 needs 14 loads in 12 cycles where the machine could do 24.
#pragma once

#include "../simd/vec.h"
#include "prefetch.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int kMaxVectors = 8;                             // widest panel
constexpr int64_t kChunk = 128;                            // length of an accumulation chain
constexpr int kMaxRows = kRegisters == 32 ? 12 : 6;        // tallest tile
constexpr int kAccumulators = kRegisters == 32 ? 24 : 12;  // the remaining registers hold W and the broadcast

constexpr int max_rows(int vectors) {
  return kAccumulators / vectors < kMaxRows ? (kAccumulators / vectors > 0 ? kAccumulators / vectors : 1) : kMaxRows;
}

// The memory layout of A: rows contiguous in k (A(i, k) = a[i * ld + k]), or columns contiguous in i (A(i, k) = a[k *
// ld + i]), which is how a transposed product reads a row-major matrix.
enum class Layout { kRows, kColumns };

template <class U, Layout layout, int MR, int NV>
__attribute__((noinline)) void tile(const U* a, int64_t lda,           // A, see Layout
                                    const U* w, int64_t ldw,           // [K, NV vectors], row stride ldw
                                    int64_t K, bool add,               // add to c rather than overwrite it
                                    Compute<U>* c, int64_t ldc,        // [MR, NV vectors], row stride ldc
                                    const PrefetchList& prefetches) {  // lines to prefetch meanwhile
  using C = Compute<U>;
  constexpr int L = kLanes<U>;
  // One pointer serves three rows: x86 addresses p, p + ld and p + 2 ld from it, so 12 rows take 5 registers. The
  // compiler alone keeps one pointer a row and spills: 206 instead of 231 GF/s at 12 x 2, where the FMA peak is 240.
  // The empty asm prevents it from undoing this.
  const U *a0 = a, *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
  const int64_t step = layout == Layout::kRows ? 1 : lda;
  Vec<C> acc[MR][NV] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < K; ++k) {
    // One line a k, of those that whoever called will need after this tile (prefetch.h). They are spread over the loop
    // because a core has few places for misses under way, and the loads of W below need some of them. The branch
    // goes the same way until the list ends.
    if (k < prefetches.count) prefetches.request(k);
    const auto aik = [&](int i) {
      const U* group = i < 3 ? a0 : i < 6 ? a3 : i < 9 ? a6 : a9;
      return broadcast(layout == Layout::kRows ? group[(i % 3) * lda] : a0[i]);
    };
    // The fewer of the two operands stay in registers next to the accumulators; the others pass through one register.
    if constexpr (NV <= MR) {
      Vec<U> wk[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) wk[j] = load(w + j * L);
#pragma GCC unroll 12
      for (int i = 0; i < MR; ++i) {
        const Vec<U> a_i = aik(i);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) multiply_add(acc[i][j], a_i, wk[j]);
      }
    } else {
      Vec<U> a_k[MR];
#pragma GCC unroll 12
      for (int i = 0; i < MR; ++i) a_k[i] = aik(i);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const Vec<U> wk = load(w + j * L);
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i) multiply_add(acc[i][j], a_k[i], wk);
      }
    }
    w += ldw;
    a0 += step;
    a3 += step;
    a6 += step;
    a9 += step;
    asm("" : "+r"(a0), "+r"(a3), "+r"(a6), "+r"(a9));
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      C* out = c + i * ldc + j * L;
      store(out, add ? load(out) + acc[i][j] : acc[i][j]);
    }
}

template <class U>
using TileFn = void (*)(const U*, int64_t, const U*, int64_t, int64_t, bool, Compute<U>*, int64_t, const PrefetchList&);

template <class U, Layout layout, int NV, int MR>
TileFn<U> pick_rows(int rows) {
  if constexpr (MR < max_rows(NV)) {
    if (rows > MR) return pick_rows<U, layout, NV, MR + 1>(rows);
  }
  return tile<U, layout, MR, NV>;
}

// The kernel for a tile of `rows` (at most max_rows(vectors)) by `vectors` (1, 2, 4 or 8).
template <class U, Layout layout>
TileFn<U> pick_tile(int rows, int vectors) {
  switch (vectors) {
    case 1:
      return pick_rows<U, layout, 1, 1>(rows);
    case 2:
      return pick_rows<U, layout, 2, 1>(rows);
    case 4:
      return pick_rows<U, layout, 4, 1>(rows);
    default:
      return pick_rows<U, layout, 8, 1>(rows);
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
