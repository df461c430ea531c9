"""The warning that a nested transformation flips the sign of its input."""

import warnings

import jax

from nlcg_optax.xla.known import is_known


def warn_of_the_sign(
    name: str, count: jax.Array, flipped: jax.Array, fact: str
) -> None:
    """Warns of a sign flipped at the first update; not inside of ``jit``.

    Args:
      name: name of the argument that takes the transformation.
      count: updates before this one.
      flipped: whether it flips the sign of this gradient; zero means no.
      fact: what was seen, and what is done about it.
    """
    if is_known(count) and is_known(flipped) and count == 0 and flipped:
        warnings.warn(
            f"{name}: {fact}. This transformation maps g to P g, without a learning "
            "rate and its sign: for example, pass optax.scale_by_adam() instead of "
            "optax.adam(...)",
            stacklevel=2,
        )
