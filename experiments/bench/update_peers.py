"""The optimizers whose updates are timed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from experiments.optimizers.baselines import matrix_axes_of
from nlcg_optax import large_batch_nlcg, nlcg, scale_by_diagonal_secant

RATE = 1e-4
REFERENCE = "adam"
STREAM = "sgd"  # reads gradients and writes updates: as fast as memory allows

PyTree = Any


def _nlcg(rule: str, **options: Any) -> optax.GradientTransformation:
    # With the paper's beta, as when the recorded ratios were measured.
    return nlcg(RATE, rule, beta_smoothing=0.0, beta_max=1.0, **options)


def _nlcg_with_secant(rule: str) -> optax.GradientTransformation:
    return _nlcg(rule, preconditioner=scale_by_diagonal_secant(RATE))


def _nlcg_between_refreshes(rule: str) -> optax.GradientTransformation:
    # The product with the Hessian is priced by `experiments.bench.curvature`.
    preconditioner = scale_by_diagonal_secant(secant="hvp", refresh_period=10)
    tx = _nlcg(rule, preconditioner=preconditioner)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        return tx.update(
            updates, state, params, refresh=False, hvp_fn=lambda _, vector: vector
        )

    return optax.GradientTransformation(tx.init, update)


def _large_batch(refresh: bool) -> optax.GradientTransformation:
    tx = large_batch_nlcg(RATE)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        return tx.update(updates, state, params, refresh=refresh)

    return optax.GradientTransformation(tx.init, update)


Peers = Mapping[str, Callable[[], optax.GradientTransformation]]
PEERS: Peers = {
    REFERENCE: lambda: optax.adam(RATE),
    STREAM: lambda: optax.sgd(RATE),
    "sgd, momentum": lambda: optax.sgd(RATE, 0.9),
    "nlcg FR": lambda: _nlcg("fr"),
    "nlcg FR, bf16 state": lambda: _nlcg("fr", state_dtype=jnp.bfloat16),
    "nlcg PR+": lambda: _nlcg("pr+"),
    "nlcg PR+, bf16 state": lambda: _nlcg("pr+", state_dtype=jnp.bfloat16),
    "nlcg HS": lambda: _nlcg("hs"),
    "nlcg FR, secant": lambda: _nlcg_with_secant("fr"),
    "nlcg PR+, secant": lambda: _nlcg_with_secant("pr+"),
    "nlcg FR, hvp secant": lambda: _nlcg_between_refreshes("fr"),
}
# An update takes seconds, spent on products and decompositions of matrices.
MATRIX_PEERS: Peers = {
    REFERENCE: PEERS[REFERENCE],
    "muon": lambda: optax.contrib.muon(
        RATE, muon_weight_dimension_numbers=matrix_axes_of
    ),
    "nlcg large batch": lambda: _large_batch(refresh=False),
    "nlcg large batch, refresh": lambda: _large_batch(refresh=True),
}
