"""How extra arguments reach a loss function, and how transformations share them."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, on_arrays, strong_types
from nlcg_optax.xla.meshes import explained_explicit_axes


def bind_extra_args(
    value_fn: Callable[..., Any],
    extra_args: dict[str, Any],
    *,
    name: str = "value_fn",
    num_positional: int = 1,
) -> Callable[..., Any]:
    """Binds to ``value_fn`` those extra arguments of ``update`` that it accepts.

    Optax's line searches treat ``value_fn`` in the same way: a loss that needs data
    gets them as further arguments of ``update``.

    Args:
      value_fn: a loss ``value_fn(params, ...)``, or another function.
      extra_args: the extra arguments of an ``update`` call.
      name: name of the function, for the message of an error.
      num_positional: number of its leading arguments that are left open.

    Returns:
      A function of ``params`` (of the leading arguments) alone.

    Raises:
      TypeError: if ``value_fn`` cannot be called.

    Examples:
      >>> bind_extra_args(lambda w, x: w * x, {"x": 3., "value": 0.})(2.)
      6.0
    """
    validation.check_callable(name, value_fn)
    parameters = list(inspect.signature(value_fn).parameters.values())
    named = {
        p.name
        for p in parameters[num_positional:]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    accepted = {name: value for name, value in extra_args.items() if name in named}
    return functools.partial(value_fn, **accepted) if accepted else value_fn


def only_extra_args(
    tx: optax.GradientTransformation, names: Iterable[str]
) -> optax.GradientTransformationExtraArgs:
    """Passes only the extra arguments in ``names`` to ``tx``.

    Optax's line searches raise on an extra argument that ``value_fn`` does not
    accept; wrapped in this they can share a chain with transformations that take more.

    Args:
      tx: any Optax transformation.
      names: names of the extra arguments that ``tx`` receives.

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


LINESEARCH_EXTRA_ARGS = ("value", "grad", "value_fn")
SEARCH_REMEDY = "scale_by_hager_zhang_linesearch runs on explicit axes"


def for_linesearch(
    linesearch: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Adapts an Optax line search to a chain whose other members take extra arguments.

    Extra arguments that ``value_fn`` accepts are bound to it, and of all others the
    search sees only ``value``, ``grad`` and ``value_fn``, so that it does not raise on
    arguments of other members. The scalars of its state lose their weak types, so that
    a jitted step compiles once.

    Args:
      linesearch: a line search.

    Returns:
      The line search, with its own state.

    Raises:
      TypeError: if ``linesearch`` is no transformation.
      ValueError: in ``update``, if it cannot run on the explicit axes of a mesh, as
        those of Optax cannot if parameters are split.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx = for_linesearch(optax.scale_by_backtracking_linesearch(10))
      >>> x, loss = jnp.ones(2), lambda x, scale: jnp.sum(scale * x**2)
      >>> updates, _ = tx.update(-x, tx.init(x), x, value=loss(x, 1.), grad=2 * x,
      ...                        value_fn=loss, scale=1., epoch=3)
      >>> updates
      Array([-1., -1.], dtype=float32)
    """
    validation.check_transformation("linesearch", linesearch)
    inner = only_extra_args(linesearch, LINESEARCH_EXTRA_ARGS)

    def init_fn(params: PyTree) -> PyTree:
        return strong_types(inner.init(params))

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        if extra_args.get("value_fn") is not None:
            bound = bind_extra_args(extra_args["value_fn"], extra_args)
            extra_args = {**extra_args, "value_fn": bound}
        with explained_explicit_axes("linesearch", SEARCH_REMEDY):
            updates, state = inner.update(updates, state, params, **extra_args)
        return updates, strong_types(state)

    return on_arrays(optax.GradientTransformationExtraArgs(init_fn, update_fn))
