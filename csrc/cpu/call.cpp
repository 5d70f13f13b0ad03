// A call as the layers above the kernels see it: its tensors and what has been read from them, once.
//
// `read` looks at the arguments of a call. If all of them are dense tensors of exactly torch's own types, of one dtype
// on one device, with shapes that fit, it returns a Call, on whatever device they are. Otherwise it returns None, and
// rnnfast/call.py looks at them in Python, which prepares them or finds the error. rnnfast/backends/cpu.py runs a Call
// whose tensors are on the CPU: `forward` and `backward` make the results and call the kernels.
//
// These are plain C functions since pybind11 takes a microsecond to read so many arguments. In Python the same checks,
// views and arguments take about 15 us, for a step that computes for 1.4 us (Zen 4, T = 1, B = 1, H = 64). A training
// step takes 69 us there, of which an autograd Function that does nothing takes 51.
#include "call.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include <memory>
#include <vector>

#include "active.h"
#include "tensor_view.h"

namespace rnnfast {
namespace {

Viewer viewer;
PyTypeObject* call_type;
PyObject* empty_like;  // torch.empty_like
PyObject* new_empty;   // torch.Tensor.new_empty
PyObject* make_dense;  // arguments.dense_gradient
PyObject* cpu;         // torch.device("cpu")
PyObject* dtypes[4];   // in the order of DType
PyObject *kind_step, *kind_sequence, *device;

constexpr size_t kItemSize[] = {4, 8, 2, 2};

// An owned reference.
struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Drop>;

PyObject* no_call() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

// The fields of call.Network, in its order.
struct Network {
  Activation activation;
  int layers, directions;
  bool reverse;  // of one direction: it walks from the end
  int per;       // weights of a layer in one direction: 4 with biases, else 2
  bool step, module, batch_first;
  int64_t input_size, hidden_size;  // -1: any

  int count() const { return layers * directions; }

  // Returns false if the fields are not what they should be.
  bool read(PyObject* fields) {
    if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) != 9) return false;
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
    return !PyErr_Occurred() && (!step || count() == 1);
  }
};

struct Call {
  PyObject_HEAD PyObject *network, *x, *h0, *weights, *batch_sizes;  // or None
  PyObject* problem;                                                 // the fields of base.Problem that a call has
  long long steps, batch, rows, input_size, hidden_size;
  Network net;
  View like;       // dtype and device of all tensors
  Shape x_shape;   // [T, B, I], [B, T, I] where B or T is 1, [T, I], [R, I] of packed sequences; of a step [B, I], [I]
  Shape h0_shape;  // [L * D, B, H] or unbatched [L * D, H], of a function [B, H]; of a step [B, H] or [H]
  bool packed;
  const int64_t* sizes;  // [T], or null
  const char *x_data, *h0_data;
  const void** pointers;  // [L * D * per], null where a weight is None

  int width() const { return net.directions * int(hidden_size); }
  Shape out_shape() const { return x_shape.ending(width()); }
  Shape weight_shape(int i) const {
    const int part = i % net.per;
    if (part == 0) return Shape(hidden_size, i / net.per < net.directions ? input_size : width());
    return part == 1 ? Shape(hidden_size, hidden_size) : Shape(hidden_size);
  }
  Stack stack() const {
    return {like.dtype, net.activation, steps,       batch,        input_size, hidden_size, sizes,
            net.layers, net.directions, net.reverse, net.per == 4, x_data,     h0_data,     pointers};
  }
};

