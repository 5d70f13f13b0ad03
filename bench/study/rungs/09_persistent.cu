// Rung 9. One launch for all steps: a block takes a sequence from its first step to its last.
//
//   h_t = tanh(pre_t + W_hh h_{t-1})        for every t
//
// Who holds what. W_hh [128, 128] is as large as 256 threads times 64 registers. It is loaded once and stays.
//
//   block b: sequence b                                 shared memory
//     8 neighbouring lanes share 4 rows of W_hh       +--------+
//       lane 0: columns 0..3, 32..35, 64..67, 96..99  | h [H]  |  read by all, written by all
//       lane 1: columns 4..7, 36..39, ...             +--------+
//     a lane: 4 rows x 16 columns = 64 registers
//
// Floor. Per step: read h from shared memory, 64 multiply-adds a lane, add up over 8 lanes, tanh, write h, and a
// barrier on either side of the write: without the first a thread overwrites what another still reads, without the
// second a thread reads what another has not written yet. No launch, and no byte of W_hh is read again.
//
// The shipped kernel: csrc/cuda/resident/resident.cuh with the engine of csrc/cuda/resident/fma.cuh.
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
  __align__(16) float h[kH];
};

__global__ void __launch_bounds__(kThreads) persistent(const Args args) {
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
  if (owner) shared.h[unit] = inside ? args.h0[b * H + unit] : 0.0f;
  float pre = inside ? args.pre[b * H + unit] : 0.0f;
  ptx::sync_block();
#pragma unroll 1
  for (int t = 0; t < args.T; ++t) {
    const int64_t here = (int64_t(t) * args.B + b) * H + unit;
    float next = 0.0f;  // loaded a step ahead, so that no step waits for it
    if (inside && t + 1 < args.T) next = args.pre[here + args.B * H];
    float sum[kRows] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float4 h = ptx::load<float4>(&shared.h[4 * (j * kSlices + slice)]);
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
#if !defined(STUDY_NO_BARRIER_BEFORE_WRITE)
    ptx::sync_block();
#endif
    if (owner) shared.h[unit] = value;
    ptx::sync_block();
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
  return launch(persistent, B, kThreads, sizeof(Shared), stream, LaunchMode::kIndependent, args);
}

}  // extern "C"

// Exercise. Compile with -DSTUDY_NO_BARRIER_BEFORE_WRITE. In which order do threads have to run for a wrong result? Is
// it wrong in every order? (test_exercise_9)
