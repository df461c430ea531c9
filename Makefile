# Every target makes its own virtual environment; a second call does not reinstall.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# Of what pip says: each package when it is fetched, and when they are installed.
NAMES := | grep --line-buffered -oE '^ *(Collecting [A-Za-z0-9_.-]+|Installing)'

.PHONY: help demo test test-slow test-optimized test-matrix lint bench docs clean

help: # lists the targets
	@grep -hE '^[a-z-]+:.*# ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*# (.*)/make \1\t\2/' | expand -t 20

$(VENV)/.experiments: pyproject.toml
	@echo "Setting up $(VENV), a virtual environment"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python >= 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}; call make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Fetching JAX, Flax and the other packages of the experiments (once, some minutes):"
	@$(PIP) --editable '.[experiments]' $(NAMES)
	@touch $@

$(VENV)/.test: $(VENV)/.experiments
	@echo "Adding the packages of the tests:"
	@$(PIP) --editable '.[experiments,test]' $(NAMES)
	@touch $@

# The compiler for TPUs, where there is one for this machine.
$(VENV)/.tpu: $(VENV)/.test
	@echo "Adding the compiler for TPUs:"
	@$(PIP) --editable '.[tpu]' $(NAMES)
	@touch $@

$(VENV)/.docs: $(VENV)/.experiments
	@echo "Adding Sphinx and its extensions:"
	@$(PIP) --editable '.[docs]' $(NAMES)
	@touch $@

demo: $(VENV)/.experiments # trains on handwritten digits, draws curves and a table
	$(BIN)/python -m experiments.studies.digits $(DEMO_ARGS)

# An idle worker takes tests from the other, so that both end together.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Tests of several devices run by themselves, see tests/conftest.py.
test: $(VENV)/.test # runs the fast suite, doctests included
	$(PYTEST) -m 'not slow' $(TEST_ARGS)
	$(PYTEST) -m 'not slow' --devices $(TEST_ARGS)

test-slow: $(VENV)/.tpu # runs the tests that take minutes or several processes
	$(PYTEST) -m slow $(TEST_ARGS)
	$(PYTEST) -m slow --devices $(TEST_ARGS)

# The other suites leave most optimizations of XLA out, see tests/conftest.py.
test-optimized: $(VENV)/.test # runs the tests that optimizations could break, with all
	$(PYTEST) -m 'optimized or not slow' --optimized $(TEST_ARGS) tests/test_safety.py \
		tests/xla tests/trees tests/direction tests/step_size tests/paper

test-matrix: # runs the suite on every Python found and on the oldest declared versions
	PYTHON=$(PYTHON) bash tests/matrix.sh

lint: $(VENV)/.test # checks style, formatting, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github/workflows

bench: $(VENV)/.experiments # times updates, curvature and training steps, as ratios
	$(BIN)/python -m experiments.bench.update $(BENCH_ARGS)
	$(BIN)/python -m experiments.bench.update --matrices --rounds=3 $(BENCH_ARGS)
	$(BIN)/python -m experiments.bench.products
	$(BIN)/python -m experiments.bench.curvature $(BENCH_CURVATURE_ARGS)
	$(BIN)/python -m experiments.bench.training $(BENCH_TRAINING_ARGS)

docs: $(VENV)/.docs # builds the site in build/docs, and runs its gallery
	rm -rf docs/api/generated
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going $(DOCS_ARGS) docs build/docs
	@echo "Built build/docs/index.html"

clean: # removes environments and build output
	rm -rf .venv .venv-* build dist docs/api/generated
