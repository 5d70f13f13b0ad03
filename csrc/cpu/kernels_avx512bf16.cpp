#define RNNFAST_ISA avx512bf16
#define RNNFAST_ISA_NAME "avx512bf16"
#define RNNFAST_ELSE avx512
#include "kernels.inc"
