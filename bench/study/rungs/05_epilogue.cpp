// Rung 5: the activation in the epilogue, a vector at a time.
//
//   h_t = tanh(a_t + h_{t-1} W_hh^T)
//
// Rung 4 writes the sums of a tile, and reads and writes all of h_t once more for tanhf, which takes one value at
// a time. Here the sums become h_t while they are still in registers, L values in one go:
//
//      registers: R x N vectors of sums --> + a_t --> tanh, a vector --> h_t, stored once
//                 the product               the epilogue
//
// tanh is a quotient of two polynomials, which has no branch, so that all L values of a vector take the same way.
// Floor: as on rung 4, and for each vector some 20 instructions and a division instead of L calls of tanhf.
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

// Exercise 5. Put relu in the place of tanh. torch's relu of NaN is NaN: which of `x > 0 ? x : 0` and
// `x < 0 ? 0 : x` keeps it? (test_exercise_5)
