"""Where the cuda backend was measured to be ahead of cuDNN:

- NVIDIA H100 80GB HBM3, commit 331aebbd4e96
- NVIDIA H200, commit 516391d95ae7

Written by `python -m bench.crossover`, which says what a row is.
"""

# kind, training, dtype, least and largest hidden size, largest batch, fewest steps
CUDA = (
    ("sequence", False, "bfloat16", 1, 64, 64, 32),
    ("sequence", False, "bfloat16", 1, 64, 256, 512),
    ("sequence", False, "bfloat16", 65, 128, 256, 32),
    ("sequence", False, "bfloat16", 129, 256, 256, 32),
    ("sequence", False, "bfloat16", 257, 512, 64, 32),
    ("sequence", False, "bfloat16", 513, 1024, 256, 32),
    ("sequence", False, "bfloat16", 1025, 2048, 16, 512),
    ("sequence", False, "float16", 1, 64, 256, 512),
    ("sequence", False, "float16", 65, 128, 256, 512),
    ("sequence", False, "float16", 129, 256, 1, 32),
    ("sequence", False, "float16", 129, 256, 256, 512),
    ("sequence", False, "float16", 257, 512, 16, 32),
    ("sequence", False, "float16", 257, 512, 64, 512),
    ("sequence", False, "float16", 513, 1024, 1, 32),
    ("sequence", False, "float16", 513, 1024, 256, 512),
    ("sequence", False, "float16", 1025, 2048, 16, 512),
    ("sequence", False, "float32", 65, 128, 256, 512),
    ("sequence", False, "float32", 129, 256, 256, 512),
    ("sequence", False, "float32", 257, 512, 64, 32),
    ("sequence", False, "float32", 513, 1024, 256, 32),
    ("sequence", False, "float32", 1025, 2048, 16, 512),
    ("sequence", True, "bfloat16", 1, 64, 64, 32),
    ("sequence", True, "bfloat16", 1, 64, 256, 512),
    ("sequence", True, "bfloat16", 65, 128, 256, 32),
    ("sequence", True, "bfloat16", 129, 256, 256, 32),
    ("sequence", True, "bfloat16", 257, 512, 64, 32),
    ("sequence", True, "bfloat16", 513, 1024, 256, 32),
    ("sequence", True, "bfloat16", 1025, 2048, 16, 512),
    ("sequence", True, "float16", 129, 256, 256, 512),
    ("sequence", True, "float16", 257, 512, 1, 32),
    ("sequence", True, "float16", 257, 512, 64, 512),
    ("sequence", True, "float16", 513, 1024, 1, 32),
    ("sequence", True, "float16", 513, 1024, 256, 512),
    ("sequence", True, "float16", 1025, 2048, 16, 512),
    ("sequence", True, "float32", 129, 256, 256, 512),
    ("sequence", True, "float32", 257, 512, 64, 32),
    ("sequence", True, "float32", 513, 1024, 256, 32),
    ("sequence", True, "float32", 1025, 2048, 16, 512),
    ("step", False, "bfloat16", 1, 64, 256, 1),
    ("step", False, "bfloat16", 65, 128, 256, 1),
    ("step", False, "bfloat16", 129, 256, 256, 1),
    ("step", False, "bfloat16", 257, 512, 256, 1),
    ("step", False, "bfloat16", 513, 1024, 256, 1),
    ("step", False, "bfloat16", 1025, 2048, 256, 1),
    ("step", True, "bfloat16", 257, 512, 1, 1),
    ("step", True, "bfloat16", 1025, 2048, 1, 1),
)
