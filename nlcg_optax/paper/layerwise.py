"""Layer-wise scaling of the gradient, before NLCG."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.dtypes import PyTree, times
from nlcg_optax.transformation import transformation
from nlcg_optax.trees.inner_products import vdots
from nlcg_optax.wrappers.not_schedules import not_schedules


@not_schedules("mask")
def scale_by_layerwise_ratio(
    eta: float | jax.Array = 0.001,
    *,
    decay_coefficient: float | jax.Array = 0.1,
    eps: float = 1e-8,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each variable's gradient by the ratio of its norms, as the paper does.

    .. math::
        g \leftarrow \frac{\eta \|w\|}
            {\|g\| + \epsilon + \mathrm{decay\_coefficient} \cdot \eta \|w\|}\, g

    for each leaf w of the parameters. Place it *before* `scale_by_nlcg`, which then
    sees the scaled gradient everywhere. Source: arXiv 1812.02886; the idea is that of
    LARS (You et al., 2017), which with weight decay :math:`\lambda` multiplies
    :math:`g + \lambda w` by :math:`\eta \|w\| / (\|g\| + \lambda \|w\|)`.

    A leaf of norm zero would never move; its gradient passes unmodified.

    Args:
      eta: trust coefficient, positive; the paper suggests 0.001.
      decay_coefficient: weight of the last term; the paper uses 0.1.
      eps: added to the norm of the gradient.
      mask: a tree of booleans like the parameters, or a function from the parameters
        to one; leaves marked False pass unmodified.

    Returns:
      A stateless transformation that needs ``params``.

    Raises:
      ValueError: if an argument is out of its range, or ``params`` is missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_layerwise_ratio(eta=0.5, decay_coefficient=0., eps=1e-30)
      >>> params = {"w": jnp.array([3., 4.]), "b": jnp.zeros(1)}
      >>> grads = {"w": jnp.array([0., 2.]), "b": jnp.ones(1)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> updates["w"], updates["b"]
      (Array([0. , 2.5], dtype=float32), Array([1.], dtype=float32))
    """
    validation.check_positive("eta", eta)
    validation.check_non_negative("decay_coefficient", decay_coefficient)
    validation.check_positive("eps", eps)

    options = _Options(eta, decay_coefficient, eps)
    tx = transformation(options, _init, _update)
    return tx if mask is None else optax.masked(tx, mask)


class _Options(NamedTuple):
    """The numbers of `scale_by_layerwise_ratio`."""

    eta: Any
    decay_coefficient: Any
    eps: float


def _init(options: _Options, params: PyTree) -> optax.EmptyState:
    del options, params
    return optax.EmptyState()


def _update(
    options: _Options,
    updates: PyTree,
    state: optax.EmptyState,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, optax.EmptyState]:
    del extra_args
    validation.require(
        "scale_by_layerwise_ratio", "params", params, "their norms are used"
    )
    w_w, g_g = vdots([(params, params), (updates, updates)], scope="per_leaf")
    w_norm, g_norm = jnp.sqrt(w_w), jnp.sqrt(g_g)
    trust = jnp.asarray(options.eta).astype(w_norm.dtype) * w_norm
    decay = jnp.asarray(options.decay_coefficient).astype(w_norm.dtype)
    g_norm = g_norm.astype(w_norm.dtype)
    eps = jnp.asarray(options.eps, w_norm.dtype)
    ratio = trust / (g_norm + eps + decay * trust)
    ratio = jnp.where(w_norm > 0, ratio, 1)
    leaves, treedef = jax.tree.flatten(updates)
    scaled = [times(ratio[i], g).astype(g.dtype) for i, g in enumerate(leaves)]
    return jax.tree.unflatten(treedef, scaled), state
