// The Python module rnnfast._cpu: chooses an instruction set and passes pointers through.
//
// Tensors arrive as addresses (tensor.data_ptr(), 0 for a null pointer) and sizes; rnnfast/backends/cpu.py is the
// only caller and guarantees shapes, dtypes and contiguity. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "../recurrence.h"

namespace py = pybind11;

namespace rnnfast {

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

void previous_rows(const Walk& walk, int64_t* index) {
  std::vector<int64_t> offset(size_t(walk.T) + 1, 0);
  for (int64_t t = 0; t < walk.T; ++t) offset[t + 1] = offset[t] + (walk.batch_sizes ? walk.batch_sizes[t] : walk.B);
  for (int64_t t = 0; t < walk.T; ++t) {
    const int64_t before = walk.reverse ? t + 1 : t - 1;
    const int64_t there = before < 0 || before >= walk.T ? 0 : offset[before + 1] - offset[before];
    for (int64_t b = 0; b < offset[t + 1] - offset[t]; ++b) index[offset[t] + b] = b < there ? offset[before] + b : ~b;
  }
}

namespace {

std::vector<const Kernels*> runnable() {  // slowest first
  std::vector<const Kernels*> sets{&baseline::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    sets.push_back(&avx512::kernels);
#endif
  return sets;
}

std::atomic<const Kernels*> active{runnable().back()};

// A forked child inherits an OpenMP runtime whose threads no longer exist; entering a parallel region would hang.
std::atomic<bool> forked{false};

int team(int threads) { return forked ? 1 : threads; }

void check(int failed) {
  if (failed) throw std::bad_alloc();
}

using Address = uintptr_t;  // 0 for a null pointer

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Walk make_walk(int64_t T, int64_t B, int64_t H, Address batch_sizes, bool reverse) {
  return {T, B, H, pointer<const int64_t>(batch_sizes), reverse};
}

void use(const std::string& name) {
  std::string known;
  for (const Kernels* set : runnable()) {
    if (name == set->name) {
      active = set;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + set->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' cannot run on this machine; it can run " + known);
}

void forward(int dtype, int activation, int64_t T, int64_t B, int64_t H, Address batch_sizes, bool reverse, Address h0,
             Address w_hh, Address out, Address h_n, int threads) {
  check(active.load()->forward({DType(dtype), Activation(activation), make_walk(T, B, H, batch_sizes, reverse),
                                pointer(h0), pointer(w_hh), pointer(out), pointer(h_n)},
                               team(threads)));
}

void backward(int dtype, int activation, int64_t T, int64_t B, int64_t H, Address batch_sizes, bool reverse,
              Address dout, Address dh_n, Address w_hh, Address out, Address dpre, Address dh0, int threads) {
  check(active.load()->backward({DType(dtype), Activation(activation), make_walk(T, B, H, batch_sizes, reverse),
                                 pointer(dout), pointer(dh_n), pointer(w_hh), pointer(out), pointer(dpre), pointer(dh0)},
                                team(threads)));
}

void product(int dtype, int64_t R, int64_t N, int64_t K, Address a, Address w, bool transposed, Address bias0,
             Address bias1, Address c, int threads) {
  check(active.load()->product(
      {DType(dtype), R, N, K, pointer(a), pointer(w), transposed, pointer(bias0), pointer(bias1), pointer(c)},
      team(threads)));
}

void gradient(int dtype, int64_t R, int64_t M, int64_t N, Address a, Address b, Address b_start, Address index,
              Address c, Address a_sum, int threads) {
  check(active.load()->gradient({DType(dtype), R, M, N, pointer(a), pointer(b), pointer(b_start),
                                 pointer<const int64_t>(index), pointer(c), pointer(a_sum)},
                                team(threads)));
}

void step(int dtype, int activation, int64_t B, int64_t I, int64_t H, Address x, Address h, Address w_ih, Address w_hh,
          Address b_ih, Address b_hh, Address out, int threads) {
  check(active.load()->step({DType(dtype), Activation(activation), B, I, H, pointer(x), pointer(h), pointer(w_ih),
                             pointer(w_hh), pointer(b_ih), pointer(b_hh), pointer(out)},
                            team(threads)));
}

void step_backward(int dtype, int activation, int64_t B, int64_t I, int64_t H, Address dout, Address x, Address h,
                   Address w_ih, Address w_hh, Address out, Address dx, Address dh, Address dw_ih, Address dw_hh,
                   Address db, int threads) {
  check(active.load()->step_backward(
      {DType(dtype), Activation(activation), B, I, H, pointer(dout), pointer(x), pointer(h), pointer(w_ih),
       pointer(w_hh), pointer(out), pointer(dx), pointer(dh), pointer(dw_ih), pointer(dw_hh), pointer(db)},
      team(threads)));
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(_cpu, m) {
  using namespace rnnfast;
  using release = py::call_guard<py::gil_scoped_release>;
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
  m.doc() = "Native CPU kernels of rnnfast. Internal: call them through rnnfast.functional.";
  m.def("forward", &forward, release());
  m.def("backward", &backward, release());
  m.def("product", &product, release());
  m.def("gradient", &gradient, release());
  m.def("step", &step, release());
  m.def("step_backward", &step_backward, release());
  m.def("previous_rows",
        [](int64_t T, int64_t B, Address batch_sizes, bool reverse, Address index) {
          previous_rows(make_walk(T, B, 0, batch_sizes, reverse), pointer<int64_t>(index));
        });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Kernels* set : runnable()) names.push_back(set->name);
    py::list list;
    for (const auto& name : names) list.append(name);
    return list;
  }, "Instruction sets that this machine can run, slowest first.");
  m.def("instruction_set", [] { return active.load()->name; }, "The one in use.");
  m.def("use", &use, py::arg("name"), "Choose an instruction set (for tests and benchmarks).");
  m.def("openmp", [] {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
  });
  m.def("fma_peak", [](int threads, double seconds) { return active.load()->fma_peak(team(threads), seconds); },
        py::arg("threads"), py::arg("seconds"), release(), "Measured float32 fused multiply-add peak, flop/s.");
  m.def("read_bandwidth",
        [](int64_t bytes, int threads, double seconds) {
          return active.load()->read_bandwidth(bytes, team(threads), seconds);
        },
        py::arg("bytes"), py::arg("threads"), py::arg("seconds"), release(),
        "Measured read bandwidth over a buffer of `bytes`, bytes/s.");
}
