"""The compiled kernels: registers, shared memory, spills, the instructions of a step, its latency floor.

    python -m rnnfast.inspect                                   lists the kernels
    python -m rnnfast.inspect triton.resident_forward --arch 90 --dtype bf16 --hidden 128
    python -m rnnfast.inspect triton.resident_forward --dump ptx

Kernels are compiled or read but not run, so no GPU is needed. Each family of kernels has one provider, a
module with the functions `unavailable`, `kernels` and `inspect`.
"""
