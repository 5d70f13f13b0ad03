// The machine of machine.h: fibers, the scheduler, and what fibers wait for.
#include "machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace cuda_on_cpu {

Options options;
Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type
constexpr int kLaunchFailure = 719, kInvalidValue = 1, kInvalidConfiguration = 9, kTooLarge = 720;

struct Failure {};  // thrown in a fiber, the message being in `message`

std::string message;

struct Block;

struct Warp {
  void* arguments[kLanes];
  const char* what = nullptr;  // the operation at which lanes are arriving
  int arrived = 0;
};

enum class State { kReady, kPolling, kAtBarrier, kInWarp, kDone };

struct Copy {
  void* to;
  const void* from;
};

struct Thread {
  Fiber fiber;
  Block* block;
  Index index;
  State state = State::kReady;
  const char* what = "";
  std::deque<std::vector<Copy>> copies = {{}};  // by group, the last one still open
  uint32_t copied = 0;
};

struct Block {
  Index index;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  int at_barrier = 0;
  std::vector<unsigned char> memory;
  unsigned char* shared;  // aligned, inside memory
  size_t shared_bytes;
  int done = 0;
};

// The launch under way.
const std::function<void()>* body;
Thread* current;
bool failed;
uint64_t progress, clock_now;  // progress: what a poll could be waiting for
std::vector<Stack> stacks;     // kept between launches

struct Store {
  uint32_t* to;
  uint32_t value;
  const Thread* by;
};
std::vector<Store> stores;  // relaxed ones that are not visible yet, in program order for each address

// Makes those stores visible that `now` says.
template <class Now>
void settle_stores(Now now) {
  size_t left = 0;
  for (const Store& store : stores) {
    if (now(store)) {
      *store.to = store.value;
      ++progress;
    } else {
      stores[left++] = store;
    }
  }
  stores.resize(left);
}

Warp& warp_of(Thread* t) { return t->block->warps[t->index.x / kLanes]; }

void wait(State state, const char* what) {
  current->state = state;
  current->what = what;
  current->fiber.leave();
  if (failed) throw Failure();
}

void thread_main(void* argument) {
  Thread* self = static_cast<Thread*>(argument);
  try {
    (*body)();
  } catch (const Failure&) {
    failed = true;
  }
  self->state = State::kDone;
  ++self->block->done;
  ++progress;
  self->fiber.leave();
}

void resume(Thread* t) {
  current = t;
  thread_index = t->index;
  block_index = t->block->index;
  t->state = State::kReady;
  t->fiber.enter();
}

std::unique_ptr<Block> make_block(unsigned index, unsigned threads, size_t shared_bytes, size_t& next_stack) {
  auto block = std::make_unique<Block>();
  block->index = {index, 0, 0};
  block->warps.resize(threads / kLanes);
  block->memory.assign(shared_bytes + kGuardBytes + 128, kPoison);
  const auto address = reinterpret_cast<uintptr_t>(block->memory.data());
  block->shared = block->memory.data() + (128 - address % 128) % 128;
  block->shared_bytes = shared_bytes;
  for (unsigned i = 0; i < threads; ++i) {
    auto t = std::make_unique<Thread>();
    t->block = block.get();
    t->index = {i, 0, 0};
    if (next_stack == stacks.size()) stacks.emplace_back(kStackBytes);
    t->fiber.start(stacks[next_stack++], thread_main, t.get());
    block->threads.push_back(std::move(t));
  }
  return block;
}

std::string describe(const std::vector<Thread*>& threads) {
  std::map<std::pair<unsigned, std::string>, int> waiting;  // (block, what) -> threads
  for (const Thread* t : threads)
    if (t->state != State::kDone) ++waiting[{t->block->index.x, t->what}];
  std::string text;
  int listed = 0;
  for (const auto& [key, count] : waiting) {
    if (++listed > 16) return text + "; and more";
    text += (text.empty() ? "" : "; ") + std::string("block ") + std::to_string(key.first) + ": " +
            std::to_string(count) + " threads at " + key.second;
  }
  return text;
}

// Whether a warp stands still in this round: in every 32 rounds another quarter of them does.
bool lags(const Thread* t, uint64_t round) {
  const uint64_t warp = t->block->index.x * kLanes + t->index.x / kLanes;
  uint64_t hash = (warp * 0x9e3779b97f4a7c15 + round / 32 + options.seed) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ hash >> 31) * 0x94d049bb133111eb;
  return hash >> 62 == 0;
}

