// The Python module rnnfast._cuda: passes addresses, sizes and the stream through to the launchers.
//
// rnnfast/backends/cuda.py is the only caller and guarantees shapes, dtypes, contiguity and the current device.
// Launchers return a number (see contract.h): 0 is success, and `message(number)` puts any other in words. Importing
// the module needs no driver: the CUDA runtime is linked in and looks for a driver at its first call.
#include <pybind11/pybind11.h>

#include <algorithm>

#include "contract.h"
#include "grid/grid.h"

namespace py = pybind11;

namespace rnnfast {
namespace cuda {
namespace {

using Address = uintptr_t;  // 0 for a null pointer

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Sequences make_sequences(int64_t T, int64_t B, int64_t H, Address offsets, bool reverse) {
  return {T, B, H, pointer<const int64_t>(offsets), reverse};
}

int resident_forward(int dtype, int activation, bool tf32, int64_t T, int64_t B, int64_t H, Address offsets,
                     bool reverse, int64_t stride, Address pre, Address h0, Address w_hh, Address out, Address h_n,
                     uintptr_t stream) {
  return rnnfast_cuda_resident_forward(
      {DType(dtype), Activation(activation), tf32, make_sequences(T, B, H, offsets, reverse), pointer(pre), pointer(h0),
       pointer(w_hh), pointer(out), pointer(h_n)},
      stride, stream);
}

int grid_forward(int dtype, int activation, bool tf32, int64_t T, int64_t B, int64_t H, Address offsets, bool reverse,
                 int64_t R, int64_t stride, Address fault, Address pre, Address h0, Address w_hh, Address out,
                 Address h_n, uintptr_t stream) {
  return rnnfast_cuda_grid_forward(
      {DType(dtype), Activation(activation), tf32, make_sequences(T, B, H, offsets, reverse), pointer(pre), pointer(h0),
       pointer(w_hh), pointer(out), pointer(h_n)},
      {R, stride, pointer<int32_t>(fault)}, stream);
}

int resident_backward(int dtype, int activation, bool tf32, int64_t T, int64_t B, int64_t H, Address offsets,
                      bool reverse, int64_t stride, Address dout, Address dh_n, Address out, Address w_hh, Address dpre,
                      Address dh0, uintptr_t stream) {
  return rnnfast_cuda_resident_backward(
      {DType(dtype), Activation(activation), tf32, make_sequences(T, B, H, offsets, reverse), pointer(dout),
       pointer(dh_n), pointer(out), pointer(w_hh), pointer(dpre), pointer(dh0)},
      stride, stream);
}

int grid_backward(int dtype, int activation, bool tf32, int64_t T, int64_t B, int64_t H, Address offsets, bool reverse,
                  int64_t R, int64_t stride, Address fault, Address dout, Address dh_n, Address out, Address w_hh,
                  Address dpre, Address dh0, uintptr_t stream) {
  return rnnfast_cuda_grid_backward(
      {DType(dtype), Activation(activation), tf32, make_sequences(T, B, H, offsets, reverse), pointer(dout),
       pointer(dh_n), pointer(out), pointer(w_hh), pointer(dpre), pointer(dh0)},
      {R, stride, pointer<int32_t>(fault)}, stream);
}

int step(int dtype, int activation, bool tf32, int64_t B, int64_t I, int64_t H, Address x, Address h, Address w_ih,
         Address w_hh, Address b_ih, Address b_hh, Address out, uintptr_t stream) {
  return rnnfast_cuda_step({DType(dtype), Activation(activation), tf32, B, I, H, pointer(x), pointer(h), pointer(w_ih),
                            pointer(w_hh), pointer(b_ih), pointer(b_hh), pointer(out)},
                           stream);
}

int step_backward(int dtype, int activation, bool tf32, int64_t B, int64_t I, int64_t H, Address dout, Address out,
                  Address w_ih, Address w_hh, Address dpre, Address dx, Address dh, uintptr_t stream) {
  return rnnfast_cuda_step_backward({DType(dtype), Activation(activation), tf32, B, I, H, pointer(dout), pointer(out),
                                     pointer(w_ih), pointer(w_hh), pointer(dpre), pointer(dx), pointer(dh)},
                                    stream);
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfast

PYBIND11_MODULE(_cuda, m) {
  using namespace rnnfast;
  using namespace rnnfast::cuda;
  m.doc() = "CUDA kernels of rnnfast. Internal: call them through rnnfast.functional.";
  m.def("message", &rnnfast_cuda_message, "A launcher's result in words.");
  m.def("device_count", &rnnfast_cuda_device_count);
  m.def("current_device", [] {
    const rnnfast_cuda_device device = rnnfast_cuda_current_device();
    return py::make_tuple(device.capability, device.multiprocessors, device.shared);
  });
  // A launch waits while the device's queue is full; the GIL is released so that other Python threads go on.
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("step", &step, release());
  m.def("step_backward", &step_backward, release());
  m.def(
      "resident_limit", [](int dtype) { return rnnfast_cuda_resident_limit(DType(dtype)); },
      "The largest H of the resident kernels, 0 for none.");
  m.def("resident_forward", &resident_forward, release());
  m.def("resident_backward", &resident_backward, release());
  m.def(
      "grid_limit",
      [](int dtype, bool tf32) {
        return std::min(rnnfast_cuda_grid_forward_limit(DType(dtype), tf32),
                        rnnfast_cuda_grid_backward_limit(DType(dtype), tf32));
      },
      "The largest H of the kernels that take the whole of the current device, 0 for none.");
  m.def("grid_forward", &grid_forward, release());
  m.def("grid_backward", &grid_backward, release());
}
