"""The presets with one part exchanged: what each part contributes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import nlcg_optax
from experiments.optimizers.baselines import matrix_axes_of
from experiments.optimizers.registration import Options, register
from experiments.optimizers.spaces import space_around
from experiments.registry import look_up
from nlcg_optax.optimizers import BETA_MAX, RAMP

ORDER_LABELS = {
    "kronecker_memory_polar": "Kronecker, memory, polar",
    "polar_memory": "polar, memory",
    "kronecker_memory": "Kronecker, memory",
}
RULE_LABELS = {"pr+": "", "constant": "constant β", "replay": "replayed β"}
SCOPE_LABELS = {"global": "", "per_leaf": "β per leaf"}


def is_vector(params: Any) -> Any:
    """Which leaves are not orthogonalized."""
    return jax.tree.map(lambda leaf: leaf.ndim < 2, params)


def _direction(
    order: str,
    rule: str,
    beta: float,
    betas: Sequence[float],
    ramp: float,
    scope: str,
    restart: str | None,
) -> optax.GradientTransformation:
    if order == "polar_memory":
        first = nlcg_optax.scale_by_orthogonalization()
    else:
        first = nlcg_optax.scale_by_kronecker()
    settings: dict[str, Any] = {
        "preconditioner": first,
        "beta_min": 0.0,
        "beta_max": BETA_MAX,
        "restart": restart,
        "scope": scope,
    }
    is_last = order == "kronecker_memory_polar"
    polar = nlcg_optax.scale_by_orthogonalization(vectors=optax.identity())
    if rule == "replay":
        recorded = jnp.asarray(betas, jnp.float32)
        memory = optax.inject_hyperparams(
            nlcg_optax.scale_by_nlcg, static_args=tuple(settings)
        )(rule=lambda count: recorded[count], **settings)
        damped = optax.scale_by_schedule(lambda count: 1 - recorded[count])
        damped = optax.masked(damped, is_vector) if is_last else damped
        return optax.chain(memory, damped, polar if is_last else optax.identity())
    memory = nlcg_optax.scale_by_nlcg(
        beta if rule == "constant" else rule, beta_smoothing=ramp, **settings
    )
    damped = nlcg_optax.damp_by_beta(memory, is_vector if is_last else None)
    return optax.chain(damped, polar) if is_last else damped


def _ordered_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    order: str = "kronecker_memory_polar",
    rule: str = "pr+",
    beta: float = 0.75,
    betas: Sequence[float] = (0.0,),
    ramp: float = RAMP,
    scope: str = "global",
    restart: str | None = None,
) -> optax.GradientTransformation:
    """The direction of `large_batch_nlcg` with order and memory set by options.

    Args:
      learning_rate: number or schedule.
      order: a name in `ORDER_LABELS`.
      rule: a name in `RULE_LABELS`.
      beta: the β of ``"constant"``, to which the memory rises as the average of β does.
      betas: the numbers of ``"replay"``, one per step.
      ramp: decay of the average of β; zero for no average.
      scope: ``"global"`` or ``"per_leaf"``.
      restart: see `nlcg_optax.scale_by_nlcg`.
    """
    look_up("order", order, ORDER_LABELS)
    look_up("rule", rule, RULE_LABELS)
    return optax.chain(
        _direction(order, rule, beta, betas, ramp, scope, restart),
        optax.scale_by_learning_rate(learning_rate),
    )


def _ordered_label(given: Options) -> str:
    parts = [
        f"NLCG {ORDER_LABELS[given.get('order', 'kronecker_memory_polar')]}",
        RULE_LABELS[given.get("rule", "pr+")],
        SCOPE_LABELS[given.get("scope", "global")],
        f"β = {given['beta']:.2f}" if "beta" in given else "",
        f"decay of β {given['ramp']:.3g}" if "ramp" in given else "",
        "restarts" if given.get("restart") else "",
    ]
    return ", ".join(filter(None, parts))


register(
    "ordered_nlcg",
    _ordered_nlcg,
    label=_ordered_label,
    color="#8dd3c7",
    space=space_around(0.02),
)

DIRECTION_LABELS = {
    "kronecker_memory_polar": "",
    "polar_memory": "polar, memory",
    "muon": "on Muon",
    "adam": "on Adam",
}


def _slope_ratio(
    learning_rate: optax.ScalarOrSchedule,
    *,
    direction: str = "kronecker_memory_polar",
    num_steps: int | None = None,
    target_ratio: float = -0.4,
    adaptation_rate: float = 0.3,
    window_decay: float = 0.6,
    hold_after: float = 0.4,
) -> optax.GradientTransformation:
    """`nlcg_optax.scale_by_slope_ratio`, with the learning rate as an extra factor.

    Without ``num_steps`` the slope is inferred; the schedule then anneals the steps.
    """
    look_up("direction", direction, DIRECTION_LABELS)
    nested: optax.GradientTransformation
    if direction == "muon":
        nested = optax.contrib.scale_by_muon(weight_dimension_numbers=matrix_axes_of)
        nested = optax.partition(
            {"matrix": nested, "vector": optax.scale_by_adam()},
            lambda params: jax.tree.map(
                lambda flag: "vector" if flag else "matrix", is_vector(params)
            ),
        )
    elif direction == "adam":
        nested = optax.scale_by_adam()
    else:
        nested = _direction(direction, "pr+", 0.0, (), RAMP, "global", None)
    return optax.chain(
        nlcg_optax.scale_by_slope_ratio(
            nested,
            num_steps,
            target_ratio=target_ratio,
            adaptation_rate=adaptation_rate,
            window_decay=window_decay,
            hold_after=hold_after,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def _slope_label(given: Options) -> str:
    name = DIRECTION_LABELS[given.get("direction", "kronecker_memory_polar")]
    parts = [
        f"Slope ratio {name}".strip(),
        "" if given.get("num_steps") else "inferred slope",
        f"r* = {given['target_ratio']:.2g}" if "target_ratio" in given else "",
        f"η = {given['adaptation_rate']:.2g}" if "adaptation_rate" in given else "",
        f"window {given['window_decay']:.2g}" if "window_decay" in given else "",
        f"held after {given['hold_after']:.2g}" if "hold_after" in given else "",
    ]
    return ", ".join(filter(None, parts))


register(
    "slope_ratio",
    _slope_ratio,
    label=_slope_label,
    color="#bebada",
    space=space_around(1.0),
    extras=("value",),
    finds_learning_rate=True,
)
