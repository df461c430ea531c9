"""Checks of arguments, made before any work.

Each message names the argument, what was given and what is allowed. Values that are
JAX arrays are let through: under ``optax.inject_hyperparams`` they are traced.
"""

import difflib
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.trees.inner_products import SCOPES
from nlcg_optax.xla.known import is_known

LARGEST_INT = 2**31 - 1  # largest int32 count, which a period divides


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a real number or an array of one; True is no number."""
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    if not hasattr(value, "dtype") or np.ndim(value) > 0:
        return False
    return not np.iscomplexobj(value) and value.dtype != bool


def check_number(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a real number, which may be an array."""
    if not _is_number(value):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; allowed is a real number"
        )


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        raise ValueError(f"{name}={value!r} is unknown; allowed are {list(allowed)}")


def check_bool(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a boolean, or zero or one, or an array."""
    is_scalar = isinstance(value, (int, np.generic, np.ndarray, jax.Array))
    if not is_scalar or np.ndim(value) > 0 or (is_known(value) and value not in (0, 1)):
        raise TypeError(f"{name}={value!r} must be True or False")


def check_scope(scope: Any) -> None:
    """Raises ValueError unless ``scope`` is a scope of inner products."""
    check_choice("scope", scope, SCOPES)


def check_range(low_name: str, high_name: str, low: Any, high: Any) -> None:
    """Raises ValueError unless ``low <= high`` and neither is NaN."""
    if _is_array(low) or _is_array(high):
        return
    check_number(low_name, low)
    check_number(high_name, high)
    if not low <= high:
        raise ValueError(
            f"{low_name}={low!r} and {high_name}={high!r}: {low_name} must not be "
            f"above {high_name}, and neither may be NaN"
        )


def _check_that(
    name: str, value: Any, is_allowed: Callable[[Any], bool], otherwise: str
) -> None:
    if _is_array(value):
        return
    check_number(name, value)
    if not is_allowed(value):
        raise ValueError(f"{name}={value!r} {otherwise}")


def check_at_most(name: str, value: Any, most: float) -> None:
    """Raises ValueError unless ``value`` is at most ``most``."""
    _check_that(name, value, lambda x: x <= most, f"must be at most {most:g}")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raises ValueError unless ``value`` is at least ``least``."""
    _check_that(name, value, lambda x: x >= least, f"must be at least {least:g}")


def check_below_one(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is finite and below one."""
    _check_that(
        name, value, lambda x: x < 1 and math.isfinite(x), "must be finite and below 1"
    )


def check_decay(name: str, value: Any) -> None:
    """Raises ValueError unless ``0 <= value < 1``."""
    _check_that(name, value, lambda x: 0 <= x < 1, "is not in [0, 1)")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a number, finite and above zero."""
    if _is_array(value):
        return
    if not _is_number(value) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} must be finite and greater than 0")


def check_non_negative(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is finite and not below zero."""
    _check_that(
        name,
        value,
        lambda x: x >= 0 and math.isfinite(x),
        "must be finite and not below 0",
    )


def _is_integer(value: Any) -> bool:
    """Whether ``value`` is a Python or NumPy integer, or a NumPy array of one."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_positive_int(
    name: str, value: Any, most: float = LARGEST_INT, remedy: str = ""
) -> None:
    """Raises ValueError unless ``value`` is an integer from one to ``most``.

    ``remedy`` says what the argument is.
    """
    if _is_array(value) and jnp.shape(value) == ():
        return
    is_integer = not _is_array(value) and _is_integer(value)
    if not is_integer or not 1 <= value <= most:
        is_large = is_integer and value > most
        bound = f" and at most {most}" if is_large or most < LARGEST_INT else ""
        raise ValueError(
            f"{name}={value!r} must be an integer of at least 1{bound}{remedy}"
        )


def check_static(**values: Any) -> None:
    """Raises TypeError if an argument on which the program depends is traced.

    Args:
      **values: the arguments by name.
    """
    for name, value in values.items():
        if not is_known(value):
            raise TypeError(
                f"{name}={value!r} is traced, but the program depends on its value; "
                "allowed is a Python value, which optax.inject_hyperparams keeps with "
                f"static_args=('{name}',)"
            )


def check_seed(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is an integer of at most 64 bits."""
    if _is_array(value):
        return
    if not _is_integer(value) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={value!r} must be an integer of at most 64 bits")


def check_rate(name: str, value: Any, remedy: str = "") -> None:
    """Raises TypeError unless ``value`` is a number or a schedule.

    A number that is not finite, or below 0, raises ValueError. ``remedy`` says what
    was probably meant.
    """
    if not (_is_number(value) or callable(value)):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; allowed are a number and a "
            f"schedule, a function of the step count{remedy}"
        )
    if not callable(value):
        check_non_negative(name, value)


def check_float_dtype(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` names a real floating-point dtype."""
    if _is_array(value):
        raise ValueError(
            f"{name}={value!r} is an array, not a dtype; under "
            "optax.inject_hyperparams a dtype such as jnp.bfloat16 is taken for a "
            f"schedule, so give its name: {name}='bfloat16'"
        )
    try:
        is_float = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise ValueError(
            f"{name}={value!r} must be a real floating-point dtype such as "
            "jnp.bfloat16 or jnp.float32"
        )


def check_transformation(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is an Optax transformation."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; allowed is an "
            "optax.GradientTransformation, such as optax.scale_by_rms()"
        )


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether this is to be called: callable, and no tree, as Equinox's modules are.

    Examples:
      >>> is_function(max), is_function(jax.tree_util.Partial(max))
      (True, False)
    """
    return callable(value) and jax.tree_util.all_leaves([value])


def check_callable(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name}={value!r} must be callable")


def check_scalar_output(name: str, output: Any) -> None:
    """Raises TypeError unless the output of function ``name`` is a real scalar."""
    is_array = hasattr(output, "dtype") and hasattr(output, "shape")
    if not is_array or output.shape or not jnp.issubdtype(output.dtype, jnp.floating):
        given = f"shape {output.shape} and dtype {output.dtype}" if is_array else output
        if isinstance(output, tuple):
            given = f"a tuple of {len(output)}"
            if name == "value_fn" and len(output) == 2:
                given += (
                    "; if these are the value and auxiliary data, pass has_aux=True"
                )
        raise TypeError(
            f"{name} must return a real scalar of a floating-point dtype, but "
            f"returned {given}"
        )


def returning_scalar(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``fn`` to raise TypeError unless it returns a real scalar."""

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        output = fn(*args, **kwargs)
        if not isinstance(output, float):
            check_scalar_output(name, output)
        return output

    return checked


def check_same_structure(name: str, tree: PyTree, reference: PyTree) -> None:
    """Raises ValueError unless both trees agree in structure and in all shapes.

    ``reference`` comes from the parameters that ``init`` saw.
    """
    given: Any = jax.tree.structure(tree)
    expected: Any = jax.tree.structure(reference)
    if given != expected:
        is_part = "MaskedNode" in str(expected) and "MaskedNode" not in str(given)
        remedy = (
            "; optax.masked and optax.partition cut extra arguments to their part with "
            "mask_compatible_extra_args=True"
            if is_part
            else ""
        )
        raise ValueError(
            f"{name} has the tree structure {given}, but the state was initialized "
            f"for {expected}{remedy}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(tree),
        jax.tree.leaves(reference),
        strict=True,
    )
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but "
                f"the state was initialized for {jnp.shape(other)}"
            )


def require(
    transformation: str, name: str, value: Any, why: str, given: Iterable[str] = ()
) -> Any:
    """Returns an argument of ``update``, or raises ValueError if it was not passed.

    ``given`` holds the names of the extra arguments that were passed.
    """
    if value is None:
        call = "" if name == "params" else f", {name}=..."
        passed_on = call and "; a wrapper must pass it on"
        close = [
            other for other in given if other != name and is_near_miss(other, name)
        ]
        hint = f" (is `{close[0]}` misspelled?)" if close else ""
        raise ValueError(
            f"{transformation}: update needs `{name}` ({why}), but got None{hint}; "
            f"call update(grads, state, params{call}){passed_on}"
        )
    return value


OTHER_NAMES = {
    "value": ("loss",),
    "value_fn": ("loss_fn", "fun", "loss_function"),
    "outputs_fn": ("model_fn", "apply_fn", "logits_fn", "predict_fn"),
    "output_loss_fn": ("loss_fn", "criterion"),
}


def is_near_miss(given: str, name: str) -> bool:
    """Whether an argument called ``given`` was probably meant to be ``name``.

    Examples:
      >>> is_near_miss("valuefn", "value_fn"), is_near_miss("value", "value_fn")
      (True, False)
    """
    return given in OTHER_NAMES.get(name, ()) or is_close(given, name)


def is_close(given: str, name: str) -> bool:
    """Whether two names differ in one or two letters, or only in letter order.

    Examples:
      >>> is_close("refesh", "refresh"), is_close("values", "value_fn")
      (True, False)
      >>> is_close("vaule", "value")
      True
    """
    if sorted(given) == sorted(name):
        return True
    return difflib.SequenceMatcher(None, given, name).ratio() > 0.85


def check_state(transformation: str, state: Any, kind: type) -> None:
    """Raises TypeError unless ``state`` is of the kind that ``init`` returns."""
    if not isinstance(state, kind):
        raise TypeError(
            f"{transformation}: update got a {type(state).__name__} as `state`, but "
            f"its state is the {kind.__name__} that init returns; call "
            "update(grads, state, params)"
        )


def check_stored(
    transformation: str, state: Any, reference: PyTree, **needed: bool
) -> None:
    """Raises ValueError unless a state holds the trees that the options need.

    Args:
      transformation: its name.
      state: its state.
      reference: a tree like those.
      **needed: for each field with such a tree, whether the options need it.
    """
    expected: Any = jax.tree.structure(reference)
    for name, is_needed in needed.items():
        if is_needed and jax.tree.structure(getattr(state, name)) != expected:
            raise ValueError(
                f"{transformation}: update got a `state` without the {name} that these "
                "options need, so it was made with other options; call init again"
            )


def check_chain_state(transformation: str, state: Any, count: int) -> None:
    """Raises TypeError unless ``state`` can be that of a chain of ``count`` parts."""
    if not isinstance(state, tuple) or len(state) != count:
        raise TypeError(
            f"{transformation}: update got a {type(state).__name__} as `state`, but "
            f"its state is the tuple of {count} that init returns; call "
            "update(grads, state, params)"
        )


def check_scalar_loss(transformation: str, value: Any) -> None:
    """Raises TypeError or ValueError unless ``value`` is a real scalar."""
    if isinstance(value, tuple | list | dict | str):
        raise TypeError(
            f"{transformation}: update needs a real scalar `value`, the loss, but got "
            f"a {type(value).__name__}; if the loss comes with something else, such as "
            "with has_aux=True, give the loss alone"
        )
    if jnp.shape(value) != () or not jnp.isrealobj(value):
        raise ValueError(
            f"{transformation}: update needs a real scalar `value`, but got shape "
            f"{jnp.shape(value)} and dtype {jnp.result_type(value)}"
        )
