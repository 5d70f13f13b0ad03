// A CUDA device on one CPU thread: enough of one to run the files of csrc/cuda, compiled by g++, on small problems.
//
// Every CUDA thread of the blocks that are resident is a fiber with its own stack. A fiber runs until it has to wait:
// at a barrier, at a warp-collective operation whose other lanes haven't arrived, or at a load from
// memory that other blocks write (load_relaxed, load_acquire), which gives way so that spinning makes sense. The order
// in which fibers are resumed is fixed by a seed: 0 ascending, 1 descending, else random, anew in every round, with
// some warps standing still for a while so that others run ahead as far as barriers let them.
//
//   independent grids   one block at a time, so that a kernel which waits for another block is found out
//   cooperative grids   all blocks at once; refused, as by CUDA, beyond one block per multiprocessor
//
// What it proves: indices, bounds, fragments' layouts, masks, roundings, the order of operations, that barriers are
// where they are needed (a missing one changes results in some order, see broken.cu) and that nothing waits for ever.
// Shared memory starts out as NaN and is followed by a guard; a launch ends with an error when
//   - all fibers wait, or only poll and nothing is stored any more (the message lists who waits for what)
//   - lanes of a warp arrive at different collective operations, or threads leave others alone at a barrier
//   - an address is misaligned for its access, or out of shared memory in ldmatrix
//   - the guard behind shared memory was written
//
// Relaxed stores become visible word by word, late and in any order where the order of fibers is random. Copies to
// shared memory are made early or late.
//
// What it doesn't prove: anything about time; fences (all other memory is sequentially consistent here, so the ordering
// argument in each kernel file has to stand by itself); the last bits of approximate functions; that nvcc's code does
// the same as g++'s. Races between two barriers show only if one of the orders tried makes them visible.
//
// A test compiles the kernel's .cu with `-x c++ -I tests/cuda_on_cpu` together with machine.cpp (see __init__.py). The
// headers here take the place of CUDA's: cuda_runtime.h, and ptx_on_cpu.h which csrc/cuda/ptx.cuh includes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_on_cpu {

constexpr int kLanes = 32;

struct Index {
  unsigned x, y, z;
};

struct Options {
  unsigned seed = 0;             // order of fibers
  int multiprocessors = 20;      // cooperative launches take at most one block on each
  int64_t idle_rounds = 100000;  // rounds of nothing but polling that count as waiting for ever
  uint64_t tick = 1000;          // nanoseconds that pass from one look at the clock to the next
};
extern Options options;

// Runs kernel() once per thread. Returns a cudaError_t; after a failure `last_failure()` says what happened.
int run(unsigned blocks, unsigned threads, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel);
const char* last_failure();

// ---- called from kernels ---------------------------------------------------------------------------

extern Index thread_index, block_index, block_size, grid_size;

// Stops the launch with a message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

unsigned char* shared_bytes();
// Fails unless [p, p + bytes) is aligned to `bytes` and, for `shared`, within the block's shared memory.
void check_access(const void* p, size_t bytes, bool shared, const char* what);

void barrier();   // of the whole block
void give_way();  // at a poll
void stored();    // something that a poll may wait for was written

// A relaxed store of a word: visible to nobody at first, to everybody at some time, in no order with others but those
// to the same address. (A thread of a device would see its own at once.) Fences make the thread's own visible.
void store_later(uint32_t* to, uint32_t value);
void settle_own_stores();

// A copy of 16 bytes (zeros if `from` is null) to shared memory, of the group that is closed next. When it is made is
// chance where the order of fibers is: at once, or at the last moment, when its thread waits for all but the youngest
// `pending` of its groups.
void copy_later(void* to, const void* from);
void close_copies();
void settle_copies(int pending);

// Lets all 32 lanes of a warp meet: the last one to arrive calls combine(arguments of lanes 0..31).
void meet(const char* what, void* argument, void (*combine)(void* const* arguments));

uint64_t ticks();  // a clock in nanoseconds, see Options::tick

}  // namespace cuda_on_cpu
