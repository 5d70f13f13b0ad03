# Each target does all of its own set-up: Python 3.10 or newer, a C++ compiler and make are all that a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
BUILD := $(SOURCES) setup.py csrc/cuda/nvcc.py
FORMATTED := $(SOURCES) $(wildcard bench/machine/*.cu $(addprefix tests/cuda_on_cpu/*,.cu .cpp .h))

# Triton of the oldest and the newest supported CUDA builds of torch, beside the newest one, which `pip` installs.
OTHER_TRITONS := 3.6.0 3.7.1

.PHONY: run test test-triton lint format bench clean

# Train a character-level language model with rnnfast.RNN and torch.nn.RNN side by side, then time both over shapes.
run: $(VENV)/.installed-bench
	$(BIN)/python -m bench charlm --seconds 100 --out out $(ARGS)
	rm -f out/bench-quick.json
	$(BIN)/python -m bench run --quick --peers torch-rnn rnnfast

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)
	$(if $(ARGS),,OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted)

# The Triton kernels compiled by other releases of Triton.
test-triton: $(OTHER_TRITONS:%=$(VENV)/triton/%)
	for version in $(OTHER_TRITONS); do \
	  PYTHONPATH=$(VENV)/triton/$$version $(BIN)/python -m pytest tests/test_triton_compile.py -k "row_fits or registers or one_step" || exit 1; \
	done

$(VENV)/triton/%: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$*

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

$(VENV)/.created: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r constraints.txt
	touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml $(BUILD)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info rnnfast/*.so