void release(PyObject* self) {
  Call* call = reinterpret_cast<Call*>(self);
  for (PyObject* object : {call->network, call->x, call->h0, call->weights, call->batch_sizes, call->problem})
    Py_XDECREF(object);
  free(call->pointers);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// A Call of `network` without tensors, whose fields are those of `other`, if there is one. Null without memory.
Call* new_call(PyObject* network, const Network& net, const Call* other) {
  Call* call = reinterpret_cast<Call*>(call_type->tp_alloc(call_type, 0));
  if (!call) return nullptr;
  if (other) {
    const PyObject head = call->ob_base;
    *call = *other;
    call->ob_base = head;
  }
  call->net = net;
  call->network = Py_NewRef(network);
  for (PyObject** object : {&call->x, &call->h0, &call->weights, &call->batch_sizes}) *object = Py_NewRef(Py_None);
  call->problem = other ? Py_NewRef(other->problem) : nullptr;
  call->x_data = call->h0_data = nullptr;
  call->sizes = nullptr;
  call->pointers = static_cast<const void**>(calloc(size_t(net.count()) * net.per, sizeof(void*)));
  if (call->pointers) return call;
  Py_DECREF(reinterpret_cast<PyObject*>(call));
  PyErr_NoMemory();
  return nullptr;
}

// Derives sizes and shapes from x. Returns false if x doesn't fit.
bool measure(Call* call, const View& x) {
  const Network& net = call->net;
  call->like = x;
  call->x_shape = Shape(x);
  call->input_size = x.shape[x.ndim - 1];
  call->packed = call->sizes != nullptr;
  if (call->packed) {
    if (net.step || x.ndim != 2) return false;
    call->batch = call->sizes[0];
    call->rows = x.shape[0];
  } else if (net.step) {
    if (x.ndim > 2 || (x.ndim == 1 && !net.module)) return false;
    call->steps = 1;
    call->batch = call->rows = x.ndim == 2 ? x.shape[0] : 1;
  } else {
    if (x.ndim < 2 || (x.ndim == 2 && !net.module)) return false;
    const bool turned = x.ndim == 3 && net.batch_first;
    call->steps = x.shape[turned ? 1 : 0];
    call->batch = x.ndim == 2 ? 1 : x.shape[turned ? 0 : 1];
    call->rows = call->steps * call->batch;
    if (call->steps < 1 || (turned && call->steps > 1 && call->batch > 1)) return false;
  }
  return net.input_size < 0 || net.input_size == call->input_size;
}

// Derives the shape of the states, given H.
bool measure_states(Call* call, int64_t hidden_size) {
  const Network& net = call->net;
  call->hidden_size = hidden_size;
  const bool unbatched = !call->packed && call->x_shape.ndim == (net.step ? 1 : 2);
  if (net.step || !net.module)
    call->h0_shape = unbatched ? Shape(hidden_size) : Shape(call->batch, hidden_size);
  else
    call->h0_shape = unbatched ? Shape(net.count(), hidden_size) : Shape(net.count(), call->batch, hidden_size);
  return net.hidden_size < 0 || net.hidden_size == hidden_size;
}

// Whether `sizes` [T] are those of packed sequences of so many rows in all.
bool are_batch_sizes(const int64_t* sizes, int64_t steps, int64_t rows) {
  int64_t sum = 0;
  for (int64_t t = 0; t < steps; ++t) {
    if (sizes[t] < 1 || (t > 0 && sizes[t] > sizes[t - 1])) return false;
    sum += sizes[t];
  }
  return steps > 0 && sum == rows;
}

// (kind, device, dtype, I, H, B, T, packed, layers, directions): how rnnfast/dispatch.py knows a call.
PyObject* problem_of(const Call* call) {
  const Owned where(call->like.on_cpu() ? Py_NewRef(cpu) : PyObject_GetAttr(call->x, device));
  if (!where) return nullptr;
  const long long numbers[] = {call->input_size, call->hidden_size, call->batch, call->steps};
  Owned problem(PyTuple_New(10));
  if (!problem) return nullptr;
  PyTuple_SET_ITEM(problem.get(), 0, Py_NewRef(call->net.step ? kind_step : kind_sequence));
  PyTuple_SET_ITEM(problem.get(), 1, Py_NewRef(where.get()));
  PyTuple_SET_ITEM(problem.get(), 2, Py_NewRef(dtypes[int(call->like.dtype)]));
  for (int i = 0; i < 4; ++i) PyTuple_SET_ITEM(problem.get(), 3 + i, PyLong_FromLongLong(numbers[i]));
  PyTuple_SET_ITEM(problem.get(), 7, Py_NewRef(call->packed ? Py_True : Py_False));
  PyTuple_SET_ITEM(problem.get(), 8, PyLong_FromLong(call->net.layers));
  PyTuple_SET_ITEM(problem.get(), 9, PyLong_FromLong(call->net.directions));
  return problem.release();
}

void set(PyObject** field, PyObject* value) { Py_SETREF(*field, Py_NewRef(value)); }

// (network, x, h0, weights, batch_sizes) -> a Call, or None
PyObject* read(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 5) return PyErr_Format(PyExc_TypeError, "5 arguments, got %zd", n);
  Network net;
  View x, h0, weight;
  if (!net.read(args[0]) || !viewer.look(args[1], &x)) return no_call();
  if (!PyTuple_Check(args[3]) || PyTuple_GET_SIZE(args[3]) != net.count() * net.per) return no_call();
  Owned owner(reinterpret_cast<PyObject*>(new_call(args[0], net, nullptr)));
  if (!owner) return nullptr;
  Call* call = reinterpret_cast<Call*>(owner.get());
  if (args[4] != Py_None) {
    int64_t steps;
    if (x.ndim != 2 || !viewer.look_at_numbers(args[4], &call->sizes, &steps)) return no_call();
    if (!are_batch_sizes(call->sizes, steps, x.shape[0])) return no_call();
    call->steps = steps;
  }
  if (!measure(call, x)) return no_call();
  if (!viewer.look(PyTuple_GET_ITEM(args[3], 1), &weight) || weight.ndim != 2 || !measure_states(call, weight.shape[0]))
    return no_call();
  for (int i = 0; i < net.count() * net.per; ++i) {
    if (!viewer.look(PyTuple_GET_ITEM(args[3], i), &weight) || !weight.goes_with(x) ||
        !call->weight_shape(i).is_of(weight))
      return no_call();
    call->pointers[i] = weight.data;
  }
  if (args[2] != Py_None) {
    if (!viewer.look(args[2], &h0) || !h0.goes_with(x) || !call->h0_shape.is_of(h0)) return no_call();
    call->h0_data = h0.data;
  } else if (!net.module) {
    return no_call();
  }
  call->x_data = x.data;
  set(&call->x, args[1]);
  set(&call->h0, args[2]);
  set(&call->weights, args[3]);
  set(&call->batch_sizes, args[4]);
  call->problem = problem_of(call);
  return call->problem ? owner.release() : no_call();
}

