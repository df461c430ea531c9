# Every target makes its own virtual environment; a second call does not reinstall.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-matrix lint bench docs clean

$(VENV)/.experiments: pyproject.toml
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

demo: $(VENV)/.experiments
	$(BIN)/python -m experiments.studies.digits $(DEMO_ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' $(TEST_ARGS)

test-slow: $(VENV)/.tpu
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(TEST_ARGS)

# The suite on every interpreter that is found, and on the oldest declared versions.
test-matrix:
	PYTHON=$(PYTHON) bash tests/matrix.sh

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.experiments
	$(BIN)/python -m experiments.bench.update $(BENCH_ARGS)
	$(BIN)/python -m experiments.bench.curvature $(BENCH_CURVATURE_ARGS)

docs: $(VENV)/.experiments
	$(PIP) --editable '.[docs]'
	$(BIN)/pdoc --math --docformat google --output-directory build/docs nlcg_optax

clean:
	rm -rf .venv .venv-* build dist
