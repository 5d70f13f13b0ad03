// Rung 7b: backward, the same walk from the other end; the gradients of parameters afterwards, one product each.
//
//   g_t = (dL/dh_t + g_{t+1} W_hh) * (1 - h_t^2)       the walk: this file
//   dx = g W_ih     dW_ih = g^T x     dW_hh = g^T h_before     db = sum of g's rows       afterwards: torch's products
//
// Only g_t waits for the step before it. Once all g_t are there, the sums over steps and rows are products of T B rows:
//
//      g_{t+1} --> product with panels of W_hh --> epilogue: + dL/dh_t, * (1 - h_t^2) --> g_t [T, B, H]
//                                                                                          |
//                       one product each for all steps: dx, dW_ih, dW_hh, db <-------------+
//
// Floor: the walk's B H H multiply-adds a step, like forward's, with an epilogue that has no polynomial but one matrix
// more to read; and three products at the rate of large products. A quarter of the work is sequential.
#include <string.h>

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

// The elements of a row from p on, L or the `count` that are left.
static inline V take(const float* p, long count) {
  if (count >= L) return *(const U*)p;
  V part = {};
  memcpy(&part, p, count * 4);
  return part;
}

// out = sum over k of g[i, k] panel[k, j]; with dh and h, out = (dh + sum) * (1 - h^2). All rows are H apart.
template <int R, int N>
static void tile(const float* g, const float* panel, const float* dh, const float* h, float* out, long H, long columns,
                 bool first) {  // there is no g yet
  V sum[R][N] = {};
  for (long k = 0; k < (first ? 0 : H); ++k) {
    V weight[N];
    for (int n = 0; n < N; ++n) weight[n] = *(const U*)(panel + (k * N + n) * L);
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] += g[i * H + k] * weight[n];
  }
  for (int i = 0; i < R; ++i)
    for (int n = 0; n < N && n * L < columns; ++n) {
      const long at = i * H + n * L, left = columns - n * L;
      V value = sum[i][n];
      if (h != nullptr) {
        const V state = take(h + at, left);
        value = (take(dh + at, left) + value) * (1.0f - state * state);
      }
      if (left >= L)
        *(U*)(out + at) = value;
      else
        memcpy(out + at, &value, left * 4);
    }
}

template <int R, int N>
static void walk(const float* dout, const float* out, const float* w, float* g, float* dh0, long T, long B, long H) {
  constexpr long kWidth = N * L;
  const long panels = (H + kWidth - 1) / kWidth;
  std::vector<float> packed(panels * H * kWidth);  // W_hh is not transposed this time
  for (long j = 0; j < H; ++j)
    for (long k = 0; k < H; ++k) packed[(k / kWidth * H + j) * kWidth + k % kWidth] = w[j * H + k];
  for (long t = T - 1; t >= -1; --t)  // the step before the first is dh0 = g_0 W_hh
    for (long p = 0; p < panels; ++p) {
      const float* panel = packed.data() + p * H * kWidth;
      const long column = p * kWidth, columns = H - column < kWidth ? H - column : kWidth;
      const auto rows = [&](auto* kernel, long i) {
        const long at = (t * B + i) * H + column;
        const float* later = t == T - 1 ? nullptr : g + ((t + 1) * B + i) * H;
        if (t < 0)
          kernel(later, panel, nullptr, nullptr, dh0 + i * H + column, H, columns, false);
        else
          kernel(later, panel, dout + at, out + at, g + at, H, columns, t == T - 1);
      };
      long i = 0;
      for (; i + R <= B; i += R) rows(tile<R, N>, i);
      for (; i < B; ++i) rows(tile<1, N>, i);
    }
}

extern "C" int backward(const float* dout,  // [T, B, H], dL/dh
                        const float* out,   // [T, B, H], h
                        const float* w,     // [H, H]
                        float* g,           // [T, B, H]
                        float* dh0,         // [B, H]
                        long T, long B, long H) {
  if (B < 4)
    walk<1, 8>(dout, out, w, g, dh0, T, B, H);
  else
    walk<4, 2>(dout, out, w, g, dh0, T, B, H);
  return 0;
}

// Exercise 7b. Backward of a sequence in which only the last output has a gradient: which of the products above shrink,
// and by which factor does the gradient fade a step if W_hh is c times an orthogonal matrix and h = 0?
// (test_exercise_7b)
