"""Conjugacy rules: beta as a pure function of a few inner products.

With ``g`` the gradient, ``z = P g``, ``d`` the previous direction, ``y = g - g_prev``
and ``ρ = gᵀz``, a rule gives the β of the next direction ``-z + β d``. A rule reads an
`InnerProducts` and returns a scalar; it never sees a parameter, so sharding, dtype and
scope (global or per leaf) cannot go wrong inside it. A denominator that is exactly
zero gives β = 0, that is, a restart; no absolute floor is put under it, because that
would turn the method into steepest descent near the optimum.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from nlcg_optax.trees.inner_products import InnerProducts

# Products that take a Hessian-vector product, which only some callers can give.
CURVATURE_PRODUCTS = frozenset({"z_h_d", "d_h_d"})
ConjugacyRule: TypeAlias = Callable[[InnerProducts], jax.Array]


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


def fletcher_reeves(p: InnerProducts, *, eps: float = 0.0) -> jax.Array:
    """FR: ``β = gᵀz / (g_prevᵀz_prev + eps)``.

    Fletcher and Reeves, "Function minimization by conjugate gradients", 1964. The
    paper's program (arXiv 1812.02886) uses ``eps = 1e-8``: rule name ``"paper_fr"``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> fletcher_reeves(p)
      Array(2., dtype=float32)
    """
    return _ratio(p.g_z, p.g_prev_z_prev + eps)


def polak_ribiere(p: InnerProducts) -> jax.Array:
    """PR: ``β = yᵀz / g_prevᵀz_prev``.

    Polak and Ribière, 1969; Polyak, 1969.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> polak_ribiere(p)
      Array(1.5, dtype=float32)
    """
    return _ratio(p.y_z, p.g_prev_z_prev)


def polak_ribiere_plus(p: InnerProducts) -> jax.Array:
    """PR+: ``β = max(0, β_PR)``.

    Gilbert and Nocedal, "Global convergence properties of conjugate gradient methods
    for optimization", SIAM J. Optim. 2, 1992.
    """
    return jnp.maximum(polak_ribiere(p), 0)


def polak_ribiere_stored(p: InnerProducts, *, eps: float = 0.0) -> jax.Array:
    """PR with the stored residual: ``β = (gᵀz - gᵀz_prev) / (g_prevᵀz_prev + eps)``.

    The form of the paper's program (arXiv 1812.02886), where ``z_prev`` is the
    preconditioned gradient as it was kept from the previous step; equal to PR for a
    constant symmetric P. With ``eps = 1e-8`` it is the rule named ``"paper_pr"``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> polak_ribiere_stored(p)
      Array(1.5, dtype=float32)
    """
    return _ratio(p.g_z - p.g_z_prev, p.g_prev_z_prev + eps)


def hestenes_stiefel(p: InnerProducts) -> jax.Array:
    """HS: ``β = yᵀz / dᵀy``.

    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    1952.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> hestenes_stiefel(p)
      Array(0.375, dtype=float32)
    """
    return _ratio(p.y_z, p.d_y)


def hestenes_stiefel_plus(p: InnerProducts) -> jax.Array:
    """HS+: ``β = max(0, β_HS)``. Gilbert and Nocedal, 1992."""
    return jnp.maximum(hestenes_stiefel(p), 0)


def dai_yuan(p: InnerProducts) -> jax.Array:
    """DY: ``β = gᵀz / dᵀy``.

    Dai and Yuan, "A nonlinear conjugate gradient method with a strong global
    convergence property", SIAM J. Optim. 10, 1999.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> dai_yuan(p)
      Array(0.5, dtype=float32)
    """
    return _ratio(p.g_z, p.d_y)


def liu_storey(p: InnerProducts) -> jax.Array:
    """LS: ``β = yᵀz / (-dᵀg_prev)``.

    Liu and Storey, "Efficient generalized conjugate gradient algorithms", 1991.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> liu_storey(p)
      Array(1.5, dtype=float32)
    """
    return _ratio(p.y_z, -p.d_g_prev)


def conjugate_descent(p: InnerProducts) -> jax.Array:
    """CD: ``β = gᵀz / (-dᵀg_prev)``.

    Fletcher, "Practical methods of optimization", 1987.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> conjugate_descent(p)
      Array(2., dtype=float32)
    """
    return _ratio(p.g_z, -p.d_g_prev)


def hager_zhang(p: InnerProducts, *, eta: float = 0.4) -> jax.Array:
    """HZ: ``β = yᵀz/dᵀy - 2 (yᵀP y)(dᵀg)/(dᵀy)²``, not below ``η dᵀg_prev / dᵀP⁻¹d``.

    Hager and Zhang, "A new conjugate gradient method with guaranteed descent and an
    efficient line search", SIAM J. Optim. 16, 2005 (β); the lower bound, which does
    not change with the scale of the objective, is that of their "The limited memory
    conjugate gradient method", SIAM J. Optim. 23, 2013, with ``η = 0.4``. Use it with
    ``beta_min=-inf`` and ``beta_max=inf``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 4, 8, -2, 2, 1, 5, 2]))
      >>> hager_zhang(p)  # 3/8 - 2*5*4/64 = -.25, above -.4*2/2 = -.4
      Array(-0.25, dtype=float32)
    """
    beta = _ratio(p.y_z, p.d_y) - 2 * _ratio(p.y_p_y, p.d_y) * _ratio(p.d_g, p.d_y)
    return jnp.maximum(beta, eta * _ratio(p.d_g_prev, p.d_pinv_d))


def dai_kou(p: InnerProducts, *, eta: float = 0.5) -> jax.Array:
    """DK: ``β = yᵀz/dᵀy - (yᵀP y)(dᵀg)/(dᵀy)²``, not below ``η dᵀg / dᵀP⁻¹d``.

    Dai and Kou, "A nonlinear conjugate gradient algorithm with an optimal property and
    an improved Wolfe line search", SIAM J. Optim. 23, 2013, with ``η = 0.5``. Use it
    with ``beta_min=-inf`` and ``beta_max=inf``.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, -4, 8, -2, 2, 1, 5, 2]))
      >>> dai_kou(p)  # 3/8 + 5*4/64 = .6875, above -.5*4/2
      Array(0.6875, dtype=float32)
    """
    beta = _ratio(p.y_z, p.d_y) - _ratio(p.y_p_y, p.d_y) * _ratio(p.d_g, p.d_y)
    return jnp.maximum(beta, eta * _ratio(p.d_g, p.d_pinv_d))


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


def daniel(p: InnerProducts) -> jax.Array:
    """Daniel: ``β = zᵀH d / dᵀH d``, the conjugacy of the new direction by definition.

    Daniel, "The conjugate gradient method for linear and nonlinear operator
    equations", SIAM J. Numer. Anal. 4, 1967. The product with the Hessian is taken on
    the batch of g, so that nothing is compared between batches; it costs about two
    gradients a step. Where ``dᵀH d`` is not positive, β is zero.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2, 3, 6]))
      >>> daniel(p)
      Array(0.5, dtype=float32)
    """
    curvature = jnp.asarray(p.d_h_d)
    return jnp.where(curvature > 0, _ratio(jnp.asarray(p.z_h_d), curvature), 0)


def constant(beta: float | jax.Array) -> ConjugacyRule:
    """A rule that always gives ``beta``: heavy-ball momentum without damping.

    Args:
      beta: a real scalar; a float given to `scale_by_nlcg` as ``rule`` means the same.

    Returns:
      A conjugacy rule.

    Examples:
      >>> p = InnerProducts(*map(jax.numpy.float32, [4, 3, 0, 8, -2, 2, 1, 5, 2]))
      >>> constant(0.5)(p)
      Array(0.5, dtype=float32)
    """

    def rule(p: InnerProducts) -> jax.Array:
        return jnp.asarray(beta).astype(p.g_z.dtype)

    return rule


PAPER_EPS = 1e-8  # eps of the paper's program, added to the denominators

RULES: dict[str, ConjugacyRule] = {
    "fr": fletcher_reeves,
    "pr": polak_ribiere,
    "pr+": polak_ribiere_plus,
    "pr_stored": polak_ribiere_stored,
    "hs": hestenes_stiefel,
    "hs+": hestenes_stiefel_plus,
    "dy": dai_yuan,
    "ls": liu_storey,
    "cd": conjugate_descent,
    "hz": hager_zhang,
    "dk": dai_kou,
    "hs-dy": hybrid_hestenes_stiefel_dai_yuan,
    "daniel": daniel,
    "fr-pr": hybrid_fletcher_reeves_polak_ribiere,
    "paper_fr": functools.partial(fletcher_reeves, eps=PAPER_EPS),
    "paper_pr": functools.partial(polak_ribiere_stored, eps=PAPER_EPS),
}


def get_rule(rule: str | float | jax.Array | ConjugacyRule) -> ConjugacyRule:
    """Returns the conjugacy rule of a name, of a constant, or the callable itself.

    Args:
      rule: a name in ``RULES``, a real number for `constant`, or a callable from
        `InnerProducts` to a scalar.

    Returns:
      The rule.

    Raises:
      ValueError: if the name is unknown.
      TypeError: if ``rule`` is none of these, or the callable does not map
        `InnerProducts` to a real scalar under ``jax.jit``.

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
    if jnp.isscalar(rule) or isinstance(rule, jax.Array):
        return constant(rule)
    raise TypeError(
        f"rule={rule!r} is a {type(rule).__name__}; allowed are a name out of "
        f"{sorted(RULES)}, a number, or a callable from InnerProducts to a scalar"
    )


def products_used(rule: ConjugacyRule) -> frozenset[str]:
    """Returns the names of the `InnerProducts` fields that ``rule`` depends on.

    The rule is traced once, so any callable can be asked; what it does not use need
    not be kept in the state of the optimiser.

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
        raise TypeError(
            f"rule={rule!r} cannot be traced: it must be a pure function from "
            "InnerProducts to a scalar, without Python control flow on values"
        ) from error
    is_array = hasattr(out, "shape") and hasattr(out, "dtype")
    if not is_array or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"rule={rule!r} returns {out}; it must return a real floating-point scalar"
        )
    read = list(closed.jaxpr.outvars)
    for equation in closed.jaxpr.eqns:
        read.extend(equation.invars)
    names = zip(InnerProducts._fields, closed.jaxpr.invars, strict=True)
    return frozenset(name for name, var in names if any(var is r for r in read))
