// What bindings.cpp has chosen.
#pragma once

#include "../recurrence.h"

namespace rnnfast {

const Kernels& active_kernels();

// How many threads a kernel may use, of those that it was asked to.
int team(int threads);

}  // namespace rnnfast
