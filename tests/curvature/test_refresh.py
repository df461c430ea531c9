"""`refresh`: the caller says which calls look at curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import (
    diagnostics,
    scale_by_curvature_step,
    scale_by_diagonal_secant,
    scale_by_hutchinson,
    scale_by_kronecker,
    scale_by_subspace_step,
)

SAME_BATCH_SECANT = functools.partial(scale_by_diagonal_secant, secant="hvp")


def _loss(x):
    return jnp.sum(x**2) + jnp.sum(jnp.cosh(x))


@pytest.mark.parametrize(
    "make",
    [
        scale_by_curvature_step,
        scale_by_subspace_step,
        scale_by_hutchinson,
        scale_by_kronecker,
        SAME_BATCH_SECANT,
    ],
)
def test_said_or_counted_the_numbers_are_the_same(x64, make):
    x = jnp.array([[1.0, -2.0]])
    tx = make(refresh_period=2)
    one, other = tx.init(x), tx.init(x)

    def update(u, s, refresh=None):
        extra_args = {"value_fn": _loss, "previous_direction": -x}
        return tx.update(u, s, x, **extra_args, refresh=refresh)

    by_count = jax.jit(update)
    by_word = {r: jax.jit(functools.partial(update, refresh=r)) for r in (True, False)}
    for t in range(4):
        u = jax.grad(_loss)(x) * (1 + 0.1 * t)
        updates, one = by_count(u, one)
        expected, other = by_word[t % 2 == 0](u, other)
        np.testing.assert_allclose(updates, expected, rtol=1e-12)
    for name, value in diagnostics(one).items():
        np.testing.assert_allclose(value, diagnostics(other)[name], rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        scale_by_curvature_step,
        scale_by_hutchinson,
        scale_by_kronecker,
        SAME_BATCH_SECANT,
    ],
)
def test_no_conditional_where_it_is_known(make):
    x, tx = jnp.ones([2, 2]), make(refresh_period=2)

    def conditionals(refresh):
        extra_args = {"value_fn": _loss, "previous_direction": x, "refresh": refresh}
        program = jax.make_jaxpr(lambda u, s: tx.update(u, s, x, **extra_args))(
            x, tx.init(x)
        )
        return str(program).count("cond[")

    # A refresh may hold conditionals of its own, which choose by platform.
    assert conditionals(None) - conditionals(True) == 1
    assert conditionals(None) > conditionals(False)


def test_a_traced_refresh_is_refused():
    x, tx = jnp.ones(2), scale_by_curvature_step()
    with pytest.raises(TypeError, match="must be True, False or None"):
        tx.update(x, tx.init(x), x, value_fn=_loss, refresh=jnp.array(True))
