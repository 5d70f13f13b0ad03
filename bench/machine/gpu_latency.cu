// What a step of a recurrence on a GPU is made of, each part by itself: barriers, memories, the tensor core, and the
// ways in which blocks can wait for each other. A program that prints JSON; bench/gpu_latency.py builds and runs it.
//
// Every kernel repeats one thing kRounds times, each repetition waiting for the one before, and thread 0 of block 0
// reads the SM's cycle counter and the device's nanoseconds around all of them. A first launch warms up; the least of
// five counts. Waiting for another block is bounded, here too: then the figure is null.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <stdio.h>

#include <algorithm>

#include "numbers.cuh"
#include "ptx.cuh"

namespace ptx = rnnfast::cuda::ptx;
using rnnfast::cuda::bf16;
namespace cg = cooperative_groups;

namespace {

constexpr int kRounds = 2000, kLaunches = 5;
constexpr uint32_t kEmpty = 0xFFFFFFFFu, kPatience = 1u << 22;

struct Args {
  uint32_t* words;  // filled with 0xFF before every launch
  int64_t* result;  // cycles, nanoseconds, whether a wait was in vain
  int blocks;       // that take part
};

__device__ __forceinline__ int64_t cycle() {
  int64_t now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

class Watch {
 public:
  __device__ Watch() : cycles_(cycle()), ns_(ptx::nanoseconds()) {}
  // `unused` depends on what was timed, and keeps it.
  __device__ void stop(const Args& args, uint32_t unused, bool failed = false) const {
    const int64_t cycles = cycle() - cycles_, ns = int64_t(ptx::nanoseconds() - ns_);
    if (failed) args.result[2] = 1;
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    args.result[0] = cycles;
    args.result[1] = ns;
    args.result[3] = unused;
  }

 private:
  int64_t cycles_;
  uint64_t ns_;
};

// Looks until the word is not empty; false if it stays so.
__device__ bool await(const uint32_t* word, uint32_t& value) {
  for (uint32_t left = kPatience; left != 0; --left)
    if ((value = ptx::load_relaxed(word)) != kEmpty) return true;
  return false;
}

// ---- within an SM ----------------------------------------------------------------------------------

__global__ void barrier(const Args args) {
  const Watch watch;
  for (int i = 0; i < kRounds; ++i) ptx::sync_block();
  watch.stop(args, 0);
}

// A chain of loads of which each gives the address of the next.
__global__ void shared_load(const Args args) {
  __shared__ uint32_t next[32];
  next[threadIdx.x] = (threadIdx.x + 1) % 32;
  __syncthreads();
  uint32_t at = threadIdx.x;
  const Watch watch;
#pragma unroll 8
  for (int i = 0; i < kRounds; ++i) at = *static_cast<volatile uint32_t*>(&next[at]);
  watch.stop(args, at);
}

__global__ void l2_load(const Args args) {
  // All words are ~0 but for those that this writes: zeros, which lead from word 0 to word 0.
  args.words[0] = 0;
  __threadfence();
  uint32_t at = 0;
  const Watch watch;
#pragma unroll 8
  for (int i = 0; i < kRounds; ++i) at = ptx::load_relaxed(args.words + at);
  watch.stop(args, at);
}

template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4]) {
  ptx::mma<T>(c, a, 0, 0);
}
template <>
__device__ __forceinline__ void multiply<float>(float (&c)[4], const uint32_t (&a)[4]) {
  ptx::mma_tf32(c, a, 0, 0);
}

// kChains mma that do not depend on each other, then the same ones again: 1 shows the latency, 8 the rate.
template <class T, int kChains>
__global__ void mma(const Args args) {
  float c[kChains][4] = {};
  const uint32_t a[4] = {};
  const Watch watch;
#pragma unroll 4
  for (int i = 0; i < kRounds; ++i)
#pragma unroll
    for (int j = 0; j < kChains; ++j) multiply<T>(c[j], a);
  float sum = 0;
  for (int j = 0; j < kChains; ++j) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
  watch.stop(args, ptx::as_bits(sum));
}

template <class T>
__global__ void tanh_chain(const Args args) {
  float x = 0.5f + float(args.blocks);
  const Watch watch;
#pragma unroll 4
  for (int i = 0; i < kRounds; ++i) x = rnnfast::cuda::tanh_for<T>(x);
  watch.stop(args, ptx::as_bits(x));
}

// ---- between SMs -----------------------------------------------------------------------------------