// ---- a call whose tensors were saved ---------------------------------------------------------------

// Reads `object`, which has to have this shape, through a dense copy if need be. `copy` keeps the copy.
bool look_dense(const char* name, PyObject* object, const Call* call, const Shape& shape, Owned* copy, View* view) {
  view->data = nullptr;
  if (object == Py_None) return true;
  bool seen = viewer.look(object, view);
  if (!seen) {
    copy->reset(PyObject_CallOneArg(make_dense, object));
    if (!*copy) return false;
    seen = viewer.look(copy->get(), view);
  }
  if (seen && view->goes_with(call->like) && shape.is_of(*view)) return true;
  PyErr_Format(PyExc_RuntimeError,
               "%s is not what the forward pass of this call had: its shape, dtype or device differs", name);
  return false;
}

PyObject* bare(PyObject* self, PyObject*) {
  const Call* call = reinterpret_cast<Call*>(self);
  return reinterpret_cast<PyObject*>(new_call(call->network, call->net, call));
}

// (x, h0, weights, batch_sizes) -> a Call of the same sizes with these tensors; x, h0 and each weight may be None
PyObject* having(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 4) return PyErr_Format(PyExc_TypeError, "4 arguments, got %zd", n);
  const Call* bare_call = reinterpret_cast<Call*>(self);
  const Network& net = bare_call->net;
  if (!PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) != net.count() * net.per)
    return PyErr_Format(PyExc_RuntimeError, "weights must be a tuple of %d", net.count() * net.per);
  Owned owner(reinterpret_cast<PyObject*>(new_call(bare_call->network, net, bare_call)));
  if (!owner) return nullptr;
  Call* call = reinterpret_cast<Call*>(owner.get());
  View view;
  const auto take = [&](const char* name, PyObject* object, const Shape& shape, PyObject** field) -> const char* {
    Owned copy;
    if (!look_dense(name, object, call, shape, &copy, &view)) return nullptr;
    set(field, copy ? copy.get() : object);
    return view.data;
  };
  call->x_data = take("x", args[0], call->x_shape, &call->x);
  call->h0_data = take("h0", args[1], call->h0_shape, &call->h0);
  Owned weights(PyTuple_New(net.count() * net.per));
  if (!weights || PyErr_Occurred()) return nullptr;
  for (int i = 0; i < net.count() * net.per; ++i) {
    Owned weight(Py_NewRef(Py_None));
    PyObject* kept = weight.get();
    call->pointers[i] = take("a weight", PyTuple_GET_ITEM(args[2], i), call->weight_shape(i), &kept);
    weight.release();
    PyTuple_SET_ITEM(weights.get(), i, kept);
    if (PyErr_Occurred()) return nullptr;
  }
  set(&call->weights, weights.get());
  if (args[3] == Py_None) return owner.release();
  int64_t steps;
  if (!viewer.look_at_numbers(args[3], &call->sizes, &steps) || steps != call->steps ||
      !are_batch_sizes(call->sizes, steps, call->rows) || call->sizes[0] != call->batch)
    return PyErr_Format(PyExc_RuntimeError, "batch_sizes are not those that the forward pass of this call had");
  set(&call->batch_sizes, args[3]);
  return owner.release();
}

