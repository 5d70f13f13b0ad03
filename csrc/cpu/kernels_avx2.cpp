#define RNNFAST_ISA avx2
#define RNNFAST_ISA_NAME "avx2"
#include "kernels.inc"
