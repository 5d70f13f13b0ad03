// The kernels' thread team and barrier under ThreadSanitizer. libgomp isn't instrumented, so that its barriers would
// look like races; what the compiler calls in its place is here, on std::thread, and everything else is the code that
// ships. Every problem runs on one thread and on teams, which must give the same bits.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <thread>
#include <vector>

#include "../../csrc/cpu/contract.h"

namespace {
thread_local int thread_number = 0, team_size = 1;
std::mutex critical;
}  // namespace

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> team;
  const auto run = [&](unsigned i) {
    thread_number = int(i), team_size = int(threads);
    body(data);
    thread_number = 0, team_size = 1;
  };
  for (unsigned i = 1; i < threads; ++i) team.emplace_back(run, i);
  run(0);
  for (std::thread& member : team) member.join();
}
void GOMP_critical_start() { critical.lock(); }
void GOMP_critical_end() { critical.unlock(); }
int omp_get_thread_num() { return thread_number; }
int omp_get_num_threads() { return team_size; }
int omp_get_max_threads() { return 4; }
}

namespace rnnfast {
namespace RNNFAST_ISA {
extern const Kernels kernels;
}
}  // namespace rnnfast

namespace {

using namespace rnnfast;
const Kernels& kernels = RNNFAST_ISA::kernels;
constexpr size_t kItemSize[] = {4, 8, 2, 2};  // in the order of DType

// `count` numbers of a dtype, small ones made from a seed.
std::vector<char> numbers(DType dtype, int64_t count, uint32_t seed) {
  std::vector<char> bytes(size_t(count) * kItemSize[int(dtype)]);
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    const float f = float(int32_t(seed) >> 8) / float(1 << 26);  // within an eighth of 0
    const double d = f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint16_t bf16 = uint16_t(bits >> 16), f16 = uint16_t(0x2800 | (seed >> 8 & 0x83ff));
    const void* from = dtype == DType::kFloat32    ? static_cast<const void*>(&f)
                       : dtype == DType::kFloat64  ? static_cast<const void*>(&d)
                       : dtype == DType::kBFloat16 ? static_cast<const void*>(&bf16)
                                                   : static_cast<const void*>(&f16);
    memcpy(bytes.data() + size_t(i) * kItemSize[int(dtype)], from, kItemSize[int(dtype)]);
  }
  return bytes;
}

struct Shape {
  int64_t T, B, I, H;
  bool packed;
  int layers = 1, directions = 1;
  Cell cell = Cell::kElman;
  bool extras = false;  // noise and, of a dense batch, resets
};

