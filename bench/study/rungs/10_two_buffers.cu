// Rung 10. Two buffers of the state, and one barrier a step is enough.
//
//   h_t = tanh(pre_t + W_hh h_{t-1})        for every t
//
// Who holds what. As in rung 9, but for h:
//
//   block b: sequence b                  shared memory
//     W_hh in registers                +--------+--------+
//                                      | h [H]  | h [H]  |   step t reads buffer t % 2 and writes the other one
//                                      +--------+--------+
//
//     step t      read h[t % 2]    write h[(t + 1) % 2]    barrier
//     step t + 1  read h[(t + 1) % 2], all of it written before that barrier
//                 write h[t % 2], which was last read in step t: before that barrier, too
//
// Floor. That of rung 9 less one barrier. Nothing else has changed: compare the two files.
//
// The shipped kernel: csrc/cuda/resident/resident.cuh, "Why one barrier a step suffices". It adds the ring, through
// which inputs arrive several steps ahead, packed sequences, a backward pass, and an engine for tensor cores
// (matrix.cuh).
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace rnnfast::cuda;

constexpr int kH = 128, kRows = 4, kSlices = 8, kGroups = kH / (4 * kSlices);  // groups of 4 columns of a lane
constexpr int kThreads = kH / kRows * kSlices;

struct Args {
  const float* pre;   // [T, B, H]
  const float* w_hh;  // [H, H], H <= kH
  const float* h0;    // [B, H]
  float* out;         // [T, B, H]
  int T, B, H;
};

struct Shared {
  __align__(16) float h[2][kH];
};

#if defined(STUDY_ONE_BUFFER)
constexpr int kBuffers = 1;
#else
constexpr int kBuffers = 2;
#endif

__global__ void __launch_bounds__(kThreads) double_buffered(const Args args) {
  auto& shared = shared_memory<Shared>();
  const int H = args.H, b = blockIdx.x, slice = threadIdx.x % kSlices, row = int(threadIdx.x) / kSlices * kRows;
  float w[kRows][kGroups][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int j = 0; j < kGroups; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = 4 * (j * kSlices + slice) + e;
        w[r][j][e] = row + r < H && k < H ? args.w_hh[(row + r) * H + k] : 0.0f;
      }
  // Lanes 0 .. 3 of the eight own a unit each; the others compute along and own none.
  const int unit = row + slice;
  const bool owner = slice < kRows, inside = owner && unit < H;
  if (owner) shared.h[0][unit] = inside ? args.h0[b * H + unit] : 0.0f;
  float pre = inside ? args.pre[b * H + unit] : 0.0f;
  ptx::sync_block();
#pragma unroll 1
  for (int t = 0; t < args.T; ++t) {
    const float* const before = shared.h[t % kBuffers];
    float* const after = shared.h[(t + 1) % kBuffers];
    const int64_t here = (int64_t(t) * args.B + b) * H + unit;
    float next = 0.0f;  // loaded a step ahead, so that no step waits for it
    if (inside && t + 1 < args.T) next = args.pre[here + args.B * H];
    float sum[kRows] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float4 h = ptx::load<float4>(&before[4 * (j * kSlices + slice)]);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        sum[r] = fmaf(w[r][j][3], h.w, fmaf(w[r][j][2], h.z, fmaf(w[r][j][1], h.y, fmaf(w[r][j][0], h.x, sum[r]))));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int lanes = kSlices / 2; lanes > 0; lanes /= 2) sum[r] += ptx::shuffle_xor(sum[r], lanes);
    const float mine = slice == 0 ? sum[0] : slice == 1 ? sum[1] : slice == 2 ? sum[2] : sum[3];
    const float value = unit < H ? tanhf(pre + mine) : 0.0f;
    if (owner) after[unit] = value;
#if !defined(STUDY_NO_BARRIER)
    ptx::sync_block();
#endif
    if (inside) args.out[here] = value;
    pre = next;
  }
}

}  // namespace

extern "C" {

int launches = 0;

// pre, out [T, B, H], w_hh [H, H], h0 [B, H]; H <= 128. Returns a cudaError_t.
int rung(const float* pre, const float* w_hh, const float* h0, float* out, uint32_t* /*scratch*/, int T, int B, int H,
         uintptr_t stream) {
  if (H > kH) return cudaErrorInvalidValue;
  ++launches;
  const Args args{pre, w_hh, h0, out, T, B, H};
  return launch(double_buffered, B, kThreads, sizeof(Shared), stream, LaunchMode::kIndependent, args);
}

}  // extern "C"

// Exercise. Compile with -DSTUDY_NO_BARRIER: the test must see it fail. Then -DSTUDY_ONE_BUFFER, which keeps the
// barrier and drops the second buffer: which of rung 9's two barriers is the missing one? (test_exercise_10)
