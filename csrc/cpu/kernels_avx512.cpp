#define RNNFAST_ISA avx512
#define RNNFAST_ISA_NAME "avx512"
#include "kernels.inc"
