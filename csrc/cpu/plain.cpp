// One call from Python tensors to a kernel, for plain arguments: dense tensors of one dtype on one device, of exactly
// torch's own types, with shapes that fit. Packed sequences, autocast and transforms are not plain.
//
// `dispatch.find` names the backend. If it is the CPU backend, the kernel runs here and the answer is its result. If it
// is one of the backends in `others` (those for GPUs, torch's own), the answer is that backend, which computes what has
// been checked here. In every other case the answer is None and the caller takes the general way, which raises all
// errors. rnnfast/plain.py is the only caller.
//
// These are plain C functions since pybind11 takes a microsecond to read so many arguments. They replace about 15 us of
// checks, views and arguments in Python, for a step that computes for 1.4 us (Zen 4, T = 1, B = 1, H = 64). A forward
// call now takes 9.4 us, of which no_grad and a module that does nothing take 2.7; ONNX Runtime takes 4.3 with
// everything bound in advance. A training step takes 69 us, of which an autograd Function that does nothing takes 51;
// JAX, which compiles forward and backward into one call, takes 21.
#include "plain.h"

#include <stdlib.h>
#include <string.h>

#include <memory>
#include <utility>

#include "active.h"
#include "tensor_view.h"

namespace rnnfast {
namespace {

Viewer viewer;
PyObject* empty_like;  // torch.empty_like
PyObject* new_empty;   // torch.Tensor.new_empty
PyObject* find;        // dispatch.find
PyTypeObject* native;  // the type of the backend whose kernels this file calls
PyObject* others;      // a tuple: the types of the backends that are returned to the caller
PyObject* cpu;         // torch.device("cpu")
PyObject* dtypes[4];   // in the order of DType
PyObject *kind_step, *kind_sequence, *requires_grad, *contiguous, *device;

// An owned reference.
struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Drop>;

PyObject* not_plain() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

PyObject* setup(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 8) return PyErr_Format(PyExc_TypeError, "8 arguments, got %zd", n);
  new_empty = PyObject_GetAttrString(args[0], "new_empty");
  if (!new_empty) return nullptr;
  find = Py_NewRef(args[2]);
  native = reinterpret_cast<PyTypeObject*>(Py_NewRef(args[3]));
  others = Py_NewRef(args[4]);
  cpu = Py_NewRef(args[5]);
  for (int i = 0; i < 4; ++i) {
    dtypes[i] = PySequence_GetItem(args[6], i);
    if (!dtypes[i]) return nullptr;
  }
  empty_like = Py_NewRef(args[7]);
  device = PyUnicode_InternFromString("device");
  requires_grad = PyUnicode_InternFromString("requires_grad");
  contiguous = PyUnicode_InternFromString("contiguous");
  kind_step = PyUnicode_InternFromString("step");
  kind_sequence = PyUnicode_InternFromString("sequence");
  return PyBool_FromLong(viewer.open(args[0], args[1]));
}

// A new tensor of the dtype and device of `tensor`, or null; the caller clears the exception, if there is one. The
// result is checked because a mode may have returned something else.
template <class... Sizes>
Owned fresh(PyObject* tensor, const View& like, View* view, Sizes... sizes) {
  const Owned numbers[] = {Owned(PyLong_FromLongLong(sizes))...};
  PyObject* args[1 + sizeof...(sizes)] = {tensor};
  for (size_t i = 0; i < sizeof...(sizes); ++i) args[1 + i] = numbers[i].get();
  Owned made(PyObject_Vectorcall(new_empty, args, 1 + sizeof...(sizes), nullptr));
  if (!made || !viewer.look(made.get(), view) || !view->goes_with(like) || !view->is(sizes...)) return nullptr;
  return made;
}

// A new tensor of the dtype, device and shape of `tensor`, or null, as `fresh`.
Owned fresh_like(PyObject* tensor, const View& like, View* view) {
  Owned made(PyObject_CallOneArg(empty_like, tensor));
  if (!made || !viewer.look(made.get(), view) || !view->goes_with(like) || view->ndim != like.ndim ||
      memcmp(view->shape, like.shape, size_t(like.ndim) * sizeof(int64_t)))
    return nullptr;
  return made;
}

// Whether autograd records a call with these tensors, if it records at all.
bool records(PyObject* enabled, PyObject* const* tensors, int count) {
  if (enabled != Py_True) return false;
  for (int i = count; i-- > 0;) {  // from the last: weights require gradients more often than inputs
    if (tensors[i] == Py_None) continue;
    const Owned wanted(PyObject_GetAttr(tensors[i], requires_grad));
    if (wanted.get() != Py_False) return true;
  }
  return false;
}

bool activation_of(PyObject* name, Activation* activation) {
  if (!PyUnicode_Check(name)) return false;
  const bool tanh = PyUnicode_CompareWithASCIIString(name, "tanh") == 0;
  *activation = tanh ? Activation::kTanh : Activation::kRelu;
  return tanh || PyUnicode_CompareWithASCIIString(name, "relu") == 0;
}

// The last number of a tuple, or -1 if it has none.
int64_t last_of(PyObject* numbers) {
  const Py_ssize_t count = PyTuple_Check(numbers) ? PyTuple_GET_SIZE(numbers) : 0;
  return count ? PyLong_AsLongLong(PyTuple_GET_ITEM(numbers, count - 1)) : -1;
}

// The tensors of a layer.
struct Layer {
  View x, h, w_ih, w_hh, b_ih, b_hh;
  int64_t T, B, I, H;
  bool is_step;

