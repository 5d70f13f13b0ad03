// Threads: a team that runs one function, a barrier for it, and how it shares a matrix.
//
// OpenMP supplies the threads, because torch's pool is an OpenMP pool too and the two share it. Its barrier may put a
// thread to sleep for longer than a step takes, so steps are separated by a spinning one. Spinning has a price: with
// more busy threads than cores, two threads can be slower than one.
#pragma once

#include <sched.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/vec.h"

#if defined(__linux__)
// GCC compiles `#pragma omp parallel` into these calls, which are made by name here. clang compiles it into a call of
// libomp, a second pool of threads beside torch's libgomp, and two pools spin for the same cores. libomp has these
// three functions, too.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}
#endif

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int64_t kTeamGrain = 256 * 1024;  // multiply-adds of a call that are worth waking a thread for

// The number of threads for `fmas` multiply-adds.
inline int team_size(int64_t fmas, int threads) {
  const int64_t paying = fmas / kTeamGrain;
  return paying >= threads ? threads : paying > 1 ? int(paying) : 1;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

inline Range intersect(Range a, int64_t begin, int64_t end) {
  const Range r{a.begin > begin ? a.begin : begin, a.end < end ? a.end : end};
  return r.begin < r.end ? r : Range{0, 0};
}

// Part `i` of `parts` of [0, n), cut at multiples of `grain`.
inline Range share(int64_t n, int64_t grain, int i, int parts) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t begin = grains * i / parts * grain, end = grains * (i + 1) / parts * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

// A team seen as rows x cols threads, each owning a slice of the batch and a slice of the columns.
struct ThreadGrid {
  int rows, cols;
  int row(int id) const { return id / cols; }
  int col(int id) const { return id % cols; }
  int size() const { return rows * cols; }
};

// Spins until `done()`.
template <class F>
INLINE void spin_until(const F& done) {
  for (int spins = 0; !done(); ++spins) {
#if defined(__x86_64__)
    _mm_pause();
#endif
    if (spins > 128) sched_yield();  // after about 5 us: the late thread may need this core
  }
}

struct alignas(64) Barrier {
  int arrived = 0;
  alignas(64) int phase = 0;

  void wait(int members) {
    if (members == 1) return;
    const int now = __atomic_load_n(&phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == members) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase, now + 1, __ATOMIC_RELEASE);
      return;
    }
    spin_until([&] { return __atomic_load_n(&phase, __ATOMIC_ACQUIRE) != now; });
  }
};

// The floating-point mode of a thread: its rounding, and whether it treats subnormal numbers as zero, which
// torch.set_flush_denormal sets for the calling thread alone.
struct FloatingPoint {
#if defined(__x86_64__)
  using Word = unsigned;
  static constexpr Word kFlags = 0x3f;  // flags of exceptions that have occurred, which each thread keeps
  static Word read() { return _mm_getcsr(); }
  static void write(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlags = 0;  // the flags are in another register
  static Word read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = unsigned;
  static constexpr Word kFlags = 0;
  static Word read() { return 0; }
  static void write(Word) {}
#endif
};

// The threads of a call, for as long as this object lives. OpenMP ends threads where a region asks for fewer than the
// one before, and starts them again where the next one asks for more. Every region of a call therefore asks for all
// threads of the call, as torch's regions do, and those that have no part in it do nothing.
class CallThreads {
 public:
  explicit CallThreads(int threads) : before_(here()) { here() = threads; }
  ~CallThreads() { here() = before_; }
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  static int& here() {
    static thread_local int threads = 1;
    return threads;
  }

 private:
  const int before_;
};

// Runs f(id, grid) on every member of the grid, with the calling thread's floating-point mode on all of them, so that
// their number changes no bit. OpenMP may grant fewer threads (a nested region, a thread limit): then one thread owns
// everything, which gives the same bits.
template <class F>
void run_team(ThreadGrid grid, const F& f) {
#if defined(__linux__)
  if (grid.size() > 1) {
    struct Region {
      const F& f;
      const ThreadGrid grid;
      const int asked;
      const FloatingPoint::Word mode;

      static void body(void* region) { static_cast<const Region*>(region)->run(omp_get_thread_num()); }

      void run(int id) const {
        const bool granted = omp_get_num_threads() == asked;
        if (id >= (granted ? grid.size() : 1)) return;
        const FloatingPoint::Word own = FloatingPoint::read();
        const bool differs = ((own ^ mode) & ~FloatingPoint::kFlags) != 0;
        if (differs) FloatingPoint::write(mode);
        f(id, granted ? grid : ThreadGrid{1, 1});
        if (differs) FloatingPoint::write(own);
      }
    } region{f, grid, grid.size() > CallThreads::here() ? grid.size() : CallThreads::here(), FloatingPoint::read()};
    GOMP_parallel(&Region::body, &region, unsigned(region.asked), 0);
    return;
  }
#endif
  f(0, ThreadGrid{1, 1});
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
