// Rung 11. The whole device, with a counter as its barrier. A dead end: it is right, and the waiting costs more than
// the work.
//
//   h_t = tanh(pre_t + W_hh h_{t-1})        for every t, H larger than one block can hold
//
// Who holds what. A block has 16 rows of W_hh, in registers, for all sequences.
//
//   block 0: units 0 .. 15      warp 0: units 0, 1   warp 1: units 2, 3   ...   lane l: columns l, l + 32, ...
//   block 1: units 16 .. 31     h is exchanged through L2: out [T, B, H] itself, a place of its own for every step
//   ...
//
//   step t   every block   read h_{t-1} (L2)   multiply   store h_t   fence   barrier   count up   wait for all
//   counter                0 ............................................... blocks ............ 2 blocks ...
//
// Floor. Four trips to L2 in a row: the store with its fence, the count, the look that sees the last count, the
// load of h. The latency table has the barrier by itself ("grid barrier, one counter"); at H = 512 the product is a
// tenth of it. That all blocks run at the same time is part of being right: the launch is cooperative, so it fails
// rather than waits for ever if they don't fit.
//
// What became of it: csrc/cuda/grid/grid.cuh exchanges without a counter. That is rung 12.
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace rnnfast::cuda;

constexpr int kH = 512, kThreads = 256, kOwn = 2, kRows = kOwn * kThreads / 32, kWords = kH / 32;
#if defined(STUDY_INDEPENDENT)
constexpr LaunchMode kMode = LaunchMode::kIndependent;
#else
constexpr LaunchMode kMode = LaunchMode::kCooperative;
#endif

struct Args {
  const float* pre;   // [T, B, H]
  const float* w_hh;  // [H, H], H <= kH
  const float* h0;    // [B, H]
  float* out;         // [T, B, H]
  uint32_t* arrived;  // [1], 0 at first
  int T, B, H;
};

__global__ void __launch_bounds__(kThreads) counted(const Args args) {
  const int H = args.H, lane = threadIdx.x % 32;
  const int row = int(blockIdx.x) * kRows + int(threadIdx.x) / 32 * kOwn, unit = row + lane;
  float w[kOwn][kWords];
#pragma unroll
  for (int r = 0; r < kOwn; ++r)
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      const int k = lane + 32 * j;
      w[r][j] = row + r < H && k < H ? args.w_hh[(row + r) * H + k] : 0.0f;
    }
#pragma unroll 1
  for (int t = 0; t < args.T; ++t) {
#pragma unroll 1
    for (int b = 0; b < args.B; ++b) {
      const int64_t here = int64_t(t) * args.B + b;
      const float* const from = t > 0 ? args.out + (here - args.B) * H : args.h0 + int64_t(b) * H;
      const bool owner = lane < kOwn && unit < H;
      const float pre = owner ? args.pre[here * H + unit] : 0.0f;
      float sum[kOwn] = {};
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const int k = lane + 32 * j;
        const float h = k < H ? ptx::as_float(ptx::load_relaxed(reinterpret_cast<const uint32_t*>(from) + k)) : 0.0f;
#pragma unroll
        for (int r = 0; r < kOwn; ++r) sum[r] = fmaf(w[r][j], h, sum[r]);
      }
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) sum[r] += ptx::shuffle_xor(sum[r], lanes);
      const float value = tanhf(pre + (lane == 0 ? sum[0] : sum[1]));
      if (owner) ptx::store_relaxed(reinterpret_cast<uint32_t*>(args.out) + here * H + unit, ptx::as_bits(value));
    }
#if !defined(STUDY_NO_FENCE)
    ptx::fence_device();  // the thread's own stores are visible before it is counted
#endif
    ptx::sync_block();
    if (threadIdx.x == 0) {
      ptx::atomic_add(args.arrived, 1);
      while (ptx::load_acquire(args.arrived) < gridDim.x * (t + 1u)) {
      }
    }
    ptx::sync_block();
  }
}

}  // namespace

extern "C" {

int launches = 0;

// pre, out [T, B, H], w_hh [H, H], h0 [B, H], scratch [1]; H <= 512. Returns a cudaError_t.
int rung(const float* pre, const float* w_hh, const float* h0, float* out, uint32_t* scratch, int T, int B, int H,
         uintptr_t stream) {
  if (H > kH) return cudaErrorInvalidValue;
  const cudaError_t error = cudaMemsetAsync(scratch, 0, sizeof *scratch, reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return error;
  ++launches;
  const Args args{pre, w_hh, h0, out, scratch, T, B, H};
  return launch(counted, (H + kRows - 1) / kRows, kThreads, 0, stream, kMode, args);
}

}  // extern "C"

// Exercise. Compile with -DSTUDY_INDEPENDENT (blocks in any order, not all at once) and, separately, launch this rung
// where the device holds fewer blocks than the layer needs. Which of the two waits for ever, and which one says so?
// (test_exercise_11)
