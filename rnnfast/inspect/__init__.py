"""What the kernels become: registers, shared memory, spills, the instructions of a step, its latency floor.

    python -m rnnfast.inspect                                   lists the kernels
    python -m rnnfast.inspect triton.sequence_forward --arch 90 --dtype bf16 --hidden 128
    python -m rnnfast.inspect triton.sequence_forward --dump ptx

Everything is compiled or read here, on a machine that needs no GPU; nothing is run. One provider per family
of kernels, a module with the three functions of `report.Provider`.
"""
