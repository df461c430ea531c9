"""A momentum that rises from zero, as the average of β does in NLCG."""

from collections.abc import Callable

import jax
import optax


def with_ramp(
    build: Callable[..., optax.GradientTransformation],
    momentum: float | jax.Array,
    ramp: float | jax.Array | None,
) -> optax.GradientTransformation:
    """An optimizer whose momentum at step t, from zero on, is m (1 - ramp^t).

    Args:
      build: from the keyword ``momentum`` to the optimizer.
      momentum: the m above.
      ramp: a decay in [0, 1); None for a momentum that is constant. With zero it is
        constant after the first step, at which there is nothing to remember.
    """
    if ramp is None:
        return build(momentum=momentum)
    return optax.inject_hyperparams(build)(
        momentum=lambda count: momentum * (1 - ramp**count)
    )
