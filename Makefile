# Every target makes its own virtual environment; a second call does not reinstall.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-slow test-matrix lint bench docs clean

help: # lists the targets
	@grep -hE '^[a-z-]+:.*# ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*# (.*)/make \1\t\2/' | expand -t 20

$(VENV)/.experiments: pyproject.toml
	@echo "Setting up $(VENV): a virtual environment with JAX, Flax and the other packages (once, some minutes)"
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python >= 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}; call make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[experiments]'
	touch $@

$(VENV)/.test: $(VENV)/.experiments
	$(PIP) --editable '.[experiments,test]'
	touch $@

# The compiler for TPUs, where there is one for this machine.
$(VENV)/.tpu: $(VENV)/.test
	$(PIP) --editable '.[tpu]'
	touch $@

demo: $(VENV)/.experiments # trains on handwritten digits, draws curves and a table
	$(BIN)/python -m experiments.studies.digits $(DEMO_ARGS)

# Tests of several devices run by themselves, see tests/conftest.py.
test: $(VENV)/.test # runs the fast suite, doctests included
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' $(TEST_ARGS)
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' --devices $(TEST_ARGS)

test-slow: $(VENV)/.tpu # runs the tests that take minutes or several processes
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(TEST_ARGS)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow --devices $(TEST_ARGS)

test-matrix: # runs the suite on every Python found and on the oldest declared versions
	PYTHON=$(PYTHON) bash tests/matrix.sh

lint: $(VENV)/.test # checks style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.experiments # times updates, curvature and training steps, as ratios
	$(BIN)/python -m experiments.bench.update $(BENCH_ARGS)
	$(BIN)/python -m experiments.bench.products
	$(BIN)/python -m experiments.bench.curvature $(BENCH_CURVATURE_ARGS)
	$(BIN)/python -m experiments.bench.training $(BENCH_TRAINING_ARGS)

docs: $(VENV)/.experiments # builds the reference in build/docs
	$(PIP) --editable '.[docs]'
	$(BIN)/pdoc --math --docformat google --output-directory build/docs nlcg_optax

clean: # removes environments and build output
	rm -rf .venv .venv-* build dist
