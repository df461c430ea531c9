"""The common part of preconditioners whose diagonal is sampled at random."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.curvature.refresh import if_due, is_due
from nlcg_optax.dtypes import PyTree, accumulator_dtype, compute_dtype
from nlcg_optax.preconditioners.diagonal_scaling import divide_by_diagonal
from nlcg_optax.trees.inner_products import mean, window_means
from nlcg_optax.trees.split import axis_of_parameters

# Checks the parameters and the extra arguments of `update`, and returns a function
# from a random key to an unbiased sample of what is averaged.
Sampler: TypeAlias = Callable[
    [PyTree | None, dict[str, Any]], Callable[[jax.Array], PyTree]
]


class SampledDiagonalDiagnostics(NamedTuple):
    """What a preconditioner with a sampled diagonal did, as scalars.

    Attributes:
      diagonal_mean: mean over all parameters of the curvature estimate D in use.
      num_samples: samples taken into the average so far.
      num_sample_skips: samples refused so far because they were not finite.
    """

    diagonal_mean: jax.Array
    num_samples: jax.Array
    num_sample_skips: jax.Array


class ScaleBySampledDiagonalState(NamedTuple):
    """State of `scale_by_hutchinson` and its relatives.

    Attributes:
      count: number of updates.
      key: data of the random key of the next sample.
      sample_average: exponential average of the samples, not corrected for its start;
        real, float32 or wider.
      diagnostics: counters, and the mean that the damping refers to.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    sample_average: PyTree
    diagnostics: SampledDiagonalDiagnostics


def scale_by_sampled_diagonal(
    sampler: Sampler,
    curvature_of: Callable[[jax.Array], jax.Array],
    *,
    decay: float | jax.Array,
    refresh_period: int | jax.Array,
    damping: float | jax.Array,
    power: float | jax.Array,
    average_windows: bool,
    clip: float | jax.Array | None,
    seed: int,
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by a curvature that is averaged over random samples.

    Args:
      sampler: where samples come from.
      curvature_of: from the average of samples to the curvature D, elementwise.
      decay: see `scale_by_hutchinson`, as for all others.
      refresh_period: steps between samples.
      damping: added to D, as a multiple of its mean.
      power: of the denominator.
      average_windows: whether samples are averaged over windows of convolutions.
      clip: largest absolute value of an element of P g, or None.
      seed: of the first key.

    Returns:
      The transformation.

    Raises:
      ValueError: if an argument is out of its range.
    """
    validation.check_decay("decay", decay)
    validation.check_positive_int("refresh_period", refresh_period)
    validation.check_non_negative("damping", damping)
    validation.check_positive("power", power)
    if clip is not None:
        validation.check_positive("clip", clip)
    validation.check_int("seed", seed)

    def init_fn(params: PyTree) -> ScaleBySampledDiagonalState:
        acc = accumulator_dtype(params)
        return ScaleBySampledDiagonalState(
            count=jnp.zeros([], jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            sample_average=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=_average_dtype(p)), params
            ),
            diagnostics=SampledDiagonalDiagnostics(
                diagonal_mean=jnp.zeros([], acc),
                num_samples=jnp.zeros([], jnp.int32),
                num_sample_skips=jnp.zeros([], jnp.int32),
            ),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleBySampledDiagonalState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleBySampledDiagonalState]:
        validation.check_same_structure("updates", updates, state.sample_average)
        sample_fn = sampler(params, extra_args)
        last = state.diagnostics
        acc = last.diagonal_mean.dtype
        keep = jnp.asarray(decay)

        def curvature(average: PyTree, num_samples: jax.Array) -> PyTree:
            """D, from an average that is corrected for its start here."""
            exponent = num_samples.astype(acc)
            weight = jnp.where(num_samples > 0, 1 - keep.astype(acc) ** exponent, 1)
            return jax.tree.map(
                lambda x: curvature_of(x / weight.astype(x.dtype)), average
            )

        def refreshed() -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
            key, sample_key = jax.random.split(jax.random.wrap_key_data(state.key))
            axis_name = axis_of_parameters()
            if axis_name is not None:
                place = jax.lax.axis_index(axis_name)
                sample_key = jax.random.fold_in(sample_key, place)
            sample = jax.tree.map(
                lambda s, a: s.astype(a.dtype),
                sample_fn(sample_key),
                state.sample_average,
            )
            if average_windows:
                sample = window_means(sample)
            good = jnp.isfinite(mean(sample))
            average = jax.tree.map(
                lambda a, s: jnp.where(
                    good, keep.astype(a.dtype) * a + (1 - keep).astype(a.dtype) * s, a
                ),
                state.sample_average,
                sample,
            )
            num_samples = last.num_samples + good.astype(jnp.int32)
            diagonal_mean = mean(curvature(average, num_samples))
            return average, num_samples, diagonal_mean, jax.random.key_data(key)

        def as_it_was() -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
            return (
                state.sample_average,
                last.num_samples,
                last.diagonal_mean,
                state.key,
            )

        due = is_due(state.count, refresh_period, extra_args)
        average, num_samples, diagonal_mean, key = if_due(due, refreshed, as_it_was)
        precond_grad = divide_by_diagonal(
            updates,
            curvature(average, num_samples),
            jnp.asarray(damping).astype(acc) * diagonal_mean,
            active=num_samples > 0,
            power=power,
            clip=clip,
        )
        refused = due & (num_samples == last.num_samples)
        return precond_grad, ScaleBySampledDiagonalState(
            count=optax.safe_increment(state.count),
            key=key,
            sample_average=average,
            diagnostics=SampledDiagonalDiagnostics(
                diagonal_mean=diagonal_mean,
                num_samples=num_samples,
                num_sample_skips=last.num_sample_skips + refused.astype(jnp.int32),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def random_signs(key: jax.Array, params: PyTree) -> PyTree:
    """Draws a Rademacher probe: independent signs, in the dtypes of ``params``.

    Elements of complex leaves have independent signs in both parts and size one.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> probe = random_signs(jax.random.key(0), jnp.zeros(3, jnp.bfloat16))
      >>> jnp.abs(probe)
      Array([1, 1, 1], dtype=bfloat16)
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def signs(key: jax.Array, ones: jax.Array) -> jax.Array:
        # Times the ones of a parameter, so as to be sharded like it.
        heads = jax.random.bernoulli(key, shape=ones.shape).astype(ones.dtype)
        return ones * (2 * heads - 1)

    def probe(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if not jnp.iscomplexobj(leaf):
            return signs(key, jnp.ones_like(leaf, dtype=leaf.dtype))
        ones = jnp.ones_like(jnp.real(leaf)) * 0.5**0.5
        real, imag = (signs(k, ones) for k in jax.random.split(key))
        return jax.lax.complex(real, imag)

    return jax.tree.unflatten(treedef, list(map(probe, keys, leaves)))


def _average_dtype(param: jax.Array) -> jnp.dtype:
    return jnp.finfo(compute_dtype(param.dtype)).dtype
