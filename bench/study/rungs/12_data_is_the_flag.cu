// Rung 12. The data is its own flag: nobody is told that a state is there, everybody sees it.
//
//   h_t = tanh(pre_t + W_hh h_{t-1})        for every t, H larger than one block can hold
//
// Who holds what. As in rung 11. What is new is what `out` holds before a step has written it:
//
//   out [T, B, H], in L2      h_0 h_0 h_0 ...   h_1 h_1 ~ ~ h_1 ...   ~ ~ ~ ~ ...        ~ is 0xFFFFFFFF, a NaN
//                             all there         some there: look again
//
//   step t   every warp    load h_{t-1} until no word is ~   multiply   store two words of h_t
//
// Why it is right. A word is stored once and whole, so it is ~ or final. No result is ~: that one NaN is replaced by
// another. Nothing is concluded from one word about another, so no fence is needed. No place is used twice, so nobody
// can overwrite what is still read. All blocks run at the same time (cooperative), and what a step needs was made in
// the step before, so the earliest step that is unfinished anywhere can finish.
//
// Floor. One store and one load through L2 ("exchange through L2, two blocks"), instead of four trips and two
// barriers; every warp goes at its own pace.
//
// The shipped kernel: csrc/cuda/grid/grid.cuh. Its warps share the columns, so that a block loads h once and not once a
// warp; it takes eight sequences at a time on tensor cores, and gives up waiting after a while.
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace rnnfast::cuda;

constexpr int kH = 512, kThreads = 256, kOwn = 2, kRows = kOwn * kThreads / 32, kWords = kH / 32;
constexpr uint32_t kEmpty = 0xFFFFFFFFu;

struct Args {
  const float* pre;   // [T, B, H]
  const float* w_hh;  // [H, H], H <= kH
  const float* h0;    // [B, H]
  float* out;         // [T, B, H], all bits set at first
  int T, B, H;
};

__global__ void __launch_bounds__(kThreads) flagged(const Args args) {
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
      uint32_t h[kWords] = {};
      bool empty;
      do {
        empty = false;
#pragma unroll
        for (int j = 0; j < kWords; ++j)
          if (lane + 32 * j < H) {
            h[j] = ptx::load_relaxed(reinterpret_cast<const uint32_t*>(from) + lane + 32 * j);
            empty |= h[j] == kEmpty;
          }
      } while (ptx::any_in_warp(empty && t > 0));  // h0 was there before the launch, and may be any NaN
      float sum[kOwn] = {};
#pragma unroll
      for (int j = 0; j < kWords; ++j)
#pragma unroll
        for (int r = 0; r < kOwn; ++r) sum[r] = fmaf(w[r][j], ptx::as_float(h[j]), sum[r]);
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) sum[r] += ptx::shuffle_xor(sum[r], lanes);
      const float value = tanhf(pre + (lane == 0 ? sum[0] : sum[1]));
      uint32_t bits = ptx::as_bits(value);
#if !defined(STUDY_NO_REPLACEMENT)
      if (bits == kEmpty) bits = 0x7FFFFFFFu;
#endif
      if (owner) ptx::store_relaxed(reinterpret_cast<uint32_t*>(args.out) + here * H + unit, bits);
    }
  }
}

}  // namespace

extern "C" {

int launches = 0;

// pre, out [T, B, H], w_hh [H, H], h0 [B, H]; H <= 512. Returns a cudaError_t.
int rung(const float* pre, const float* w_hh, const float* h0, float* out, uint32_t* /*scratch*/, int T, int B, int H,
         uintptr_t stream) {
  if (H > kH) return cudaErrorInvalidValue;
  const cudaError_t error =
      cudaMemsetAsync(out, 0xFF, sizeof(float) * T * B * H, reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return error;
  ++launches;
  const Args args{pre, w_hh, h0, out, T, B, H};
  return launch(flagged, (H + kRows - 1) / kRows, kThreads, 0, stream, LaunchMode::kCooperative, args);
}

}  // extern "C"

// Exercise. Compile with -DSTUDY_NO_REPLACEMENT and put the NaN with the bits 0xFFFFFFFF into pre. What happens, and
// why does it not with any other NaN? (test_exercise_12)
