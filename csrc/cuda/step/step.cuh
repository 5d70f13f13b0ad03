// One time step, fused: both products add to one accumulator, and bias and activation are applied before the store.
//
//   out = act([x, h] [W_ih, W_hh]^T + b_ih + b_hh)
//
// [x, h] and [W_ih, W_hh] are never formed: the sum over K = I + H runs over x and W_ih first and then over h and W_hh.
// It is computed transposed: W, the larger operand, is the left one of an mma, and the batch the narrow right one:
//
//   out^T [H, B] = W_ih [H, I] x^T [I, B] + W_hh [H, H] h^T [H, B]
//
// Who holds what. A block makes a tile of 16 kBlocks hidden units and 8 kTiles sequences; its warps share K (see
// parts.cuh). Nothing is kept from one step to the next.
//
// The one barrier stands between the writing of the partial sums and their addition.
//
// The floor: reading the weights, (I + H) H elements, once per 8 kTiles sequences, and one round of latency: launch,
// load, products, barrier, store.
#pragma once

#include "parts.cuh"

namespace rnnfast {
namespace cuda {

constexpr int kStepWarps = 8;

struct StepLaunch {
  StepArgs step;
  bool x_aligned, h_aligned;  // rows of x and W_ih, of h and W_hh, begin at multiples of 16 bytes
};

template <class Kind, int kBlocks, int kTiles>
struct StepForward {
  using P = Product<Kind>;
  using T = typename P::Element;
  static constexpr int kUnits = 16 * kBlocks, kSequences = 8 * kTiles, kThreads = 32 * kStepWarps;
  using Shared = Partial<kSequences, kUnits, kStepWarps>;

  // sum^T += w a^T for this warp's share of K columns.
  static __device__ __forceinline__ void add_product(float (&sum)[kBlocks][kTiles][4],
                                                     const T* w,  // [H, K]
                                                     const T* a,  // [B, K]
                                                     int64_t K, int64_t unit, int64_t sequence, const StepArgs& step,
                                                     bool aligned) {
    const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll 2
    for (int64_t chunk = warp * P::kChunk; chunk < K; chunk += kStepWarps * P::kChunk) {
      const int64_t at = chunk + q * P::kPiece;
      uint32_t left[kBlocks][2][4], right[kTiles][4];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t row = unit + 16 * m + 8 * half + g;
          load_piece(left[m][half], w + row * K, at, K, aligned, row < step.H);
        }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int64_t row = sequence + 8 * n + g;
        load_piece(right[n], a + row * K, at, K, aligned, row < step.B);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          left[m][0][i] = P::rounded(left[m][0][i]);
          left[m][1][i] = P::rounded(left[m][1][i]);
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) right[n][i] = P::rounded(right[n][i]);
      }
#pragma unroll
      for (int m = 0; m < kBlocks; ++m)
#pragma unroll
        for (int n = 0; n < kTiles; ++n) multiply<P>(sum[m][n], left[m][0], left[m][1], right[n]);
    }
  }
};

template <class Kind, int kBlocks, int kTiles>
__global__ void __launch_bounds__(32 * kStepWarps, 1) step_forward(const StepLaunch args) {
  using S = StepForward<Kind, kBlocks, kTiles>;
  using T = typename S::T;
  const StepArgs& step = args.step;
  auto& shared = shared_memory<typename S::Shared>();
  const int64_t tiles = (step.H + S::kUnits - 1) / S::kUnits;
  const int64_t unit = blockIdx.x % tiles * S::kUnits, sequence = blockIdx.x / tiles * S::kSequences;

  float sum[kBlocks][kTiles][4] = {};
  S::add_product(sum, static_cast<const T*>(step.w_ih), static_cast<const T*>(step.x), step.I, unit, sequence, step,
                 args.x_aligned);
  S::add_product(sum, static_cast<const T*>(step.w_hh), static_cast<const T*>(step.h), step.H, unit, sequence, step,
                 args.h_aligned);

  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j) shared.sums[warp][8 * n + 2 * q + j % 2][16 * m + 8 * (j / 2) + g] = sum[m][n][j];
  ptx::sync_block();

  const T *b_ih = static_cast<const T*>(step.b_ih), *b_hh = static_cast<const T*>(step.b_hh);
  for (int i = int(threadIdx.x); i < S::kSequences * S::kUnits; i += S::kThreads) {
    const int64_t b = sequence + i / S::kUnits, u = unit + i % S::kUnits;
    if (b >= step.B || u >= step.H) continue;
    const float bias = (b_ih ? to_float(b_ih[u]) : 0.0f) + (b_hh ? to_float(b_hh[u]) : 0.0f);
    const float value = activate<T>(step.activation, shared.total(i / S::kUnits, i % S::kUnits) + bias);
    static_cast<T*>(step.out)[b * step.H + u] = from_float<T>(value);
  }
}

}  // namespace cuda
}  // namespace rnnfast
