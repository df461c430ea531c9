"""States of `minimize` that are passed on: which are accepted, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import minimize


@jax.tree_util.register_pytree_node_class
class Point:
    """A container without a text."""

    def __init__(self, array):
        self.array = array

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def quartic(p, a=1.0):
    return jnp.sum((p.array - a) ** 4)


def test_a_state_of_a_container_without_a_text_resumes():
    start = Point(jnp.zeros(3))
    whole = minimize(quartic, start)
    state = minimize(quartic, start, max_iterations=2).state
    rest = minimize(quartic, Point(jnp.zeros(3)), state=state)
    assert int(rest.nit) == int(whole.nit)
    np.testing.assert_allclose(rest.x.array, whole.x.array, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\{0: float32\[3\]\}, but .* float32\[4\]"):
        minimize(quartic, Point(jnp.zeros(4)), state=state)


def test_states_of_two_programs_are_alike():
    start = Point(jnp.zeros(3))
    states = [
        minimize(lambda p, n=power: jnp.sum((p.array - 1) ** n), start).state
        for power in (2, 4)
    ]
    structures = [jax.tree.structure(state) for state in states]
    assert structures[0] == structures[1]


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_state_of_a_batch_is_told_from_that_of_one_run(shape):
    start = Point(jnp.zeros((2, 3)))
    batch = jax.vmap(lambda p: minimize(quartic, p, max_iterations=2))(start)
    with pytest.raises(ValueError, match=r"batch of runs, of shape \[2\]; .*jax.vmap"):
        minimize(quartic, Point(jnp.zeros(shape)), state=batch.state)
    rest = jax.vmap(lambda p, state: minimize(quartic, p, state=state))(
        start, batch.state
    )
    assert bool(jnp.all(rest.success))
    # At this distance all but 1e-6 of the objective is gone.
    np.testing.assert_allclose(rest.x.array, 1.0, atol=0.03)
