"""Unconstrained CUTEst problems by name, through the public package `sif2jax`."""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
import sif2jax

# Large problems at a size that one core can run by the hundred: the attributes that
# set the dimension. All other problems have the size that `sif2jax` gives them.
_N_1000 = """
ARWHEAD BDQRTIC BOX BROYDN3DLS BROYDN7D COSINE CRAGGLVY CURLY10 CURLY20 CURLY30
DIXON3DQ DQDRTIC DQRTIC EDENSCH FLETBV3M FLETCBV2 FLETCBV3 FREUROTH GENHUMPS INDEF
INDEFM LIARWHD NONCVXU2 NONCVXUN NONDQUAR POWER QUARTC SBRYBND SCURLY10 SCURLY20
SCURLY30 SPARSINE SROSENBR
"""
_N_900 = """
DIXMAANB DIXMAANC DIXMAAND DIXMAANE1 DIXMAANF DIXMAANG DIXMAANH DIXMAANI1 DIXMAANJ
DIXMAANK DIXMAANL DIXMAANM1 DIXMAANN DIXMAANO DIXMAANP
"""
_SIZES: dict[str, dict[str, int]] = {
    **{name: {"n": 1000} for name in _N_1000.split()},
    **{name: {"n": 900} for name in _N_900.split()},
    **{name: {"_n": 1000} for name in ("ENGVAL1", "TOINTGSS")},
    **{name: {"N": 30} for name in ("YATP1LS", "YATP1CLS")},
    **{name: {"p": 31} for name in ("FMINSURF", "FMINSRF2", "MSQRTALS", "MSQRTBLS")},
    **{name: {"n": 10} for name in ("EIGENALS", "EIGENBLS")},
    "CHAINWOO": {"n": 1000, "ns": 499},
    "CYCLIC3LS": {"n_param": 300},
    "CYCLOOCFLS": {"p": 300},
    "EIGENCLS": {"n": 11, "m": 5},
    "NONMSQRT": {"p": 10},
    "WOODS": {"ns": 250, "n": 1000},
}
# At every size these start at a stationary point with f = 0.
_LEFT_OUT = frozenset({"DRCAV1LQ", "DRCAV2LQ"})


def names() -> tuple[str, ...]:
    """The names of all problems that `load` accepts, sorted."""
    every = {p.name for p in sif2jax.unconstrained_minimisation_problems}
    return tuple(sorted(every - _LEFT_OUT))


def load(name: str) -> tuple[Any, np.ndarray]:
    """Load one problem.

    Args:
        name: a name from `names()`.

    Returns:
        objective: x -> f(x), a scalar; start: shape (n,), float64.

    Raises:
        ValueError: if there is no such problem.
    """
    by_name = {p.name: p for p in sif2jax.unconstrained_minimisation_problems}
    if name not in by_name:
        raise ValueError(f"name must be one of names(), got {name!r}")
    problem = copy.copy(by_name[name])
    for attribute, size in _SIZES.get(name, {}).items():
        # The problems are frozen modules that read their dimension from fields.
        object.__setattr__(problem, attribute, size)
    start = np.asarray(problem.y0, dtype=np.float64)

    def objective(x: jax.Array) -> jax.Array:
        return problem.objective(x, problem.args)

    return objective, start
