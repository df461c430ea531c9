"""Preconditioners from random estimates of the diagonal of a curvature matrix."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.source import CURVATURES, CurvatureKind, product_fn
from nlcg_optax.dtypes import PyTree, compute_dtype
from nlcg_optax.preconditioners.diagonal_scaling import abs_squared
from nlcg_optax.preconditioners.sampled_diagonal import (
    SampledDiagonalOptions,
    random_signs,
    scale_by_sampled_diagonal,
)
from nlcg_optax.wrappers.extra_args import bind_extra_args
from nlcg_optax.wrappers.not_schedules import not_schedules
from nlcg_optax.xla.automatic_sharding import placed_like
from nlcg_optax.xla.varying import axes_of, varying_over

Likelihood: TypeAlias = (
    Literal["categorical", "gaussian"] | Callable[[jax.Array, PyTree], PyTree]
)
LIKELIHOODS = ("categorical", "gaussian")


def scale_by_hutchinson(
    curvature: CurvatureKind = "hessian",
    *,
    decay: float | jax.Array = 0.95,
    refresh_period: int | jax.Array = 10,
    relative_damping: float | jax.Array = 1e-2,
    power: float | jax.Array = 1.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the gradient by Hutchinson's estimate of the Hessian's diagonal.

    With probes v of independent random signs and the matrix B of the loss of this
    batch, :math:`v \odot B v` is an unbiased estimate of the diagonal of B (Bekas,
    Kokiopoulou and Saad, 2007), since :math:`E[v_i v_j] = \delta_{ij}`. Every
    ``refresh_period`` steps a sample enters an exponential average, and

    .. math::
        D = |\mathrm{EMA}(v \odot B v)|, \qquad
        P g = \frac{g}{(D + \epsilon\, \mathrm{mean} D)^{\mathrm{power}}},

    with the average corrected for its start at zero, the mean over all parameters, and
    :math:`\epsilon` the relative damping. Signed samples are averaged before the
    absolute value is taken, so that the noise of single samples does not add up.
    AdaHessian (Yao et al., 2021) and Sophia-H (Liu et al., 2023) take the same samples:
    AdaHessian takes the root of the average of their squares, Sophia-H averages them
    with their signs, bounds the average from below and clips the quotient.

    Args:
      curvature: ``"hessian"``, for which ``update`` needs ``value_fn``;
        ``"gauss_newton"``, for which it needs ``outputs_fn`` and ``output_loss_fn``;
        or pass ``hvp_fn(params, vector)``, see `scale_by_curvature_step`.
      decay: decay of the average, in [0, 1).
      refresh_period: steps between samples. A sample costs about two gradients. The
        extra argument ``refresh=True`` or ``False`` (a Python boolean) of ``update``
        replaces the period in training loops that compile both kinds of step: on CPUs,
        convolutions are slow inside the conditional that a period needs.
      relative_damping: the :math:`\epsilon` above, a multiple of the mean of D.
      power: power of the denominator; 0.5 dampens the noise of the estimate.
      seed: seed of the probes. The same seed and calls give the same numbers.

    Returns:
      A transformation; nest it as ``preconditioner`` of `scale_by_nlcg`. A non-finite
      sample is refused and counted; P is the identity until a sample is taken, and
      wherever the denominator is zero. Complex parameters have one real curvature, the
      mean of those of their two parts.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if a function cannot be called or a loss is not a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 100.]) * x**2)
      >>> tx = scale_by_hutchinson(relative_damping=0.)
      >>> params = jnp.array([1., 1.])
      >>> z, _ = tx.update(jax.grad(loss)(params), tx.init(params), params,
      ...                  value_fn=loss)
      >>> z.round(4)  # one sample is exact where the Hessian is diagonal
      Array([1., 1.], dtype=float32)
    """
    validation.check_choice("curvature", curvature, CURVATURES)

    def sampler(
        params: PyTree | None, extra_args: dict[str, Any]
    ) -> Callable[[jax.Array], PyTree]:
        product = product_fn("scale_by_hutchinson", curvature, params, extra_args)

        def sample(key: jax.Array) -> PyTree:
            probe = random_signs(key, params)
            return jax.tree.map(_real_product, probe, product(probe))

        return sample

    return scale_by_sampled_diagonal(
        SampledDiagonalOptions(
            sampler,
            jnp.abs,
            decay=decay,
            refresh_period=refresh_period,
            relative_damping=relative_damping,
            power=power,
            seed=seed,
        )
    )


