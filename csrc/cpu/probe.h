// What the machine could do: the ceilings that benchmarks compare with.
#pragma once

#include <time.h>

#include "scratch.h"
#include "team.h"

namespace rnnfast {
namespace RNNFAST_ISA {

inline double now_seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Runs `round` (which reports its own amount of work) on every thread for about `seconds`; returns work per second.
template <class F>
double rate(int threads, double seconds, const F& round) {
  Barrier start;
  double total = 0;
  run_grid({1, threads}, [&](int id, Grid g) {
    round(id, g.size());
    start.wait(g.size());
    const double begin = now_seconds();
    double work = 0, elapsed = 0;
    do {
      work += round(id, g.size());
      elapsed = now_seconds() - begin;
    } while (elapsed < seconds);
    const double own = work / elapsed;
#pragma omp critical
    total += own;
  });
  return total;
}

// Independent fused multiply-adds on registers, enough of them to hide the latency. float32 flop/s.
inline double fma_peak(int threads, double seconds) {
  constexpr int kChains = kRegisters == 32 ? 24 : 12;
  constexpr int64_t kRounds = 200000;
  return rate(threads, seconds, [&](int, int) {
    Vec<float> acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = broadcast(float(i));
    Vec<float> scale = broadcast(0.5f), shift = broadcast(0.25f);
    asm volatile("" : "+m"(scale), "+m"(shift));
    for (int64_t k = 0; k < kRounds; ++k)
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * scale + shift;
    Vec<float> sum{};
    for (int i = 0; i < kChains; ++i) sum += acc[i];
    asm volatile("" : : "m"(sum));
    return 2.0 * kRounds * kChains * kLanes<float>;
  });
}

// Reading a buffer of `bytes` in all, each thread its own share of it, over and over. bytes/s.
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
