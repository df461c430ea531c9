"""Whether this package's own forms of a computation may be used: the one switch."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

from nlcg_optax.dtypes import PyTree
from nlcg_optax.xla.automatic_sharding import explicit_mesh

_PLAIN: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_twins() -> Iterator[None]:
    """Inside it, every function of this folder takes the form of its plain twin.

    Functions that ``jax.jit`` has already traced do not change.

    Examples:
      >>> import jax.numpy as jnp
      >>> with plain_twins():
      ...     on_one_cpu(jnp.ones(3))
      False
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_on() -> bool:
    """Whether forms other than the plain twins may be used at all.

    Examples:
      >>> is_on()
      True
    """
    return not _PLAIN.get()


def on_one_cpu(tree: PyTree) -> bool:
    """Whether no array of a tree can be split over several CPU devices.

    The forms for a single CPU reshape arrays and reduce several of them together; for
    that XLA would gather a split array. Whether a program runs on a CPU at all is left
    to ``jax.lax.platform_dependent``.

    Args:
      tree: a tree of arrays.

    Returns:
      True if there is only one device and no array names the axes of an explicit mesh,
      or if every array is known to be on one device. False for tracers if there are
      several devices.

    Examples:
      >>> import jax.numpy as jnp
      >>> on_one_cpu({"w": jnp.ones(3)})
      True
    """
    if not is_on() or explicit_mesh(tree) is not None:
        return False  # JAX refuses to reshape what an explicit mesh splits, also by one
    if _is_single_device():
        # An explicit mesh of one device has axes that JAX refuses to reshape, too.
        return not any(map(_names_axes, jax.tree.leaves(tree)))
    # The type of a tracer is no help: it names a mesh if the argument of `jit` had one,
    # but an array without a mesh may be split by `in_shardings` or by a constraint.
    return all(
        not isinstance(leaf, jax.core.Tracer)
        and (not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1)
        for leaf in jax.tree.leaves(tree)
    )


def _is_single_device() -> bool:
    try:
        return jax.device_count() == jax.device_count("cpu") == 1
    except RuntimeError:  # there is no CPU among JAX_PLATFORMS
        return False


def _names_axes(leaf: Any) -> bool:
    return any(jax.typeof(leaf).sharding.spec)
