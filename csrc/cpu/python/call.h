// A call read from Python tensors: what call.cpp makes and run.cpp runs.
#pragma once

#include <Python.h>

#include <initializer_list>
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
  bool biases;
  bool step, module, batch_first;
  int64_t input_size, hidden_size;  // -1: any
  Cell cell;
  bool noise, resets;
  int per;  // weights of a layer in one direction; see Stack::weights

  int count() const { return layers * directions; }

  // Returns false if the fields are not what they should be.
  bool read(PyObject* fields) {
    if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) != 12) return false;
    const auto item = [&](int i) { return PyTuple_GET_ITEM(fields, i); };
    const int act = index_of(item(0), {"tanh", "relu", "sigmoid", "softplus", "identity"});
    const int cell_index = index_of(item(9), {"elman", "leaky", "ctrnn"});
    if (act < 0 || cell_index < 0 || !PyTuple_Check(item(2))) return false;
    activation = Activation(act);
    cell = Cell(cell_index);
    layers = int(PyLong_AsLong(item(1)));
    directions = int(PyTuple_GET_SIZE(item(2)));
    if (layers < 1 || directions < 1 || directions > 2) return false;
    const auto walks_back = [&](int i) { return PyTuple_GET_ITEM(item(2), i) == Py_True; };
    reverse = walks_back(0);
    if (directions == 2 && (reverse || !walks_back(1))) return false;
    biases = item(3) == Py_True;
    step = item(4) == Py_True;
    module = item(5) == Py_True;
    batch_first = item(6) == Py_True;
    input_size = item(7) == Py_None ? -1 : PyLong_AsLongLong(item(7));
    hidden_size = item(8) == Py_None ? -1 : PyLong_AsLongLong(item(8));
    noise = item(10) == Py_True;
    resets = item(11) == Py_True;
    per = stack().weights_each();
    return !PyErr_Occurred() && (!step || (count() == 1 && cell == Cell::kElman && !noise && !resets));
  }

  // Without tensors and their sizes.
  Stack stack() const {
    Stack stack{};
    stack.activation = activation;
    stack.layers = layers;
    stack.directions = directions;
    stack.reverse = reverse;
    stack.biases = biases;
    stack.cell = cell;
    stack.noise = noise;
    return stack;
  }

 private:
  // Where `text` is among `names`, or -1.
  static int index_of(PyObject* text, std::initializer_list<const char*> names) {
    int i = 0;
    for (const char* name : names) {
      if (PyUnicode_Check(text) && PyUnicode_CompareWithASCIIString(text, name) == 0) return i;
      ++i;
    }
    return -1;
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
  const int64_t* sizes;        // [T], or null
  const uint8_t* resets_data;  // [R], or null
  const char *x_data, *h0_data;

  // [L * D * per], null where a weight is None; they follow the fields.
  const void** pointers() const { return reinterpret_cast<const void**>(const_cast<Call*>(this) + 1); }
  int width() const { return net.directions * int(hidden_size); }
  Shape out_shape() const { return x_shape.ending(width()); }
  Shape inner_shape() const { return Shape(net.layers, rows, width()); }
  Shape weight_shape(int i) const {
    const int part = i % net.per;
    if (part == 0) return Shape(hidden_size, i / net.per < net.directions ? input_size : width());
    if (part == 1) return Shape(hidden_size, hidden_size);
    return net.noise && part == net.per - 1 ? Shape(rows, hidden_size) : Shape(hidden_size);
  }
  Stack stack() const {
    Stack stack = net.stack();
    stack.dtype = like.dtype;
    stack.T = steps;
    stack.B = batch;
    stack.I = input_size;
    stack.H = hidden_size;
    stack.batch_sizes = sizes;
    stack.x = x_data;
    stack.h0 = h0_data;
    stack.weights = pointers();
    stack.resets = resets_data;
    return stack;
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
