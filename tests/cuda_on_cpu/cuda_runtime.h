// What the files of csrc/cuda use of CUDA's header of this name, over the machine in machine.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_size)
#define gridDim (cuda_on_cpu::grid_size)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

// ---- the runtime -----------------------------------------------------------------------------------

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
using cudaStream_t = struct cuda_on_cpu_stream*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes > 227 * 1024 ? cudaErrorInvalidValue : cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorCooperativeLaunchTooLarge) return "too many blocks in cooperative launch";
  return *cuda_on_cpu::last_failure() ? cuda_on_cpu::last_failure() : "invalid argument or configuration";
}

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int values[] = {cuda_on_cpu::options.multiprocessors, 8, 0, 227 * 1024};
  return *value = values[attribute], cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t) {
  return memset(p, byte, bytes), cudaSuccess;
}

// Kernels take one argument, a struct.
template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t,
                             bool cooperative = false) {
  const Args& argument = *static_cast<const Args*>(args[0]);
  return cudaError_t(cuda_on_cpu::run(grid.x, block.x, shared, cooperative, [&] { kernel(argument); }));
}
template <class Args>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Args), dim3 grid, dim3 block, void** args, size_t shared,
                                        cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, args, shared, stream, true);
}
