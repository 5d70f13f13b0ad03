// Measures what the machine can do: the ceilings that benchmarks compare with.
#pragma once

#include <time.h>

#include <mutex>

#include "product/tile.h"
#include "scratch.h"
#include "team.h"

namespace rnnfast {
namespace RNNFAST_ISA {

inline double now_seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Runs `round`, which returns its amount of work, on every thread for about `seconds`. Returns work per second.
template <class F>
double rate(int threads, double seconds, const F& round) {
  Barrier start;
  std::mutex lock;
  double total = 0;
  run_team({1, threads}, [&](int id, ThreadGrid g) {
    round(id, g.size());
    start.wait(g.size());
    const double begin = now_seconds();
    double work = 0, elapsed = 0;
    do {
      work += round(id, g.size());
      elapsed = now_seconds() - begin;
    } while (elapsed < seconds);
    const std::lock_guard<std::mutex> alone(lock);
    total += work / elapsed;
  });
  return total;
}

// The rate in flop/s of independent multiply-adds on registers, as many chains as a tile has. Their operands are values
// in compute precision, or pairs.
template <class S>
double fma_peak(int threads, double seconds) {
  using C = Compute<S>;
  constexpr int64_t kRounds = 200000;
  return rate(threads, seconds, [&](int, int) {
    Vec<C> acc[kAccumulators];  // different values, or the compiler computes a single chain
    for (int i = 0; i < kAccumulators; ++i) acc[i] = broadcast(C(i));
    S halves[2];
    for (S& half : halves) narrow(C(0.5), &half);
    Vec<Unit<S>> a = broadcast(unit_at(halves, 2)), b = a;
    asm volatile("" : "+m"(a), "+m"(b));
    for (int64_t k = 0; k < kRounds; ++k)
#pragma GCC unroll 24
      for (int i = 0; i < kAccumulators; ++i)
        if constexpr (kPerUnit<S> > 1)
          multiply_add(acc[i], a, b);
        else
          acc[i] = acc[i] * a + b;  // acc + a * b would let it move the product out of the loop
    Vec<C> sum{};
    for (int i = 0; i < kAccumulators; ++i) sum += acc[i];
    asm volatile("" : : "m"(sum));
    return 2.0 * kRounds * kAccumulators * kLanes<C> * kPerUnit<S>;
  });
}

// The rate in bytes/s at which the team reads a buffer of `bytes` again and again, each thread its own share.
inline double read_bandwidth(int64_t bytes, int threads, double seconds) {
  constexpr int64_t kBlock = 8 * kLanes<float>;
  const int64_t floats = bytes / 4 / threads / kBlock * kBlock;
  if (floats == 0) return 0;
  const Scratch<float> buffer(floats * threads);
  if (!buffer) return 0;
  for (int64_t i = 0; i < floats * threads; ++i) buffer.get()[i] = 1.0f;
  return rate(threads, seconds, [&](int id, int) {
    const float* p = buffer.get() + id * floats;
    Vec<float> acc[8] = {};
    const int64_t passes = floats < 4096 * 64 ? 4096 * 64 / floats : 1;
    for (int64_t pass = 0; pass < passes; ++pass)
      for (int64_t i = 0; i < floats; i += kBlock)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) acc[j] += load(p + i + j * kLanes<float>);
    Vec<float> sum{};
    for (int j = 0; j < 8; ++j) sum += acc[j];
    asm volatile("" : : "m"(sum));
    return double(passes) * double(floats) * 4.0;
  });
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
