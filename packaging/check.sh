#!/usr/bin/env bash
# Builds sdist and wheel, looks into both, and tests the wheel from another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/build"
pip() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }
pip "$scratch/build" build twine
rm -rf dist
"$scratch/build/bin/python" -m build # the wheel is built from the sdist
"$scratch/build/bin/python" -m twine check --strict dist/*
"$scratch/build/bin/python" packaging/check_contents.py dist

"$python" -m venv "$scratch/clean"
pip "$scratch/clean" dist/*.whl
cp tests/test_surface.py "$scratch"
cd "$scratch"
pip clean pytest
# Imports the installed package, not the checkout: no folder of that name is here.
clean/bin/python -c 'import nlcg_optax, sys; assert "clean" in nlcg_optax.__file__, nlcg_optax.__file__'
clean/bin/python -m pytest -q --import-mode=importlib test_surface.py
clean/bin/python -m pytest -q --doctest-modules --pyargs nlcg_optax.optimizers nlcg_optax.minimization.solve
echo "Built and tested: $(ls "$root/dist" | tr '\n' ' ')"