// ---- the kernels -----------------------------------------------------------------------------------

// A new tensor of this shape, or null with an exception set. Its dtype and device are those of `of`, a tensor of the
// call; if `same` is a tensor, it has the shape, too, which takes half the time. The result is checked because
// a mode may have returned something else.
Owned fresh(const Call* call, PyObject* of, PyObject* same, const Shape& shape, char** data) {
  Owned made;
  if (same != Py_None) {
    made.reset(PyObject_CallOneArg(empty_like, same));
  } else {
    Owned numbers[3];
    PyObject* args[4] = {of};
    for (int i = 0; i < shape.ndim; ++i) {
      numbers[i].reset(PyLong_FromLongLong(shape.sizes[i]));
      args[1 + i] = numbers[i].get();
    }
    made.reset(PyObject_Vectorcall(new_empty, args, size_t(1 + shape.ndim), nullptr));
  }
  if (!made) return nullptr;
  View view;
  if (!viewer.look(made.get(), &view) || !view.goes_with(call->like) || !shape.is_of(view)) {
    PyErr_SetString(PyExc_RuntimeError, "a new tensor has another shape, dtype or device than was asked for");
    return nullptr;
  }
  *data = view.data;
  return made;
}

bool runs_here(const Call* call) {
  if (call->like.on_cpu()) return true;
  PyErr_SetString(PyExc_RuntimeError, "the tensors of this call are not on the CPU");
  return false;
}

