"""Where the cuda backend was measured to be ahead of cuDNN:

- bench/results/h200/gpu-layers.json: NVIDIA H200, commit 7361c5fbe9a1
- bench/results/h200/gpu-steps.json: NVIDIA H200, commit 7361c5fbe9a1
- bench/results/h200/gpu.json: NVIDIA H200, commit 7361c5fbe9a1

Written by `python -m bench crossover`, whose --help says what a row is.
"""

# kind, training, dtype, least and largest hidden size, largest batch, fewest steps
CUDA = (
    ("sequence", False, "bfloat16", 1, 64, 256, 32),
    ("sequence", False, "bfloat16", 65, 128, 256, 32),
    ("sequence", False, "bfloat16", 129, 256, 256, 32),
    ("sequence", False, "bfloat16", 257, 512, 64, 32),
    ("sequence", False, "bfloat16", 257, 512, 256, 100),
    ("sequence", False, "bfloat16", 513, 1024, 256, 32),
    ("sequence", False, "bfloat16", 1025, 2048, 16, 32),
    ("sequence", False, "float16", 1, 64, 256, 512),
    ("sequence", False, "float16", 65, 128, 256, 512),
    ("sequence", False, "float16", 129, 256, 1, 32),
    ("sequence", False, "float16", 129, 256, 256, 512),
    ("sequence", False, "float16", 257, 512, 1, 32),
    ("sequence", False, "float16", 257, 512, 64, 512),
    ("sequence", False, "float16", 513, 1024, 256, 32),
    ("sequence", False, "float16", 1025, 2048, 16, 32),
    ("sequence", False, "float32", 1, 64, 256, 512),
    ("sequence", False, "float32", 65, 128, 256, 512),
    ("sequence", False, "float32", 129, 256, 256, 32),
    ("sequence", False, "float32", 257, 512, 64, 32),
    ("sequence", False, "float32", 513, 1024, 256, 32),
    ("sequence", False, "float32", 1025, 2048, 16, 32),
    ("sequence", True, "bfloat16", 1, 64, 256, 32),
    ("sequence", True, "bfloat16", 65, 128, 256, 32),
    ("sequence", True, "bfloat16", 129, 256, 256, 32),
    ("sequence", True, "bfloat16", 257, 512, 64, 32),
    ("sequence", True, "bfloat16", 257, 512, 256, 100),
    ("sequence", True, "bfloat16", 513, 1024, 256, 32),
    ("sequence", True, "bfloat16", 1025, 2048, 16, 32),
    ("sequence", True, "float16", 1, 64, 1, 512),
    ("sequence", True, "float16", 129, 256, 256, 512),
    ("sequence", True, "float16", 257, 512, 1, 32),
    ("sequence", True, "float16", 257, 512, 64, 512),
    ("sequence", True, "float16", 513, 1024, 1, 32),
    ("sequence", True, "float16", 513, 1024, 256, 512),
    ("sequence", True, "float16", 1025, 2048, 16, 32),
    ("sequence", True, "float32", 65, 128, 256, 512),
    ("sequence", True, "float32", 129, 256, 256, 512),
    ("sequence", True, "float32", 257, 512, 64, 32),
    ("sequence", True, "float32", 513, 1024, 256, 32),
    ("sequence", True, "float32", 1025, 2048, 16, 32),
    ("step", False, "bfloat16", 1, 64, 256, 1),
    ("step", False, "bfloat16", 65, 128, 256, 1),
    ("step", False, "bfloat16", 129, 256, 256, 1),
    ("step", False, "bfloat16", 257, 512, 256, 1),
    ("step", False, "bfloat16", 513, 1024, 256, 1),
    ("step", False, "bfloat16", 1025, 2048, 256, 1),
)
