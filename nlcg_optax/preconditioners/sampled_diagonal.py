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
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import mean
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
      num_sample_skips: non-finite samples refused so far.
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
      num_samples: samples taken into the average.
      diagonal_mean: mean of D over all parameters, which the damping is relative to.
      diagnostics: counters.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    sample_average: PyTree
    num_samples: jax.Array
    diagonal_mean: jax.Array
    diagnostics: SampledDiagonalDiagnostics


class SampledDiagonalOptions(NamedTuple):
    """Arguments of `scale_by_sampled_diagonal`.

    Attributes:
      sampler: source of the samples.
      curvature_of: maps the average of samples to the curvature D, elementwise.
      decay: see `scale_by_hutchinson`, as for all others.
      refresh_period: steps between samples.
      relative_damping: multiple of the mean of D that is added to D.
      power: power of the denominator.
      seed: seed of the first key.
    """

    sampler: Sampler
    curvature_of: Callable[[jax.Array], jax.Array]
    decay: Any
    refresh_period: Any
    relative_damping: Any
    power: Any
    seed: int


class _Estimate(NamedTuple):
    """What a new sample changes: the average, its count and mean, and the next key."""

    sample_average: PyTree
    num_samples: jax.Array
    diagonal_mean: jax.Array
    key: jax.Array


def scale_by_sampled_diagonal(
    options: SampledDiagonalOptions,
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by a curvature that is averaged over random samples.

    Args:
      options: the sampler and the hyperparameters.

    Returns:
      The transformation.

    Raises:
      ValueError: if an option is out of its range.
    """
    validation.check_decay("decay", options.decay)
    validation.check_positive_int("refresh_period", options.refresh_period)
    validation.check_non_negative("relative_damping", options.relative_damping)
    validation.check_positive("power", options.power)
    validation.check_seed("seed", options.seed)

    return transformation(options, _init, _update)


def _init(
    options: SampledDiagonalOptions, params: PyTree
) -> ScaleBySampledDiagonalState:
    acc = accumulator_dtype(params)
    return ScaleBySampledDiagonalState(
        count=jnp.zeros([], jnp.int32),
        key=jax.random.key_data(jax.random.key(options.seed)),
        sample_average=jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=_average_dtype(p)), params
        ),
        num_samples=jnp.zeros([], jnp.int32),
        diagonal_mean=jnp.zeros([], acc),
        diagnostics=SampledDiagonalDiagnostics(
            diagonal_mean=jnp.zeros([], acc),
            num_samples=jnp.zeros([], jnp.int32),
            num_sample_skips=jnp.zeros([], jnp.int32),
        ),
    )


def _update(
    options: SampledDiagonalOptions,
    updates: PyTree,
    state: ScaleBySampledDiagonalState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, ScaleBySampledDiagonalState]:
    validation.check_state(
        "preconditioner with a sampled diagonal", state, ScaleBySampledDiagonalState
    )
    validation.check_same_structure("updates", updates, state.sample_average)
    sample_fn = options.sampler(params, extra_args)
    due = is_due(state.count, options.refresh_period, extra_args)
    estimate = if_due(
        due,
        lambda: _refreshed(options, sample_fn, state),
        lambda: _Estimate(
            state.sample_average, state.num_samples, state.diagonal_mean, state.key
        ),
    )
    mean_curvature = estimate.diagonal_mean
    precond_grad = divide_by_diagonal(
        updates,
        _curvature(options, estimate.sample_average, estimate.num_samples),
        jnp.asarray(options.relative_damping).astype(mean_curvature.dtype)
        * mean_curvature,
        active=estimate.num_samples > 0,
        power=options.power,
    )
    refused = due & (estimate.num_samples == state.num_samples)
    return precond_grad, ScaleBySampledDiagonalState(
        count=optax.safe_increment(state.count),
        key=estimate.key,
        sample_average=estimate.sample_average,
        num_samples=estimate.num_samples,
        diagonal_mean=mean_curvature,
        diagnostics=SampledDiagonalDiagnostics(
            diagonal_mean=mean_curvature,
            num_samples=estimate.num_samples,
            num_sample_skips=state.diagnostics.num_sample_skips
            + refused.astype(jnp.int32),
        ),
    )


def _refreshed(
    options: SampledDiagonalOptions,
    sample_fn: Callable[[jax.Array], PyTree],
    state: ScaleBySampledDiagonalState,
) -> _Estimate:
    """Draws a sample and averages it in, unless it is not finite."""
    key, sample_key = jax.random.split(jax.random.wrap_key_data(state.key))
    sample = optax.tree.cast_like(sample_fn(sample_key), state.sample_average)
    good = jnp.isfinite(mean(sample))
    decay = jnp.asarray(options.decay)
    average = jax.tree.map(
        lambda a, s: jnp.where(
            good, decay.astype(a.dtype) * a + (1 - decay).astype(a.dtype) * s, a
        ),
        state.sample_average,
        sample,
    )
    num_samples = state.num_samples + good.astype(jnp.int32)
    diagonal_mean = mean(_curvature(options, average, num_samples))
    return _Estimate(average, num_samples, diagonal_mean, jax.random.key_data(key))


def _curvature(
    options: SampledDiagonalOptions, average: PyTree, num_samples: jax.Array
) -> PyTree:
    """D, from an average that is corrected here for its start at zero."""
    acc = accumulator_dtype(average)
    kept = jnp.asarray(options.decay).astype(acc) ** num_samples.astype(acc)
    weight = jnp.where(num_samples > 0, 1 - kept, 1)
    return jax.tree.map(
        lambda x: options.curvature_of(x / weight.astype(x.dtype)), average
    )


def random_signs(key: jax.Array, params: PyTree) -> PyTree:
    """Draws a Rademacher probe: independent signs, in the dtypes of ``params``.

    Elements of complex leaves have independent signs in both parts and modulus one.
    Devices that hold parts of the parameters draw from keys of their own.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> probe = random_signs(jax.random.key(0), jnp.zeros(3, jnp.bfloat16))
      >>> jnp.abs(probe)
      Array([1, 1, 1], dtype=bfloat16)
    """
    axis_name = axis_of_parameters()
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def signs(key: jax.Array, ones: jax.Array) -> jax.Array:
        # Multiplied by ones of a parameter, to be sharded like it.
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