// (stepwise, threads) -> (out,) of a step, else (out, h_n) and, of several layers, hidden. `stepwise`: up to this many
// steps read the weights in place.
PyObject* forward(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 2) return PyErr_Format(PyExc_TypeError, "2 arguments, got %zd", n);
  const Call* call = reinterpret_cast<Call*>(self);
  const Network& net = call->net;
  if (!runs_here(call)) return nullptr;
  if (call->x == Py_None) return PyErr_Format(PyExc_RuntimeError, "this call has no tensors");
  const Shape hidden_shape(net.layers - 1, call->rows, call->width());
  char *out = nullptr, *h_n = nullptr, *hidden = nullptr;
  PyObject* const like_out = net.step ? call->h0 : Py_None;
  Owned made[3] = {fresh(call, call->x, like_out, call->out_shape(), &out), nullptr, nullptr};
  if (made[0] && !net.step) {
    const bool alike = call->h0 == Py_None && call->h0_shape == call->out_shape();
    made[1] = fresh(call, call->x, alike ? made[0].get() : call->h0, call->h0_shape, &h_n);
  }
  if (made[1] && net.layers > 1) made[2] = fresh(call, call->x, Py_None, hidden_shape, &hidden);
  const int count = net.step ? 1 : net.layers > 1 ? 3 : 2;
  if (!made[count - 1]) return nullptr;
  const bool stepwise = net.step || (!call->packed && call->steps <= PyLong_AsLongLong(args[0]));
  const int threads = team(int(PyLong_AsLong(args[1])));
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack({call->stack(), stepwise, hidden, out, h_n}, threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  PyObject* results = PyTuple_New(count);
  for (int i = 0; results && i < count; ++i) PyTuple_SET_ITEM(results, i, made[i].release());
  return results;
}

// Which layers have to be walked: those with a wanted gradient in them or below.
int lowest_layer(const Network& net, const std::vector<bool>& needs) {
  if (needs[0]) return 0;
  for (int layer = 0; layer < net.layers; ++layer)
    for (int i = 0; i < net.directions * net.per; ++i)
      if (needs[1] || needs[size_t(2 + layer * net.directions * net.per + i)]) return layer;
  return net.layers;
}

// (out, hidden or None, grad_out or None, grad_hn or None, needs, threads) -> the gradients of x, h0 and the weights,
// each None if `needs`, a tuple of bools, says so. Gradients from autograd may have any layout; that of a sum is
// expanded from a single number.
PyObject* backward(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 6) return PyErr_Format(PyExc_TypeError, "6 arguments, got %zd", n);
  const Call* call = reinterpret_cast<Call*>(self);
  const Network& net = call->net;
  const int count = net.count() * net.per;
  if (!runs_here(call)) return nullptr;
  if (!PyTuple_Check(args[4]) || PyTuple_GET_SIZE(args[4]) != 2 + count)
    return PyErr_Format(PyExc_RuntimeError, "needs must be a tuple of %d", 2 + count);
  std::vector<bool> needs;
  for (int i = 0; i < 2 + count; ++i) needs.push_back(PyTuple_GET_ITEM(args[4], i) == Py_True);

  const Shape hidden_shape(net.layers - 1, call->rows, call->width());
  Owned copies[4];
  View out, hidden, grad_out, grad_hn;
  if (!look_dense("out", args[0], call, call->out_shape(), &copies[0], &out) ||
      !look_dense("hidden", args[1], call, hidden_shape, &copies[1], &hidden) ||
      !look_dense("the gradient of out", args[2], call, call->out_shape(), &copies[2], &grad_out) ||
      !look_dense("the gradient of h_n", args[3], call, call->h0_shape, &copies[3], &grad_hn))
    return nullptr;
  const int lowest = lowest_layer(net, needs);
  const auto missing = [&](bool read, PyObject* object) { return read && object == Py_None; };
  const auto weight = [&](int i) { return call->weights == Py_None ? Py_None : PyTuple_GET_ITEM(call->weights, i); };
  bool lacking = missing(true, args[0]) || missing(net.layers > 1, args[1]) || missing(call->packed, call->batch_sizes);
  for (int i = 0; i < count; i += net.per) {
    const int layer = i / net.per / net.directions;
    lacking |= layer == 0 && missing(needs[size_t(2 + i)], call->x);
    lacking |= missing(layer > lowest || (layer == 0 && needs[0]), weight(i));
    lacking |= missing(layer >= lowest && (call->steps > 1 || needs[1]), weight(i + 1));
  }
  if (lacking) return PyErr_Format(PyExc_RuntimeError, "a tensor that this backward pass reads is missing");

  Owned grads(PyTuple_New(2 + count));
  if (!grads) return nullptr;
  for (int i = 0; i < 2 + count; ++i) PyTuple_SET_ITEM(grads.get(), i, Py_NewRef(Py_None));
  std::vector<void*> data(size_t(2 + count), nullptr);
  for (int i = 0; i < 2 + count; ++i) {
    if (!needs[size_t(i)]) continue;
    PyObject* const same = i == 0 ? call->x : i == 1 ? call->h0 : weight(i - 2);
    const Shape shape = i == 0 ? call->x_shape : i == 1 ? call->h0_shape : call->weight_shape(i - 2);
    char* where = nullptr;
    Owned grad = fresh(call, args[0], same, shape, &where);
    if (!grad) return nullptr;
    data[size_t(i)] = where;
    PyTuple_SetItem(grads.get(), i, grad.release());
  }
  const int threads = team(int(PyLong_AsLong(args[5])));
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack_backward(
      {call->stack(), hidden.data, out.data, grad_out.data, grad_hn.data, data[0], data[1], data.data() + 2}, threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  return grads.release();
}

