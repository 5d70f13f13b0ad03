// A call read from Python tensors, and the kernels that run it.
#pragma once

#include <Python.h>

namespace rnnfast {

// Adds the type Call and the functions `setup` and `read` to the module. Returns nonzero with an exception set.
int add_call(PyObject* module);

}  // namespace rnnfast
