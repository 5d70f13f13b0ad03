// Queries about the device, and a launcher's result in words.
#include <cuda_runtime.h>

#include "contract.h"

using namespace rnnfast::cuda;

extern "C" {

int rnnfast_cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // "no driver" is an answer here, not an error to be found later
    return 0;
  }
  return count;
}

rnnfast_cuda_device rnnfast_cuda_current_device() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, shared = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    cudaGetLastError();
    return {0, 0, 0};
  }
  return {10 * major + minor, multiprocessors, shared};
}

const char* rnnfast_cuda_message(int result) {
  switch (result) {
    case kUnsupported:
      return "there is no kernel for this dtype and size";
    case kNotResident:
      return "the device cannot hold the whole grid at once";
    case kTooManyRows:
      return "the batch needs more blocks than a grid can have";
    default:
      return cudaGetErrorString(static_cast<cudaError_t>(result));
  }
}

}  // extern "C"
