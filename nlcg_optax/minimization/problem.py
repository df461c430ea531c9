"""An objective that `minimize` has traced, in its coordinates, with its data."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nlcg_optax.dtypes import PyTree, accumulator_dtype
from nlcg_optax.minimization.coordinates import Coordinates
from nlcg_optax.minimization.state import Objective, objective_of
from nlcg_optax.minimization.tracing import (
    Traced,
    evaluate,
    largest,
    largest_input,
    trace,
)
from nlcg_optax.xla.varying import axes_of_type, varying_over, varying_with

# Tracing errors that a function written for NumPy raises.
_OF_NUMPY = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_ASSIGNED = "setting an array element"  # a NumPy array cannot hold traced values
NOT_NUMBERS = ("O", "S", "U", "M", "m")  # kinds of NumPy: objects, strings, dates
# Sizes of the largest array that a problem computes, and of the largest that it is
# given, up to which compiling takes most of the time.
SMALL, SMALL_INPUT = 512, 2**16


class Problem(NamedTuple):
    """A traced objective.

    Attributes:
      coordinates: how the parameters are written.
      aux: shapes and dtypes of the auxiliary tree.
      value: the traced value and auxiliary leaves, of coordinates and arguments.
      gradient: the same with the gradient; None if that follows from ``value``.
      args: leaves of the arguments.
      plain: programs of the value and of the gradient without custom derivatives, in
        place of the caller's. They take closed-over values, then the arguments.
    """

    coordinates: Coordinates
    aux: PyTree
    value: Traced
    gradient: Traced | None
    args: list[Any]
    plain: tuple[ClosedJaxpr, ClosedJaxpr] | None = None

    @property
    def inputs(self) -> tuple[list[Any], ...]:
        """All that the value depends on, besides the parameters."""
        gradient = [] if self.gradient is None else self.gradient.values
        return self.args, self.value.values, gradient

    @property
    def key(self) -> Hashable:
        """Equal for problems that the same compiled program solves."""
        gradient = None if self.gradient is None else self.gradient.key
        leaves, structure = jax.tree.flatten((self.coordinates.like, self.aux))
        likes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        is_vector = self.coordinates.is_vector
        return self.value.key, gradient, structure, likes, is_vector

    @property
    def is_small(self) -> bool:
        """Whether compiling takes longer than running, optimized or not."""
        jaxpr = (self.value if self.plain is None else self.plain[0]).jaxpr
        return largest(jaxpr) <= SMALL and largest_input(jaxpr) <= SMALL_INPUT

    def without_inputs(self) -> "Problem":
        """The problem without the caller's arrays, which may belong to a trace."""
        value, gradient = self.value._replace(values=[]), self.gradient
        if gradient is not None:
            gradient = gradient._replace(values=[])
        return self._replace(value=value, gradient=gradient, args=[])

    def without_data(self) -> "Problem":
        """The problem without the caller's arrays and functions."""
        if self.gradient is None:
            return self.without_inputs()
        # Functions with custom derivatives may close over data. Neither the value nor
        # the traced gradient needs the derivatives.
        return self._replace(
            value=self.value._replace(jaxpr=None),
            gradient=self.gradient._replace(jaxpr=None),
            plain=(_plain(self.value), _plain(self.gradient)),
        ).without_inputs()


def pose(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    has_aux: bool,
    coordinates: Coordinates,
    u: PyTree,
) -> Problem:
    """Traces an objective.

    Args:
      fun: ``fun(x, *args)``, a real scalar, or a pair of it and an auxiliary tree.
      args: further arguments of ``fun``; leaves that are not arrays, such as Python
        numbers or functions, are closed over.
      has_aux: whether ``fun`` returns a pair.
      coordinates: how the parameters are written.
      u: coordinates of parameters, for their shapes.

    Returns:
      The problem.

    Raises:
      TypeError: if ``fun`` returns something else.
    """
    given, structure = jax.tree.flatten(args)
    leaves = [leaf for leaf in given if _is_data(leaf)]

    def value_and_aux(v: PyTree, leaves: list[Any]) -> tuple[jax.Array, PyTree]:
        rest = iter(leaves)
        all_leaves = [next(rest) if _is_data(leaf) else leaf for leaf in given]
        out = fun(coordinates.tree(v), *jax.tree.unflatten(structure, all_leaves))
        return _checked(out, has_aux)

    try:
        value = trace(value_and_aux, u, leaves)
    except (*_OF_NUMPY, ValueError) as error:
        if isinstance(error, _OF_NUMPY) or _ASSIGNED in str(error):
            error.add_note(
                "minimize traces fun with JAX. Write it with jax.numpy in place of "
                "numpy and math, with jnp.where or jax.lax.cond in place of if, with "
                "jnp.stack or x.at[i].set(y) in place of x[i] = y, and without float() "
                "or int() of what depends on x."
            )
        raise
    gradient = None
    if value.has_custom_rules:
        scale = jnp.ones([], accumulator_dtype(u))
        scale = varying_with(scale, (u, value.values, leaves))

        def value_and_grad(v: PyTree, scale: jax.Array, leaves: list[Any]) -> Any:
            objective = objective_of(lambda v_: value_and_aux(v_, leaves))
            return objective.value_and_grad(v, scale)

        gradient = trace(value_and_grad, u, scale, leaves)
    return Problem(coordinates, value.shape[1], value, gradient, leaves)


