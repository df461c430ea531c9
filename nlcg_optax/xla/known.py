"""What Python can read while it runs a program, and what only XLA will know."""

import jax


def is_known(value: bool | jax.Array) -> bool:
    """Whether a value can be read now, that is, outside of ``jit``, ``vmap`` and so on.

    Examples:
      >>> import jax.numpy as jnp
      >>> is_known(jnp.float32(1.))
      True
    """
    return not isinstance(value, jax.core.Tracer)
