// A call read from Python tensors: what call.cpp makes and run.cpp runs.
#pragma once

#include <Python.h>

#include <memory>

#include "tensor_view.h"

namespace rnnfast {

// An owned reference.
struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Drop>;

// The fields of call.Network, in its order.
struct Network {
  Activation activation;
  int layers, directions;
  bool reverse;  // of one direction: it walks from the end
  int per;       // weights of a layer in one direction: 4 with biases, else 2
  bool step, module, batch_first;
  int64_t input_size, hidden_size;  // -1: any

  int count() const { return layers * directions; }

  // Returns false if the fields are not what they should be, or of a cell that there are no kernels for.
  bool read(PyObject* fields) {
    if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) != 12) return false;
    const auto item = [&](int i) { return PyTuple_GET_ITEM(fields, i); };
    if (!PyUnicode_Check(item(0)) || !PyTuple_Check(item(2))) return false;
    const bool tanh = PyUnicode_CompareWithASCIIString(item(0), "tanh") == 0;
    activation = tanh ? Activation::kTanh : Activation::kRelu;
    if (!tanh && PyUnicode_CompareWithASCIIString(item(0), "relu") != 0) return false;
    layers = int(PyLong_AsLong(item(1)));
    directions = int(PyTuple_GET_SIZE(item(2)));
    if (layers < 1 || directions < 1 || directions > 2) return false;
    const auto walks_back = [&](int i) { return PyTuple_GET_ITEM(item(2), i) == Py_True; };
    reverse = walks_back(0);
    if (directions == 2 && (reverse || !walks_back(1))) return false;
    per = item(3) == Py_True ? 4 : 2;
    step = item(4) == Py_True;
    module = item(5) == Py_True;
    batch_first = item(6) == Py_True;
    input_size = item(7) == Py_None ? -1 : PyLong_AsLongLong(item(7));
    hidden_size = item(8) == Py_None ? -1 : PyLong_AsLongLong(item(8));
    if (!PyUnicode_Check(item(9)) || PyUnicode_CompareWithASCIIString(item(9), "elman") != 0) return false;
    if (item(10) != Py_False || item(11) != Py_False) return false;  // noise, resets
    return !PyErr_Occurred() && (!step || count() == 1);
  }
};

struct Call {
  PyObject_VAR_HEAD PyObject *network, *x, *h0, *weights, *batch_sizes, *resets;  // or None
  PyObject* problem;  // the fields of base.Problem that a call has
  long long steps, batch, rows, input_size, hidden_size;
  Network net;
  View like;       // dtype and device of all tensors
  Shape x_shape;   // [T, B, I], [B, T, I] where B or T is 1, [T, I], [R, I] of packed sequences; of a step [B, I], [I]
  Shape h0_shape;  // [L * D, B, H] or unbatched [L * D, H], of a function [B, H]; of a step [B, H] or [H]
  bool packed;
  const int64_t* sizes;  // [T], or null
  const char *x_data, *h0_data;

  // [L * D * per], null where a weight is None; they follow the fields.
  const void** pointers() const { return reinterpret_cast<const void**>(const_cast<Call*>(this) + 1); }
  int width() const { return net.directions * int(hidden_size); }
  Shape out_shape() const { return x_shape.ending(width()); }
  Shape weight_shape(int i) const {
    const int part = i % net.per;
    if (part == 0) return Shape(hidden_size, i / net.per < net.directions ? input_size : width());
    return part == 1 ? Shape(hidden_size, hidden_size) : Shape(hidden_size);
  }
  Stack stack() const {
    return {like.dtype, net.activation, steps,       batch,        input_size, hidden_size, sizes,
            net.layers, net.directions, net.reverse, net.per == 4, x_data,     h0_data,     pointers()};
  }
};

// What `setup` gets from torch.
struct Torch {
  Viewer viewer;
  PyObject* empty_like;  // torch.empty_like
  PyObject* new_empty;   // torch.Tensor.new_empty
  PyObject* make_dense;  // call.dense_gradient
};
extern Torch torch;

// Reads `object`, which has to have this shape, through a dense copy if need be. `copy` keeps the copy. Leaves null in
// `view->data` for None.
bool look_dense(const char* name, PyObject* object, const Call* call, const Shape& shape, Owned* copy, View* view);

// The methods of a Call that compute; see run.cpp.
PyObject* forward(PyObject* self, PyObject* const* args, Py_ssize_t n);
PyObject* backward(PyObject* self, PyObject* const* args, Py_ssize_t n);

// Adds the type Call and the functions `setup` and `read` to the module. Returns nonzero with an exception set.
int add_call(PyObject* module);

}  // namespace rnnfast
