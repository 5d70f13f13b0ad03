// Rung 8. A kernel for every step.
//
//   h_t = tanh(pre_t + W_hh h_{t-1})        for every t;  pre = x W_ih^T + b_ih + b_hh is a product made before (rung
//   2)
//
// Who holds what. Nobody keeps anything from one step to the next: a kernel's registers are gone when it ends.
//
//   launch t      warp 0: unit 0 of sequence 0     lane l: columns l, l + 32, ... of a row of W_hh
//                 warp 1: unit 1 of sequence 0     h_{t-1}, W_hh and pre_t are read from L2, h_t is written to it
//                 ...
//   launch t + 1  the same, once launch t has ended
//
// Floor. One launch a step: the end of a kernel is the barrier between steps. In a CUDA graph the host is not asked
// again for every launch, and what is left is the device's own start of a kernel, which the latency table calls "kernel
// in a graph".
//
// The shipped kernel: csrc/cuda/step/step.cuh, which a cell or a sequence of one step runs.
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace rnnfast::cuda;

constexpr int kThreads = 256;

struct Args {
  const float* pre;     // [B, H], of this step
  const float* w_hh;    // [H, H]
  const float* before;  // [B, H], h_{t-1}
  float* after;         // [B, H], h_t
  int B, H;
};

__global__ void __launch_bounds__(kThreads) step(const Args args) {
  const int warp = int(blockIdx.x * kThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int b = warp / args.H, unit = warp % args.H;
  if (b >= args.B) return;
  const float* const w = args.w_hh + int64_t(unit) * args.H;
  const float* const h = args.before + int64_t(b) * args.H;
  float sum = 0.0f;
#pragma unroll 4
  for (int k = lane; k < args.H; k += 32) sum = fmaf(w[k], h[k], sum);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += ptx::shuffle_xor(sum, lanes);
  if (lane == 0) args.after[b * args.H + unit] = tanhf(args.pre[b * args.H + unit] + sum);
}

}  // namespace

extern "C" {

int launches = 0;  // since the library was loaded

// pre, out [T, B, H], w_hh [H, H], h0 [B, H]; `scratch` is for later rungs. Returns a cudaError_t.
int rung(const float* pre, const float* w_hh, const float* h0, float* out, uint32_t* /*scratch*/, int T, int B, int H,
         uintptr_t stream) {
  const int64_t size = int64_t(B) * H, blocks = (size * 32 + kThreads - 1) / kThreads;
  for (int t = 0; t < T; ++t) {
    const float* const before = t > 0 ? out + (t - 1) * size : h0;
    const Args args{pre + t * size, w_hh, before, out + t * size, B, H};
    const int error = launch(step, blocks, kThreads, 0, stream, LaunchMode::kIndependent, args);
    if (error != 0) return error;
    ++launches;
  }
  return 0;
}

}  // extern "C"

// Exercise. What is the least time that 512 steps can take in a graph on the machine of the latency table, whatever the
// kernel does? How small would H have to be for rung 9 to beat that? (test_exercise_8)
