"""How extra arguments reach a loss function, and how transformations share them."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, strong_types
from nlcg_optax.transformation import as_arrays
from nlcg_optax.xla.automatic_sharding import explained_explicit_axes

# The extra arguments that a transformation of this package reads.
KNOWN_EXTRA_ARGS = (
    *("value", "grad", "value_fn", "outputs_fn", "output_loss_fn", "hvp_fn"),
    *("has_aux", "refresh", "half_grads", "step_multiplier", "previous_direction"),
)
# Functions that may return auxiliary data.
WITH_AUX = ("value_fn", "outputs_fn")


def bind_extra_args(
    value_fn: Callable[..., Any],
    extra_args: dict[str, Any],
    *,
    name: str = "value_fn",
    num_positional: int = 1,
) -> Callable[..., Any]:
    """Binds to ``value_fn`` those extra arguments of ``update`` that it accepts.

    Optax's line searches treat ``value_fn`` in the same way: a loss that needs data
    gets them as extra arguments of ``update``. With ``has_aux=True`` among these, a
    value or outputs function returns a pair, whose first member is kept.

    Args:
      value_fn: a loss ``value_fn(params, ...)``, or another function.
      extra_args: the extra arguments of an ``update`` call.
      name: name of the function, for error messages.
      num_positional: number of its leading arguments that are left open.

    Returns:
      A function of ``params`` (or of the leading arguments) alone.

    Raises:
      TypeError: if ``value_fn`` cannot be called, if it has a parameter without a
        default that is not among the extra arguments, or if ``has_aux`` is not a
        Python boolean.

    Examples:
      >>> bind_extra_args(lambda w, x: w * x, {"x": 3., "value": 0.})(2.)
      6.0
    """
    validation.check_callable(name, value_fn)
    named = _named_parameters(value_fn, num_positional)
    accepted = {key: value for key, value in extra_args.items() if key in named}
    missing = [
        key for key, p in named.items() if p.default is p.empty and key not in accepted
    ]
    if missing:
        raise TypeError(
            f"{name} has the parameter `{missing[0]}`, but update got no such extra "
            f"argument, only {sorted(extra_args)}; call update(grads, state, params, "
            f"{missing[0]}=...)"
        )
    bound = functools.partial(value_fn, **accepted) if accepted else value_fn
    has_aux = extra_args.get("has_aux", False)
    check_has_aux(has_aux)
    return without_aux(name, bound) if has_aux and name in WITH_AUX else bound


def check_has_aux(has_aux: Any) -> None:
    """Raises TypeError unless ``has_aux`` is a Python boolean."""
    if not isinstance(has_aux, bool):
        raise TypeError(
            f"has_aux={has_aux!r} must be True or False: it has to be known when the "
            "program is compiled"
        )


def without_aux(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``fn`` to return only the first member of its pair, as in ``jax.grad``.

    Args:
      name: name of the function, for error messages.
      fn: a function that returns a pair of a result and auxiliary data.

    Returns:
      A function with the same arguments that returns the result alone. It raises
      TypeError if ``fn`` does not return a pair.

    Examples:
      >>> without_aux("value_fn", lambda x: (2 * x, "aux"))(3)
      6
    """

    @functools.wraps(fn)
    def result_alone(*args: Any, **kwargs: Any) -> Any:
        output = fn(*args, **kwargs)
        if not isinstance(output, tuple) or len(output) != 2:
            given = type(output).__name__
            raise TypeError(
                f"with has_aux=True {name} must return a pair of its result and "
                f"auxiliary data, but returned a {given}"
            )
        return output[0]

    return result_alone


def warn_of_near_misses(extra_args: dict[str, Any]) -> None:
    """Warns of extra arguments whose names are nearly those that the package reads.

    By Optax's contract a transformation accepts unknown extra arguments, because they
    may be for another one. So an unknown name is not an error. It is most probably a
    mistake if it differs in a letter or an underscore from a name that was not given,
    and no given function has it as a parameter. `only_extra_args` with ``strict=True``
    refuses every unknown name.
    """
    for given in extra_args:
        name = _near_miss(given)
        if name is None or name in extra_args:
            continue
        functions = [extra_args.get(fn) for fn in KNOWN_EXTRA_ARGS if fn.endswith("fn")]
        if not any(fn and given in _named_parameters(fn, 0) for fn in functions):
            warnings.warn(
                f"update got the extra argument `{given}`, which nothing in nlcg_optax "
                f"reads; if it is misspelled, write `{name}`",
                stacklevel=2,
            )


