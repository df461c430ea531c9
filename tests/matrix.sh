#!/usr/bin/env bash
# Runs the fast suite on every Python that is found, and on the oldest declared versions;
# only on the latter with the argument "oldest".
set -uo pipefail
cd "$(dirname "$0")/.."

first=${PYTHON:-python3}
oldest='jax==0.8.1 jaxlib==0.8.1 optax==0.2.8 flax==0.12.1 chex==0.1.90 orbax-checkpoint==0.11.20'
summary=()
failed=0

suite() { # name interpreter [requirement ...]
  local name=$1 python=$2 venv=.venv-$1
  shift 2
  echo "== $name"
  if "$python" -m venv "$venv" &&
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable '.[experiments,test]' "$@" &&
    "$venv/bin/python" -m pytest -q -n "${WORKERS:-2}" -m 'not slow' &&
    "$venv/bin/python" -m pytest -q -n "${WORKERS:-2}" -m 'not slow' --devices; then
    summary+=("$name: passed")
  else
    summary+=("$name: FAILED")
    failed=1
  fi
}

# Interpreters on the path and, where pyenv is installed, all that it holds.
find_python() {
  local candidate
  for candidate in "$(command -v "python$1")" \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

suite oldest "$first" $oldest
versions='3.11 3.12 3.13 3.14'
if [ "${1:-}" = oldest ]; then
  versions=
fi
for version in $versions; do
  python=$(find_python "$version")
  if [ -n "$python" ]; then
    suite "python$version" "$python"
  else
    summary+=("python$version: not found")
  fi
done

printf '%s\n' '' 'Matrix:' "${summary[@]}"
exit "$failed"
