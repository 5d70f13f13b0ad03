// The function that launches every kernel.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "contract.h"

namespace rnnfast {
namespace cuda {

enum class LaunchMode {
  kIndependent,  // blocks in any order
  kCooperative,  // all blocks at the same time, or none: the launch fails if they don't fit
};

// Returns a cudaError_t, or a Refusal.
template <class Args>
int launch(void (*kernel)(Args), int64_t blocks, int threads, size_t shared_bytes, uintptr_t stream, LaunchMode mode,
           const Args& args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return kTooManyRows;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return cudaGetLastError(), error;
  }
  void* parameters[] = {const_cast<Args*>(&args)};
  const dim3 dimensions{unsigned(blocks), 1, 1}, block{unsigned(threads), 1, 1};
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  const cudaError_t error = mode == LaunchMode::kCooperative
                                ? cudaLaunchCooperativeKernel(kernel, dimensions, block, parameters, shared_bytes, on)
                                : cudaLaunchKernel(kernel, dimensions, block, parameters, shared_bytes, on);
  // Reading the last error clears it, so that no later check reports this launch again.
  if (error != cudaSuccess) return cudaGetLastError(), error;
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace rnnfast