// Runs these blocks to their end, all of them resident.
void run_resident(std::vector<std::unique_ptr<Block>>& blocks) {
  std::vector<Thread*> order;
  for (auto& block : blocks)
    for (auto& t : block->threads) order.push_back(t.get());
  if (options.seed == 1) order = {order.rbegin(), order.rend()};
  std::mt19937 random(options.seed);
  uint64_t seen = progress;
  int64_t idle = 0;
  for (uint64_t round = 0; !failed; ++round) {
    if (options.seed > 1)
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    bool polled = false, ran = false;
    size_t alive = 0;
    for (Thread* t : order) {
      if (t->state == State::kReady || t->state == State::kPolling) {
        ran = true;
        if (options.seed < 2 || !lags(t, round)) resume(t);
        polled |= t->state == State::kPolling;
        if (failed) break;
      }
      order[alive] = t;  // keeps those that are not done, in order
      alive += t->state != State::kDone;
    }
    if (failed) break;
    settle_stores([&](const Store&) { return random() % 4 == 0; });
    order.resize(alive);
    if (order.empty()) break;
    idle = progress == seen ? idle + 1 : 0;
    seen = progress;
    if (!ran || (polled && idle > options.idle_rounds)) {
      message = (ran ? "deadlock, nothing but polling: " : "deadlock: ") + describe(order);
      failed = true;
    }
  }
  for (auto& block : blocks)
    for (size_t i = 0; i < kGuardBytes && !failed; ++i)
      if (block->shared[block->shared_bytes + i] != kPoison) {
        message = "block " + std::to_string(block->index.x) + " wrote past its shared memory of " +
                  std::to_string(block->shared_bytes) + " bytes";
        failed = true;
      }
}

}  // namespace

int run(unsigned blocks, unsigned threads, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel) {
  message.clear();
  if (threads == 0 || threads > 1024 || threads % kLanes != 0 || blocks == 0 || shared_bytes > 227 * 1024)
    return kInvalidConfiguration;
  if (cooperative && blocks > unsigned(options.multiprocessors)) return kTooLarge;
  if (body) return kInvalidValue;  // kernels don't launch kernels
  body = &kernel;
  failed = false;
  block_size = {threads, 1, 1};
  grid_size = {blocks, 1, 1};
  const unsigned at_once = cooperative ? blocks : 1;
  for (unsigned first = 0; first < blocks && !failed; first += at_once) {
    std::vector<std::unique_ptr<Block>> resident;
    size_t next_stack = 0;
    for (unsigned i = first; i < first + at_once; ++i)
      resident.push_back(make_block(options.seed == 1 ? blocks - 1 - i : i, threads, shared_bytes, next_stack));
    run_resident(resident);
  }
  settle_stores([](const Store&) { return true; });
  body = nullptr;
  return failed ? kLaunchFailure : 0;
}

const char* last_failure() { return message.c_str(); }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char where[64];
  snprintf(where, sizeof where, "block %u, thread %u: ", block_index.x, thread_index.x);
  message = std::string(where) + text;
  failed = true;
  throw Failure();
}

unsigned char* shared_bytes() { return current->block->shared; }

void check_access(const void* p, size_t bytes, bool shared, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("%s: address %p is not a multiple of %zu", what, p, bytes);
  const Block* block = current->block;
  const auto* address = static_cast<const unsigned char*>(p);
  if (shared && (address < block->shared || address + bytes > block->shared + block->shared_bytes))
    fail("%s: address %p is outside of the block's shared memory", what, p);
}

namespace {

void make(const Copy& copy) {
  if (copy.from) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
  ++progress;
}

}  // namespace

void copy_later(void* to, const void* from) {
  Thread* t = current;
  const uint32_t hash = (t->index.x * 0x9e3779b9u + ++t->copied) * 0x85ebca6bu;
  if (options.seed == 0 || (options.seed > 1 && hash >> 31)) return make({to, from});
  t->copies.back().push_back({to, from});
}

void close_copies() { current->copies.emplace_back(); }

void settle_copies(int pending) {
  auto& groups = current->copies;
  while (int(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) make(copy);
    groups.pop_front();
  }
}

void barrier() {
  static const char* const kHere = "a barrier";
  Block* block = current->block;
  if (++block->at_barrier < int(block->threads.size())) return wait(State::kAtBarrier, kHere);
  block->at_barrier = 0;
  for (auto& t : block->threads)
    if (t->state == State::kAtBarrier) t->state = State::kReady;
  wait(State::kReady, "");  // the last to arrive gives way, so that it isn't always first behind the barrier
}

void give_way() { wait(State::kPolling, "a poll"); }

void stored() { ++progress; }

void store_later(uint32_t* to, uint32_t value) {
  settle_stores([&](const Store& store) { return store.to == to; });
  stores.push_back({to, value, current});
  if (options.seed < 2) settle_own_stores();
}

void settle_own_stores() {
  settle_stores([](const Store& store) { return store.by == current; });
}

void meet(const char* what, void* argument, void (*combine)(void* const*)) {
  Warp& warp = warp_of(current);
  if (warp.arrived == 0) warp.what = what;
  if (strcmp(warp.what, what) != 0) fail("%s, while other lanes of the warp are at %s", what, warp.what);
  warp.arguments[thread_index.x % kLanes] = argument;
  if (++warp.arrived < kLanes) return wait(State::kInWarp, what);
  combine(warp.arguments);
  warp.arrived = 0;
  const size_t first = thread_index.x / kLanes * kLanes;
  for (size_t i = first; i < first + kLanes; ++i) current->block->threads[i]->state = State::kReady;
}

uint64_t ticks() { return clock_now += options.tick; }

}  // namespace cuda_on_cpu

extern "C" {

// For tests, which load the library a second time with ctypes.
void cuda_on_cpu_configure(unsigned seed, int multiprocessors, int64_t idle_rounds, uint64_t tick) {
  cuda_on_cpu::options = {seed, multiprocessors, idle_rounds, tick};
}
const char* cuda_on_cpu_last_failure() { return cuda_on_cpu::last_failure(); }

}  // extern "C"