// A word there and a word back, the data being its own flag: two exchanges through L2.
__global__ void l2_ping_pong(const Args args) {
  if (threadIdx.x != 0) return;
  uint32_t* const ping = args.words;
  uint32_t* const pong = args.words + 32 * kRounds;
  bool failed = false;
  uint32_t value = 1;
  const Watch watch;
  for (int i = 0; i < kRounds && !failed; ++i) {
    if (blockIdx.x == 0) {
      ptx::store_relaxed(ping + 32 * i, value);
      failed = !await(pong + 32 * i, value);
    } else {
      failed = !await(ping + 32 * i, value);
      ptx::store_relaxed(pong + 32 * i, value + 1);
    }
  }
  watch.stop(args, value, failed);
}

// All of the state of a tile of 8 sequences from everybody to everybody: what a step of csrc/cuda/grid/grid.cuh would
// take if nothing had to be computed. Each block stores 512 bytes and awaits `blocks` times 512, shared by 8 warps.
__global__ void __launch_bounds__(256) exchange(const Args args) {
  const int words = 128 * args.blocks, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  bool failed = false;
  uint32_t sum = 0;
  const Watch watch;
  for (int i = 0; i < kRounds; ++i) {
    uint32_t* const state = args.words + int64_t(i) * words;
    if (threadIdx.x < 128) ptx::store_relaxed(state + blockIdx.x * 128 + threadIdx.x, uint32_t(i));
    for (int part = warp * 128; part < words; part += 8 * 128) {
      const uint4* const mine = reinterpret_cast<const uint4*>(state + part) + lane;
      uint4 v;
      uint32_t left = failed ? 0 : kPatience;
      do {
        v = ptx::load_relaxed(mine);
      } while (ptx::any_in_warp(v.x == kEmpty || v.y == kEmpty || v.z == kEmpty || v.w == kEmpty) && left-- != 0);
      failed |= left > kPatience;
      sum += v.x;
    }
    ptx::sync_block();
  }
  watch.stop(args, sum, failed);
}

__global__ void grid_sync(const Args args) {
  const cg::grid_group grid = cg::this_grid();
  const Watch watch;
  for (int i = 0; i < kRounds; ++i) grid.sync();
  watch.stop(args, 0);
}

// One counter that every block adds to and then watches.
__global__ void flag_barrier(const Args args) {
  uint32_t* const arrived = args.words;  // begins at ~0: the first to arrive makes it 0
  bool failed = false;
  const Watch watch;
  for (int i = 0; i < kRounds && !failed; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      ptx::atomic_add(arrived, 1);
      const uint32_t all = uint32_t(args.blocks) * uint32_t(i + 1) - 1;
      uint32_t left = kPatience;
      // Signed, because the counter passes from ~0 to 0 at the very first arrival.
      while (int32_t(ptx::load_acquire(arrived) - all) < 0 && left != 0) --left;
      failed = left == 0;
    }
    failed = __syncthreads_or(failed);
  }
  watch.stop(args, 0, failed);
}

// ---- within a cluster ------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CLUSTERS 0
#else
#define CLUSTERS 1
#endif

// A chain of loads from the shared memory of the neighbour.
__global__ void dsmem_load(const Args args) {
#if CLUSTERS
  __shared__ uint32_t next[32];
  next[threadIdx.x] = (threadIdx.x + 1) % 32;
  const cg::cluster_group cluster = cg::this_cluster();
  const uint32_t* const remote = cluster.map_shared_rank(next, cluster.block_rank() ^ 1);
  cluster.sync();
  uint32_t at = threadIdx.x;
  const Watch watch;
#pragma unroll 8
  for (int i = 0; i < kRounds; ++i) at = *static_cast<const volatile uint32_t*>(remote + at);
  watch.stop(args, at);
  cluster.sync();  // nobody leaves while its memory is being read
#endif
}

// A word stored into the neighbour's shared memory, and one back: two exchanges.
__global__ void dsmem_ping_pong(const Args args) {
#if CLUSTERS
  __shared__ uint32_t inbox;
  const cg::cluster_group cluster = cg::this_cluster();
  inbox = 0;
  volatile uint32_t* const remote = cluster.map_shared_rank(&inbox, cluster.block_rank() ^ 1);
  volatile uint32_t* const own = &inbox;
  cluster.sync();
  bool failed = false;
  const Watch watch;
  if (threadIdx.x == 0)
    for (uint32_t i = 1; i <= kRounds && !failed; ++i) {
      if (cluster.block_rank() == 0) *remote = i;
      uint32_t left = kPatience;
      while (*own < i && left != 0) --left;
      failed = left == 0;
      if (cluster.block_rank() == 1) *remote = i;
    }
  watch.stop(args, 0, failed);
  cluster.sync();
#endif
}

__global__ void cluster_barrier(const Args args) {
#if CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  const Watch watch;
  for (int i = 0; i < kRounds; ++i) cluster.sync();
  watch.stop(args, 0);
#endif
}

// ---- the host --------------------------------------------------------------------------------------

__global__ void nothing(const Args) {}

