// Rung 3: one native call for all steps.
//
//   h_t = tanh(a_t + h_{t-1} W_hh^T)      a = x W_ih^T + b, one product of torch's as on rung 2
//
// The loop over steps moves into C. The loops are plain: a row of h_t starts as a_t, then every h_{t-1}[k] adds its
// multiple of one row of the transposed weight. The innermost loop runs along memory, so the compiler makes vectors of
// it.
//
//   out[t]  row i:   [ . . . . H sums . . . . ]   loaded and stored once for every k
//                      +=  h[k] *
//   wt      row k:   [ . . . . H weights . . .]
//
// Floor: one call by ctypes. A step has B H H multiply-adds, and each vector of them loads a weight and a sum, and
// stores the sum again. Spared: two calls of operators a step. Then tanhf, one value at a time.
#include <math.h>

#include <vector>

extern "C" int forward(const float* a,   // [T, B, H]
                       const float* h0,  // [B, H]
                       const float* w,   // [H, H]
                       float* out,       // [T, B, H]
                       long T, long B, long H, int) {
  std::vector<float> wt(H * H);  // wt[k, j] = w[j, k]
  for (long j = 0; j < H; ++j)
    for (long k = 0; k < H; ++k) wt[k * H + j] = w[j * H + k];
  for (long t = 0; t < T; ++t)
    for (long i = 0; i < B; ++i) {
      const float* h = (t == 0 ? h0 : out + (t - 1) * B * H) + i * H;
      float* __restrict sum = out + (t * B + i) * H;
      for (long j = 0; j < H; ++j) sum[j] = a[(t * B + i) * H + j];
      for (long k = 0; k < H; ++k) {
        const float* __restrict row = wt.data() + k * H;
        const float s = h[k];
        for (long j = 0; j < H; ++j) sum[j] += s * row[j];
      }
      for (long j = 0; j < H; ++j) sum[j] = tanhf(sum[j]);
    }
  return 0;
}

// Exercise 3. Leave out the transposed copy: sum[j] = a[j] + the sum over k of h[k] * w[j * H + k], with k innermost.
// It computes the same and is many times slower. Why can't the compiler make vectors of that loop, and in which order
// does the loop above add? (test_exercise_3)
