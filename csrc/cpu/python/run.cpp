// Runs a Call whose tensors are on the CPU: makes the results and calls the kernels.
#include <vector>

#include "active.h"
#include "call.h"

namespace rnnfast {
namespace {

// A new tensor of this shape, or null with an exception set. Its dtype and device are those of `of`, a tensor of the
// call; if `same` is a tensor, it has the shape, too, which takes half the time. The result is checked because
// a mode may have returned something else.
Owned fresh(const Call* call, PyObject* of, PyObject* same, const Shape& shape, char** data) {
  Owned made;
  if (same != Py_None) {
    made.reset(PyObject_CallOneArg(torch.empty_like, same));
  } else {
    Owned numbers[3];
    PyObject* args[4] = {of};
    for (int i = 0; i < shape.ndim; ++i) {
      numbers[i].reset(PyLong_FromLongLong(shape.sizes[i]));
      args[1 + i] = numbers[i].get();
    }
    made.reset(PyObject_Vectorcall(torch.new_empty, args, size_t(1 + shape.ndim), nullptr));
  }
  if (!made) return nullptr;
  View view;
  if (!torch.viewer.look(made.get(), &view) || !view.goes_with(call->like) || !shape.is_of(view)) {
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

// The lowest layer that a backward pass computes: the lowest with a wanted gradient, or the number of layers.
int lowest_layer(const Network& net, const std::vector<bool>& needs) {
  if (needs[0]) return 0;
  for (int layer = 0; layer < net.layers; ++layer)
    for (int i = 0; i < net.directions * net.per; ++i)
      if (needs[1] || needs[size_t(2 + layer * net.directions * net.per + i)]) return layer;
  return net.layers;
}

}  // namespace

// (stepwise, threads, keep=True) -> (out,) of a step, else (out, h_n), of several layers hidden, and of a cell other
// than Elman's inner, if `keep`. `stepwise`: up to this many steps read the weights in place.
PyObject* forward(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 && n != 3) return PyErr_Format(PyExc_TypeError, "2 or 3 arguments, got %zd", n);
  const bool keep = n == 2 || args[2] == Py_True;
  const Call* call = reinterpret_cast<Call*>(self);
  const Network& net = call->net;
  if (!runs_here(call)) return nullptr;
  if (call->x == Py_None) return PyErr_Format(PyExc_RuntimeError, "this call has no tensors");
  const Shape hidden_shape(net.layers - 1, call->rows, call->width());
  char *out = nullptr, *h_n = nullptr, *hidden = nullptr, *inner = nullptr;
  PyObject* const like_out = net.step ? call->h0 : Py_None;
  Owned made[4] = {fresh(call, call->x, like_out, call->out_shape(), &out), nullptr, nullptr, nullptr};
  if (made[0] && !net.step) {
    const bool alike = call->h0 == Py_None && call->h0_shape == call->out_shape();
    made[1] = fresh(call, call->x, alike ? made[0].get() : call->h0, call->h0_shape, &h_n);
  }
  int count = net.step ? 1 : 2;
  if (made[count - 1] && net.layers > 1) made[count++] = fresh(call, call->x, Py_None, hidden_shape, &hidden);
  if (made[count - 1] && keep && net.cell != Cell::kElman)
    made[count++] = fresh(call, call->x, Py_None, call->inner_shape(), &inner);
  if (!made[count - 1]) return nullptr;
  const Stack stack = call->stack();
  const bool stepwise = stack.plain() && (net.step || (!call->packed && call->steps <= PyLong_AsLongLong(args[0])));
  const int threads = usable_threads(int(PyLong_AsLong(args[1])));
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack({stack, stepwise, hidden, out, h_n, inner}, threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  PyObject* results = PyTuple_New(count);
  for (int i = 0; results && i < count; ++i) PyTuple_SET_ITEM(results, i, made[i].release());
  return results;
}

// (out, hidden or None, grad_out or None, grad_hn or None, needs, threads, inner=None, grad_inner=None) -> the
// gradients of x, h0 and the weights, each None if `needs`, a tuple of bools, says so. Gradients from autograd may have
// any layout; that of a sum is expanded from a single number.
PyObject* backward(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (n != 6 && n != 8) return PyErr_Format(PyExc_TypeError, "6 or 8 arguments, got %zd", n);
  PyObject *const given_inner = n == 8 ? args[6] : Py_None, *const given_grad_inner = n == 8 ? args[7] : Py_None;
  const Call* call = reinterpret_cast<Call*>(self);
  const Network& net = call->net;
  const int count = net.count() * net.per;
  if (!runs_here(call)) return nullptr;
  if (!PyTuple_Check(args[4]) || PyTuple_GET_SIZE(args[4]) != 2 + count)
    return PyErr_Format(PyExc_RuntimeError, "needs must be a tuple of %d", 2 + count);
  std::vector<bool> needs;
  for (int i = 0; i < 2 + count; ++i) needs.push_back(PyTuple_GET_ITEM(args[4], i) == Py_True);

  const Shape hidden_shape(net.layers - 1, call->rows, call->width());
  Owned copies[6];
  View out, hidden, grad_out, grad_hn, inner, grad_inner;
  if (!look_dense("out", args[0], call, call->out_shape(), &copies[0], &out) ||
      !look_dense("hidden", args[1], call, hidden_shape, &copies[1], &hidden) ||
      !look_dense("the gradient of out", args[2], call, call->out_shape(), &copies[2], &grad_out) ||
      !look_dense("the gradient of h_n", args[3], call, call->h0_shape, &copies[3], &grad_hn) ||
      !look_dense("inner", given_inner, call, call->inner_shape(), &copies[4], &inner) ||
      !look_dense("the gradient of inner", given_grad_inner, call, call->inner_shape(), &copies[5], &grad_inner))
    return nullptr;
  const Stack stack = call->stack();
  const bool elman = net.cell == Cell::kElman, ctrnn = net.cell == Cell::kCtrnn;
  if (given_grad_inner != Py_None && !ctrnn)
    return PyErr_Format(PyExc_RuntimeError, "the inner values of this cell have no gradient here");
  const int lowest = lowest_layer(net, needs);
  const auto missing = [&](bool read, PyObject* object) { return read && object == Py_None; };
  const auto weight = [&](int i) { return call->weights == Py_None ? Py_None : PyTuple_GET_ITEM(call->weights, i); };
  bool lacking = missing(true, args[0]) || missing(net.layers > 1, args[1]) ||
                 missing(call->packed, call->batch_sizes) || missing(!elman, given_inner) ||
                 missing(net.resets, call->resets);
  for (int i = 0; i < count; i += net.per) {
    const int layer = i / net.per / net.directions;
    const bool products = ctrnn && needs[size_t(2 + i + stack.alpha_at())];  // which the gradient of alpha reads
    lacking |= layer == 0 && missing(needs[size_t(2 + i)] || products, call->x);
    lacking |= missing(layer > lowest || (layer == 0 && needs[0]) || products, weight(i));
    lacking |= missing(layer >= lowest && (call->steps > 1 || needs[1] || products), weight(i + 1));
    for (int bias = 2; bias < stack.alpha_at(); ++bias) lacking |= missing(products, weight(i + bias));
    lacking |= missing(!elman && layer >= lowest, weight(i + stack.alpha_at()));
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
  const int threads = usable_threads(int(PyLong_AsLong(args[5])));
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = active_kernels().stack_backward({stack, hidden.data, out.data, grad_out.data, grad_hn.data, data[0], data[1],
                                            data.data() + 2, inner.data, grad_inner.data},
                                           threads);
  Py_END_ALLOW_THREADS;
  if (failed) return PyErr_NoMemory();
  return grads.release();
}

}  // namespace rnnfast
