"""Conjugacy rules: beta as a pure function of a few inner products.

With ``g`` the gradient, ``z = P g``, ``d`` the previous direction and
``y = g - g_prev``, a rule gives the β of the next direction ``-z + β d``. A rule reads
an `InnerProducts` and returns a scalar. It never sees a parameter, so it works for any
sharding, dtype and scope (global or per leaf). A quotient whose denominator is exactly
zero is taken to be zero. The denominator has no absolute floor, because that would turn
the method into steepest descent near the optimum.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


class InnerProducts(NamedTuple):
    """The scalars that a conjugacy rule may read.

    Notation: ``g`` is the gradient, ``z = P g`` the preconditioned gradient, ``d``
    the *previous* search direction (a descent direction), ``y = g - g_prev`` the
    change of the gradient. The field ``a_b`` holds the real inner product ``aᵀb``.
    Every field is a real scalar, float32 or wider (float64 if a parameter is).

    Attributes:
      g_z: ``gᵀz = gᵀP g``.
      y_z: ``yᵀz = (g - g_prev)ᵀP g``.
      d_g: ``dᵀg``, zero after an exact line search.
      d_y: ``dᵀy``, the curvature along the previous direction times the step.
      d_g_prev: ``dᵀg_prev``, the slope at the start of the previous step; negative.
      g_prev_z_prev: ``g_prevᵀz_prev``, the previous step's ``gᵀP g``.
      g_z_prev: ``gᵀz_prev`` with the *stored* ``z_prev``.
      y_p_y: ``yᵀP y``, as ``yᵀ(z - z_prev)``; never negative.
      d_pinv_d: ``dᵀP⁻¹d`` (``dᵀd`` without a preconditioner), from the recurrence
        ``dᵀP⁻¹d <- gᵀz - 2βdᵀg + β²dᵀP⁻¹d``, which needs no solve with P. It
        and ``y_p_y`` are exact if P stays the same from step to step; otherwise they
        are off by as much as P has changed.
    """

    g_z: jax.Array
    y_z: jax.Array
    d_g: jax.Array
    d_y: jax.Array
    d_g_prev: jax.Array
    g_prev_z_prev: jax.Array
    g_z_prev: jax.Array
    y_p_y: jax.Array
    d_pinv_d: jax.Array


ConjugacyRule: TypeAlias = Callable[[InnerProducts], jax.Array]


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Computes ``numerator / denominator``; zero where the denominator is zero.

    Examples:
      >>> ratio(jnp.float32(3.), jnp.float32(0.))
      Array(0., dtype=float32)
    """
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


def fletcher_reeves(p: InnerProducts) -> jax.Array:
    """FR: ``β = gᵀz / g_prevᵀz_prev``.

    Fletcher and Reeves, "Function minimization by conjugate gradients", 1964.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> fletcher_reeves(p)
      Array(2., dtype=float32)
    """
    return ratio(p.g_z, p.g_prev_z_prev)


def polak_ribiere(p: InnerProducts) -> jax.Array:
    """PR: ``β = yᵀz / g_prevᵀz_prev``.

    Polak and Ribière, 1969; Polyak, 1969.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> polak_ribiere(p)
      Array(1.5, dtype=float32)
    """
    return ratio(p.y_z, p.g_prev_z_prev)


def polak_ribiere_plus(p: InnerProducts) -> jax.Array:
    """PR+: ``β = max(0, β_PR)``.

    Gilbert and Nocedal, "Global convergence properties of conjugate gradient methods
    for optimization", SIAM J. Optim. 2, 1992.
    """
    return jnp.maximum(polak_ribiere(p), 0)


def hestenes_stiefel(p: InnerProducts) -> jax.Array:
    """HS: ``β = yᵀz / dᵀy``.

    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    1952.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> hestenes_stiefel(p)
      Array(0.75, dtype=float32)
    """
    return ratio(p.y_z, p.d_y)


def hestenes_stiefel_plus(p: InnerProducts) -> jax.Array:
    """HS+: ``β = max(0, β_HS)``. Gilbert and Nocedal, 1992."""
    return jnp.maximum(hestenes_stiefel(p), 0)


def dai_yuan(p: InnerProducts) -> jax.Array:
    """DY: ``β = gᵀz / dᵀy``.

    Dai and Yuan, "A nonlinear conjugate gradient method with a strong global
    convergence property", SIAM J. Optim. 10, 1999.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> dai_yuan(p)
      Array(1., dtype=float32)
    """
    return ratio(p.g_z, p.d_y)


