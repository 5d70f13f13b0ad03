"""Builds the native CPU extension; everything else about the package is in pyproject.toml.

csrc knows nothing of torch, so an isolated build needs only pybind11. The extension is optional: without
a compiler the package installs all the same and runs on its eager and aten backends
(`rnnfast.show_config()` says so).
"""

import platform
import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
# One source, built once per instruction set; bindings.cpp chooses at run time.
FLAGS = {"kernels_baseline.cpp": []}
if X86:
    AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
    FLAGS["kernels_avx2.cpp"] = AVX2
    FLAGS["kernels_avx512.cpp"] = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti", "-ffp-contract=fast"]
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


class BuildExt(build_ext):
    """Adds each kernel file's own flags."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, ext_name, cc_args, extra_postargs, pp_opts):
            for name, flags in FLAGS.items():
                if src.endswith(name):
                    extra_postargs = [*extra_postargs, *KERNEL_FLAGS, *flags]
            compile_one(obj, src, ext_name, cc_args, extra_postargs, pp_opts)

        self.compiler._compile = compile_with_flags
        super().build_extension(ext)


ParallelCompile(default=0).install()  # as many compilers as there are cores

setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        Pybind11Extension(
            "rnnfast._cpu",
            ["csrc/cpu/bindings.cpp", *(f"csrc/cpu/{name}" for name in FLAGS)],
            depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True),
            cxx_std=17,
            extra_compile_args=["-O3", *OPENMP],
            extra_link_args=OPENMP,
            optional=True,
        )
    ],
)