def value_and_aux(problem: Problem, u: PyTree, inputs: Sequence[list[Any]]) -> Any:
    """The objective and the auxiliary tree, with the derivatives of ``fun``.

    Args:
      problem: a problem with the functions of the caller.
      u: coordinates.
      inputs: as `Problem.inputs`.

    Returns:
      The value and the tree.
    """
    args, values, _ = inputs
    leaves = [*jax.tree.leaves(u), *args]
    if problem.plain is not None:
        out = jaxpr_as_fun(problem.plain[0])(*values, *leaves)
    else:
        out = evaluate(problem.value.jaxpr, values, leaves)
    return out[0], jax.tree.unflatten(jax.tree.structure(problem.aux), out[1:])


def objective_from(problem: Problem, inputs: Sequence[list[Any]]) -> Objective:
    """The objective of the loop.

    Args:
      problem: a problem, with or without its data.
      inputs: as `Problem.inputs`.

    Returns:
      The objective.
    """
    plain = objective_of(lambda u: value_and_aux(problem, u, inputs))
    if problem.gradient is None:
        return plain
    gradient = problem.gradient
    args, _, values = inputs

    def value_and_grad(u: PyTree, scale: jax.Array) -> Any:
        leaves = [*jax.tree.leaves(u), varying_with(scale, (u, inputs)), *args]
        if problem.plain is not None:
            out = jaxpr_as_fun(problem.plain[1])(*values, *leaves)
        else:
            out = evaluate(gradient.jaxpr, values, leaves)
        return jax.tree.unflatten(jax.tree.structure(gradient.shape), out)

    return Objective(plain.value, value_and_grad)


def _plain(traced: Traced) -> ClosedJaxpr:
    """The program without custom derivatives, of ``values`` and its arguments."""
    likes = [_like(variable.aval) for variable in traced.jaxpr.invars]

    def compute(values: list[Any], args: list[Any]) -> list[Any]:
        return evaluate(traced.jaxpr, values, args, custom=False)

    return jax.make_jaxpr(compute)(traced.values, likes)


def _like(aval: Any) -> Any:
    """The placeholder of an argument in a trace."""
    axes = axes_of_type(aval)
    if axes:  # of `shard_map`, which a `jax.ShapeDtypeStruct` cannot express
        return varying_over(jnp.zeros(aval.shape, aval.dtype), [axes])
    is_split = jax.sharding.AxisType.Explicit in aval.sharding.mesh.axis_types
    sharding = aval.sharding if is_split else None
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)


def _is_data(leaf: Any) -> bool:
    if isinstance(leaf, type):  # such as `jnp.float32`
        return False
    if getattr(getattr(leaf, "dtype", None), "kind", None) in NOT_NUMBERS:
        return False
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _checked(out: Any, has_aux: bool) -> tuple[jax.Array, PyTree]:
    """The value and the auxiliary tree as arrays."""
    aux = None
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"fun returns {out}; with has_aux=True it must return a pair of a "
                "real scalar and an auxiliary tree"
            )
        out, aux = out
    if isinstance(out, (int, float)) and not isinstance(out, bool):
        out = jnp.asarray(float(out))
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"fun returns {out}; it must return a real floating-point scalar"
            + _remedy(shape, has_aux)
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(aux)
    arrays = [_aux_array(*pair) for pair in leaves]
    return jnp.asarray(out), jax.tree.unflatten(structure, arrays)


def _remedy(shape: Any, has_aux: bool) -> str:
    if shape is not None and math.prod(shape) == 1 and shape != ():
        return "; take its only entry, as jnp.squeeze does"
    return "" if has_aux else " (or set has_aux=True for a pair)"


def _aux_array(path: Any, leaf: Any) -> jax.Array:
    try:
        return jnp.asarray(leaf, jnp.result_type(leaf))
    except TypeError:
        name = f"aux{jax.tree_util.keystr(path)}"
        raise TypeError(
            f"fun returns {name}={leaf!r}, a {type(leaf).__name__}; the auxiliary tree "
            "may hold arrays and numbers"
        ) from None
