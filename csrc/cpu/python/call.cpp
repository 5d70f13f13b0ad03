// A call as the layers above the kernels see it: its tensors and what has been read from them, once.
//
// `read` looks at the arguments of a call. If all of them are dense tensors of exactly torch's own types, of one dtype
// on one device, with shapes that fit, it returns a Call, on whatever device they are. Otherwise it returns None, and
// rnnfast/functional.py looks at them in Python, which prepares them or finds the error. run.cpp runs a Call.
//
// These are plain C functions since pybind11 takes a microsecond to read so many arguments. In Python the same checks,
// views and arguments take about 15 us, for a step that computes for 1.4 us (Zen 4, T = 1, B = 1, H = 64). A training
// step takes 69 us there, of which an autograd Function that does nothing takes 51.
#include "call.h"

#include <stddef.h>
#include <stdlib.h>
#include <structmember.h>

#include <initializer_list>
#include <utility>

namespace rnnfast {

Torch torch;

// Reads `object`, which has to have this shape, through a dense copy if need be. `copy` keeps the copy.
bool look_dense(const char* name, PyObject* object, const Call* call, const Shape& shape, Owned* copy, View* view) {
  view->data = nullptr;
  if (object == Py_None) return true;
  bool seen = torch.viewer.look(object, view);
  if (!seen) {
    copy->reset(PyObject_CallOneArg(torch.make_dense, object));
    if (!*copy) return false;
    seen = torch.viewer.look(copy->get(), view);
  }
  if (seen && view->goes_with(call->like) && shape.is_of(*view)) return true;
  PyErr_Format(PyExc_RuntimeError,
               "%s is not what the forward pass of this call had: its shape, dtype or device differs", name);
  return false;
}

namespace {

PyTypeObject* call_type;
PyObject* cpu;        // torch.device("cpu")
PyObject* dtypes[4];  // in the order of DType
PyObject *kind_step, *kind_sequence, *device;

PyObject* no_call() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

void release(PyObject* self) {
  Call* call = reinterpret_cast<Call*>(self);
  for (PyObject* object :
       {call->network, call->x, call->h0, call->weights, call->batch_sizes, call->resets, call->problem})
    Py_XDECREF(object);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// A Call of `network` without tensors, whose fields are those of `other`, if there is one. Null without memory.
Call* new_call(PyObject* network, const Network& net, const Call* other) {
  Call* call = reinterpret_cast<Call*>(call_type->tp_alloc(call_type, net.count() * net.per));
  if (!call) return nullptr;
  if (other) {
    const PyVarObject head = call->ob_base;
    *call = *other;
    call->ob_base = head;
  }
  call->net = net;
  call->network = Py_NewRef(network);
  for (PyObject** object : {&call->x, &call->h0, &call->weights, &call->batch_sizes, &call->resets})
    *object = Py_NewRef(Py_None);
  call->problem = other ? Py_NewRef(other->problem) : nullptr;
  call->x_data = call->h0_data = nullptr;
  call->sizes = nullptr;
  call->resets_data = nullptr;
  return call;
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
    if (sizes[t] < 1 || sizes[t] > rows - sum || (t > 0 && sizes[t] > sizes[t - 1])) return false;
    sum += sizes[t];
  }
  return steps > 0 && sum == rows;
}

// (kind, device, dtype, I, H, B, T, packed, layers, directions, nonlinearity, cell, noise, resets): how
// rnnfast/dispatch.py knows a call.
PyObject* problem_of(const Call* call) {
  const Owned where(call->like.on_cpu() ? Py_NewRef(cpu) : PyObject_GetAttr(call->x, device));
  if (!where) return nullptr;
  const long long numbers[] = {call->input_size, call->hidden_size, call->batch, call->steps};
  Owned problem(PyTuple_New(14));
  if (!problem) return nullptr;
  PyTuple_SET_ITEM(problem.get(), 0, Py_NewRef(call->net.step ? kind_step : kind_sequence));
  PyTuple_SET_ITEM(problem.get(), 1, Py_NewRef(where.get()));
  PyTuple_SET_ITEM(problem.get(), 2, Py_NewRef(dtypes[int(call->like.dtype)]));
  for (int i = 0; i < 4; ++i) PyTuple_SET_ITEM(problem.get(), 3 + i, PyLong_FromLongLong(numbers[i]));
  PyTuple_SET_ITEM(problem.get(), 7, Py_NewRef(call->packed ? Py_True : Py_False));
  PyTuple_SET_ITEM(problem.get(), 8, PyLong_FromLong(call->net.layers));
  PyTuple_SET_ITEM(problem.get(), 9, PyLong_FromLong(call->net.directions));
  for (int i = 0; i < 4; ++i) {
    const int field = i == 0 ? 0 : 8 + i;
    PyTuple_SET_ITEM(problem.get(), 10 + i, Py_NewRef(PyTuple_GET_ITEM(call->network, field)));
  }
  return problem.release();
}

void set(PyObject** field, PyObject* value) { Py_SETREF(*field, Py_NewRef(value)); }

// Keeps `resets` [R], which may be None, in the call. Returns false if it does not go with the call.
bool take_resets(Call* call, PyObject* resets) {
  if (resets == Py_None) return true;
  int64_t count;
  if (!call->net.resets || call->packed ||
      !torch.viewer.look_at_bytes(resets, call->like, &call->resets_data, &count) || count != call->rows)
    return false;
  set(&call->resets, resets);
  return true;
}

// (network, x, h0, weights, batch_sizes, resets=None) -> a Call, or None
PyObject* read(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 5 && n != 6) return PyErr_Format(PyExc_TypeError, "5 or 6 arguments, got %zd", n);
  PyObject* const resets = n == 6 ? args[5] : Py_None;
  Network net;
  View x, h0, weight;
  if (!net.read(args[0]) || !torch.viewer.look(args[1], &x)) return no_call();
  if (!PyTuple_Check(args[3]) || PyTuple_GET_SIZE(args[3]) != net.count() * net.per) return no_call();
  Owned owner(reinterpret_cast<PyObject*>(new_call(args[0], net, nullptr)));
  if (!owner) return nullptr;
  Call* call = reinterpret_cast<Call*>(owner.get());
  if (args[4] != Py_None) {
    int64_t steps;
    if (x.ndim != 2 || !torch.viewer.look_at_numbers(args[4], &call->sizes, &steps)) return no_call();
    if (!are_batch_sizes(call->sizes, steps, x.shape[0])) return no_call();
    call->steps = steps;
  }
  if (!measure(call, x) || net.resets != (resets != Py_None) || !take_resets(call, resets)) return no_call();
  if (!torch.viewer.look(PyTuple_GET_ITEM(args[3], 1), &weight) || weight.ndim != 2 ||
      !measure_states(call, weight.shape[0]))
    return no_call();
  for (int i = 0; i < net.count() * net.per; ++i) {
    if (!torch.viewer.look(PyTuple_GET_ITEM(args[3], i), &weight) || !weight.goes_with(x) ||
        !call->weight_shape(i).is_of(weight))
      return no_call();
    call->pointers()[i] = weight.data;
  }
  if (args[2] != Py_None) {
    if (!torch.viewer.look(args[2], &h0) || !h0.goes_with(x) || !call->h0_shape.is_of(h0)) return no_call();
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

PyObject* bare(PyObject* self, PyObject*) {
  const Call* call = reinterpret_cast<Call*>(self);
  return reinterpret_cast<PyObject*>(new_call(call->network, call->net, call));
}

// (x, h0, weights, batch_sizes, resets=None) -> a Call of the same sizes with these tensors; x, h0 and each weight may
// be None
PyObject* having(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 4 && n != 5) return PyErr_Format(PyExc_TypeError, "4 or 5 arguments, got %zd", n);
  const Call* bare_call = reinterpret_cast<Call*>(self);
  const Network& net = bare_call->net;
  if (!PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) != net.count() * net.per)
    return PyErr_Format(PyExc_RuntimeError, "weights must be a tuple of %d", net.count() * net.per);
  Owned owner(reinterpret_cast<PyObject*>(new_call(bare_call->network, net, bare_call)));
  if (!owner) return nullptr;
  Call* call = reinterpret_cast<Call*>(owner.get());
  View view;
  // The tensor that keeps the memory of `view`, or null with an exception set.
  const auto take = [&](const char* name, PyObject* object, const Shape& shape) -> Owned {
    Owned copy;
    if (!look_dense(name, object, call, shape, &copy, &view)) return nullptr;
    return copy ? std::move(copy) : Owned(Py_NewRef(object));
  };
  Owned x = take("x", args[0], call->x_shape);
  if (!x) return nullptr;
  call->x_data = view.data;
  set(&call->x, x.get());
  Owned h0 = take("h0", args[1], call->h0_shape);
  if (!h0) return nullptr;
  call->h0_data = view.data;
  set(&call->h0, h0.get());
  Owned weights(PyTuple_New(net.count() * net.per));
  if (!weights) return nullptr;
  for (int i = 0; i < net.count() * net.per; ++i) {
    Owned weight = take("a weight", PyTuple_GET_ITEM(args[2], i), call->weight_shape(i));
    if (!weight) return nullptr;
    call->pointers()[i] = view.data;
    PyTuple_SET_ITEM(weights.get(), i, weight.release());
  }
  set(&call->weights, weights.get());
  if (n == 5 && !take_resets(call, args[4]))
    return PyErr_Format(PyExc_RuntimeError, "resets are not those that the forward pass of this call had");
  if (args[3] == Py_None) return owner.release();
  int64_t steps;
  if (!torch.viewer.look_at_numbers(args[3], &call->sizes, &steps) || steps != call->steps ||
      !are_batch_sizes(call->sizes, steps, call->rows) || call->sizes[0] != call->batch)
    return PyErr_Format(PyExc_RuntimeError, "batch_sizes are not those that the forward pass of this call had");
  set(&call->batch_sizes, args[3]);
  return owner.release();
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
  torch.new_empty = PyObject_GetAttrString(args[0], "new_empty");
  if (!torch.new_empty) return nullptr;
  torch.empty_like = Py_NewRef(args[2]);
  torch.make_dense = Py_NewRef(args[3]);
  cpu = Py_NewRef(args[4]);
  for (int i = 0; i < 4; ++i) {
    dtypes[i] = PySequence_GetItem(args[5], i);
    if (!dtypes[i]) return nullptr;
  }
  device = PyUnicode_InternFromString("device");
  kind_step = PyUnicode_InternFromString("step");
  kind_sequence = PyUnicode_InternFromString("sequence");
  return PyBool_FromLong(torch.viewer.open(args[0], args[1]));
}

#define FIELD(name, type) {#name, type, offsetof(Call, name), READONLY, nullptr}
PyMemberDef members[] = {FIELD(network, T_OBJECT),      FIELD(x, T_OBJECT),
                         FIELD(h0, T_OBJECT),           FIELD(weights, T_OBJECT),
                         FIELD(batch_sizes, T_OBJECT),  FIELD(resets, T_OBJECT),
                         FIELD(problem, T_OBJECT),      FIELD(steps, T_LONGLONG),
                         FIELD(batch, T_LONGLONG),      FIELD(rows, T_LONGLONG),
                         FIELD(input_size, T_LONGLONG), FIELD(hidden_size, T_LONGLONG),
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
PyType_Spec spec = {"rnnfast._cpu.Call", sizeof(Call), sizeof(void*),
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

int add_call(PyObject* module) {
  call_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return !call_type || PyModule_AddObjectRef(module, "Call", reinterpret_cast<PyObject*>(call_type)) != 0 ||
         PyModule_AddFunctions(module, functions) != 0;
}

}  // namespace rnnfast
