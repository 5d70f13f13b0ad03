# Each target does all of its own set-up: Python 3.10 or newer, a C++ compiler and make are all that a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
BUILD := $(SOURCES) setup.py csrc/cuda/nvcc.py
FORMATTED := $(SOURCES) $(wildcard bench/*.cu $(addprefix tests/cuda_on_cpu/*,.cu .cpp .h))

.PHONY: run test lint format bench clean

# Train a character-level language model with rnnfast.RNN and torch.nn.RNN side by side, then time both over shapes.
run: $(VENV)/.installed-bench
	$(BIN)/python -m bench.charlm --seconds 100 --out out $(ARGS)
	rm -f out/bench-quick.json
	$(BIN)/python -m bench.run --quick --peers torch-rnn rnnfast --json out/bench-quick.json

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# The figures of the README: about ten minutes on a quiet machine.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench.run --suite core --json bench/results/core.json
	$(BIN)/python -m bench.report bench/results/core.json

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