@functools.cache
def _near_miss(given: str) -> str | None:
    if given in KNOWN_EXTRA_ARGS:
        return None
    close = (n for n in KNOWN_EXTRA_ARGS if validation.is_close(given, n))
    return next(close, None)


def _named_parameters(
    fn: Callable[..., Any], num_positional: int
) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name, without the leading ones."""
    parameters = list(inspect.signature(fn).parameters.values())
    return {
        p.name: p
        for p in parameters[num_positional:]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def only_extra_args(
    tx: optax.GradientTransformation, names: Iterable[str], *, strict: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Passes only the extra arguments in ``names`` to ``tx``.

    Optax's line searches raise on an extra argument that ``value_fn`` does not
    accept; wrapped in this they can share a chain with transformations that take more.

    Args:
      tx: any Optax transformation.
      names: names of the extra arguments that ``tx`` receives.
      strict: whether ``update`` refuses every other extra argument instead of dropping
        it. Optax's transformations accept unknown extra arguments, so a misspelled
        one is dropped without notice; ``strict`` around a whole optimizer reports it.

    Returns:
      The transformation, with the state of ``tx`` itself.

    Raises:
      TypeError: if ``tx`` is not a transformation, if ``names`` is a string, or (in
        ``update``, with ``strict``) for an extra argument that is not in ``names``.

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
    if isinstance(names, str):
        raise TypeError(
            f"names={names!r} is one string; allowed are several: ('value',)"
        )
    names = frozenset(names)
    tx = optax.with_extra_args_support(tx)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        unknown = sorted(extra_args.keys() - names)
        if strict and unknown:
            raise TypeError(
                f"only_extra_args: update got the extra argument `{unknown[0]}`; "
                f"allowed are {sorted(names)}"
            )
        passed = {name: v for name, v in extra_args.items() if name in names}
        return tx.update(updates, state, params, **passed)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


LINESEARCH_EXTRA_ARGS = ("value", "grad", "value_fn")
SEARCH_REMEDY = "scale_by_hager_zhang_linesearch runs on explicit axes"


def for_linesearch(
    linesearch: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Adapts an Optax line search to a chain whose other members take extra arguments.

    Extra arguments that ``value_fn`` accepts are bound to it. The search receives only
    ``value``, ``grad`` and ``value_fn``, so that it does not raise on arguments of
    other members. The scalars of its state lose their weak types, so that a jitted step
    compiles once.

    Args:
      linesearch: a line search.

    Returns:
      The line search, with its own state.

    Raises:
      TypeError: if ``linesearch`` is not a transformation or, in ``update``,
        ``value_fn`` does not return a real scalar (with ``has_aux=True``, a pair with
        one).
      ValueError: in ``update``, if an argument that the search needs is missing, or the
        search cannot run on the explicit axes of a mesh. Optax's searches cannot if
        parameters are split over these.

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
    needed = [
        name
        for name, p in _named_parameters(linesearch.update, 0).items()
        if name in LINESEARCH_EXTRA_ARGS and p.default is p.empty
    ]

    def init_fn(params: PyTree) -> PyTree:
        return strong_types(inner.init(as_arrays(params)))

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        for name in needed:
            validation.require(
                "for_linesearch",
                name,
                extra_args.get(name),
                "the search reads it",
                extra_args,
            )
        if extra_args.get("value_fn") is not None:
            bound = bind_extra_args(extra_args["value_fn"], extra_args)
            bound = validation.returning_scalar("value_fn", bound)
            extra_args = {**extra_args, "value_fn": bound}
        arrays = as_arrays((updates, params))
        with explained_explicit_axes("linesearch", SEARCH_REMEDY):
            updates, state = inner.update(arrays[0], state, arrays[1], **extra_args)
        return updates, strong_types(state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def checked_chain(
    name: str, parts: Sequence[optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """``optax.chain(*parts)``, whose ``update`` checks that it is given its state.

    Args:
      name: name of the optimizer, for error messages.
      parts: the transformations.

    Returns:
      The chain. Its ``update`` raises TypeError if the state cannot be its own, as
      when gradients and state are swapped.

    Examples:
      >>> tx = checked_chain("sgd", [optax.scale(-0.1)])
      >>> tx.update(tx.init(1.), {"w": 1.})
      Traceback (most recent call last):
      ...
      TypeError: sgd: update got a dict as `state`, but its state is the tuple of 1...
    """
    chained = optax.chain(*parts)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        validation.check_chain_state(name, state, len(parts))
        return chained.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chained.init, update_fn)
