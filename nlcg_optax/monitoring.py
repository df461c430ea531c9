"""Diagnostics of an optimizer state as a flat dictionary of scalars."""

import jax
import optax

from nlcg_optax.dtypes import PyTree


def diagnostics(opt_state: PyTree) -> dict[str, jax.Array]:
    """Collects the diagnostics of every transformation of this package in a state.

    The state may be nested in any way: ``optax.chain``, ``masked``, ``partition``,
    ``MultiSteps``, ``inject_hyperparams``. This works inside ``jit`` too.

    Args:
      opt_state: an Optax state.

    Returns:
      Scalars by name, such as ``beta``, ``cosine``, ``grad_norm``, ``restarted`` and
      ``step_multiplier``. A name that occurs in several places of the state is
      prefixed with the path of its place.

    Raises:
      TypeError: if ``opt_state`` is an optimizer.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nlcg_optax import scale_by_nlcg
      >>> tx = optax.chain(scale_by_nlcg("fr"), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.array([3., 4.])
      >>> _, state = tx.update(params, tx.init(params))
      >>> float(diagnostics(state)["grad_norm"]), float(diagnostics(state)["cosine"])
      (5.0, 1.0)
    """
    if isinstance(opt_state, optax.GradientTransformation):
        raise TypeError(
            "opt_state is an optimizer; allowed is its state, which init and update "
            "return"
        )
    found = [
        (jax.tree_util.keystr(path[:-1]), value._asdict())
        for path, value in optax.tree.get_all_with_path(opt_state, "diagnostics")
        # A parameter may have this name, too.
        if type(value).__module__.startswith(f"{__package__}.")
    ]
    names = [name for _, scalars in found for name in scalars]
    return {
        name if names.count(name) == 1 else f"{place}.{name}": value
        for place, scalars in found
        for name, value in scalars.items()
    }
