// One fused step: out = act([x, h] . [W_ih, W_hh]^T + b_ih + b_hh).
//
// Both products run into the same accumulators, first over x and W_ih, then over h and W_hh, so the concatenation is
// never formed. Weights are read where they lie: torch's [H, K] layout is contiguous in k, so a vector holds
// consecutive k and an output is a dot product, reduced at the end by a fixed tree. No packing, which a single step
// could not pay for. Each output's chain depends on I and H alone: bitwise the same in any batch, on any threads.
#pragma once

#include "../recurrence.h"
#include "activation.h"
#include "team.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int kStepRows = kRegisters == 32 ? 4 : 2;     // sequences in a register tile
constexpr int kStepColumns = kRegisters == 32 ? 6 : 4;  // hidden units in a register tile

// acc[i][j] += a[i] . w[j] over K, a vector of k at a time.
template <class S, int MR, int NR>
INLINE void dot_tile(const S* a, const S* w, int64_t K, Vec<Compute<S>> (&acc)[MR][NR]) {
  constexpr int L = kLanes<Compute<S>>;
  const auto multiply = [&](int64_t k, auto read) __attribute__((always_inline)) {
    Vec<Compute<S>> ak[MR];
#pragma GCC unroll 4
    for (int i = 0; i < MR; ++i) ak[i] = read(a + i * K + k);
#pragma GCC unroll 6
    for (int j = 0; j < NR; ++j) {
      const Vec<Compute<S>> wk = read(w + j * K + k);
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) acc[i][j] += ak[i] * wk;
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L) multiply(k, [](const S* p) __attribute__((always_inline)) { return load(p); });
  if (k < K) {
    const int left = int(K - k);
    multiply(k, [left](const S* p) __attribute__((always_inline)) { return load_n(p, left); });
  }
}

template <class S, class Act, int MR, int NR>
__attribute__((noinline)) void step_tile(const StepArgs& args, int64_t b, int64_t n) {
  using C = Compute<S>;
  const int64_t I = args.I, H = args.H;
  Vec<C> acc[MR][NR] = {};
  dot_tile(static_cast<const S*>(args.x) + b * I, static_cast<const S*>(args.w_ih) + n * I, I, acc);
  dot_tile(static_cast<const S*>(args.h) + b * H, static_cast<const S*>(args.w_hh) + n * H, H, acc);
  const S* b_ih = static_cast<const S*>(args.b_ih);
  const S* b_hh = static_cast<const S*>(args.b_hh);
  S* out = static_cast<S*>(args.out);
  // The sums of one sequence side by side, so that the activation runs on vectors here too.
  constexpr int padded = (NR + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
  for (int i = 0; i < MR; ++i) {
    C sums[padded] = {};
    for (int j = 0; j < NR; ++j) {
      sums[j] = horizontal_sum<C>(acc[i][j]);
      if (b_ih) sums[j] += widen(b_ih[n + j]);
      if (b_hh) sums[j] += widen(b_hh[n + j]);
    }
    for (int j = 0; j < padded; j += kLanes<C>) {
      const int left = NR - j;
      store_lanes(out + (b + i) * H + n + j, Act::value(load(sums + j)), left < kLanes<C> ? left : kLanes<C>);
    }
  }
}

template <class S, class Act, int MR, int NR = kStepColumns>
void step_row_block(const StepArgs& args, int64_t b, Range columns) {
  int64_t n = columns.begin;
  for (; n + NR <= columns.end; n += NR) step_tile<S, Act, MR, NR>(args, b, n);
  for (; n < columns.end; ++n) step_tile<S, Act, MR, 1>(args, b, n);
}

template <class S, class Act>
int step(const StepArgs& args, int threads) {
  const int64_t fmas = args.B * args.H * (args.I + args.H);
  const int64_t team = fmas / kTeamGrain < threads ? fmas / kTeamGrain : threads;
  run_grid({1, team > 1 ? int(team) : 1}, [&](int id, Grid g) {
    const Range columns = share(args.H, kStepColumns, id, g.size());
    // A block of weight rows stays in the nearest cache while all sequences pass over it.
    for (int64_t n = columns.begin; n < columns.end; n += kStepColumns) {
      const Range block{n, n + kStepColumns < columns.end ? n + kStepColumns : columns.end};
      int64_t b = 0;
      for (; b + kStepRows <= args.B; b += kStepRows) step_row_block<S, Act, kStepRows>(args, b, block);
      for (; b < args.B; ++b) step_row_block<S, Act, 1>(args, b, block);
    }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
