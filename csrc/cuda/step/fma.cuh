// The fused step, forward and backward, in exact float32 and in float64: plain multiply-adds.
//
//   out = act([x, h] [W_ih, W_hh]^T + b_ih + b_hh)
//   dpre = dout act'(out)        dx = dpre W_ih        dh = dpre W_hh
//
// Forward, a warp makes kOutputs hidden units of kOutputs sequences, and its lanes share the sum over K: lane l takes
// columns l, l + 32, ..., so that a warp's loads are contiguous; the lanes' sums are added at the end. Backward, a
// thread makes one column of dx or dh for kOutputs sequences, its neighbours the neighbouring columns, and the block's
// warps share the sum over H. These are the simplest kernels that read the weights contiguously; they are not made for
// large batches.
#pragma once

#include "parts.cuh"

namespace rnnfast {
namespace cuda {

constexpr int kOutputs = 4, kFmaWarps = 8;

template <class T>
__device__ __forceinline__ void add_rows(T (&sum)[kOutputs][kOutputs],
                                         const T* w,  // [H, K]
                                         const T* a,  // [B, K]
                                         int64_t K, int64_t unit, int64_t sequence, const StepArgs& step) {
  for (int64_t k = threadIdx.x % 32; k < K; k += 32) {
    T left[kOutputs], right[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      left[i] = unit + i < step.H ? w[(unit + i) * K + k] : T(0);
      right[i] = sequence + i < step.B ? a[(sequence + i) * K + k] : T(0);
    }
#pragma unroll
    for (int b = 0; b < kOutputs; ++b)
#pragma unroll
      for (int u = 0; u < kOutputs; ++u) sum[b][u] = fma(left[u], right[b], sum[b][u]);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kFmaWarps, 1) step_forward_fma(const StepArgs step) {
  const int64_t tiles = (step.H + kOutputs * kFmaWarps - 1) / (kOutputs * kFmaWarps);
  const int64_t sequence = blockIdx.x / tiles * kOutputs;
  const int64_t unit = (blockIdx.x % tiles * kFmaWarps + threadIdx.x / 32) * kOutputs;
  T sum[kOutputs][kOutputs] = {};
  add_rows(sum, static_cast<const T*>(step.w_ih), static_cast<const T*>(step.x), step.I, unit, sequence, step);
  add_rows(sum, static_cast<const T*>(step.w_hh), static_cast<const T*>(step.h), step.H, unit, sequence, step);
  const int lane = int(threadIdx.x) % 32;
  const T *b_ih = static_cast<const T*>(step.b_ih), *b_hh = static_cast<const T*>(step.b_hh);
#pragma unroll
  for (int b = 0; b < kOutputs; ++b)
#pragma unroll
    for (int u = 0; u < kOutputs; ++u) {
      T total = sum[b][u];
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) total += ptx::shuffle_xor(total, lanes);
      if (lane != b * kOutputs + u || sequence + b >= step.B || unit + u >= step.H) continue;
      const T bias = (b_ih ? b_ih[unit + u] : T(0)) + (b_hh ? b_hh[unit + u] : T(0));
      static_cast<T*>(step.out)[(sequence + b) * step.H + unit + u] = activate<T>(step.activation, total + bias);
    }
}

template <class T>
struct FmaBackwardShared {
  T sums[kFmaWarps][kOutputs][32];
};

struct StepBackwardFmaLaunch {
  StepBackwardArgs step;
  int64_t x_tiles, h_tiles;  // blocks of 32 columns of dx and of dh; 0 where not asked for. The first stores dpre
};

template <class T>
__global__ void __launch_bounds__(32 * kFmaWarps, 1) step_backward_fma(const StepBackwardFmaLaunch args) {
  const StepBackwardArgs& step = args.step;
  auto& shared = shared_memory<FmaBackwardShared<T>>();
  const int64_t tiles = args.h_tiles + args.x_tiles, tile = blockIdx.x % tiles;
  const int64_t sequence = blockIdx.x / tiles * kOutputs;
  const bool for_h = tile < args.h_tiles;
  const int64_t units = for_h ? step.H : step.I;
  const T* w = static_cast<const T*>(for_h ? step.w_hh : step.w_ih);  // [H, units]
  T* result = static_cast<T*>(for_h ? step.dh : step.dx);             // [B, units], null for dpre alone
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t u = (for_h ? tile : tile - args.h_tiles) * 32 + lane;

  T sum[kOutputs] = {};
  for (int64_t k = warp; k < step.H; k += kFmaWarps) {
    const T weight = result && u < units ? w[k * units + u] : T(0);
#pragma unroll
    for (int b = 0; b < kOutputs; ++b) {
      if (sequence + b >= step.B) continue;
      const int64_t at = (sequence + b) * step.H + k;
      const T dpre =
          static_cast<const T*>(step.dout)[at] * derivative_of(step.activation, static_cast<const T*>(step.out)[at]);
      if (tile == 0 && lane == 0) static_cast<T*>(step.dpre)[at] = dpre;
      sum[b] = fma(dpre, weight, sum[b]);
    }
  }
#pragma unroll
  for (int b = 0; b < kOutputs; ++b) shared.sums[warp][b][lane] = sum[b];
  ptx::sync_block();
  if (!result || warp >= kOutputs || sequence + warp >= step.B || u >= units) return;
  T total = T(0);
#pragma unroll
  for (int from = 0; from < kFmaWarps; ++from) total += shared.sums[from][warp][lane];
  result[(sequence + warp) * units + u] = total;
}

}  // namespace cuda
}  // namespace rnnfast
