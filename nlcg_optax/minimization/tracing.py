"""Objectives as traced programs whose data are arguments.

A function is traced at every call, so that what it reads is read at every call. The
arrays and floating-point numbers that it closes over become arguments of the traced
program; the rest is hashed and decides whether a compiled program can be reused.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from nlcg_optax.dtypes import PyTree

# Primitives with custom derivatives, which the jaxpr does not show.
CUSTOM_RULES = ("custom_jvp_call", "custom_vjp_call")
# Parameters that are new objects in every trace: those of custom rules, see
# `Traced.has_custom_rules`, and a function that the ``jaxpr`` beside it shows.
LEFT_OUT = {
    **dict.fromkeys(
        CUSTOM_RULES, ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees")
    ),
    "reduce": ("computation",),
}


class Traced(NamedTuple):
    """A function as a program.

    Attributes:
      jaxpr: the program, without constants.
      values: what it closes over, in the order in which `evaluate` needs it.
      key: hashable; equal for programs that compute the same from equal ``values``.
      shape: shapes and dtypes of what it returns.
      has_custom_rules: whether it calls functions with custom derivatives, which the
        key does not distinguish.
    """

    jaxpr: Any
    values: list[Any]
    key: Hashable
    shape: PyTree
    has_custom_rules: bool


def trace(fn: Callable[..., Any], *args: Any) -> Traced:
    """Traces a function.

    Args:
      fn: a function of arrays.
      *args: what it is to be called with; only shapes and dtypes count.

    Returns:
      The program.

    Examples:
      >>> import jax.numpy as jnp
      >>> one, two = (trace(lambda x: a * x, jnp.float32(1.)) for a in (3., 4.))
      >>> one.key == two.key, evaluate(one.jaxpr, two.values, [jnp.float32(5.)])
      (True, [Array(20., dtype=float32)])
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    walk = _Walk()
    key = walk.program(closed.jaxpr, closed.consts)
    lean = _without_consts(closed.jaxpr)
    return Traced(lean, walk.values, key, shape, walk.has_custom_rules)


def evaluate(
    jaxpr: Jaxpr, values: Sequence[Any], args: Sequence[Any], *, custom: bool = True
) -> list[Any]:
    """Computes a program that `trace` has made.

    Args:
      jaxpr: the program.
      values: what it closes over.
      args: its arguments, the leaves of those it was traced with.
      custom: whether functions with custom derivatives keep them.

    Returns:
      The leaves of what it returns.
    """
    rest = iter(values)
    consts = [next(rest) for _ in jaxpr.constvars]
    return _evaluate(jaxpr, consts, list(args), rest, custom)


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    rest: Iterator[Any],
    custom: bool,
) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, Literal):
            return known[atom]
        return next(rest) if _is_number(atom) else atom.val

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        inner = _inlined(eqn)
        if inner is None and not custom and eqn.primitive.name in CUSTOM_RULES:
            outputs = jaxpr_as_fun(eqn.params["call_jaxpr"])(*inputs)
        elif inner is not None:
            inner_consts = [next(rest) for _ in inner.jaxpr.constvars]
            outputs = _evaluate(inner.jaxpr, inner_consts, inputs, rest, custom)
        else:
            outputs = _bind(eqn, inputs)
        if not eqn.primitive.multiple_results:
            outputs = [outputs]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: JaxprEqn, inputs: list[Any]) -> Any:
    params: Any = eqn.primitive.get_bind_params(eqn.params)
    functions: Sequence[Any] = ()
    if isinstance(params, tuple):  # before JAX 0.10
        functions, params = params
    with eqn.ctx.manager:
        return eqn.primitive.bind(*functions, *inputs, **params)


def largest(jaxpr: Jaxpr) -> float:
    """The size of the largest array that a program computes; infinite with loops.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> largest(jax.make_jaxpr(lambda x: jnp.outer(x, x))(jnp.ones(3)).jaxpr)
      9
    """
    sizes: list[float] = [0]
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("scan", "while"):
            return math.inf
        sizes += [_size(variable.aval) for variable in eqn.outvars]
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr):
                sizes.append(largest(inner))
    return max(sizes)