// ---- the module ------------------------------------------------------------------------------------

template <class F>
PyCFunction fast(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// (Tensor, Parameter, torch.empty_like, dense, torch.device("cpu"), dtypes) -> whether calls can be read. `dense` makes
// a tensor dense; `dtypes` are in the order of DType.
PyObject* setup(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 6) return PyErr_Format(PyExc_TypeError, "6 arguments, got %zd", n);
  new_empty = PyObject_GetAttrString(args[0], "new_empty");
  if (!new_empty) return nullptr;
  empty_like = Py_NewRef(args[2]);
  make_dense = Py_NewRef(args[3]);
  cpu = Py_NewRef(args[4]);
  for (int i = 0; i < 4; ++i) {
    dtypes[i] = PySequence_GetItem(args[5], i);
    if (!dtypes[i]) return nullptr;
  }
  device = PyUnicode_InternFromString("device");
  kind_step = PyUnicode_InternFromString("step");
  kind_sequence = PyUnicode_InternFromString("sequence");
  return PyBool_FromLong(viewer.open(args[0], args[1]));
}

#define FIELD(name, type) {#name, type, offsetof(Call, name), READONLY, nullptr}
PyMemberDef members[] = {FIELD(network, T_OBJECT),
                         FIELD(x, T_OBJECT),
                         FIELD(h0, T_OBJECT),
                         FIELD(weights, T_OBJECT),
                         FIELD(batch_sizes, T_OBJECT),
                         FIELD(problem, T_OBJECT),
                         FIELD(steps, T_LONGLONG),
                         FIELD(batch, T_LONGLONG),
                         FIELD(rows, T_LONGLONG),
                         FIELD(input_size, T_LONGLONG),
                         FIELD(hidden_size, T_LONGLONG),
                         {nullptr, 0, 0, 0, nullptr}};

PyMethodDef methods[] = {{"bare", bare, METH_NOARGS, nullptr},
                         {"having", fast(having), METH_FASTCALL, nullptr},
                         {"forward", fast(forward), METH_FASTCALL, nullptr},
                         {"backward", fast(backward), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyMethodDef functions[] = {{"setup", fast(setup), METH_FASTCALL, nullptr},
                           {"read", fast(read), METH_FASTCALL, nullptr},
                           {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(release)},
                       {Py_tp_members, members},
                       {Py_tp_methods, methods},
                       {0, nullptr}};
PyType_Spec spec = {"rnnfast._cpu.Call", sizeof(Call), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                    slots};

}  // namespace

int add_call(PyObject* module) {
  call_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return !call_type || PyModule_AddObjectRef(module, "Call", reinterpret_cast<PyObject*>(call_type)) != 0 ||
         PyModule_AddFunctions(module, functions) != 0;
}

}  // namespace rnnfast
