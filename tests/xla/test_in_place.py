"""What is to be computed first: identities, in any transformation."""

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax.xla.in_place import flags_after, settle


def test_settle_is_the_identity_under_jit_and_vmap():
    betas, flags = jnp.array([0.5, -jnp.inf, 2.0]), jnp.array([True, False, True])
    for function in (settle, jax.jit(settle)):
        scalars, flag = function(betas, flags[1])
        np.testing.assert_array_equal(scalars, betas)
        assert flag.dtype == jnp.bool_
        assert not flag
    mapped = jax.jit(jax.vmap(settle))(betas, flags)
    np.testing.assert_array_equal(mapped[0], betas)
    np.testing.assert_array_equal(mapped[1], flags)


def test_flags_are_the_flag(monkeypatch):
    tree = {"w": jnp.ones([2, 3]), "b": jnp.float32(2.0), "none": jnp.zeros([0])}
    for devices in (1, 8):
        monkeypatch.setattr(jax, "device_count", lambda n=devices: n)
        for value in (True, False):
            flags = jax.jit(lambda f, t: flags_after(f, t))(jnp.array(value), tree)
            assert jax.tree.map(bool, flags) == dict.fromkeys(tree, value)
