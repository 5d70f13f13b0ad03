// Kernels with one fault each, and one without: what the machine has to find (see test_cuda_machine.py).
#include "launch.cuh"
#include "ptx.cuh"

namespace rnnfast {
namespace cuda {

struct Args {
  int fault;
  uint32_t* data;  // [blocks, threads]
  uint32_t* flag;  // [2]
};

constexpr int kThreads = 64, kRounds = 4;

struct Shared {
  __align__(16) uint32_t copied[kThreads][4];
  uint32_t values[2][kThreads];
};

enum Fault {
  kNone,
  kNoBarrier,         // values are read before they are sure to be there
  kOneBufferTooFew,   // ... or overwritten before everybody has read them
  kLonelyBarrier,     // half of the threads never arrive
  kDivergentWarp,     // lanes of a warp at different operations
  kPollForNothing,    // nobody ever stores what is polled for
  kWaitForNextBlock,  // which runs at the same time only in a cooperative grid
  kPastTheEnd,        // writes behind shared memory
  kCopyNotAwaited,    // what a thread copies to shared memory is read before it is sure to be there
  kMisaligned,        // a row of a matrix that does not begin at a multiple of 16 bytes
  kFlagAlone,         // a block is told that data is there, but not made to see it
  kFlagAfterFence,    // the same as it should be
};

// Four rounds in which every thread adds its right neighbour's value to its own.
__global__ void __launch_bounds__(kThreads) faulty(const Args args) {
  auto& shared = shared_memory<Shared>();
  const int thread = int(threadIdx.x);
  uint32_t mine = 1 + threadIdx.x + 100 * blockIdx.x;
  if (args.fault == kLonelyBarrier && thread >= 32) return;
  if (args.fault == kDivergentWarp) {
    if (thread % 2) {
      ptx::any_in_warp(true);
    } else {
      ptx::sync_warp();
    }
  }
  if (args.fault == kPollForNothing)
    while (ptx::load_relaxed(args.flag) == 0) {
    }
  if (args.fault == kWaitForNextBlock) {
    if (blockIdx.x == 1) ptx::store_relaxed(args.flag, 1);
    while (ptx::load_relaxed(args.flag) == 0) {
    }
  }
  if (args.fault == kFlagAlone || args.fault == kFlagAfterFence) {
    if (blockIdx.x == 1 && thread == 0) {
      ptx::store_relaxed(args.flag + 1, 7);
      if (args.fault == kFlagAfterFence) ptx::fence_device();
      ptx::store_relaxed(args.flag, 1);
    }
    while (ptx::load_relaxed(args.flag) == 0) {
    }
    if (ptx::load_relaxed(args.flag + 1) != 7) mine += 1000;
  }
  if (args.fault == kPastTheEnd) shared.values[1][kThreads + thread] = 0;
  if (args.fault == kMisaligned) {
    uint32_t r[4];
    ptx::ldmatrix_transposed(r, &shared.values[0][1]);
  }
  ptx::copy_if(true, shared.copied[thread], nullptr, false);
  ptx::copy_commit();
  if (args.fault != kCopyNotAwaited) ptx::copy_wait<0>();
  mine += shared.copied[thread][3];
  for (int round = 0; round < kRounds; ++round) {
    uint32_t* values = shared.values[args.fault == kOneBufferTooFew ? 0 : round % 2];
    values[thread] = mine;
    if (args.fault != kNoBarrier) ptx::sync_block();
    mine += values[(thread + 1) % kThreads];
  }
  args.data[blockIdx.x * kThreads + threadIdx.x] = mine;
}

}  // namespace cuda
}  // namespace rnnfast

extern "C" int run_faulty(int fault, int blocks, bool cooperative, uint32_t* data, uint32_t* flag) {
  using namespace rnnfast::cuda;
  return launch(faulty, blocks, kThreads, sizeof(Shared), 0,
                cooperative ? LaunchMode::kCooperative : LaunchMode::kIndependent, Args{fault, data, flag});
}
