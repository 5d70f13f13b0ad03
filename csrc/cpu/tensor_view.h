// Reads a Python tensor without torch's headers, through DLPack's table of C functions, which torch keeps as an
// attribute of its Tensor type (`torch.Tensor.__dlpack_c_exchange_api__`, torch 2.10 and newer). Pointer, shape,
// strides, dtype and device of a tensor take about 15 ns; from Python each of them is a call of 60 to 110 ns.
//
// The declarations are the part of DLPack's ABI, major version 1, that is used here, in its order:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <Python.h>

#include "../recurrence.h"

namespace rnnfast {
namespace dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;
enum Code : uint8_t { kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null for a dense tensor
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_python;
  void* managed_to_python;
  int (*from_python)(void* object, Tensor* out);  // -1 with a Python exception set; may be null
  void* current_stream;
};

}  // namespace dlpack

// A dense tensor of at least one element, on the CPU or a CUDA device.
struct View {
  char* data;
  DType dtype;
  int32_t device_type, device_id;
  int ndim;
  int64_t shape[3];

  bool on_cpu() const { return device_type == dlpack::kCpu; }
  // Whether both have the dtype and device that one kernel takes.
  bool goes_with(const View& other) const {
    return dtype == other.dtype && device_type == other.device_type && device_id == other.device_id;
  }

  bool is(int64_t a) const { return ndim == 1 && shape[0] == a; }
  bool is(int64_t a, int64_t b) const { return ndim == 2 && shape[0] == a && shape[1] == b; }
  bool is(int64_t a, int64_t b, int64_t c) const {
    return ndim == 3 && shape[0] == a && shape[1] == b && shape[2] == c;
  }
};

// Recognises tensors that are dense memory and nothing else, and reads them.
class Viewer {
 public:
  // Reads torch's table. `tensor_type` and `parameter_type` are the types whose instances may be plain. Returns false
  // if torch has no table of this version, possibly with an exception set.
  bool open(PyObject* tensor_type, PyObject* parameter_type) {
    PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
    void* table = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    Py_XDECREF(capsule);
    PyErr_Clear();
    const auto* api = static_cast<const dlpack::ExchangeApi*>(table);
    if (!api || api->major != dlpack::kMajor || !api->from_python) return false;
    from_python_ = api->from_python;
    tensor_ = reinterpret_cast<PyTypeObject*>(tensor_type);
    parameter_ = reinterpret_cast<PyTypeObject*>(parameter_type);
    is_neg_ = PyObject_GetAttrString(tensor_type, "is_neg");
    return is_neg_ != nullptr;
  }

  bool knows(PyObject* object) const { return Py_TYPE(object) == tensor_ || Py_TYPE(object) == parameter_; }

  // Fills `view` and returns true if a View can describe the tensor. It cannot describe other types, devices, dtypes
  // and layouts, wrappers without memory, or lazily negated tensors. Leaves no exception.
  bool look(PyObject* object, View* view) const {
    if (!knows(object)) return false;
    dlpack::Tensor t;
    if (from_python_(object, &t) != 0) {
      PyErr_Clear();
      return false;
    }
    if ((t.device_type != dlpack::kCpu && t.device_type != dlpack::kCuda) || !t.data || t.ndim < 1 || t.ndim > 3 ||
        t.lanes != 1)
      return false;
    if (t.code == dlpack::kFloat && t.bits == 32)
      view->dtype = DType::kFloat32;
    else if (t.code == dlpack::kFloat && t.bits == 64)
      view->dtype = DType::kFloat64;
    else if (t.code == dlpack::kBfloat && t.bits == 16)
      view->dtype = DType::kBFloat16;
    else if (t.code == dlpack::kFloat && t.bits == 16)
      view->dtype = DType::kFloat16;
    else
      return false;
    int64_t dense = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] == 0 || (t.shape[i] != 1 && t.strides && t.strides[i] != dense)) return false;
      dense *= t.shape[i];
      view->shape[i] = t.shape[i];
    }
    view->device_type = t.device_type;
    view->device_id = t.device_id;
    view->ndim = t.ndim;
    view->data = static_cast<char*>(t.data) + t.byte_offset;
    // DLPack does not say whether a tensor is lazily negated; asking takes 80 ns. torch negates lazily where it takes
    // the imaginary part of a conjugate, whose strides are two or more, so a dense Parameter is asked only if it is a
    // single number.
    if (Py_TYPE(object) == parameter_ && dense != 1) return true;
    PyObject* negated = PyObject_CallOneArg(is_neg_, object);
    if (!negated) PyErr_Clear();
    Py_XDECREF(negated);
    return negated == Py_False;
  }

 private:
  int (*from_python_)(void*, dlpack::Tensor*) = nullptr;
  PyTypeObject *tensor_ = nullptr, *parameter_ = nullptr;
  PyObject* is_neg_ = nullptr;
};

}  // namespace rnnfast
