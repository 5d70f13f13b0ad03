# Each target does all of its own set-up: Python 3.10 or newer, a C++ compiler and make are all that a machine needs.
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
BUILD := $(SOURCES) setup.py csrc/cuda/nvcc.py
FORMATTED := $(SOURCES) $(wildcard bench/machine/*.cu bench/study/*.cpp $(addprefix bench/study/rungs/*,.cpp .cu) tests/sanitize/*.cpp $(addprefix tests/cuda_on_cpu/*,.cu .cpp .h))
say = @printf '== %s\n'

# Triton of the oldest and the newest supported CUDA builds of torch, beside the newest one, which `pip` installs.
OTHER_TRITONS := 3.6.0 3.7.1

.PHONY: run check test test-all test-triton fuzz sanitize lint format bench study wheel clean

# Train a character-level language model with rnnfast.RNN and torch.nn.RNN side by side, then time both over shapes.
run: $(VENV)/.installed-bench
	$(BIN)/python -m bench charlm --seconds 100 --out out $(ARGS)
	rm -f out/bench-quick.json
	$(BIN)/python -m bench run --quick --peers torch-rnn rnnfast

# The tests in three tiers (tests/tiers.py). All cores share them, a thread each; but tests of threads have the machine for
# themselves. The Triton kernels run in a process of their own, whose Triton interprets them.
check: TIER := check
test: TIER := test
test-all: TIER := all
PYTEST = $(BIN)/python -m pytest --tier $(TIER)
THREADED = $(shell grep -l 'mark.threads' tests/test_*.py)
check test test-all: $(VENV)/.installed-test
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(say) "tier $(TIER): tests on $(JOBS) processes"
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist worksteal $(if $(filter check,$(TIER)),,-m "not threads")
	$(say) "tier $(TIER): Triton kernels, interpreted"
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTEST) -n $(JOBS) tests/interpreted
	$(if $(filter check,$(TIER)),,$(PYTEST) -m threads $(THREADED))
endif

# The Triton kernels compiled by other releases of Triton.
test-triton: $(OTHER_TRITONS:%=$(VENV)/triton/%)
	for version in $(OTHER_TRITONS); do \
	  PYTHONPATH=$(VENV)/triton/$$version OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --tier all tests/test_triton_compile.py -k "row_fits or registers or one_step" || exit 1; \
	done

$(VENV)/triton/%: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$*

# Problems drawn at random, judged against float64 and torch: `make fuzz ARGS="--seconds 600 --seed 1"`.
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.fuzz $(ARGS)

# The native code under the address, undefined-behaviour and thread sanitizers: `make sanitize ARGS=--short`.
sanitize: $(VENV)/.installed-test
	$(BIN)/python -m tests.sanitize $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# The suite behind the README's table, on this machine: about ten minutes on a quiet one.
bench: $(VENV)/.installed-bench $(VENV)/.installed-peers
	$(BIN)/python -m bench run --suite core
	$(BIN)/python -m bench report out/bench-core.json --pictures

# The study ladder: every rung that this machine can build is checked, timed and drawn into out/study.png.
study: $(VENV)/.installed-bench
	$(BIN)/python -m bench study $(ARGS)

# An sdist and a wheel in dist/, built in isolation, without torch and without the CUDA kernels. On Linux the wheel gets
# the tag of the oldest manylinux that has all of its symbols; libgomp stays out of it: torch brings one, and two would
# mean two teams of threads.
wheel: $(VENV)/.installed-wheel
	rm -rf dist
	RNNFAST_CUDA=0 $(BIN)/python -m build --outdir dist .
	if [ "$$(uname -s)" = Linux ]; then PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair \
	  --exclude libgomp.so.1 --wheel-dir dist dist/rnnfast-*-linux_*.whl && rm dist/rnnfast-*-linux_*.whl; fi

$(VENV)/.created: constraints.txt
	$(say) "$(VENV): torch (200 MB of the CPU build; without one at hand a CUDA build, several GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -r constraints.txt
	touch $@

# Compiled objects are kept in build/: after a change only what depends on it is compiled anew.
$(VENV)/.built: $(VENV)/.created pyproject.toml $(BUILD)
	$(say) "$(VENV): rnnfast; its CPU kernels take one to two minutes to compile on two cores, the first time"
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e .
	touch $@

$(VENV)/.installed-%: $(VENV)/.built
	$(say) "$(VENV): what '$*' needs"
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt --group $*
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info rnnfast/*.so
