// The gradients of one step that need no sum over the batch, in one launch.
//
//   dpre = dout act'(out)        dx = dpre W_ih        dh = dpre W_hh
//
// As in the forward step the product is transposed, so that the weights are the left operand of an mma, and operands
// are loaded into registers without shared memory between.
//
//   [dx, dh]^T [I + H, B] = [W_ih, W_hh]^T [I + H, H] dpre^T [H, B]
//
// Who holds what. A block makes 32 columns of dx or of dh for 8 kTiles sequences; its warps share the sum over H.
// Weights are loaded along their rows and transposed in registers (parts.cuh). Every block that needs dpre
// computes it from dout and out, which costs two loads; a kernel before this one would cost a launch. The blocks of the
// first tile, dh's first columns or dx's where dh is not asked for, also store dpre, each for its sequences.
//
// The one barrier stands between the writing of the partial sums and their addition. The floor is the forward step's.
//
// The weight gradients, sums over the batch, are left to torch's matrix products: a single step has no structure that a
// kernel could exploit.
#pragma once

#include "step.cuh"

namespace rnnfast {
namespace cuda {

struct StepBackwardLaunch {
  StepBackwardArgs step;
  int64_t x_tiles, h_tiles;   // blocks of 32 columns of dx and of dh; 0 where not asked for, but not both
  bool x_aligned, h_aligned;  // rows of W_ih, of W_hh and dout and out begin at multiples of 16 bytes
};

constexpr int kBackwardUnits = 32;

template <class Kind, int kTiles>
__global__ void __launch_bounds__(32 * kStepWarps, 1) step_backward(const StepBackwardLaunch args) {
  using P = Product<Kind>;
  using T = typename P::Element;
  constexpr int kSequences = 8 * kTiles;
  const StepBackwardArgs& step = args.step;
  auto& shared = shared_memory<Partial<kSequences, kBackwardUnits, kStepWarps>>();
  const int64_t tiles = args.h_tiles + args.x_tiles, tile = blockIdx.x % tiles;
  const int64_t sequence = blockIdx.x / tiles * kSequences;
  const bool for_h = tile < args.h_tiles, stores_dpre = tile == 0;
  const int64_t unit = (for_h ? tile : tile - args.h_tiles) * kBackwardUnits, units = for_h ? step.H : step.I;
  const T* w = static_cast<const T*>(for_h ? step.w_hh : step.w_ih);  // [H, units]
  T* result = static_cast<T*>(for_h ? step.dh : step.dx);             // [B, units], null for dpre alone
  const bool aligned = for_h ? args.h_aligned : args.x_aligned;
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
  const T *dout = static_cast<const T*>(step.dout), *out = static_cast<const T*>(step.out);

  float sum[2][kTiles][4] = {};
  for (int64_t chunk = warp * P::kChunk; chunk < step.H; chunk += kStepWarps * P::kChunk) {
    const int64_t at = chunk + q * P::kPiece;
    uint32_t right[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int64_t b = sequence + 8 * n + g;
      uint32_t d[4], o[4];
      load_piece(d, dout + b * step.H, at, step.H, args.h_aligned, b < step.B);
      load_piece(o, out + b * step.H, at, step.H, args.h_aligned, b < step.B);
#pragma unroll
      for (int i = 0; i < 4; ++i) right[n][i] = P::derivative(d[i], o[i], step.activation);
      if (stores_dpre && b < step.B)
        store_piece(static_cast<T*>(step.dpre) + b * step.H, at, step.H, args.h_aligned, right[n]);
#pragma unroll
      for (int i = 0; i < 4; ++i) right[n][i] = P::rounded(right[n][i]);
    }
    uint32_t left[4][4];  // [p][j]: rows transposed_row(p, g) of W^T, piece of columns at ..
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = chunk + P::row(j, g, q);
      uint32_t piece[4];
      load_piece(piece, w + row * units, unit + P::column(g, q), units, aligned, row < step.H && result != nullptr);
#pragma unroll
      for (int p = 0; p < 4; ++p) left[p][j] = P::turn(P::rounded(piece[p]));
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) multiply<P>(sum[m][n], left[2 * m], left[2 * m + 1], right[n]);
  }

#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        shared.sums[warp][8 * n + 2 * q + j % 2][P::transposed_row(2 * m + j / 2, g)] = sum[m][n][j];
  ptx::sync_block();
  if (!result) return;
  for (int i = int(threadIdx.x); i < kSequences * kBackwardUnits; i += 32 * kStepWarps) {
    const int64_t b = sequence + i / kBackwardUnits, u = unit + i % kBackwardUnits;
    if (b < step.B && u < units)
      result[b * units + u] = from_float<T>(shared.total(i / kBackwardUnits, i % kBackwardUnits));
  }
}

}  // namespace cuda
}  // namespace rnnfast