  // x is [T, B, I] or, of a step, [B, I]; h is [B, H] or, stacked as a module has it, [1, B, H].
  bool fits(PyObject* x_object, PyObject* h_object, PyObject* w_ih_object, PyObject* w_hh_object) {
    if (!viewer.look(x_object, &x) || !viewer.look(w_ih_object, &w_ih) || !viewer.look(w_hh_object, &w_hh))
      return false;
    if (x.ndim < 2 || w_hh.ndim != 2 || !w_ih.goes_with(x) || !w_hh.goes_with(x)) return false;
    is_step = x.ndim == 2;
    T = is_step ? 1 : x.shape[0], B = x.shape[x.ndim - 2], I = x.shape[x.ndim - 1], H = w_hh.shape[0];
    if (!w_ih.is(H, I) || !w_hh.is(H, H)) return false;
    if (h_object == Py_None) {
      h.data = nullptr;
      return true;
    }
    return viewer.look(h_object, &h) && h.goes_with(x) && (h.is(B, H) || (!is_step && h.is(1, B, H)));
  }

  // A stack of this layer alone; its weights are in `weights`.
  Stack stack(DType dtype, Activation activation, bool reverse, const void* const (&weights)[4]) const {
    return {dtype, activation, T, B, I, H, nullptr, 1, 1, reverse, true, x.data, h.data, weights};
  }

  bool like_out(const View& v) const { return is_step ? v.is(B, H) : v.is(T, B, H); }

  // The same for a backward pass, whose sizes are those of the output. Of `objects`, x to w_hh, those that no gradient
  // in `needs` reads may be None; their shapes are then in `shapes`.
  bool fits_backward(PyObject* const* objects, PyObject* shapes, PyObject* out_object, const bool (&needs)[7],
                     View* out) {
    if (!viewer.look(out_object, out) || out->ndim < 2) return false;
    is_step = out->ndim == 2;
    T = is_step ? 1 : out->shape[0], B = out->shape[out->ndim - 2], H = out->shape[out->ndim - 1];
    View* const views[] = {&x, &h, &w_ih, &w_hh};
    const bool read[] = {needs[3], needs[4], needs[1], needs[2] || T > 1};
    for (int i = 0; i < 4; ++i) {
      views[i]->data = nullptr;
      if (objects[i] == Py_None) {
        if (read[i]) return false;
      } else if (!viewer.look(objects[i], views[i]) || !views[i]->goes_with(*out)) {
        return false;
      }
    }
    if (!PyTuple_CheckExact(shapes) || PyTuple_GET_SIZE(shapes) < 4) return false;
    I = x.data ? x.shape[x.ndim - 1] : w_ih.data ? w_ih.shape[w_ih.ndim - 1] : last_of(PyTuple_GET_ITEM(shapes, 0));
    h.ndim = h.data ? h.ndim : is_step ? 2 : int(PyTuple_Size(PyTuple_GET_ITEM(shapes, 1)));
    return I > 0 && h.ndim >= 2 && (!x.data || (is_step ? x.is(B, I) : x.is(T, B, I))) &&
           (!h.data || h.is(B, H) || (!is_step && h.is(1, B, H))) && (!w_ih.data || w_ih.is(H, I)) &&
           (!w_hh.data || w_hh.is(H, H));
  }

