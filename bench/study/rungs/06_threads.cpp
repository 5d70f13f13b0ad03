// Rung 6: threads, with rows of their own, or columns of their own and a barrier.
//
//   h_t = tanh(a_t + h_{t-1} W_hh^T)
//
// A step reads all of h_{t-1}, so who owns columns has to wait at every step for those who own the others. Rows are
// independent for the whole walk, so who owns rows waits for nobody, and starts and ends once.
//
//      rows, B of 8 and more            columns, B less than 8
//      h_t: [ thread 0 ]                h_t: [ thread 0 | thread 1 ]
//           [ thread 0 ]                                |
//           [ thread 1 ]                barrier after every step: h_t is whole
//           [ thread 1 ]
//
// Floor: half of rung 5's time, and starting a thread once a call; with columns, a barrier a step as well. A barrier
// takes as long as several thousand multiply-adds, so a small step is done sooner by one thread alone.
#include <string.h>

#include <atomic>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr long L = kBytes / 4;  // values of a vector
typedef float V __attribute__((vector_size(kBytes)));
typedef float U __attribute__((vector_size(kBytes), aligned(4), may_alias));  // the same, anywhere in memory

// x P(x^2) / Q(x^2), within an ulp of tanh; the shipped csrc/cpu/simd/activation.h says where it is from. A
// NaN compares false and so stays NaN.
static inline V tanh_of(V x) {
  V u = x * x;
  u = u > 81.3604f ? V{} + 81.3604f : u;
  V p = u * 1.715926486e-2f + 2.651820785e1f;
  p = p * u + 4.501444869e3f;
  p = p * u + 1.723737365e5f;
  p = p * u + 1.288320511e6f;
  V q = u + 4.229687350e2f;
  q = q * u + 3.333027042e4f;
  q = q * u + 6.018136831e5f;
  q = q * u + 1.288320538e6f;
  const V y = x * p / q, one = V{} + 1.0f;
  const V below = y > one ? one : y;
  return below < -one ? -one : below;
}

// out[i, j] = tanh(a[i, j] + sum over k of h[i, k] panel[k, j]), R rows and the first `columns` of N vectors.
template <int R, int N>
static void tile(const float* h, const float* panel, const float* a, float* out, long H, long columns) {
  V sum[R][N] = {};
  for (long k = 0; k < H; ++k) {
    V weight[N];
    for (int n = 0; n < N; ++n) weight[n] = *(const U*)(panel + (k * N + n) * L);
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] += h[i * H + k] * weight[n];
  }
  for (int i = 0; i < R; ++i)
    for (int n = 0; n < N; ++n) {
      const long j = n * L, left = columns - j;
      if (left >= L) {
        *(U*)(out + i * H + j) = tanh_of(sum[i][n] + *(const U*)(a + i * H + j));
      } else if (left > 0) {  // the last vector of a row: through a copy, or it would touch the next row
        V part = {};
        memcpy(&part, a + i * H + j, left * 4);
        part = tanh_of(sum[i][n] + part);
        memcpy(out + i * H + j, &part, left * 4);
      }
    }
}

struct Barrier {
  std::atomic<int> arrived{0}, phase{0};

  void wait(int members) {
    const int now = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
    } else {
      for (long spins = 0; phase.load(std::memory_order_acquire) == now; ++spins)
        if (spins > 10000) std::this_thread::yield();  // there may be fewer cores than threads
    }
  }
};

template <int R, int N>
static void walk(const float* a, const float* h0, const float* w, float* out, long T, long B, long H, int threads) {
  constexpr long kWidth = N * L;
  const long panels = (H + kWidth - 1) / kWidth;
  std::vector<float> packed(panels * H * kWidth);  // [panels, H, N vectors], zeros beyond column H
  Barrier barrier;
  const bool rows = B >= 4 * threads;
  const auto member = [&](int id) {
    const auto cut = [&](long n, int i) { return n * i / threads; };
    for (long j = cut(H, id); j < cut(H, id + 1); ++j)
      for (long k = 0; k < H; ++k) packed[(j / kWidth * H + k) * kWidth + j % kWidth] = w[j * H + k];
    barrier.wait(threads);
    const long first = rows ? cut(B, id) : 0, end = rows ? cut(B, id + 1) : B;
    const long left = rows ? 0 : cut(panels, id), right = rows ? panels : cut(panels, id + 1);
    for (long t = 0; t < T; ++t) {
      const float* h = t == 0 ? h0 : out + (t - 1) * B * H;
      const float* a_t = a + t * B * H;
      float* out_t = out + t * B * H;
      for (long p = left; p < right; ++p) {
        const float* panel = packed.data() + p * H * kWidth;
        const long j = p * kWidth, columns = H - j < kWidth ? H - j : kWidth;
        long i = first;
        for (; i + R <= end; i += R) tile<R, N>(h + i * H, panel, a_t + i * H + j, out_t + i * H + j, H, columns);
        for (; i < end; ++i) tile<1, N>(h + i * H, panel, a_t + i * H + j, out_t + i * H + j, H, columns);
      }
      if (!rows) barrier.wait(threads);
    }
  };
  std::vector<std::thread> others;
  for (int id = 1; id < threads; ++id) others.emplace_back(member, id);
  member(0);
  for (std::thread& other : others) other.join();
}

extern "C" int forward(const float* a,   // [T, B, H]
                       const float* h0,  // [B, H]
                       const float* w,   // [H, H]
                       float* out,       // [T, B, H]
                       long T, long B, long H, int threads) {
  if (B < 4)
    walk<1, 4>(a, h0, w, out, T, B, H, threads);  // narrower panels, so that both threads have some at H = 128
  else
    walk<4, 2>(a, h0, w, out, T, B, H, threads);
  return 0;
}

// Exercise 6. Two threads, B = 1. With the quantities of the table (multiply-adds a ns, two threads meet), for which H
// is half of a step's multiply-adds worth a barrier? (test_exercise_6)
