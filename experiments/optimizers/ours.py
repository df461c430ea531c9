"""The optimizers of this package: NLCG by its options, the presets and the paper's."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

import nlcg_optax
from experiments.optimizers.labels import with_options
from experiments.optimizers.preconditioners import (
    HVP_COST,
    PRECONDITIONERS,
    Preconditioner,
)
from experiments.optimizers.registration import (
    Options,
    keyword_options,
    register,
)
from experiments.optimizers.spaces import (
    DECOUPLED,
    L2,
    Dimension,
    SearchSpace,
    space_around,
)
from experiments.registry import look_up
from experiments.weight_decay import decay_mask
from nlcg_optax import contrib
from nlcg_optax.direction import RULES
from nlcg_optax.optimizers import BETA_MAX, BETA_SMOOTHING

# Gradient-equivalents of a derivative of the outputs along a direction, and of a loss.
JVP_COST, VALUE_COST = 2 / 3, 1 / 3
OUTPUTS = ("outputs_fn", "output_loss_fn")

RULE_LABELS = {
    **{rule: rule.upper() for rule in RULES},
    "daniel": "Daniel",
    "constant": "constant β",
    "replay": "replayed β",
}
STEP_LABELS = {"none": "", "curvature": "curvature step", "subspace": "subspace step"}
CONTROL_LABELS = {"step": "", "online": "online control", "none": "no control"}


def _nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    rule: str,
    preconditioner: str,
    step: str,
    weight_decay: float,
    beta: float = 0.0,
    betas: Sequence[float] = (),
    beta_max: float | None = None,
    beta_smoothing: float | None = None,
    across_halves: bool = False,
    curvature_period: int = 1,
    **nested: Any,
) -> optax.GradientTransformation:
    """NLCG by options.

    Args:
      learning_rate: number or schedule.
      rule: a name in `RULE_LABELS`: a conjugacy rule, ``"constant"`` for the number
        ``beta``, or ``"replay"`` for the numbers ``betas``, one per step.
      preconditioner: a name in `PRECONDITIONERS`.
      step: ``"none"``; ``"curvature"`` for the minimizer along the direction, measured
        every ``curvature_period`` steps; or ``"subspace"`` for the best step in the
        plane of the direction and the last step.
      weight_decay: decoupled weight decay.
      beta: the coefficient of ``"constant"``.
      betas: the coefficients of ``"replay"``.
      beta_max: upper bound of β; None for the package's default.
      beta_smoothing: decay of the average of β; None for the package's default.
      across_halves: whether β is computed across halves of the mini-batch.
      curvature_period: see ``step``.
      **nested: options of the preconditioner.
    """
    nested_built = PRECONDITIONERS[preconditioner].build(**nested)
    control = _step_control(step, curvature_period)
    if rule == "daniel" or across_halves:
        # What was tried and did not help is a separate direction.
        settings: dict[str, Any] = {
            "preconditioner": nested_built,
            "beta_min": 0.0,
            "beta_max": BETA_MAX if beta_max is None else beta_max,
            "beta_smoothing": (
                BETA_SMOOTHING if beta_smoothing is None else beta_smoothing
            ),
        }
        return optax.chain(
            contrib.scale_by_daniel(**settings)
            if rule == "daniel"
            else contrib.scale_by_nlcg_across_halves(rule, **settings),
            control or optax.identity(),
            optax.add_decayed_weights(weight_decay, decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )
    settings = {
        "preconditioner": nested_built,
        "beta_max": beta_max,
        "beta_smoothing": beta_smoothing,
        "step_control": control,
        "weight_decay": weight_decay,
        "weight_decay_mask": decay_mask,
    }
    if rule == "replay":
        recorded = jnp.asarray(betas, jnp.float32)
        return optax.inject_hyperparams(nlcg_optax.nlcg, static_args=tuple(settings))(
            learning_rate, rule=lambda count: recorded[count], **settings
        )
    return nlcg_optax.nlcg(
        learning_rate, beta if rule == "constant" else rule, **settings
    )


def _step_control(step: str, period: int) -> optax.GradientTransformation | None:
    if step == "subspace":
        return nlcg_optax.scale_by_subspace_step("gauss_newton")
    if step == "curvature":
        return nlcg_optax.scale_by_curvature_step("gauss_newton", refresh_period=period)
    return None


def _preconditioner(options: Options, default: str = "none") -> Preconditioner:
    name = options.get("preconditioner", default)
    return look_up("preconditioner", name, PRECONDITIONERS)


def _nlcg_options(given: Options) -> dict[str, Any]:
    kinds = {"rule": "pr+", "preconditioner": "none", "step": "none"}
    rule, step = (given.get(kind, kinds[kind]) for kind in ("rule", "step"))
    look_up("rule", rule, RULE_LABELS)
    look_up("step", step, STEP_LABELS)
    own: dict[str, Any]
    if rule == "constant":
        own = {"beta": 0.9}
    elif rule == "replay":
        own = {"betas": (0.0,)}
    else:
        own = {"beta_max": None, "beta_smoothing": None}
        if rule != "daniel":
            own["across_halves"] = False
    if step == "curvature":
        own["curvature_period"] = 1
    nested = keyword_options(_preconditioner(given).build)
    return {**kinds, **own, "weight_decay": 0.0, **nested}


def _nlcg_extras(options: Options) -> tuple[str, ...]:
    extras = _preconditioner(options).extras
    if options["step"] != "none":
        extras += OUTPUTS
    if options["rule"] == "daniel":
        extras += ("value_fn",)
    if options.get("across_halves"):
        extras += ("half_grads",)
    return tuple(dict.fromkeys(extras))


def _refresh_cost(options: Options) -> float:
    """The cost of the preconditioner per step."""
    return _preconditioner(options).extra_cost / options.get("refresh_period", 1)


def _nlcg_cost(options: Options) -> float:
    cost = 1 + _refresh_cost(options)
    if options["step"] == "subspace":
        # Two derivatives along directions, and the loss after the step.
        cost += 2 * JVP_COST + VALUE_COST
    elif options["step"] == "curvature":
        cost += JVP_COST / options["curvature_period"]
    return cost + (HVP_COST if options["rule"] == "daniel" else 0)


def _nlcg_label(given: Options) -> str:
    rule = given.get("rule", "pr+")
    parts = [
        f"NLCG {RULE_LABELS[rule]}" if "beta" not in given else "NLCG",
        _preconditioner(given).label,
        STEP_LABELS[given.get("step", "none")],
    ]
    told = ("rule", "preconditioner", "step")
    return with_options(", ".join(filter(None, parts)), given, told)


def _nlcg_space(options: Options) -> SearchSpace:
    nested = _preconditioner(options)
    memory = {"constant": "beta", "replay": None}.get(options["rule"], "beta_max")
    # The step control finds the step size; a factor of one leaves it unmodified.
    rate = nested.learning_rate if options["step"] == "none" else 1.0
    return space_around(rate, memory, DECOUPLED if nested.decoupled else L2)


register(
    "nlcg",
    _nlcg,
    label=_nlcg_label,
    color="#0072b2",
    space=_nlcg_space,
    extras=_nlcg_extras,
    gradient_equivalents=_nlcg_cost,
    options=_nlcg_options,
)


def _large_batch_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: str,
    weight_decay: float,
    **nested: Any,
) -> optax.GradientTransformation:
    return nlcg_optax.large_batch_nlcg(
        learning_rate,
        preconditioner=PRECONDITIONERS[preconditioner].build(**nested)
        or optax.identity(),
        weight_decay=weight_decay,
        weight_decay_mask=decay_mask,
    )


def _tuning_free_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: str,
    weight_decay: float,
    num_steps: int | None,
    **nested: Any,
) -> optax.GradientTransformation:
    """The preset, with the learning rate as a factor (its schedule) on top.

    With ``num_steps`` the preset anneals by itself: then the schedule should be
    constant.
    """
    preset = nlcg_optax.tuning_free_nlcg(
        num_steps,
        preconditioner=PRECONDITIONERS[preconditioner].build(**nested)
        or optax.identity(),
        weight_decay=weight_decay,
        weight_decay_mask=decay_mask,
    )
    return optax.chain(
        preset, optax.scale_by_learning_rate(learning_rate, flip_sign=False)
    )


def _preset_options(given: Options) -> dict[str, Any]:
    nested = keyword_options(_preconditioner(given, "kronecker").build)
    return {"preconditioner": "kronecker", "weight_decay": 0.0, **nested}


def _preset_label(name: str, given: Mapping[str, Any]) -> str:
    if given.get("preconditioner", "kronecker") != "kronecker":
        name = f"{name}, {_preconditioner(given).label}"
    return with_options(name, given, ("preconditioner",))


register(
    "large_batch_nlcg",
    _large_batch_nlcg,
    label=lambda given: _preset_label("NLCG large batch", given),
    color="#009e73",
    space=space_around(0.02, None, DECOUPLED),
    extras=lambda options: _preconditioner(options).extras,
    gradient_equivalents=lambda options: 1 + _refresh_cost(options),
    options=_preset_options,
)
register(
    "tuning_free_nlcg",
    _tuning_free_nlcg,
    label=lambda given: _preset_label("NLCG tuning-free", given),
    color="#56b4e9",
    space=space_around(1.0, None, DECOUPLED),
    extras=lambda options: (*_preconditioner(options).extras, "value"),
    gradient_equivalents=lambda options: 1 + _refresh_cost(options),
    options=lambda given: {**_preset_options(given), "num_steps": None},
    finds_learning_rate=True,
)


def _paper_nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    rule: str = "fr",
    diagonal_bfgs: bool = True,
    step_control: str = "step",
    period: int = 5,
    threshold: float = 1.0,
    layerwise_eta: float | None = None,
    restart_period: int | None = None,
    reset_period: int | None = None,
    spectral_scaling: bool = False,
) -> optax.GradientTransformation:
    look_up("step_control", step_control, CONTROL_LABELS)
    settings: dict[str, Any] = {
        "diagonal_bfgs": bool(diagonal_bfgs),
        "step_control": None if step_control == "none" else step_control,
    }
    return nlcg_optax.paper_nlcg(
        learning_rate,
        rule,  # type: ignore[arg-type]
        **settings,
        period=period,
        threshold=threshold,
        layerwise_eta=layerwise_eta,
        restart_period=restart_period,
        reset_period=reset_period,
        spectral_scaling=bool(spectral_scaling),
    )


def _paper_label(given: Options) -> str:
    parts = [
        f"Paper NLCG {str(given.get('rule', 'fr')).upper()}",
        "" if given.get("diagonal_bfgs", True) else "no diagonal BFGS",
        CONTROL_LABELS.get(given.get("step_control", "step"), ""),
    ]
    told = ("rule", "diagonal_bfgs", "step_control")
    return with_options(", ".join(filter(None, parts)), given, told)


def _paper_space(options: Options) -> SearchSpace:
    # The paper's β has no bound other than 1. Instead of a bound, the threshold at
    # which the loss shortens the step is searched.
    controlled = options["step_control"] != "none"
    return space_around(0.2, Dimension("threshold", 0.3, 3.0) if controlled else None)


register(
    "paper_nlcg",
    _paper_nlcg,
    label=_paper_label,
    color="#cc79a7",
    space=_paper_space,
    extras=lambda options: () if options["step_control"] == "none" else ("value",),
)
