"""The Triton kernels in Triton's interpreter, on CPU tensors: `TRITON_INTERPRET=1 pytest tests/interpreted`.

A folder of its own, outside of the ordinary collection, because the variable has to be set before Triton is
imported and turns every kernel of the process into its interpreted form. Float32 and float16 only: the
interpreter multiplies bfloat16 wrongly.
"""