def largest_input(jaxpr: Jaxpr) -> int:
    """The size of the largest array that a program is given.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> largest_input(jax.make_jaxpr(jnp.sum)(jnp.ones(3)).jaxpr)
      3
    """
    given = (*jaxpr.constvars, *jaxpr.invars)
    return max((_size(variable.aval) for variable in given), default=0)


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _without_consts(jaxpr: Jaxpr) -> Jaxpr:
    """The program with empty places for the constants of each nested `jax.jit`."""
    eqns = list(jaxpr.eqns)
    for number, eqn in enumerate(eqns):
        inner = _inlined(eqn)
        if inner is None:
            continue
        lean = _without_consts(inner.jaxpr)
        if lean is inner.jaxpr and not inner.consts:
            continue
        emptied = ClosedJaxpr(lean, [None] * len(inner.consts))
        eqns[number] = eqn.replace(params={**eqn.params, "jaxpr": emptied})
    is_same = all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True))
    return jaxpr if is_same else jaxpr.replace(eqns=eqns)


class _Walk:
    """Collects what a program closes over, in the order of `_evaluate`, and its key."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.has_custom_rules = False
        self._names: dict[Any, int] = {}
        self._numbers = itertools.count()

    def program(self, jaxpr: Jaxpr, consts: Sequence[Any]) -> Hashable:
        """The key of a program whose constants and numbers become values."""
        self.values += consts
        heads = (self._define(jaxpr.constvars), self._define(jaxpr.invars))
        eqns = []
        for eqn in jaxpr.eqns:
            inputs = tuple(self._hoisted(atom) for atom in eqn.invars)
            inner = _inlined(eqn)
            if inner is not None:
                what: Hashable = self.program(inner.jaxpr, inner.consts)
            else:
                what = self._params(eqn)
            eqns.append((eqn.primitive, inputs, what, self._define(eqn.outvars)))
        outputs = tuple(self._hoisted(atom) for atom in jaxpr.outvars)
        return (*heads, tuple(eqns), outputs)

    def _define(self, variables: Sequence[Any]) -> tuple[Hashable, ...]:
        # Two calls of a function may have the same variables: each is numbered anew.
        for variable in variables:
            self._names[variable] = next(self._numbers)
        return tuple((self._names[v], v.aval) for v in variables)

    def _hoisted(self, atom: Any) -> Hashable:
        if not isinstance(atom, Literal):
            return self._names[atom]
        if _is_number(atom):
            self.values.append(atom.val)
            return atom.aval
        return self._fixed(atom)

    def _fixed(self, atom: Any) -> Hashable:
        if not isinstance(atom, Literal):
            return self._names[atom]
        return atom.aval, self._constant(atom.val)

    def _params(self, eqn: JaxprEqn) -> Hashable:
        self.has_custom_rules |= eqn.primitive.name in CUSTOM_RULES
        left_out = LEFT_OUT.get(eqn.primitive.name, ())
        return tuple(
            (name, self._constant(eqn.params[name]))
            for name in sorted(eqn.params.keys() - set(left_out))
        )

    def _constant(self, value: Any) -> Hashable:
        """Something hashable that is equal only for values that compute the same."""
        if isinstance(value, ClosedJaxpr):
            consts = tuple(self._constant(const) for const in value.consts)
            return consts, self._inner(value.jaxpr)
        if isinstance(value, Jaxpr):
            return self._inner(value)
        if isinstance(value, (tuple, list)):
            return (type(value), *(self._constant(part) for part in value))
        if isinstance(value, dict):
            return tuple((k, self._constant(v)) for k, v in sorted(value.items()))
        if isinstance(value, (np.ndarray, np.generic)):
            return value.shape, value.dtype, value.tobytes()
        if isinstance(value, float):
            return "float", value.hex()  # distinguishes -0. from 0.
        try:
            hash(value)
        except TypeError:
            return Same(value)
        return type(value), value

    def _inner(self, jaxpr: Jaxpr) -> Hashable:
        """The key of a program within an operation; it includes its numbers."""
        heads = (self._define(jaxpr.constvars), self._define(jaxpr.invars))
        eqns = tuple(
            (
                eqn.primitive,
                tuple(self._fixed(atom) for atom in eqn.invars),
                self._params(eqn),
                self._define(eqn.outvars),
            )
            for eqn in jaxpr.eqns
        )
        return (*heads, eqns, tuple(self._fixed(atom) for atom in jaxpr.outvars))


class Same:
    """A wrapper that is equal only for the same object, which it keeps alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _is_number(atom: Any) -> bool:
    """Whether it is data, not part of the program: a floating-point number."""
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.inexact))


def _inlined(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program of a nested `jax.jit` without explicit shardings."""
    if eqn.primitive.name != "jit":
        return None
    settings = (*eqn.params["in_shardings"], *eqn.params["out_shardings"])
    if any(type(s).__name__ != "UnspecifiedValue" for s in settings):
        return None
    inner: ClosedJaxpr = eqn.params["jaxpr"]
    return inner