def scale_by_equilibration(
    curvature: CurvatureKind = "hessian",
    *,
    decay: float | jax.Array = 0.95,
    refresh_period: int | jax.Array = 10,
    relative_damping: float | jax.Array = 1e-2,
    power: float | jax.Array = 1.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the gradient by the norms of the rows of the Hessian.

    With probes v of independent random signs, :math:`E[(B v)_i^2] = \sum_j B_{ij}^2`
    is the squared norm of row i, so that

    .. math::
        D = \sqrt{\mathrm{EMA}((B v)^2)}, \qquad
        P g = \frac{g}{(D + \epsilon\, \mathrm{mean} D)^{\mathrm{power}}}

    equilibrates the rows of :math:`P B`. P is positive whatever the signs of the
    curvature (Dauphin, de Vries and Bengio, 2015).

    Args:
      curvature: see `scale_by_hutchinson`, as for every other argument.
      decay: decay of the average of squares.
      refresh_period: steps between samples.
      relative_damping: the :math:`\epsilon` above, a multiple of the mean of D.
      power: power of the denominator.
      seed: seed of the probes.

    Returns:
      A transformation like that of `scale_by_hutchinson`.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if a function cannot be called or a loss is not a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: 50. * x[0] ** 2 - 0.5 * x[1] ** 2  # a saddle
      >>> tx = scale_by_equilibration(relative_damping=0.)
      >>> params = jnp.array([1., 1.])
      >>> z, _ = tx.update(jax.grad(loss)(params), tx.init(params), params,
      ...                  value_fn=loss)
      >>> jnp.round(z, 3)
      Array([ 1., -1.], dtype=float32)
    """
    validation.check_choice("curvature", curvature, CURVATURES)

    def sampler(
        params: PyTree | None, extra_args: dict[str, Any]
    ) -> Callable[[jax.Array], PyTree]:
        product = product_fn("scale_by_equilibration", curvature, params, extra_args)
        return lambda key: jax.tree.map(abs_squared, product(random_signs(key, params)))

    return scale_by_sampled_diagonal(
        SampledDiagonalOptions(
            sampler,
            jnp.sqrt,
            decay=decay,
            refresh_period=refresh_period,
            relative_damping=relative_damping,
            power=power,
            seed=seed,
        )
    )


@not_schedules("likelihood")
def scale_by_gauss_newton_bartlett(
    likelihood: Likelihood = "categorical",
    *,
    decay: float | jax.Array = 0.95,
    refresh_period: int | jax.Array = 10,
    relative_damping: float | jax.Array = 1e-2,
    power: float | jax.Array = 1.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the gradient by the Gauss-Newton diagonal, from sampled labels.

    For a mean loss over n examples that is a negative log-likelihood of the outputs z
    of a model, Bartlett's second identity says that the gradient
    :math:`\hat g` of the loss with labels *drawn from the model* has

    .. math:: n\, E[\hat g \odot \hat g] = \mathrm{diag}\, G, \qquad
        G = J^\top \nabla^2 \ell(z)\, J,

    so that one backward pass gives an unbiased sample that is never negative (Sophia-G
    of Liu et al., 2023). D is the average of the samples, and P is as in
    `scale_by_hutchinson`.

    Args:
      likelihood: ``"categorical"``: the outputs are logits of shape ``(..., classes)``
        and the loss is the mean of the cross-entropy over the leading axes;
        ``"gaussian"``: the loss is the mean over the first axis of half the squared
        error; or a function from a key and the outputs to a random tree c like the
        outputs with :math:`E[c\, c^\top] = \nabla^2 \ell(z)`, for any convex loss.
      decay: see `scale_by_hutchinson`, as for every other argument.
      refresh_period: steps between samples. A sample costs about one gradient.
      relative_damping: the :math:`\epsilon` above, a multiple of the mean of D.
      power: power of the denominator.
      seed: seed of the labels.

    Returns:
      A transformation like that of `scale_by_hutchinson`. Its ``update`` needs
      ``params`` and ``outputs_fn(params, ...)``. In a ``shard_map`` over the batch the
      devices would draw equal labels: pass a function as ``likelihood``.

    Raises:
      ValueError: if an argument is out of its range or, in ``update``, missing.
      TypeError: if something cannot be called, or the outputs do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> model = lambda w: jnp.array([[3.]]) @ w  # half squared errors: G = 9
      >>> signs = lambda key, z: jnp.sign(jax.random.normal(key, z.shape))
      >>> tx = scale_by_gauss_newton_bartlett(signs, relative_damping=0.)
      >>> w = jnp.array([1.])
      >>> z, _ = tx.update(9. * w, tx.init(w), w, outputs_fn=model)
      >>> z
      Array([1.], dtype=float32)
    """
    if not callable(likelihood):
        validation.check_choice("likelihood", likelihood, LIKELIHOODS)
    name = "scale_by_gauss_newton_bartlett"

    def sampler(
        params: PyTree | None, extra_args: dict[str, Any]
    ) -> Callable[[jax.Array], PyTree]:
        validation.require(name, "params", params, "the model is differentiated there")
        outputs_fn = bind_extra_args(
            validation.require(
                name,
                "outputs_fn",
                extra_args.get("outputs_fn"),
                "labels are drawn",
                extra_args,
            ),
            extra_args,
            name="outputs_fn",
        )

        def sample(key: jax.Array) -> PyTree:
            outputs, pull_back = jax.vjp(outputs_fn, params)
            cotangents = _sampled_cotangents(likelihood, key, outputs)
            cotangents = placed_like(cotangents, outputs)
            cotangents = varying_over(cotangents, axes_of(outputs))
            (sampled_gradient,) = pull_back(cotangents)
            return jax.tree.map(_mean_square_of_parts, sampled_gradient)

        return sample

    return scale_by_sampled_diagonal(
        SampledDiagonalOptions(
            sampler,
            lambda average: average,
            decay=decay,
            refresh_period=refresh_period,
            relative_damping=relative_damping,
            power=power,
            seed=seed,
        )
    )


def _mean_square_of_parts(x: jax.Array) -> jax.Array:
    square = abs_squared(x)
    return square / 2 if jnp.iscomplexobj(x) else square


def _real_product(v: jax.Array, x: jax.Array) -> jax.Array:
    dtype = compute_dtype(v.dtype, x.dtype)
    return jnp.real(jnp.conj(v).astype(dtype) * x.astype(dtype))


def _sampled_cotangents(
    likelihood: Likelihood, key: jax.Array, outputs: PyTree
) -> PyTree:
    """Draws c such that ``E[c cᵀ]`` is the Hessian of the loss of the outputs."""
    if callable(likelihood):
        cotangents = likelihood(key, outputs)
        validation.check_same_structure("the result of likelihood", cotangents, outputs)
        return optax.tree.cast_like(cotangents, outputs)
    fits = hasattr(outputs, "ndim") and outputs.ndim >= 1
    if not fits or not jnp.issubdtype(outputs.dtype, jnp.floating):
        is_pair = isinstance(outputs, tuple) and len(outputs) == 2
        remedy = "; if these are outputs and auxiliary data, pass has_aux=True"
        raise TypeError(
            f"likelihood={likelihood!r} needs outputs_fn to return one real array with "
            f"at least one axis, but it returned {jax.tree.map(jnp.shape, outputs)}"
            f"{remedy if is_pair else ''}"
        )
    wide = outputs.astype(compute_dtype(outputs.dtype))
    if likelihood == "gaussian":
        noise = jax.random.normal(key, wide.shape, wide.dtype)
        return (noise / max(outputs.shape[0], 1) ** 0.5).astype(outputs.dtype)
    classes = outputs.shape[-1]
    num_examples = max(outputs.size // max(classes, 1), 1)
    labels = jax.random.categorical(key, wide)
    drawn = jax.nn.one_hot(labels, classes, dtype=wide.dtype)
    residual = jax.nn.softmax(wide) - drawn
    return (residual / num_examples**0.5).astype(outputs.dtype)