def liu_storey(p: InnerProducts) -> jax.Array:
    """LS: ``β = yᵀz / (-dᵀg_prev)``.

    Liu and Storey, "Efficient generalized conjugate gradient algorithms", 1991.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> liu_storey(p)
      Array(1.5, dtype=float32)
    """
    return ratio(p.y_z, -p.d_g_prev)


def conjugate_descent(p: InnerProducts) -> jax.Array:
    """CD: ``β = gᵀz / (-dᵀg_prev)``.

    Fletcher, "Practical methods of optimization", 1987.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> conjugate_descent(p)
      Array(2., dtype=float32)
    """
    return ratio(p.g_z, -p.d_g_prev)


def hager_zhang(p: InnerProducts, *, eta: float = 0.4) -> jax.Array:
    """HZ: ``β = yᵀz/dᵀy - 2 (yᵀP y)(dᵀg)/(dᵀy)²``, not below ``η dᵀg_prev / dᵀP⁻¹d``.

    Hager and Zhang, "A new conjugate gradient method with guaranteed descent and an
    efficient line search", SIAM J. Optim. 16, 2005 (β); the lower bound, which does
    not change with the scale of the objective, is that of their "The limited memory
    conjugate gradient method", SIAM J. Optim. 23, 2013, with ``η = 0.4``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> hager_zhang(p)  # 3/4 - 2*4*2/16 = -.25, below -.4*2/8 = -.1
      Array(-0.1, dtype=float32)
    """
    beta = ratio(p.y_z, p.d_y) - 2 * ratio(p.y_p_y, p.d_y) * ratio(p.d_g, p.d_y)
    return jnp.maximum(beta, eta * ratio(p.d_g_prev, p.d_pinv_d))


def dai_kou(p: InnerProducts, *, eta: float = 0.5) -> jax.Array:
    """DK: ``β = yᵀz/dᵀy - (yᵀP y)(dᵀg)/(dᵀy)²``, not below ``η dᵀg / dᵀP⁻¹d``.

    Dai and Kou, "A nonlinear conjugate gradient algorithm with an optimal property and
    an improved Wolfe line search", SIAM J. Optim. 23, 2013, with ``η = 0.5``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> dai_kou(p)  # 3/4 - 4*2/16 = .25, above .5*2/8 = .125
      Array(0.25, dtype=float32)
    """
    beta = ratio(p.y_z, p.d_y) - ratio(p.y_p_y, p.d_y) * ratio(p.d_g, p.d_y)
    return jnp.maximum(beta, eta * ratio(p.d_g, p.d_pinv_d))


def hybrid_hestenes_stiefel_dai_yuan(p: InnerProducts) -> jax.Array:
    """HS-DY: ``β = max(0, min(β_HS, β_DY))``.

    Dai and Yuan, "An efficient hybrid conjugate gradient method for unconstrained
    optimization", Ann. Oper. Res. 103, 2001.
    """
    return jnp.maximum(jnp.minimum(hestenes_stiefel(p), dai_yuan(p)), 0)


def hybrid_fletcher_reeves_polak_ribiere(p: InnerProducts) -> jax.Array:
    """FR-PR: ``β_PR`` clipped to ``[-β_FR, β_FR]``. Gilbert and Nocedal, 1992."""
    bound = fletcher_reeves(p)
    return jnp.clip(polak_ribiere(p), -bound, bound)


def constant(beta: float | jax.Array) -> ConjugacyRule:
    """A rule that always gives ``beta``: heavy-ball momentum without damping.

    Args:
      beta: a real scalar; a float given to `scale_by_nlcg` as ``rule`` means the same.

    Returns:
      A conjugacy rule.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 2, 4, -2, 2, 1, 4, 8]))
      >>> constant(0.5)(p)
      Array(0.5, dtype=float32)
    """

    def rule(p: InnerProducts) -> jax.Array:
        return jnp.asarray(beta).astype(p.g_z.dtype)

    return rule


RULES: dict[str, ConjugacyRule] = {
    "fr": fletcher_reeves,
    "pr": polak_ribiere,
    "pr+": polak_ribiere_plus,
    "hs": hestenes_stiefel,
    "hs+": hestenes_stiefel_plus,
    "dy": dai_yuan,
    "ls": liu_storey,
    "cd": conjugate_descent,
    "hz": hager_zhang,
    "dk": dai_kou,
    "hs-dy": hybrid_hestenes_stiefel_dai_yuan,
    "fr-pr": hybrid_fletcher_reeves_polak_ribiere,
}

