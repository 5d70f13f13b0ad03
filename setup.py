"""Builds the native extensions; everything else about the package is in pyproject.toml.

csrc knows nothing of torch, so an isolated build needs only pybind11. The extensions are optional: without
a compiler the package installs all the same and runs on its other backends (`rnnfast.show_config()` says so).

The CUDA extension takes minutes to compile, so by default it is built only where it can run: where there
are nvcc and an NVIDIA driver. RNNFAST_CUDA=1 builds it without a driver, too (in an image for machines with
GPUs), and fails where it can't be built; =0 leaves it out.
"""

import hashlib
import os
import platform
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, has_flag
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent / "csrc" / "cuda"))
import nvcc

X86 = platform.machine().lower() in ("x86_64", "amd64")
# One source, built once per instruction set; csrc/cpu/python/bindings.cpp chooses at run time.
FLAGS = {"kernels_baseline.cpp": []}
if X86:
    AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
    FLAGS["kernels_avx2.cpp"] = AVX2
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    FLAGS["kernels_avx512.cpp"] = AVX512
    FLAGS["kernels_avx512bf16.cpp"] = [*AVX512, "-mavx512bf16"]
BF16 = "csrc/cpu/kernels_avx512bf16.cpp"
# Python's own flags may say -fwrapv, with which index arithmetic takes 10% of the recurrence at B=32, H=128.
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti", "-ffp-contract=fast", "-fno-wrapv"]
# csrc/cpu/team.h calls libgomp by name, whatever the compiler, as that is the OpenMP runtime that torch has.
LIBRARIES = ["gomp"] if sys.platform == "linux" else []


CUDA = "rnnfast._cuda"


def cuda_extension():
    """The bindings alone: the kernels are compiled by nvcc, in BuildExt, and linked to them."""
    wanted, found = nvcc.wanted(), nvcc.find()
    if wanted and not found:
        raise RuntimeError(
            "RNNFAST_CUDA=1, but there is no nvcc in $CUDA_HOME, on the PATH or in /usr/local/cuda"
        )
    reason = None
    if wanted is False:
        reason = "RNNFAST_CUDA=0"
    elif not found:
        reason = "there is no nvcc"
    elif wanted is None and not nvcc.gpu_present():
        reason = "there is no NVIDIA driver (RNNFAST_CUDA=1 builds it all the same)"
    if reason:
        print("rnnfast: no CUDA extension:", reason)
        return []
    extension = Pybind11Extension(
        CUDA,
        ["csrc/cuda/bindings.cpp"],
        depends=glob("csrc/cuda/**/*.*", recursive=True) + glob("csrc/*.h"),
        cxx_std=17,
        libraries=["dl", "rt", "pthread"],
        optional=not wanted,
    )
    return [extension]


def outdated(target, source):
    """Whether an object has to be compiled anew: it, or a header of ours, has changed since."""
    headers = [path for path in Path("csrc").rglob("*") if path.suffix in (".h", ".inc")]
    made = os.path.getmtime(target) if os.path.exists(target) else 0
    return any(path.stat().st_mtime > made for path in (Path(source), *headers))


class BuildExt(build_ext):
    """Adds each kernel file's own flags, and what nvcc makes."""

    def build_extensions(self):
        """Keeps objects for the next build, under a name made of what their sources don't tell."""
        command = self.compiler.compiler_so, getattr(self.compiler, "compiler_so_cxx", None)
        made_of = (command, sys.version, Path(__file__).read_bytes())
        self.build_temp = f"build/objects/{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}"
        super().build_extensions()

    def copy_extensions_to_source(self):
        """An optional extension that could not be built must not leave an older one in its place."""
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            if not Path(self.build_lib, name).exists():
                Path(name).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext):
        if ext.name == CUDA:
            try:
                compiler = nvcc.find()
                ext.extra_objects = [*map(str, nvcc.compile_all(compiler)), nvcc.static_runtime(compiler)]
            except (OSError, RuntimeError) as error:  # what an optional extension may fail with
                raise CompileError(str(error)) from error
        if BF16 in ext.sources:  # GCC 9 doesn't know it
            if has_flag(self.compiler, "-mavx512bf16"):
                ext.define_macros.append(("RNNFAST_AVX512BF16", None))
            else:
                ext.sources.remove(BF16)
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, ext_name, cc_args, extra_postargs, pp_opts):
            for name, flags in FLAGS.items():
                if src.endswith(name):
                    extra_postargs = [*extra_postargs, *KERNEL_FLAGS, *flags]
            compile_one(obj, src, ext_name, cc_args, extra_postargs, pp_opts)

        self.compiler._compile = compile_with_flags
        super().build_extension(ext)


ParallelCompile(default=0, needs_recompile=outdated).install()  # as many compilers as there are cores

setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        Pybind11Extension(
            "rnnfast._cpu",
            [
                *(f"csrc/cpu/python/{name}.cpp" for name in ("bindings", "call", "run")),
                *(f"csrc/cpu/{name}" for name in FLAGS),
            ],
            depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True),
            cxx_std=17,
            extra_compile_args=["-O3"],
            libraries=LIBRARIES,
            optional=True,
        ),
        *cuda_extension(),
    ],
)
