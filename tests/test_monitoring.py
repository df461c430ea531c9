"""`diagnostics` finds every scalar from anywhere in an optimizer state."""

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import diagnostics, nlcg, paper_nlcg


def test_names_of_the_whole_paper_system():
    tx = paper_nlcg(0.1)
    found = diagnostics(tx.init(jnp.ones(2)))
    assert set(found) == {
        *("beta", "cosine", "grad_norm", "direction_norm", "restarted", "skipped"),
        *("num_restarts", "num_skips", "num_preconditioner_skips"),
        *("curvature", "num_secants", "num_secant_skips"),
        *("step_multiplier", "loss_ratio", "undone", "num_value_skips"),
    }
    assert all(jnp.ndim(value) == 0 for value in found.values())


def test_repeated_names_carry_their_place():
    tx = optax.partition(
        {"x": nlcg(0.1, "fr"), "y": nlcg(0.1, "pr+")}, {"a": "x", "b": "y"}
    )
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}

    @jax.jit
    def norms(params):
        _, state = tx.update(params, tx.init(params), params)
        found = diagnostics(state)
        return {name: v for name, v in found.items() if name.endswith(".grad_norm")}

    found = norms(params)
    assert sorted(float(v) for v in found.values()) == [3.0, 4.0]
    assert any("'x'" in name for name in found)


def test_foreign_states_have_none():
    assert diagnostics(optax.adam(0.1).init(jnp.ones(2))) == {}


def test_a_parameter_may_be_called_diagnostics():
    tx = nlcg(0.1)
    params = {"diagnostics": {"w": jnp.ones([2, 2])}, "b": jnp.ones(2)}
    found = diagnostics(tx.init(params))
    assert set(found) == set(diagnostics(tx.init(jnp.ones(2))))
