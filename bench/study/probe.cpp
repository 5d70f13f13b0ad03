// What this machine does at most, piece by piece: the quantities that predictions are made from. Each function returns
// seconds for `rounds` repetitions of one piece. It is compiled with the flags of the rungs.
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int L = kBytes / 4;
typedef float V __attribute__((vector_size(kBytes)));
typedef float U __attribute__((vector_size(kBytes), aligned(4), may_alias));

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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

extern "C" {

int lanes() { return L; }

// 8 independent chains of multiply-adds: 8 L a round.
double multiply_adds(long rounds) {
  V acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = V{} + float(i);
  V a = V{} + 0.5f, b = V{} + 0.25f;
  asm volatile("" : "+m"(a), "+m"(b));
  const double begin = now();
  for (long r = 0; r < rounds; ++r)
    for (int i = 0; i < 8; ++i) acc[i] = acc[i] * a + b;
  const double seconds = now() - begin;
  for (int i = 0; i < 8; ++i) asm volatile("" : : "m"(acc[i]));
  return seconds;
}

// Reads p [n], n a multiple of 8 L.
double read(const float* p, long n, long rounds) {
  V acc[8] = {};
  const double begin = now();
  for (long r = 0; r < rounds; ++r) {
    for (long i = 0; i < n; i += 8 * L)
      for (int j = 0; j < 8; ++j) acc[j] += *(const U*)(p + i + j * L);
    asm volatile("" : : "r"(p) : "memory");
  }
  const double seconds = now() - begin;
  for (int i = 0; i < 8; ++i) asm volatile("" : : "m"(acc[i]));
  return seconds;
}

// y [n] += s x [n], a loop that the compiler makes vectors of.
double update(const float* __restrict x, float* __restrict y, long n, long rounds) {
  const double begin = now();
  for (long r = 0; r < rounds; ++r) {
    const float s = 1e-9f * float(r & 7);
    for (long i = 0; i < n; ++i) y[i] += s * x[i];
    asm volatile("" : : "r"(y) : "memory");
  }
  return now() - begin;
}

// tanhf of x [n], one value at a time.
double scalar_tanh(const float* x, float* y, long n, long rounds) {
  const double begin = now();
  for (long r = 0; r < rounds; ++r) {
    for (long i = 0; i < n; ++i) y[i] = tanhf(x[i]);
    asm volatile("" : : "r"(y) : "memory");
  }
  return now() - begin;
}

// The vector tanh of rung 5 of x [n], n a multiple of L.
double vector_tanh(const float* x, float* y, long n, long rounds) {
  const double begin = now();
  for (long r = 0; r < rounds; ++r) {
    for (long i = 0; i < n; i += L) *(U*)(y + i) = tanh_of(*(const U*)(x + i));
    asm volatile("" : : "r"(y) : "memory");
  }
  return now() - begin;
}

// Writes w [n, n] transposed into memory of its own: what packing does.
double pack(const float* w, long n, long rounds) {
  const double begin = now();
  for (long r = 0; r < rounds; ++r) {
    std::vector<float> to(n * n);
    for (long j = 0; j < n; ++j)
      for (long k = 0; k < n; ++k) to[k * n + j] = w[j * n + k];
    asm volatile("" : : "r"(to.data()) : "memory");
  }
  return now() - begin;
}

// Two threads meet.
double barrier(long rounds) {
  std::atomic<long> a{0}, b{0};
  std::thread other([&] {
    for (long r = 1; r <= rounds; ++r) {
      b.store(r, std::memory_order_release);
      for (long spins = 0; a.load(std::memory_order_acquire) < r; ++spins)
        if (spins > 10000) std::this_thread::yield();
    }
  });
  while (b.load(std::memory_order_acquire) < 1) std::this_thread::yield();
  const double begin = now();
  for (long r = 1; r <= rounds; ++r) {
    a.store(r, std::memory_order_release);
    for (long spins = 0; b.load(std::memory_order_acquire) < r; ++spins)
      if (spins > 10000) std::this_thread::yield();
  }
  const double seconds = now() - begin;
  other.join();
  return seconds;
}

// Starts a thread that does nothing and waits for its end.
double thread_start(long rounds) {
  const double begin = now();
  for (long r = 0; r < rounds; ++r) std::thread([] {}).join();
  return now() - begin;
}
}
