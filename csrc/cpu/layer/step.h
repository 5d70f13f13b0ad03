// One fused step: out = act([x, h] . [W_ih, W_hh]^T + b_ih + b_hh).
//
// Both products add to the same accumulators, first over x and W_ih, then over h and W_hh, so the concatenation is
// never formed. Weights are read in place: torch's [H, K] layout is contiguous in k, so a vector holds consecutive k
// and an output is a dot product, reduced at the end by a fixed tree. A single step would not regain the cost of
// packing. Each output's chain of additions depends on I and H alone, so that its bits are the same in any batch and on
// any number of threads.
#pragma once

#include "../contract.h"
#include "../simd/activation.h"
#include "../simd/lanes.h"
#include "../team.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class S>
struct StepArgs {
  int64_t B, I, H;
  const S* x;     // [B, I]
  const S* h;     // [B, H], rows `h_ld` apart; 0 repeats one row
  const S* w_ih;  // [H, I]
  const S* w_hh;  // [H, H]
  const S* b_ih;  // [H], or null
  const S* b_hh;  // [H], or null
  S* out;         // [B, H], rows `out_ld` apart
  int64_t h_ld, out_ld;
};

// Register tile, in sequences x hidden units. A step of one tile reads the rows of 4 sequences and 6 weights, 40 KiB at
// K = 1024, which fit the nearest cache. With a single sequence six chains nearly hide the latency, and reading the
// weights is the limit. With 16 registers, 3 x 4 takes 0.76 to 0.82 of the time of 2 x 4 at B = 64 and H of 1024 and
// 256 (Zen 3), but 1.3 times as long at H = 64: its 12 results leave 4 lanes of two vectors empty.
constexpr int kStepRows = kRegisters == 32 ? 4 : 3;
constexpr int kStepColumns = kRegisters == 32 ? 6 : 4;
constexpr int64_t kTallTiles = kRegisters == 32 ? 0 : 512;  // kStepRows sequences at a time from this I + H on

// acc[i][j] += a[i] . w[j] over K, a vector of consecutive k at a time.
template <class S, int MR, int NR>
INLINE void dot_tile(const S* a, int64_t lda,            // MR rows of [.., K], `lda` apart
                     const S* w,                         // NR rows of [.., K]
                     int64_t K, Vec<Compute<S>>* acc) {  // [MR, NR]
  constexpr int64_t L = kLanes<Unit<S>> * kPerUnit<S>;
  int64_t k = 0;
  for (; k + L <= K; k += L) {
    Vec<Unit<S>> ak[MR];
#pragma GCC unroll 4
    for (int i = 0; i < MR; ++i) ak[i] = load_units(a + i * lda + k, L);
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      const Vec<Unit<S>> wk = load_units(w + j * K + k, L);
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) multiply_add(acc[i * NR + j], ak[i], wk);
    }
  }
  if (k < K) {
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      const Vec<Unit<S>> wk = load_units(w + j * K + k, K - k);
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) multiply_add(acc[i * NR + j], load_units(a + i * lda + k, K - k), wk);
    }
  }
}

template <class S, class Act, int MR, int NR>
__attribute__((noinline)) void step_tile(const StepArgs<S>& args, int64_t b, int64_t n) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  constexpr int kPadded = (MR * NR + L - 1) / L * L;
  const int64_t I = args.I, H = args.H;
  Vec<C> acc[kPadded] = {};
  dot_tile<S, MR, NR>(args.x + b * I, I, args.w_ih + n * I, I, acc);
  dot_tile<S, MR, NR>(args.h + b * args.h_ld, args.h_ld, args.w_hh + n * H, H, acc);

  const S *b_ih = args.b_ih, *b_hh = args.b_hh;
  C bias[kPadded] = {};
  for (int j = 0; j < NR; ++j) {
    const C sum = (b_ih ? widen(b_ih[n + j]) : C(0)) + (b_hh ? widen(b_hh[n + j]) : C(0));
    for (int i = 0; i < MR; ++i) bias[i * NR + j] = sum;
  }
  S out[kPadded];
  for (int s = 0; s < kPadded; s += L) {
    Vec<C> block[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) block[i] = acc[s + i];
    store(out + s, Act::value(sum_each<C>(block) + load(bias + s)));
  }
  for (int i = 0; i < MR; ++i) memcpy(args.out + (b + i) * args.out_ld + n, out + i * NR, NR * sizeof(S));
}

// Computes sequences [b, b + MR) for at most kStepColumns hidden units.
template <class S, class Act, int MR>
INLINE void step_rows(const StepArgs<S>& args, int64_t b, Range columns) {
  if (columns.size() == kStepColumns) return step_tile<S, Act, MR, kStepColumns>(args, b, columns.begin);
  for (int64_t n = columns.begin; n < columns.end; ++n) step_tile<S, Act, MR, 1>(args, b, n);
}

template <class S, class Act>
KEPT int step(const StepArgs<S>& args, int threads) {
  const int members = team_size(args.B * args.H * (args.I + args.H), threads);
  const bool by_rows = (args.H + kStepColumns - 1) / kStepColumns < members;
  run_team(by_rows ? ThreadGrid{members, 1} : ThreadGrid{1, members}, [&](int id, ThreadGrid g) {
    const Range columns = share(args.H, kStepColumns, g.col(id), g.cols);
    const Range rows = share(args.B, kStepRows, g.row(id), g.rows);
    // A block of weight rows stays in the nearest cache while all sequences pass over it.
    for (int64_t n = columns.begin; n < columns.end; n += kStepColumns) {
      const Range block{n, n + kStepColumns < columns.end ? n + kStepColumns : columns.end};
      int64_t b = rows.begin;
      if (args.I + args.H >= kTallTiles)
        for (; b + kStepRows <= rows.end; b += kStepRows) step_rows<S, Act, kStepRows>(args, b, block);
      for (; b + 2 <= rows.end; b += 2) step_rows<S, Act, 2>(args, b, block);
      for (; b < rows.end; ++b) step_rows<S, Act, 1>(args, b, block);
    }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
