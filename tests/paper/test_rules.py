"""The paper's rules, by hand: with its 1e-8 in the denominators."""

import jax.numpy as jnp
import numpy as np

from nlcg_optax import InnerProducts
from nlcg_optax.paper.rules import PAPER_RULES

# g = (2, 1), z = (2, 2), g_prev = (1, 3), z_prev = (1, 6).
PRODUCTS = {"g_z": 6, "g_z_prev": 8, "g_prev_z_prev": 19}


def products(**given):
    fields = dict.fromkeys(InnerProducts._fields, jnp.float32(0)) | given
    return InnerProducts(**{k: jnp.float32(v) for k, v in fields.items()})


def test_hand_computed_numbers():
    found = {name: rule(products(**PRODUCTS)) for name, rule in PAPER_RULES.items()}
    expected = {"fr": 6 / (19 + 1e-8), "pr": -2 / (19 + 1e-8)}
    assert found.keys() == expected.keys()
    for name, beta in expected.items():
        np.testing.assert_allclose(found[name], beta, rtol=4 * 2**-23)


def test_a_zero_denominator_is_the_eps():
    for rule in PAPER_RULES.values():
        np.testing.assert_allclose(rule(products(g_z=1)), 1e8, rtol=1e-6)
