// One layer in one direction: the recurrence and the products around it.
//
//   forward     pre = x W_ih^T + b_ih + b_hh for all steps at once, then the recurrence turns pre into h in place
//   backward    dpre from the recurrence, then
//               dx = dpre W_ih      dW_ih = dpre^T x      dW_hh = dpre^T h_prev      db = sum dpre
#pragma once

#include "gradient.h"
#include "product.h"
#include "recurrence.h"
#include "step.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class S, class Act>
int sequence(const SequenceArgs& args, int threads) {
  const Walk& walk = args.walk;
  if (args.stepwise) {
    const auto row = [&](const void* p, int64_t t, int64_t width) {
      return static_cast<const S*>(p) + t * walk.B * width;
    };
    const void* h = args.h0;
    for (int64_t i = 0; i < walk.T; ++i) {
      const int64_t t = walk.reverse ? walk.T - 1 - i : i;
      S* out = const_cast<S*>(row(args.out, t, walk.H));
      if (step<S, Act>({args.dtype, args.activation, walk.B, args.I, walk.H, row(args.x, t, args.I), h, args.w_ih,
                        args.w_hh, args.b_ih, args.b_hh, out},
                       threads))
        return 1;
      h = out;
    }
    memcpy(args.h_n, h, size_t(walk.B * walk.H) * sizeof(S));
    return 0;
  }
  return product<S>(
             {args.dtype, total_rows(walk), walk.H, args.I, args.x, args.w_ih, true, args.b_ih, args.b_hh, args.out},
             threads) ||
         forward<S, Act>({args.dtype, args.activation, walk, args.h0, args.w_hh, args.out, args.h_n}, threads);
}

template <class S, class Act>
int sequence_backward(const SequenceBackwardArgs& args, int threads) {
  const Walk& walk = args.walk;
  const int64_t R = total_rows(walk), I = args.I, H = walk.H;
  const Scratch<S> dpre(R * H);
  const Scratch<int64_t> before(args.dw_hh ? R : 0);
  if (!dpre || !before) return 1;
  int failed = backward<S, Act>(
      {args.dtype, args.activation, walk, args.dout, args.dh_n, args.w_hh, args.out, dpre.get(), args.dh0}, threads);
  if (args.dx)
    failed |= product<S>({args.dtype, R, I, H, dpre.get(), args.w_ih, false, nullptr, nullptr, args.dx}, threads);
  if (args.dw_ih)
    failed |= gradient<S>({args.dtype, R, H, I, dpre.get(), args.x, nullptr, nullptr, args.dw_ih}, threads);
  if (args.dw_hh) {
    previous_rows(walk, before.get());
    failed |= gradient<S>({args.dtype, R, H, H, dpre.get(), args.out, args.h0, before.get(), args.dw_hh}, threads);
  }
  if (args.db) failed |= column_sum<S>({args.dtype, R, H, dpre.get(), args.db}, threads);
  return failed;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
