"""`split_parameters`: parts along several mapped axes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import diagnostics, nlcg, split_parameters


def test_products_span_all_axes_of_a_tuple():
    tx = split_parameters(nlcg(0.1, "fr"), ("a", "b"))

    def grad_norm(part):
        _, state = tx.update(part, tx.init(part), part)
        return diagnostics(state)["grad_norm"]

    rows = jax.vmap(jax.vmap(grad_norm, axis_name="b"), axis_name="a")
    found = rows(jnp.array([[0.0, 1.0], [2.0, 3.0]]))
    np.testing.assert_allclose(found, np.full([2, 2], np.sqrt(14)), rtol=1e-6)


@pytest.mark.parametrize("axis_name", [3, (), ("a", 3)])
def test_what_is_no_name_of_an_axis_is_refused(axis_name):
    with pytest.raises(TypeError, match="axis_name=.* must be the name of a mapped"):
        split_parameters(nlcg(0.1), axis_name)
