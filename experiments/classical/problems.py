"""All problems of the benchmark by name, and the named selections."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.classical import problems_mgh, problems_sif

MGH_PREFIX = "mgh:"

# The development list: 136 names drawn at random (numpy default_rng(0)). Parameters
# were chosen on these and on the MGH set; the others were kept for the end.
_DEVELOPMENT = """
AKIVA ALLINITU ARGLINA ARGLINB ARWHEAD BARD BDQRTIC BENNETT5LS BIGGS6 BOX3 BOXBODLS
BROWNBS BROYDN3DLS BROYDN7D CHAINWOO CHNROSNB CHNRSNBM CHWIRUT1LS CHWIRUT2LS CLIFF
CLUSTERLS COATING COOLHANSLS COSINE CRAGGLVY CUBE CURLY10 CURLY20 CURLY30 DANIWOODLS
DENSCHNA DENSCHNC DENSCHNE DENSCHNF DEVGLA1 DEVGLA2 DIXMAANA1 DIXMAANB DIXMAANC
DIXMAAND DIXMAANE1 DIXMAANF DIXMAANG DIXMAANH DIXMAANJ DIXMAANK DIXMAANL DIXMAANM1
DIXMAANN DIXMAANO DIXMAANP DIXON3DQ DJTL DQDRTIC DQRTIC EG2 EIGENBLS EIGENCLS ELATVIDU
ENGVAL2 ERRINROS EXP2 EXPFIT FLETCBV2 FLETCBV3 FLETCHCR FMINSURF FREUROTH GAUSS1LS
GAUSS2LS GAUSS3LS GAUSSIAN HAHN1LS HAIRY HATFLDD HATFLDE HATFLDFLS HEART6LS HEART8LS
HILBERTB HIMMELBH HUMPS INDEFM INTEQNELS JUDGE KIRBY2LS KOWOSB LSC1LS LSC2LS
LUKSAN11LS LUKSAN12LS LUKSAN13LS LUKSAN14LS LUKSAN15LS LUKSAN16LS LUKSAN17LS
LUKSAN21LS MARATOSB MEXHAT MGH10LS MGH10SLS MGH17SLS MISRA1ALS MISRA1BLS MISRA1CLS
MSQRTBLS NONCVXU2 NONDQUAR PALMER1C PALMER1D PALMER3C PALMER5D PALMER6C PALMER7C
PALMER8C POWER PRICE4 QING QUARTC RAT43LS ROSENBR ROSZMAN1LS SBRYBND SISSER SNAIL
SPARSINE SPIN2LS SROSENBR TRIGON1 VARDIM VESUVIALS VESUVIOULS VIBRBEAM WAYSEA2 WOODS
ZANGWIL2
"""
DEVELOPMENT = _DEVELOPMENT.split()

# Solved by every sound method within a few hundred gradients; for continuous
# integration.
SMALL = [
    MGH_PREFIX + name
    for name in (
        "rosenbrock",
        "beale",
        "helical_valley",
        "bard",
        "powell_singular",
        "wood",
        "brown_dennis",
        "broyden_tridiagonal",
    )
]


def select(selection: str) -> tuple[str, ...]:
    """The names of a selection: ``all``, ``mgh``, ``development``, ``small``."""
    mgh = [MGH_PREFIX + problem.name for problem in problems_mgh.problems()]
    selections = {
        "all": lambda: [*mgh, *problems_sif.names()],
        "mgh": lambda: mgh,
        "development": lambda: [*mgh, *DEVELOPMENT],
        "small": lambda: SMALL,
    }
    if selection not in selections:
        raise ValueError(
            f"selection={selection!r} is unknown; allowed are {sorted(selections)}"
        )
    return tuple(selections[selection]())


def load(name: str) -> tuple[Any, np.ndarray]:
    """Load one problem by its name.

    Args:
        name: ``mgh:`` and a name of `problems_mgh`, or a name of `problems_sif`.

    Returns:
        objective: x -> f(x); start: shape (n,), float64.

    Raises:
        ValueError: if there is no such problem.
    """
    if not name.startswith(MGH_PREFIX):
        return problems_sif.load(name)
    by_name = {problem.name: problem for problem in problems_mgh.problems()}
    short = name.removeprefix(MGH_PREFIX)
    if short not in by_name:
        raise ValueError(f"name must be one of {sorted(by_name)}, got {short!r}")
    return by_name[short].objective, np.asarray(by_name[short].start, np.float64)