  // Whether `sizes` is the tuple (I, H).
  bool has_sizes(PyObject* sizes) const {
    return PyTuple_CheckExact(sizes) && PyTuple_GET_SIZE(sizes) == 2 &&
           PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, 0)) == I && PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, 1)) == H;
  }

  bool fits_bias(PyObject* object, View* bias) const {
    bias->data = nullptr;
    return object == Py_None || (viewer.look(object, bias) && bias->goes_with(x) && bias->is(H));
  }

  // The backend that dispatch names, or null if it raises; the general way raises the same exception. `object`, of
  // which `view` is the view, has the dtype and the device.
  Owned solver(PyObject* object, const View& view, PyObject* backend, bool grad, PyObject* deterministic) const {
    const Owned where(view.on_cpu() ? Py_NewRef(cpu) : PyObject_GetAttr(object, device));
    if (!where) return nullptr;
    const Owned sizes[] = {Owned(PyLong_FromLongLong(I)), Owned(PyLong_FromLongLong(H)), Owned(PyLong_FromLongLong(B)),
                           Owned(PyLong_FromLongLong(T))};
    PyObject* args[] = {backend,        is_step ? kind_step : kind_sequence,
                        where.get(),    dtypes[int(view.dtype)],
                        sizes[0].get(), sizes[1].get(),
                        sizes[2].get(), sizes[3].get(),
                        Py_False,       grad ? Py_True : Py_False,
                        deterministic};
    return Owned(PyObject_Vectorcall(find, args, sizeof(args) / sizeof(*args), nullptr));
  }
};

bool is_native(const Owned& solver) { return solver && Py_TYPE(solver.get()) == native; }

// The answer where the backend is not the native one: one of `others`, or None.
PyObject* not_native(Owned solver) {
  return solver && PyObject_IsInstance(solver.get(), others) == 1 ? solver.release() : not_plain();
}

// (x, h or None, w_ih, w_hh, b_ih, b_hh, nonlinearity, backend, grad_mode, deterministic, threads) -> out, a
// backend, or None
PyObject* plain_step(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 11) return PyErr_Format(PyExc_TypeError, "11 arguments, got %zd", n);
  Layer l;
  Activation activation;
  View out;
  if (!l.fits(args[0], args[1], args[2], args[3]) || !l.is_step || !l.fits_bias(args[4], &l.b_ih) ||
      !l.fits_bias(args[5], &l.b_hh) || !activation_of(args[6], &activation))
    return not_plain();
  Owned solver = l.solver(args[0], l.x, args[7], records(args[8], args, 6), args[9]);
  if (!is_native(solver)) return not_native(std::move(solver));
  Owned result = l.h.data ? fresh_like(args[1], l.h, &out) : fresh(args[0], l.x, &out, l.B, l.H);
  if (!result) return not_plain();
  const int threads = team(int(PyLong_AsLong(args[10])));
  const void* const weights[] = {l.w_ih.data, l.w_hh.data, l.b_ih.data, l.b_hh.data};
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack({l.stack(l.x.dtype, activation, false, weights), true, nullptr, out.data, nullptr},
                                  threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  return result.release();
}

// (x, h0, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse, sizes, backend, grad_mode, deterministic, stepwise,
// threads) -> (out, h_n like h0), a backend, or None. `sizes`: None or, of a module, (I, H), which the weights have to
// have; h0 is then [1, B, H], or None for zeros. `stepwise`: up to this many steps read the weights in place.
PyObject* plain_sequence(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 14) return PyErr_Format(PyExc_TypeError, "14 arguments, got %zd", n);
  Layer l;
  Activation activation;
  View out, last;
  const bool reverse = args[7] == Py_True, stacked = args[8] != Py_None;
  if (!l.fits(args[0], args[1], args[2], args[3]) || l.is_step || !l.fits_bias(args[4], &l.b_ih) ||
      !l.fits_bias(args[5], &l.b_hh) || !activation_of(args[6], &activation) || !PyBool_Check(args[7]) ||
      stacked != (!l.h.data || l.h.ndim == 3) || (stacked && !l.has_sizes(args[8])))
    return not_plain();
  Owned solver = l.solver(args[0], l.x, args[9], records(args[10], args, 6), args[11]);
  if (!is_native(solver)) return not_native(std::move(solver));
  Owned output = fresh(args[0], l.x, &out, l.T, l.B, l.H);
  Owned h_n = l.h.data ? fresh_like(args[1], l.h, &last) : fresh(args[0], l.x, &last, int64_t(1), l.B, l.H);
  if (!output || !h_n) return not_plain();
  const bool stepwise = l.T <= PyLong_AsLongLong(args[12]);
  const int threads = team(int(PyLong_AsLong(args[13])));
  const void* const weights[] = {l.w_ih.data, l.w_hh.data, l.b_ih.data, l.b_hh.data};
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack(
      {l.stack(l.x.dtype, activation, reverse, weights), stepwise, nullptr, out.data, last.data}, threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  return PyTuple_Pack(2, output.get(), h_n.get());
}

