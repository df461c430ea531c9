"""What `minimize` accepts, checked and cast before any work."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, strong_types
from nlcg_optax.minimization.convergence import DEFAULT_TOL, TolKind
from nlcg_optax.xla.known import is_known

TOLERANCES = get_args(TolKind)
_TRANSFORM = (
    "minimize over unbounded parameters instead, such as jnp.exp(u) for a positive "
    "one or low + (high - low) * jax.nn.sigmoid(u) for one in an interval"
)
_DERIVATIVES = "derivatives are taken by JAX; leave it out"
# Arguments of SciPy, jaxopt and others, and what to use here instead.
OTHER_NAMES = {
    "maxiter": "use max_iterations",
    "max_steps": "use max_iterations",
    "maxfun": "use max_evaluations",
    "maxfev": "use max_evaluations",
    "gtol": 'use tol with tol_kind="absolute"',
    "ftol": "use tol",
    "xtol": "use tol",
    "rtol": "use tol",
    "atol": 'use tol with tol_kind="absolute"',
    "options": "use max_iterations, max_evaluations, tol and tol_kind",
    "jac": f"{_DERIVATIVES} (a pair of value and auxiliary output: has_aux=True)",
    "value_and_grad": f"{_DERIVATIVES} (auxiliary output: has_aux=True)",
    "hess": _DERIVATIVES,
    "hessp": _DERIVATIVES,
    "bounds": _TRANSFORM,
    "constraints": f"only unconstrained problems; {_TRANSFORM}",
    "disp": "print the result, or pass a callback",
}
POINT_NAMES = ("x", "xk", "intermediate_result")
_ALLOWED = (
    "allowed are real and complex floating-point arrays and numbers. Close over other "
    "leaves, such as after equinox.partition"
)
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_warned: set[str] = set()


def check_unknown(unknown: dict[str, Any]) -> None:
    """Raises TypeError for arguments that `minimize` does not have.

    Examples:
      >>> check_unknown({"maxiter": 5})
      Traceback (most recent call last):
      TypeError: minimize has no argument maxiter=5: use max_iterations
    """
    for name, value in unknown.items():
        hint = OTHER_NAMES.get(name, "see help(nlcg_optax.minimize) for what it has")
        raise TypeError(f"minimize has no argument {name}={value!r}: {hint}")


def check_limits(
    tol: Any, tol_kind: Any, max_iterations: Any, max_evaluations: Any, patience: Any
) -> dict[str, Any]:
    """Returns the limits by name, with the default of ``tol`` filled in.

    NumPy and JAX numbers become Python numbers, so that the compiled program is reused.

    Raises:
      ValueError: if one of them is out of its range.
    """
    limits = {
        "tol": DEFAULT_TOL if tol is None else tol,
        "max_iterations": max_iterations,
        "max_evaluations": max_evaluations,
        "patience": patience,
    }
    for name, limit in limits.items():
        if np.shape(limit) != ():
            raise ValueError(
                f"{name} has the shape {np.shape(limit)}; it must be a scalar"
            )
        if isinstance(limit, jax.Array) and is_known(limit):
            limits[name] = limit.item()
    validation.check_choice("tol_kind", tol_kind, TOLERANCES)
    for name in ("tol", "max_evaluations"):
        validation.check_positive(name, limits[name])
        if not isinstance(limits[name], jax.Array):
            limits[name] = float(limits[name])
    for name in ("max_iterations", "patience"):
        validation.check_positive_int(name, limits[name], most=math.inf)
        if not isinstance(limits[name], jax.Array):
            limits[name] = min(int(limits[name]), validation.LARGEST_INT)
    return limits


def as_args(args: Any) -> tuple[Any, ...]:
    """Returns the further arguments as a tuple, as SciPy does.

    Examples:
      >>> as_args(3.), as_args((1, 2))
      ((3.0,), (1, 2))
    """
    return args if isinstance(args, tuple) else (args,)


def as_start(x0: Any) -> PyTree:
    """Returns the start as a tree of floating-point arrays.

    As in SciPy, a list or tuple of numbers is an array; some of them may be JAX
    scalars. Integers become floats, except JAX integers within a tree, which may be
    counters or keys.

    Args:
      x0: the start as given.

    Returns:
      A tree of JAX arrays.

    Raises:
      ValueError: if there is no leaf, or rows of numbers have different lengths.
      TypeError: if a leaf is not a real or complex floating-point array; the message
        names the leaf.

    Examples:
      >>> as_start([1, 2.5])
      Array([1. , 2.5], dtype=float32)
    """
    if type(x0) in (list, tuple) and _holds_numbers(x0):
        is_complex = any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(x0))
        try:
            numbers = np.asarray(x0, complex if is_complex else float)
        except ValueError as error:
            raise ValueError(
                f"x0={x0!r} has rows of different lengths; allowed are lists of equal "
                "length or a tree of arrays, such as a list of them"
            ) from error
        x0 = jnp.asarray(numbers)
    elif type(x0) in (list, tuple) and _mixes_scalars(x0):
        is_complex = any(np.iscomplexobj(part) for part in x0)
        dtype = jnp.asarray(0, complex if is_complex else float).dtype
        x0 = jnp.stack([jnp.asarray(part).astype(dtype) for part in x0])
    leaves, structure = jax.tree_util.tree_flatten_with_path(x0)
    if not leaves:
        raise ValueError(f"x0={x0!r} has no leaves: there is nothing to minimize over")
    arrays = []
    for path, leaf in leaves:  # no comprehension: the warning counts frames
        arrays.append(_as_array(path, leaf))
    # No weak types: with them the loop would be compiled twice, for its first turns and
    # for the others.
    return strong_types(jax.tree.unflatten(structure, arrays))


def _holds_numbers(x0: Any) -> bool:
    leaves = jax.tree.leaves(x0)
    return (
        bool(leaves)
        and all(_is_number(leaf) for leaf in leaves)
        and all(type(part) in (list, tuple) or np.isscalar(part) for part in x0)
    )


def _mixes_scalars(x0: Any) -> bool:
    """Whether there are both numbers and JAX scalars; JAX scalars alone are a tree."""
    numbers = [_is_number(part) for part in x0]
    scalars = [
        isinstance(part, jax.Array) and part.ndim == 0 and part.dtype != bool
        for part in x0
    ]
    return any(numbers) and all(map(any, zip(numbers, scalars, strict=True)))


def _is_number(leaf: Any) -> bool:
    is_boolean = isinstance(leaf, (bool, np.bool_))
    return isinstance(leaf, (int, float, complex, np.generic)) and not is_boolean


def _as_array(path: Any, leaf: Any) -> jax.Array:
    name = f"x0{jax.tree_util.keystr(path)}"
    is_array = isinstance(leaf, (jax.Array, np.ndarray))
    if not _is_number(leaf) and not is_array:
        raise TypeError(f"{name}={leaf!r} is a {type(leaf).__name__}; {_ALLOWED}")
    is_jax = isinstance(leaf, jax.Array)
    given = leaf if is_jax else np.asarray(leaf)
    is_integer = isinstance(leaf, int) or jnp.issubdtype(given.dtype, jnp.integer)
    if is_integer and not (is_jax and path):
        return jnp.asarray(given.astype(float))
    is_float = jnp.issubdtype(given.dtype, jnp.inexact)
    if not is_float or jnp.finfo(given.dtype).bits > 64:
        raise TypeError(f"{name}={leaf!r} has dtype {given.dtype}; {_ALLOWED}")
    if is_jax:
        return leaf
    out = jnp.asarray(leaf)
    is_array = isinstance(leaf, (np.ndarray, np.generic))
    if is_array and out.dtype.itemsize < given.dtype.itemsize and not _warned:
        _warned.add(name)
        warnings.warn(
            f"{name} is {given.dtype} and becomes {out.dtype}, JAX's default; "
            'for float64 call jax.config.update("jax_enable_x64", True) at the start '
            "of the program; or pass a float32 array",
            stacklevel=4,
        )
    return out


def wants_point(callback: Callable[..., Any] | None) -> bool:
    """Whether a callback has a parameter that asks for the point.

    Raises:
      TypeError: if it cannot be called as `host_callback` calls it.

    Examples:
      >>> wants_point(lambda progress: None), wants_point(lambda xk: None)
      (False, True)
    """
    if callback is None:
        return False
    validation.check_callable("callback", callback)
    signature, names = _signature(callback), _parameters(callback)
    if signature is not None:
        args, kwargs = _call_of(names, None, None)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"callback={callback!r} cannot be called: {error}; allowed parameters "
                "are (progress), (x) and (progress, x), also with xk in place of x"
            ) from error
    return bool(names & set(POINT_NAMES))


def _call_of(names: set[str], progress: Any, point: Any) -> tuple[Any, Any]:
    """The arguments, by position and by name, for a callback with these parameters."""
    if names == {"intermediate_result"}:  # keyword-only in SciPy's documentation
        return (), {"intermediate_result": progress}
    named = dict.fromkeys(sorted(names & {"x", "xk"}), point)
    return () if len(names) == 1 and named else (progress,), named


def _parameters(callback: Callable[..., Any]) -> set[str]:
    """The names of the parameters that need a value or ask for the point."""
    signature = _signature(callback)
    if signature is None:
        return set()
    return {
        name
        for name, parameter in signature.parameters.items()
        if name in POINT_NAMES
        or (parameter.default is parameter.empty and parameter.kind not in _REST)
    }


def _signature(callback: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(callback)
    except (TypeError, ValueError):  # such as a built-in function without signature
        return None


def host_callback(callback: Callable[..., Any], on_error: Callable[..., Any]) -> Any:
    """Returns what the loop calls: ``(active, progress) -> whether to end``.

    Args:
      callback: as given to `minimize`.
      on_error: called with an exception of the callback.

    Returns:
      A function for the host.
    """
    names = _parameters(callback)

    def call(active: Any, progress: Any) -> np.ndarray:
        if not active:
            return np.zeros([], np.bool_)
        progress = jax.tree.map(np.asarray, progress)
        try:
            args, kwargs = _call_of(names, progress, progress.x)
            ends = callback(*args, **kwargs)
        except StopIteration:
            ends = True
        except BaseException as error:
            on_error(error)
            ends = True
        is_boolean = getattr(ends, "dtype", None) == np.bool_ and np.ndim(ends) == 0
        return np.asarray(ends is True or (is_boolean and bool(ends)))

    return call
