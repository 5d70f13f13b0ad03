// One layer in one direction: the recurrence and the products around it.
//
//   forward     pre = x W_ih^T + b_ih + b_hh for all steps at once, then the recurrence turns pre into h in place
//   backward    dpre from the recurrence, then
//               dx = dpre W_ih      dW_ih = dpre^T x      dW_hh = dpre^T h_prev      db = sum dpre
//
// The input projection is a pass of its own over out. Computing it within the recurrence instead was tried for I = 28
// and brought nothing (T = 35, B = 32, H = 256, two threads of Zen 4).
#pragma once

#include "gradient.h"
#include "product.h"
#include "recurrence.h"
#include "step.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class S, class Act>
KEPT int sequence(const SequenceArgs& args, int threads) {
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
    if (walk.B > 0) memcpy(args.h_n, h, size_t(walk.B * walk.H) * sizeof(S));  // empty tensors may be null pointers
    return 0;
  }
  return product<S>(
             {args.dtype, total_rows(walk), walk.H, args.I, args.x, args.w_ih, true, args.b_ih, args.b_hh, args.out},
             threads) ||
         forward<S, Act>({args.dtype, args.activation, walk, args.h0, args.w_hh, args.out, args.h_n}, threads);
}

// How much of dpre is computed before it is used. A long sequence is taken in passes, each of them the recurrence over
// some steps and then these steps' part of the gradients, so that scratch memory does not grow with T: training at T =
// 1000, B = 32, H = 256 takes 25% of the memory that torch takes (Zen 4, live blocks). Passes of 1 MiB, which stay in
// the second cache level, took 1.1 to 1.2 times as long.
constexpr int64_t kPassBytes = 4 * 1024 * 1024;
constexpr int64_t kPassRows = 2048;

template <class S, class Act>
KEPT int sequence_backward(const SequenceBackwardArgs& args, int threads) {
  const Walk& walk = args.walk;
  const int64_t R = total_rows(walk), I = args.I, H = walk.H;
  const S* x = static_cast<const S*>(args.x);      // [R, I]
  const S* out = static_cast<const S*>(args.out);  // [R, H]
  const S* h0 = static_cast<const S*>(args.h0);    // [B, H]
  S* dx = static_cast<S*>(args.dx);                // [R, I], or null

  const int64_t fitting = H > 0 ? kPassBytes / (H * int64_t(sizeof(S))) : 0;
  const int64_t passes = R / (fitting > kPassRows ? fitting : kPassRows);
  const int64_t pass_rows = passes > 1 ? (R + passes - 1) / passes : R;  // a pass ends with the step that reaches it
  const Scratch<S> dpre((pass_rows + walk.B < R ? pass_rows + walk.B : R) * H);
  const Scratch<int64_t> before(args.dw_hh ? R : 0);  // where each row's previous state is
  BackwardOp<S, Act> op{H,
                        static_cast<const S*>(args.dout),
                        static_cast<const S*>(args.dh_n),
                        static_cast<const S*>(args.w_hh),
                        out,
                        static_cast<S*>(args.dh0),
                        dpre.get(),
                        0};
  State<S> state(walk, op.kBackward, op.in_place(), threads);
  const bool wanted = args.dw_ih || args.dw_hh || args.db;
  Gradients<S> gradients(static_cast<S*>(args.dw_ih), static_cast<S*>(args.dw_hh), static_cast<S*>(args.db), I, H, R,
                         pass_rows);
  if (!dpre || !before || !state || !gradients) return 1;
  if (args.dw_hh) previous_rows(walk, before.get());

  int failed = 0;
  Steps steps(walk, op.kBackward);
  bool more = steps.next();
  do {  // at least once: without any rows, gradients are zero
    Range rows{R, 0};
    int64_t count = 0;
    for (; more && (count == 0 || rows.size() < pass_rows); ++count) {
      const int64_t end = steps.offset() + steps.rows();
      rows = {steps.offset() < rows.begin ? steps.offset() : rows.begin, end > rows.end ? end : rows.end};
      more = steps.next();
    }

    op.first = rows.begin;
    failed |= run_walk(walk, op, state, count + !more);
    if (dx)
      failed |= product<S>(
          {args.dtype, rows.size(), I, H, dpre.get(), args.w_ih, false, nullptr, nullptr, dx + rows.begin * I},
          threads);
    if (wanted)
      failed |= gradients.add(dpre.get(), {x + rows.begin * I, I, nullptr, nullptr},
                              {out, H, before.get() + rows.begin, h0}, rows.size(), threads);
  } while (more && !failed);
  if (wanted) gradients.finish(threads);
  return failed;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