constexpr int64_t kWords = int64_t(128) * 132 * kRounds;  // of the largest exchange
uint32_t* words;
int64_t* result;  // pinned: cycles, nanoseconds, failed, unused
bool first = true;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

struct Shape {
  int blocks = 1, threads = 32, cluster = 1;
  bool cooperative = false;
  int exchanges = 1;  // in a round: the figure is of one
};

// Prints `"name": {"cycles": ..., "ns": ...}`, the least of several launches, for one round.
void measure(const char* name, void (*kernel)(Args), Shape shape) {
  printf("%s\n  \"%s\": ", first ? "" : ",", name);
  first = false;
  int64_t cycles = INT64_MAX, ns = INT64_MAX;
  bool failed = false;
  for (int launch = 0; launch <= kLaunches && !failed; ++launch) {
    check(cudaMemset(words, 0xFF, kWords * sizeof *words), "cudaMemset");
    std::fill(result, result + 4, 0);
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(shape.blocks));
    config.blockDim = dim3(unsigned(shape.threads));
    config.attrs = attributes;
    if (shape.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (shape.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {unsigned(shape.cluster), 1, 1};
    }
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Args{words, result, shape.blocks});
    if (error != cudaSuccess) {
      cudaGetLastError();
      printf("{\"error\": \"%s\"}", cudaGetErrorString(error));
      return;
    }
    check(cudaDeviceSynchronize(), name);
    failed = result[2] != 0;
    if (launch == 0) continue;
    cycles = std::min(cycles, result[0]);
    ns = std::min(ns, result[1]);
  }
  const double rounds = double(kRounds) * shape.exchanges;
  if (failed) {
    printf("null");
  } else {
    printf("{\"cycles\": %.2f, \"ns\": %.2f}", double(cycles) / rounds, double(ns) / rounds);
  }
}

// Kernels that do nothing, one after the other in a graph: what a step costs at least if it is a kernel.
void measure_graph() {
  constexpr int kNodes = 200;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kNodes; ++i) nothing<<<1, 32, 0, stream>>>(Args{words, result, 1});
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  float least = 1e30f;
  for (int launch = 0; launch <= kLaunches; ++launch) {
    float ms;
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaStreamSynchronize(stream), "graph");
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (launch > 0) least = std::min(least, ms);
  }
  printf(",\n  \"kernel in a graph\": {\"ns\": %.2f}", double(least) * 1e6 / kNodes);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  check(cudaMalloc(&words, kWords * sizeof *words), "cudaMalloc");
  check(cudaMallocHost(&result, 4 * sizeof *result), "cudaMallocHost");
  const int sms = device.multiProcessorCount;

  printf("{\"device\": \"%s\", \"multiprocessors\": %d, \"rounds\": %d, \"latency\": {", device.name, sms, kRounds);
  for (const int threads : {128, 256, 512}) {
    char name[64];
    snprintf(name, sizeof name, "block barrier, %d threads", threads);
    measure(name, barrier, {1, threads});
  }
  measure("shared memory load", shared_load, {});
  measure("L2 load", l2_load, {1, 1});
  measure("mma m16n8k16 bfloat16, latency", mma<bf16, 1>, {});
  measure("mma m16n8k16 bfloat16, 8 at a time", mma<bf16, 8>, {1, 128, 1, false, 8});
  measure("mma m16n8k8 tf32, latency", mma<float, 1>, {});
  measure("mma m16n8k8 tf32, 8 at a time", mma<float, 8>, {1, 128, 1, false, 8});
  measure("tanh for bfloat16", tanh_chain<bf16>, {});
  measure("tanh for float16", tanh_chain<rnnfast::cuda::f16>, {});
  measure("tanh for float32", tanh_chain<float>, {});
  measure("exchange through L2, two blocks", l2_ping_pong, {2, 32, 1, true, 2});
  for (const int blocks : {16, 32, 64, 128}) {
    if (blocks > sms) break;
    char name[64];
    snprintf(name, sizeof name, "exchange through L2, %d blocks", blocks);
    measure(name, exchange, {blocks, 256, 1, true});
  }
  measure("grid barrier, cooperative groups", grid_sync, {sms, 256, 1, true});
  measure("grid barrier, one counter", flag_barrier, {sms, 256, 1, true});
  if (device.major >= 9) {
    measure("load from a neighbour's shared memory", dsmem_load, {2, 32, 2});
    measure("exchange through shared memory, cluster of 2", dsmem_ping_pong, {2, 32, 2, false, 2});
    for (const int blocks : {2, 4, 8}) {
      char name[64];
      snprintf(name, sizeof name, "cluster barrier, %d blocks", blocks);
      measure(name, cluster_barrier, {blocks, 256, blocks});
    }
  }
  measure_graph();
  printf("\n}}\n");
  return 0;
}
