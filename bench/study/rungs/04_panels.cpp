// Rung 4: the weight packed into panels, a tile of sums in registers.
//
//   h_t = tanh(a_t + h_{t-1} W_hh^T)
//
// Rung 3 loads and stores every sum once for every k. Here R rows by N vectors of sums stay in registers while k runs
// from 0 to H; each h[k] is broadcast against N vectors of weights, and each vector of weights serves R rows.
//
//      h: R rows          panel p of W_hh: [H, N vectors], contiguous        registers: R x N vectors of sums
//      [ . . k . . ]      k: [ w  w  w  w | w  w  w  w ]                     [ + + + + | + + + + ]
//      [ . . k . . ]                                                         [ + + + + | + + + + ]
//
// Packing makes the panel one stream of memory and takes H H copies once a call, for all T steps.
// Floor: B H H multiply-adds a step at the rate of the machine's vector units, or the weight read once for R rows at
// the rate of the cache that it is in, whichever is slower. One row (B = 1) takes N = 8, or it would wait for its own
// sums: a multiply-add takes four cycles, and two start in each.
#include <math.h>

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

// out[i, j] = a[i, j] + sum over k of h[i, k] panel[k, j], for R rows and the first `columns` of N vectors.
template <int R, int N>
static void tile(const float* h, const float* panel, const float* a, float* out, long H, long columns) {
  V sum[R][N] = {};
  for (long k = 0; k < H; ++k) {
    V weight[N];
    for (int n = 0; n < N; ++n) weight[n] = *(const U*)(panel + (k * N + n) * L);
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] += h[i * H + k] * weight[n];
  }
  for (int i = 0; i < R; ++i) {
    alignas(kBytes) float row[N * L];
    for (int n = 0; n < N; ++n) *(V*)(row + n * L) = sum[i][n];
    for (long j = 0; j < columns; ++j) out[i * H + j] = a[i * H + j] + row[j];
  }
}

template <int R, int N>
static void walk(const float* a, const float* h0, const float* w, float* out, long T, long B, long H) {
  constexpr long kWidth = N * L;
  const long panels = (H + kWidth - 1) / kWidth;
  std::vector<float> packed(panels * H * kWidth);  // [panels, H, N vectors], zeros beyond column H
  for (long j = 0; j < H; ++j)
    for (long k = 0; k < H; ++k) packed[(j / kWidth * H + k) * kWidth + j % kWidth] = w[j * H + k];
  for (long t = 0; t < T; ++t) {
    const float* h = t == 0 ? h0 : out + (t - 1) * B * H;
    const float* a_t = a + t * B * H;
    float* out_t = out + t * B * H;
    for (long p = 0; p < panels; ++p) {
      const float* panel = packed.data() + p * H * kWidth;
      const long j = p * kWidth, columns = H - j < kWidth ? H - j : kWidth;
      long i = 0;
      for (; i + R <= B; i += R) tile<R, N>(h + i * H, panel, a_t + i * H + j, out_t + i * H + j, H, columns);
      for (; i < B; ++i) tile<1, N>(h + i * H, panel, a_t + i * H + j, out_t + i * H + j, H, columns);
    }
    for (long j = 0; j < B * H; ++j) out_t[j] = tanhf(out_t[j]);  // a second pass over h_t
  }
}

extern "C" int forward(const float* a,   // [T, B, H]
                       const float* h0,  // [B, H]
                       const float* w,   // [H, H]
                       float* out,       // [T, B, H]
                       long T, long B, long H, int) {
  if (B < 4)
    walk<1, 8>(a, h0, w, out, T, B, H);
  else
    walk<4, 2>(a, h0, w, out, T, B, H);
  return 0;
}

// Exercise 4. How many loads does the innermost loop take for each multiply-add, with R x N = 1 x 8, 4 x 2 and 12 x 2?
// Which of them can a machine keep busy that loads two vectors a cycle and starts two multiply-adds? (test_exercise_4)
