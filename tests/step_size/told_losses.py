"""Losses and gradients told one by one, for tests of `scale_by_slope_ratio`."""

import jax.numpy as jnp
import numpy as np

from nlcg_optax import diagnostics

F32 = np.float32


def told(tx, pairs, state=None):
    """The updates for pairs of a loss and a gradient, and the last state."""
    state = tx.init(jnp.zeros(1)) if state is None else state
    out = []
    for value, grad in pairs:
        update, state = tx.update(jnp.array([grad], F32), state, value=F32(value))
        out.append(float(update[0]))
    return out, state


def scalars(state):
    return {name: float(x) for name, x in diagnostics(state).items()}