// Forward and backward; all that is computed, one after the other.
std::vector<char> run(DType dtype, Activation activation, const Shape& s, bool reverse, int threads) {
  std::vector<int64_t> sizes;
  int64_t rows = 0;
  for (int64_t t = 0; t < s.T; ++t) {
    sizes.push_back(s.packed ? s.B - t * (s.B - 1) / s.T : s.B);
    rows += sizes.back();
  }
  const int L = s.layers, D = s.directions;
  const int64_t width = D * s.H, most = s.I > width ? s.I : width, states = L * D * s.B * s.H;
  const auto x = numbers(dtype, rows * s.I, 1), h0 = numbers(dtype, states, 2), w_ih = numbers(dtype, s.H * most, 3),
             w_hh = numbers(dtype, s.H * s.H, 4), bias = numbers(dtype, s.H, 5), dout = numbers(dtype, rows * width, 6),
             dh_n = numbers(dtype, states, 7);
  const auto fresh = [&](int64_t count) { return std::vector<char>(size_t(count) * kItemSize[int(dtype)]); };
  auto hidden = fresh((L - 1) * rows * width), out = fresh(rows * width), h_n = fresh(states), dx = fresh(rows * s.I),
       dh0 = fresh(states), inner = fresh(L * rows * width);
  const auto alpha = numbers(dtype, s.H, 8), noise = numbers(dtype, rows * s.H, 9),
             dinner = numbers(dtype, L * rows * width, 10);
  std::vector<uint8_t> resets;
  for (int64_t r = 0; r < rows; ++r) resets.push_back(r % 7 == 3);
  std::vector<const void*> weights;
  std::vector<std::vector<char>> gradients;
  for (int i = 0; i < L * D; ++i)
    for (const auto* weight : {&w_ih, &w_hh, &bias, &bias, &alpha, &noise}) {
      if ((weight == &alpha && s.cell == Cell::kElman) || (weight == &noise && !s.extras)) continue;
      weights.push_back(weight->data());
      const int64_t count = weight == &w_ih    ? s.H * (i < D ? s.I : width)
                            : weight == &w_hh  ? s.H * s.H
                            : weight == &noise ? rows * s.H
                                               : s.H;
      gradients.push_back(fresh(count));
    }
  std::vector<void*> dweights;
  for (auto& gradient : gradients) dweights.push_back(gradient.data());
  Stack stack{dtype, activation, s.T,     s.B,  s.I,      s.H,       s.packed ? sizes.data() : nullptr,
              L,     D,          reverse, true, x.data(), h0.data(), weights.data()};
  stack.cell = s.cell;
  stack.noise = s.extras;
  if (s.extras && !s.packed) stack.resets = resets.data();
  if (kernels.stack({stack, false, hidden.data(), out.data(), h_n.data(), inner.data()}, threads)) return {};
  if (kernels.stack_backward({stack, hidden.data(), out.data(), dout.data(), dh_n.data(), dx.data(), dh0.data(),
                              dweights.data(), inner.data(), s.cell == Cell::kCtrnn ? dinner.data() : nullptr},
                             threads))
    return {};
  std::vector<char> all;
  for (const auto* part : {&hidden, &out, &h_n, &dx, &dh0, &inner}) all.insert(all.end(), part->begin(), part->end());
  for (const auto& part : gradients) all.insert(all.end(), part.begin(), part.end());
  if (!stack.plain()) return all;
  stack.T = 1;
  stack.batch_sizes = nullptr;
  if (kernels.stack({stack, true, hidden.data(), out.data(), nullptr}, threads)) return {};
  all.insert(all.end(), out.begin(), out.end());
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && strcmp(arguments[1], "race") == 0) {  // shows that a race would be found
    int64_t sum = 0;
    GOMP_parallel([](void* data) { ++*static_cast<int64_t*>(data); }, &sum, 4, 0);
    return 0;
  }
  // Rows for each thread, columns for each thread, both in turn, packed and dense, one and many passes of a backward,
  // layers in a pipeline, two directions at the same time, and cells.
  const std::vector<Shape> shapes = {
      {6, 32, 40, 100, false},
      {90, 1, 20, 64, false, 3, 1},
      {9, 16, 20, 100, false, 1, 1, Cell::kLeaky, true},
      {90, 1, 20, 64, false, 3, 1, Cell::kCtrnn},
      {4, 40, 20, 130, true},
      {40, 1, 8, 200, false},
      {9, 16, 300, 64, true},
      {30, 90, 4, 72, false},
      {5, 3, 40, 300, false},
      {60, 3, 20, 64, true, 2, 2},
      {30, 5, 20, 64, false, 2, 2, Cell::kCtrnn, true},
      {9, 16, 30, 64, true, 2, 1, Cell::kElman, true},
  };
  const size_t last = count > 1 ? size_t(atoi(arguments[1])) : shapes.size();
  int problems = 0;
  for (size_t i = 0; i < shapes.size() && i < last; ++i)
    for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16})
      for (bool reverse : {false, true}) {
        const Activation activation = (problems & 1) ? Activation::kRelu : Activation::kTanh;
        const auto one = run(dtype, activation, shapes[i], reverse, 1);
        for (int threads : {2, 3, 4}) {
          ++problems;
          if (one.empty() || run(dtype, activation, shapes[i], reverse, threads) != one) {
            printf("shape %zu, dtype %d, reverse %d: %d threads differ from one\n", i, int(dtype), reverse, threads);
            return 1;
          }
        }
      }
  printf("%d problems on teams of 2, 3 and 4 threads: the bits of one thread\n", problems);
  return 0;
}
