// The Python module rnnfast._cpu: chooses an instruction set and passes pointers on to its kernels.
//
// Calls come through call.cpp. To `recurrence`, for benchmarks, tensors arrive as addresses (tensor.data_ptr()) and
// sizes; rnnfast/backends/cpu.py is its only caller and has checked them. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

#include "../contract.h"
#include "active.h"
#include "call.h"

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
#if defined(RNNFAST_AVX512BF16)
namespace avx512bf16 {
extern const Kernels kernels;
}
#endif
#endif

namespace {

std::vector<const Kernels*> runnable() {  // slowest first
  std::vector<const Kernels*> sets{&baseline::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back(&avx512::kernels);
#if defined(RNNFAST_AVX512BF16)
    unsigned eax, ebx, ecx, edx;  // not every compiler knows the set's name
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax & 1u << 5) sets.push_back(&avx512bf16::kernels);
#endif
  }
#endif
  return sets;
}

std::atomic<const Kernels*> active{runnable().back()};

// Whether a fork has left this process with one thread. A child of fork has only the thread that forked, but also
// libgomp's record of that thread's team: entering a parallel region would hang. The team is therefore dissolved before
// the fork, by OpenMP 5.0's omp_pause_resource_all, and the next region makes another one, in the parent and in the
// child. If the runtime is older, or the fork comes from inside a region, the child computes without parallel regions.
std::atomic<bool> team_lost{false};

#if defined(__linux__)
constexpr int kPauseHard = 2;  // omp_pause_hard
int (*pause_resources)(int);   // null where the runtime has none
thread_local bool dissolved = false;

void before_fork() { dissolved = pause_resources && pause_resources(kPauseHard) == 0; }

void in_child() {
  if (!dissolved) team_lost = true;
}

// The file of the library that defines `name`, as seen from the library `from`, which is loaded already, or from this
// one.
std::string library_of(const char* name, const char* from) {
  void* scope = from ? dlopen(from, RTLD_LAZY | RTLD_NOLOAD) : RTLD_DEFAULT;
  if (from && !scope) return "";
  void* address = dlsym(scope, name);
  Dl_info info;
  const bool found = address && dladdr(address, &info) && info.dli_fname;
  const std::string file = found ? info.dli_fname : "";
  if (from) dlclose(scope);
  return file;
}
#endif

}  // namespace

const Kernels& active_kernels() { return *active.load(); }

int usable_threads(int threads) { return team_lost ? 1 : threads; }

namespace {

void check(int failed) {
  if (failed) throw std::bad_alloc();
}

using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

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

void recurrence(int dtype, int activation, int64_t T, int64_t B, int64_t H, Address h0, Address w_hh, Address out,
                Address h_n, int threads) {
  const Sequences dense{T, B, H, nullptr, false};
  check(active_kernels().recurrence(
      {DType(dtype), Activation(activation), dense, pointer(h0), pointer(w_hh), pointer(out), pointer(h_n)},
      usable_threads(threads)));
}

}  // namespace
}  // namespace rnnfast

// Nothing in csrc/cpu relies on the GIL, so importing it into a free-threaded Python must not turn it on. Kernels have
// always run without it: their scratch memory belongs to threads, `active` and `team_lost` are atomic. What call.cpp
// keeps is written once, by `setup`, while rnnfast.call is imported; a Call never changes once it has been returned.
// Python before 3.13 and pybind11 before 2.13 know of no such declaration.
#if PYBIND11_VERSION_HEX >= 0x020d0000
PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
#else
PYBIND11_MODULE(_cpu, m) {
#endif
  using namespace rnnfast;
  using release = py::call_guard<py::gil_scoped_release>;
#if defined(__linux__)
  pause_resources = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
  pthread_atfork(&before_fork, nullptr, &in_child);
#endif
  m.doc() = "Native CPU kernels of rnnfast. Internal: call them through rnnfast.functional.";
  if (add_call(m.ptr()) != 0) throw py::error_already_set();
  m.def("recurrence", &recurrence, release());
  m.def(
      "instruction_sets",
      [] {
        py::list names;
        for (const Kernels* set : runnable()) names.append(set->name);
        return names;
      },
      "Instruction sets that this machine can run, slowest first.");
  m.def("instruction_set", [] { return active_kernels().name; }, "The one in use.");
  m.def("use", &use, py::arg("name"), "Choose an instruction set (for tests and benchmarks).");
  m.def(
      "openmp",
      [](py::object from) {
#if defined(__linux__)
        return library_of("GOMP_parallel", from.is_none() ? nullptr : from.cast<std::string>().c_str());
#else
        return std::string();
#endif
      },
      py::arg("from") = py::none(),
      "The file of the OpenMP runtime that this extension takes its threads from, or that a library which is loaded"
      " depends on; empty without one.");
  m.def(
      "release_scratch",
      [](int threads) {
        for (const Kernels* set : runnable()) set->release_scratch(usable_threads(threads));
      },
      py::arg("threads"), release(), "Frees the scratch memory that this thread and a team of it keep.");
  m.def("team_lost", [] { return bool(team_lost); }, "Whether a fork has left this process with one thread a call.");
  m.def(
      "fma_peak",
      [](int threads, double seconds, int dtype) {
        return active_kernels().fma_peak(DType(dtype), usable_threads(threads), seconds);
      },
      py::arg("threads"), py::arg("seconds"), py::arg("dtype") = 0, release(),
      "Measured peak of multiply-adds as they are done for a dtype, flop/s.");
  m.def(
      "read_bandwidth",
      [](int64_t bytes, int threads, double seconds) {
        return active_kernels().read_bandwidth(bytes, usable_threads(threads), seconds);
      },
      py::arg("bytes"), py::arg("threads"), py::arg("seconds"), release(),
      "Measured read bandwidth over a buffer of `bytes`, bytes/s.");
}
