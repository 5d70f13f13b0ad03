#define RNNFAST_ISA baseline
#define RNNFAST_ISA_NAME "baseline"
#include "kernels.inc"
