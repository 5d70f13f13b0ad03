// Layers on plain tensors, as functions of the Python module: see plain.cpp.
#pragma once

#include <Python.h>

namespace rnnfast {

extern PyMethodDef plain_methods[];

}  // namespace rnnfast