// Reads a gradient, copied to `copy` if it isn't dense; that of a sum is expanded from a single number.
bool look_at_gradient(PyObject* grad, Owned* copy, View* view) {
  if (viewer.look(grad, view)) return true;
  if (!viewer.knows(grad)) return false;
  copy->reset(PyObject_CallMethodNoArgs(grad, contiguous));
  if (!*copy) PyErr_Clear();
  return *copy && viewer.look(copy->get(), view);
}

// (grad_out or None, grad_hn or None, x, h, w_ih, w_hh, out, nonlinearity, reverse, backend, needs, deterministic,
// threads, shapes) -> gradients, a backend, or None. `needs` are the flags of a Function whose arguments 1 to 6 are x
// to b_hh; the result is what its backward returns. x to w_hh are None where they are not read; then `shapes`, a tuple,
// has their shapes.
PyObject* plain_backward(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 14) return PyErr_Format(PyExc_TypeError, "14 arguments, got %zd", n);
  PyObject* flags = args[10];
  if (!PyTuple_CheckExact(flags) || PyTuple_GET_SIZE(flags) < 7) return not_plain();
  bool needs[7];
  for (int i = 0; i < 7; ++i) needs[i] = PyTuple_GET_ITEM(flags, i) == Py_True;
  Layer l;
  Activation activation;
  View dout, dh_n, out;
  Owned dout_copy, dh_n_copy;
  dout.data = dh_n.data = nullptr;
  if (!l.fits_backward(args + 2, args[13], args[6], needs, &out) || !activation_of(args[7], &activation))
    return not_plain();
  Owned solver = l.solver(args[6], out, args[9], true, args[11]);
  if (!is_native(solver)) {
    // Gradients from autograd have the shape of the outputs; they need not be dense.
    const bool known = (args[0] == Py_None || viewer.knows(args[0])) && (args[1] == Py_None || viewer.knows(args[1]));
    return known ? not_native(std::move(solver)) : not_plain();
  }
  if (args[0] != Py_None &&
      (!look_at_gradient(args[0], &dout_copy, &dout) || !dout.goes_with(out) || !l.like_out(dout)))
    return not_plain();
  if (args[1] != Py_None && (!look_at_gradient(args[1], &dh_n_copy, &dh_n) || !dh_n.goes_with(out) ||
                             dh_n.ndim != l.h.ndim || !(dh_n.is(l.B, l.H) || dh_n.is(1, l.B, l.H))))
    return not_plain();

  Owned grads(PyTuple_New(PyTuple_GET_SIZE(flags)));
  if (!grads) return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(flags); ++i) PyTuple_SET_ITEM(grads.get(), i, Py_NewRef(Py_None));
  View d[7];
  const View* const inputs[] = {&l.x, &l.h, &l.w_ih, &l.w_hh};
  const auto gradient = [&](int i) -> Owned {
    if (i > 4) return fresh(args[6], out, &d[i], l.H);
    if (inputs[i - 1]->data) return fresh_like(args[1 + i], *inputs[i - 1], &d[i]);
    if (i == 1) return l.is_step ? fresh(args[6], out, &d[i], l.B, l.I) : fresh(args[6], out, &d[i], l.T, l.B, l.I);
    if (i == 2)
      return l.h.ndim == 2 ? fresh(args[6], out, &d[i], l.B, l.H) : fresh(args[6], out, &d[i], int64_t(1), l.B, l.H);
    return fresh(args[6], out, &d[i], l.H, i == 3 ? l.I : l.H);
  };
  for (int i = 1; i < 7; ++i) {
    d[i].data = nullptr;
    if (!needs[i]) continue;
    Owned grad = gradient(i);
    if (!grad) return not_plain();
    PyTuple_SetItem(grads.get(), i, grad.release());
  }
  const bool reverse = args[8] == Py_True;
  const int threads = team(int(PyLong_AsLong(args[12])));
  const void* const weights[] = {l.w_ih.data, l.w_hh.data, nullptr, nullptr};
  void* const dweights[] = {d[3].data, d[4].data, d[5].data, d[6].data};
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack_backward({l.stack(out.dtype, activation, reverse, weights), nullptr, out.data,
                                            dout.data, dh_n.data, d[1].data, d[2].data, dweights},
                                           threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  return grads.release();
}

template <class F>
PyCFunction fast(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

PyMethodDef plain_methods[] = {
    {"plain_setup", fast(setup), METH_FASTCALL, nullptr},
    {"plain_step", fast(plain_step), METH_FASTCALL, nullptr},
    {"plain_sequence", fast(plain_sequence), METH_FASTCALL, nullptr},
    {"plain_backward", fast(plain_backward), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace rnnfast
