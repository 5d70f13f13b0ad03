// The instruction set in use and the size of the team of threads, both of which bindings.cpp chooses.
#pragma once

#include "../contract.h"

namespace rnnfast {

const Kernels& active_kernels();

// How many of the requested threads a kernel may use: one where a fork has lost the team (bindings.cpp), else all.
int usable_threads(int threads);

}  // namespace rnnfast
