// The gradients of one step: dpre = dout act'(out), then
//
//   dx = dpre W_ih      dh = dpre W_hh      dW_ih = dpre^T x      dW_hh = dpre^T h      db = sum dpre
#pragma once

#include "product.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class S, class Act>
int step_backward(const StepBackwardArgs& args, int threads) {
  constexpr int L = kLanes<Compute<S>>;
  const int64_t B = args.B, I = args.I, H = args.H;
  const S* dout = static_cast<const S*>(args.dout);  // [B, H]
  const S* out = static_cast<const S*>(args.out);    // [B, H]
  const Scratch<S> dpre(B * H);
  if (!dpre) return 1;
  for (int64_t i = 0; i < B * H; i += L) {
    const int lanes = B * H - i < L ? int(B * H - i) : L;
    store_lanes(dpre.get() + i, Act::backward(load_lanes(dout + i, lanes), load_lanes(out + i, lanes)), lanes);
  }
  int failed = 0;
  const auto product_with = [&](const void* w, int64_t N, void* c) {
    if (c) failed |= product<S>({args.dtype, B, N, H, dpre.get(), w, false, nullptr, nullptr, c}, threads);
  };
  const auto gradient_with = [&](const void* b, int64_t N, void* c) {
    if (c) failed |= gradient<S>({args.dtype, B, H, N, dpre.get(), b, nullptr, nullptr, c, nullptr}, threads);
  };
  product_with(args.w_ih, I, args.dx);
  product_with(args.w_hh, H, args.dh);
  gradient_with(args.x, I, args.dw_ih);
  gradient_with(args.h, H, args.dw_hh);
  if (args.db) failed |= column_sum<S>({args.dtype, B, H, 0, dpre.get(), nullptr, nullptr, nullptr, nullptr, args.db}, threads);
  return failed;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
