"""How extra arguments reach a loss function, and how transformations share them."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import optax

from nlcg_optax import validation
from nlcg_optax.inner_products import PyTree


def bind_extra_args(
    value_fn: Callable[..., Any], extra_args: dict[str, Any]
) -> Callable[[PyTree], Any]:
    """Binds to ``value_fn`` those extra arguments of ``update`` that it accepts.

    Optax's line searches treat ``value_fn`` in the same way: a loss that needs data
    gets it as a further argument of ``update``.

    Args:
      value_fn: a loss ``value_fn(params, ...)``.
      extra_args: the extra arguments of an ``update`` call.

    Returns:
      A function of ``params`` alone.

    Raises:
      TypeError: if ``value_fn`` cannot be called.

    Examples:
      >>> bind_extra_args(lambda w, x: w * x, {"x": 3., "value": 0.})(2.)
      6.0
    """
    validation.check_callable("value_fn", value_fn)
    parameters = list(inspect.signature(value_fn).parameters.values())
    named = {
        p.name
        for p in parameters[1:]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    accepted = {name: value for name, value in extra_args.items() if name in named}
    return functools.partial(value_fn, **accepted) if accepted else value_fn


def only_extra_args(
    tx: optax.GradientTransformation, names: Iterable[str]
) -> optax.GradientTransformationExtraArgs:
    """Lets only the extra arguments in ``names`` through to ``tx``.

    Optax's line searches raise on an extra argument that ``value_fn`` does not
    accept; wrapped in this they live in a chain with transformations that take more.

    Args:
      tx: any Optax transformation.
      names: names of the extra arguments that ``tx`` shall see.

    Returns:
      The transformation, with the state of ``tx`` itself.

    Raises:
      TypeError: if ``tx`` is no transformation.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> search = optax.scale_by_backtracking_linesearch(10)
      >>> tx = only_extra_args(search, ("value", "grad", "value_fn"))
      >>> x, loss = jnp.ones(2), lambda x: jnp.sum(x**2)
      >>> updates, _ = tx.update(-x, tx.init(x), x, value=loss(x), grad=2 * x,
      ...                        value_fn=loss, anything_else=1)
      >>> updates
      Array([-1., -1.], dtype=float32)
    """
    validation.check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)
    names = frozenset(names)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        passed = {name: v for name, v in extra_args.items() if name in names}
        return tx.update(updates, state, params, **passed)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)