# arXiv 1812.02886 clips its two rules. The bounds of the others are in their formulas.
CLIPPED_RULES = {"fr": (0.0, 1.0), "pr+": (0.0, 1.0)}


def bounds_of(rule: Any) -> tuple[float, float]:
    """Returns the default bounds of β for a rule.

    Args:
      rule: see `scale_by_nlcg`.

    Returns:
      The lower and the upper bound: 0 and 1 for ``"fr"`` and ``"pr+"``, as in
      arXiv 1812.02886, and infinite for every other name, a number or a callable.

    Examples:
      >>> bounds_of("pr+"), bounds_of("hz")
      ((0.0, 1.0), (-inf, inf))
    """
    unbounded = (-float("inf"), float("inf"))
    return CLIPPED_RULES.get(rule, unbounded) if isinstance(rule, str) else unbounded


def get_rule(rule: str | float | jax.Array | ConjugacyRule) -> ConjugacyRule:
    """Returns the conjugacy rule for a name or a constant, or the callable itself.

    Args:
      rule: a name in ``RULES``, a real number for `constant`, or a callable from
        `InnerProducts` to a scalar.

    Returns:
      The rule.

    Raises:
      ValueError: if the name is unknown or the number is not finite.
      TypeError: if ``rule`` is none of these. Whether a callable maps `InnerProducts`
        to a real scalar is checked where it is used, by `products_used`.

    Examples:
      >>> get_rule("pr+").__name__
      'polak_ribiere_plus'
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} is unknown; allowed are {sorted(RULES)}")
        return RULES[rule]
    if callable(rule):
        return rule
    if isinstance(rule, jax.Array):
        return constant(rule)
    is_number = jnp.isscalar(rule) and not isinstance(rule, bool | np.bool_)
    if is_number and not np.iscomplexobj(rule):
        if not math.isfinite(rule):
            raise ValueError(f"rule={rule!r} must be finite")
        return constant(rule)
    raise TypeError(
        f"rule={rule!r} is a {type(rule).__name__}; allowed are a name out of "
        f"{sorted(RULES)}, a real number, or a callable from InnerProducts to a scalar"
    )


def products_used(rule: ConjugacyRule) -> frozenset[str]:
    """Returns the names of the `InnerProducts` fields that ``rule`` depends on.

    The rule is traced once, so this works for any callable. Products that a rule does
    not read are neither computed nor stored.

    Args:
      rule: a callable from `InnerProducts` to a real scalar.

    Returns:
      A set of field names.

    Raises:
      TypeError: if the rule cannot be traced or does not return a real scalar.

    Examples:
      >>> sorted(products_used(fletcher_reeves))
      ['g_prev_z_prev', 'g_z']
    """
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    arguments: Any = InnerProducts._make([scalar] * len(InnerProducts._fields))
    try:
        closed, out = jax.make_jaxpr(rule, return_shape=True)(arguments)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        if isinstance(getattr(error, "obj", None), InnerProducts):
            cause += f"; the fields are {list(InnerProducts._fields)}"
        raise TypeError(
            f"rule={rule!r} cannot be traced ({cause}); it must be a pure function "
            "from InnerProducts to a scalar, without Python control flow on values"
        ) from error
    is_array = hasattr(out, "shape") and hasattr(out, "dtype")
    if not is_array or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"rule={rule!r} returns {out}; it must return a real floating-point scalar"
        )
    flags = zip(InnerProducts._fields, _inputs_read(closed.jaxpr), strict=True)
    return frozenset(name for name, is_read in flags if is_read)


def _inputs_read(jaxpr: Jaxpr) -> list[bool]:
    """For each input of a program, whether an output depends on it."""
    read = {x for x in jaxpr.outvars if not isinstance(x, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not read.isdisjoint(equation.outvars):
            pairs = zip(equation.invars, _operands_read(equation), strict=True)
            read |= {x for x, flag in pairs if flag and not isinstance(x, Literal)}
    return [x in read for x in jaxpr.invars]


def _operands_read(equation: JaxprEqn) -> list[bool]:
    """As `_inputs_read`; a function called, such as by ``jax.jit``, is looked into."""
    values = equation.params.values()
    called = [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in values]
    called = [x for x in called if isinstance(x, Jaxpr)]
    if len(called) == 1 and len(called[0].invars) == len(equation.invars):
        return _inputs_read(called[0])
    return [True] * len(equation.invars)
