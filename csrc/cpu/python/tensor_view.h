// Reads a Python tensor without torch's headers, through DLPack's table of C functions, which torch keeps as an
// attribute of its Tensor type (`torch.Tensor.__dlpack_c_exchange_api__`, torch 2.10 and newer). Pointer, shape,
// strides, dtype and device of a tensor take about 15 ns; from Python each of them is a call of 60 to 110 ns.
//
// The declarations are the part of DLPack's ABI, major version 1, that is used here, in its order:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <Python.h>
#include <string.h>

#include "../contract.h"

namespace rnnfast {
namespace dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;
enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

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

// A dense tensor on the CPU or a CUDA device.
struct View {
  char* data;  // may be null if the tensor has no elements
  DType dtype;
  int32_t device_type, device_id;
  int ndim;
  int64_t shape[3];

  bool on_cpu() const { return device_type == dlpack::kCpu; }
  // Whether both have the dtype and device that one kernel takes.
  bool goes_with(const View& other) const {
    return dtype == other.dtype && device_type == other.device_type && device_id == other.device_id;
  }
};

// The shape of a tensor of one to three dimensions.
struct Shape {
  int ndim;
  int64_t sizes[3];

  Shape() : ndim(0), sizes{} {}
  explicit Shape(int64_t a) : ndim(1), sizes{a} {}
  Shape(int64_t a, int64_t b) : ndim(2), sizes{a, b} {}
  Shape(int64_t a, int64_t b, int64_t c) : ndim(3), sizes{a, b, c} {}
  explicit Shape(const View& view) : ndim(view.ndim), sizes{} { memcpy(sizes, view.shape, sizeof(view.shape)); }

  bool operator==(const Shape& other) const {
    return ndim == other.ndim && !memcmp(sizes, other.sizes, size_t(ndim) * sizeof(int64_t));
  }

  // With another last dimension.
  Shape ending(int64_t size) const {
    Shape other = *this;
    other.sizes[ndim - 1] = size;
    return other;
  }
  bool is_of(const View& view) const {
    if (view.ndim != ndim) return false;
    for (int i = 0; i < ndim; ++i)
      if (view.shape[i] != sizes[i]) return false;
    return true;
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
    if ((t.device_type != dlpack::kCpu && t.device_type != dlpack::kCuda) || t.ndim < 1 || t.ndim > 3 || t.lanes != 1)
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
    const int64_t count = read_shape(t, view->shape);
    if (count < 0 || (count > 0 && !t.data)) return false;
    view->device_type = t.device_type;
    view->device_id = t.device_id;
    view->ndim = t.ndim;
    view->data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
    // DLPack does not say whether a tensor is lazily negated; asking takes 80 ns. torch negates lazily where it takes
    // the imaginary part of a conjugate, whose strides are two or more, so a dense Parameter is asked only if it is a
    // single number.
    if (Py_TYPE(object) == parameter_ && count != 1) return true;
    return !negated(object);
  }

  // Finds the numbers of `batch_sizes`: a dense tensor of int64 with one dimension, on the CPU.
  bool look_at_numbers(PyObject* object, const int64_t** numbers, int64_t* count) const {
    dlpack::Tensor t;
    if (!look_at_list(object, &t) || t.device_type != dlpack::kCpu || t.code != dlpack::kInt || t.bits != 64 || !t.data)
      return false;
    *numbers = reinterpret_cast<const int64_t*>(static_cast<const char*>(t.data) + t.byte_offset);
    *count = t.shape[0];
    return true;
  }

  // Finds the bytes of `resets`: a dense tensor of bool or uint8 with one dimension, on the device of `like`.
  bool look_at_bytes(PyObject* object, const View& like, const uint8_t** bytes, int64_t* count) const {
    dlpack::Tensor t;
    if (!look_at_list(object, &t) || (t.code != dlpack::kBool && t.code != dlpack::kUInt) || t.bits != 8 ||
        t.device_type != like.device_type || t.device_id != like.device_id || (t.shape[0] > 0 && !t.data))
      return false;
    *bytes = t.data ? static_cast<const uint8_t*>(t.data) + t.byte_offset : nullptr;
    *count = t.shape[0];
    return true;
  }

 private:
  // Reads a dense tensor with one dimension that is not lazily negated.
  bool look_at_list(PyObject* object, dlpack::Tensor* t) const {
    if (!knows(object) || from_python_(object, t) != 0) {
      PyErr_Clear();
      return false;
    }
    return t->lanes == 1 && t->ndim == 1 && (!t->strides || t->shape[0] <= 1 || t->strides[0] == 1) && !negated(object);
  }

  // Copies the shape. Returns the number of elements, or -1 if they are not dense.
  static int64_t read_shape(const dlpack::Tensor& t, int64_t* shape) {
    int64_t count = 1;
    bool dense = true;
    for (int i = t.ndim - 1; i >= 0; --i) {
      dense &= t.shape[i] == 1 || !t.strides || t.strides[i] == count;
      count *= t.shape[i];
      shape[i] = t.shape[i];
    }
    return dense || count == 0 ? count : -1;
  }

  bool negated(PyObject* object) const {
    PyObject* answer = PyObject_CallOneArg(is_neg_, object);
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);
    return answer != Py_False;
  }

  int (*from_python_)(void*, dlpack::Tensor*) = nullptr;
  PyTypeObject *tensor_ = nullptr, *parameter_ = nullptr;
  PyObject* is_neg_ = nullptr;
};

}  // namespace rnnfast
