// The CUDA kernels' contract in C: torch-free launchers on raw pointers, sizes and a stream. Equations, notation and
// the order of rows are those of ../common.h; all pointers are device memory.
//
// The files of a kernel, in a folder of its own
//
//   NAME.cuh   the kernel: `template <...> __global__ void name(const Args args)` in namespace rnnfast::cuda. Includes
//              "../ptx.cuh" (every intrinsic and inline assembly there is), "../numbers.cuh" (conversions,
//              activations), "../sequences.cuh" (rows and lengths of sequences). It takes shared memory as
//              `auto& shared = shared_memory<Shared>()` with `Shared` a struct of plain arrays, always dynamic.
//   NAME.cu    includes "../launch.cuh" and NAME.cuh;
//              `extern "C" int rnnfast_cuda_NAME(const XxxArgs&, uintptr_t stream)` picks an instantiation and returns
//              `launch(kernel, grid, threads, sizeof(Shared), stream, mode, args)`. Any failure is returned, never
//              thrown or dropped: 0, a positive cudaError_t, or a negative `Refusal`; rnnfast_cuda_message() puts it in
//              words and the Python backend adds the kernel's name and the shape.
//   here       the declaration of the launcher and its arguments; bindings.cpp exports it to Python.
//
// A launcher never synchronises, never allocates and uses only the stream that it is given, so that it can run while a
// CUDA graph is captured. Scratch memory comes from the caller. The same files are compiled by g++ against
// tests/cuda_on_cpu (see its machine.h), where the tests run them. Intrinsics are therefore in ptx.cuh alone, and
// __shared__ variables and <<< >>> are not used.
#pragma once

#include <stdint.h>

#include "../common.h"

namespace rnnfast {
namespace cuda {

// Negative results of launchers; positive ones are cudaError_t.
enum Refusal : int {
  kUnsupported = -1,  // no kernel for this dtype, size or flag; the limits below say which there are
  kNotResident = -2,  // the grid would not fit on the device all at once
  kTooManyRows = -3,  // the grid would be larger than CUDA allows
};

// A batch of sequences, and the order in which their steps are taken.
struct Sequences {
  int64_t T, B, H;
  const int64_t* offsets;  // [T + 1], on the device: the first row of every step, then R. Null: step t begins at t * B
  bool reverse;
};

// The recurrence alone; the products before and after it are computed by the caller. T and B are at least 1. All
// matrices begin at multiples of 16 bytes unless a launcher's comment says otherwise.
struct ForwardArgs {
  DType dtype;
  Activation activation;
  bool tf32;  // float32 only: products may be in TF32
  Sequences sequences;
  const void* pre;   // [R, H], x W_ih^T + b_ih + b_hh
  const void* h0;    // [B, H]
  const void* w_hh;  // [H, H]
  void* out;         // [R, H], may be pre (not in grid/grid.h)
  void* h_n;         // [B, H]
};

struct BackwardArgs {
  DType dtype;
  Activation activation;
  bool tf32;
  Sequences sequences;
  const void* dout;  // [R, H], or null for zeros
  const void* dh_n;  // [B, H], or null for zeros
  const void* out;   // [R, H]
  const void* w_hh;  // [H, H]
  void* dpre;        // [R, H]
  void* dh0;         // [B, H]
};

struct StepArgs {
  DType dtype;
  Activation activation;
  bool tf32;
  int64_t B, I, H;
  const void* x;     // [B, I]
  const void* h;     // [B, H]
  const void* w_ih;  // [H, I]
  const void* w_hh;  // [H, H]
  const void* b_ih;  // [H], or null
  const void* b_hh;  // [H], or null
  void* out;         // [B, H]
};

// dpre = dout act'(out), dx = dpre W_ih, dh = dpre W_hh, in one launch.
struct StepBackwardArgs {
  DType dtype;
  Activation activation;
  bool tf32;
  int64_t B, I, H;
  const void* dout;  // [B, H]
  const void* out;   // [B, H]
  const void* w_ih;  // [H, I]
  const void* w_hh;  // [H, H]
  void* dpre;        // [B, H]
  void* dx;          // [B, I], or null
  void* dh;          // [B, H], or null
};

}  // namespace cuda
}  // namespace rnnfast

extern "C" {

// The current device, read without creating a context on it. All fields are 0 if there is no device or no driver.
struct rnnfast_cuda_device {
  int capability;       // 10 * major + minor
  int multiprocessors;  // SMs
  int64_t shared;       // bytes of shared memory that a block may take
};
rnnfast_cuda_device rnnfast_cuda_current_device();
int rnnfast_cuda_device_count();

// A launcher's result in words; static storage.
const char* rnnfast_cuda_message(int result);

// step/step.cu: any sizes.
int rnnfast_cuda_step(const rnnfast::cuda::StepArgs& args, uintptr_t stream);
int rnnfast_cuda_step_backward(const rnnfast::cuda::StepBackwardArgs& args, uintptr_t stream);

// resident/resident.cu: a block computes a few sequences, with W_hh in its registers for the whole sequence. The limit
// is the largest H, 0 for none. Rows of matrices [R, H] are `stride` elements apart: H rounded up to a multiple of 16
// bytes, where the elements after H are 0 in the caller's matrices and in the results. T * B is less than 2^32.
int64_t rnnfast_cuda_resident_limit(rnnfast::DType dtype);
int rnnfast_cuda_resident_forward(const rnnfast::cuda::ForwardArgs& args, int64_t stride, uintptr_t stream);
int rnnfast_cuda_resident_backward(const rnnfast::cuda::BackwardArgs& args, int64_t stride, uintptr_t stream);

}  // extern "C"
