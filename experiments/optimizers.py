"""Optimisers by name, each with what it asks for and what it costs.

A name fixes the kind (rule and preconditioner); the numbers are options, which a
configuration or a search may set.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import nlcg_optax
from experiments.preconditioners import (
    HVP_COST,
    PRECONDITIONERS,
    Preconditioner,
    matrix_axes_of,
)
from experiments.registry import look_up
from experiments.weight_decay import decay_mask

# Gradient-equivalents of a derivative of the outputs along a direction, and of a loss.
JVP_COST, VALUE_COST = 2 / 3, 1 / 3
OUTPUTS = ("outputs_fn", "output_loss_fn")
NLCG_RULES = ("fr", "pr+", "hs", "daniel", "constant", "replay", "subspace")

Builder = Callable[..., "Optimizer"]


class Optimizer(NamedTuple):
    """An optimiser with its needs and its price.

    Attributes:
      transformation: the Optax transformation.
      extras: the extra arguments that its ``update`` takes, out of ``value``, ``grad``,
        ``value_fn``, ``outputs_fn``, ``output_loss_fn`` and ``half_grads``.
      gradient_equivalents: mean cost of a step in gradients, with the gradient
        itself, which also yields the loss; a Hessian-vector product counts two.
    """

    transformation: optax.GradientTransformation
    extras: tuple[str, ...] = ()
    gradient_equivalents: float = 1.0


def _sgd(learning_rate: optax.ScalarOrSchedule) -> Optimizer:
    return Optimizer(optax.sgd(learning_rate))


def _heavy_ball(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9
) -> Optimizer:
    return Optimizer(optax.sgd(learning_rate, momentum))


def _nesterov(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9
) -> Optimizer:
    return Optimizer(optax.sgd(learning_rate, momentum, nesterov=True))


def _adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999
) -> Optimizer:
    return Optimizer(optax.adam(learning_rate, b1=b1, b2=b2))


def _rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay: float = 0.9,
    momentum: float = 0.9,
    eps: float = 1.0,
) -> Optimizer:
    # The paper's numbers; the mean square starts at one, as in TensorFlow 1.
    return Optimizer(
        optax.rmsprop(
            learning_rate, decay, eps=eps, momentum=momentum, initial_scale=1.0
        )
    )


def _adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-2,
) -> Optimizer:
    return Optimizer(
        optax.adamw(
            learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask
        )
    )


def _lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    trust_coefficient: float = 1e-3,
) -> Optimizer:
    return Optimizer(
        optax.lars(
            learning_rate,
            weight_decay,
            decay_mask,
            trust_coefficient,
            trust_ratio_mask=decay_mask,
            momentum=momentum,
        )
    )


def _lamb(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-2,
) -> Optimizer:
    return Optimizer(
        optax.lamb(
            learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask
        )
    )


def _muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
) -> Optimizer:
    return Optimizer(
        optax.contrib.muon(
            learning_rate,
            beta=momentum,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=matrix_axes_of,
        )
    )


def _shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    decay: float = 0.95,
    refresh_period: int = 10,
    weight_decay: float = 0.0,
) -> Optimizer:
    # Our factors, so that momentum is all that tells it from NLCG on them.
    return Optimizer(
        optax.chain(
            nlcg_optax.scale_by_kronecker(decay=decay, refresh_period=refresh_period),
            optax.trace(momentum),
            optax.add_decayed_weights(weight_decay, decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _lbfgs(
    learning_rate: optax.ScalarOrSchedule, *, memory_size: int = 10
) -> Optimizer:
    # Without a line search: that of one mini-batch says little about the next.
    tx = optax.lbfgs(learning_rate, memory_size=memory_size, linesearch=None)

    def init(params: Any) -> Any:
        # Two fields of Optax's state are one buffer, which cannot be donated.
        return jax.tree.map(jnp.copy, tx.init(params))

    return Optimizer(optax.GradientTransformationExtraArgs(init, tx.update))


def _nlcg(rule: str, preconditioner: Preconditioner) -> Builder:
    """NLCG by rule and preconditioner; its options are those of both.

    Besides the conjugacy rules there are ``"constant"``, for the number in the option
    ``beta``; ``"replay"``, for the numbers in the option ``betas``, one a step; and
    ``"subspace"``, the best step in the plane of P g and the last step.
    """

    def build_nlcg(
        learning_rate: optax.ScalarOrSchedule,
        *,
        beta: float = 0.9,
        betas: Sequence[float] = (0.0,),
        beta_max: float = 1.0,
        beta_smoothing: float = 0.0,
        across_halves: bool = False,
        curvature_period: int = 0,
        weight_decay: float = 0.0,
        **nested: Any,
    ) -> Optimizer:
        built = preconditioner.build(**nested)  # which refuses bad options
        extras, cost = preconditioner.extras, 1 + preconditioner.extra_cost(**nested)
        step_control = None
        if rule == "subspace":
            step_control = nlcg_optax.scale_by_subspace_step("gauss_newton")
            # Two derivatives along directions and the loss behind the step.
            extras, cost = (*extras, *OUTPUTS), cost + 2 * JVP_COST + VALUE_COST
        elif curvature_period:
            step_control = nlcg_optax.scale_by_curvature_step(
                "gauss_newton", refresh_period=curvature_period
            )
            extras, cost = (*extras, *OUTPUTS), cost + JVP_COST / curvature_period
        if rule == "daniel":
            extras, cost = (*extras, "value_fn"), cost + HVP_COST
        if across_halves:
            extras = (*extras, "half_grads")
        settings: dict[str, Any] = {
            "preconditioner": built,
            "beta_max": beta_max,
            "beta_smoothing": beta_smoothing,
            "step_control": step_control,
            "weight_decay": weight_decay,
            "weight_decay_mask": decay_mask,
        }
        if rule == "replay":
            recorded = jnp.asarray(betas, jnp.float32)
            transformation = optax.inject_hyperparams(
                nlcg_optax.nlcg, static_args=tuple(settings)
            )(learning_rate, rule=lambda count: recorded[count], **settings)
        else:
            numbers = {"constant": beta, "subspace": 0.0}
            transformation = nlcg_optax.nlcg(
                learning_rate, numbers.get(rule, rule), **settings
            )
        return Optimizer(transformation, tuple(dict.fromkeys(extras)), cost)

    own = dict(inspect.signature(build_nlcg).parameters)
    del own["nested"]
    for option, its_rule in (("beta", "constant"), ("betas", "replay")):
        if rule != its_rule:
            del own[option]
    nested_options = inspect.signature(preconditioner.build).parameters
    build_nlcg.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own.values(), *nested_options.values()]
    )
    return build_nlcg


def _paper_nlcg(
    rule: Literal["fr", "pr"],
    diagonal_bfgs: bool,
    step_control: Literal["step", "online"] | None,
) -> Builder:
    def build_paper_nlcg(
        learning_rate: optax.ScalarOrSchedule,
        *,
        period: int = 5,
        threshold: float = 1.0,
        layerwise_eta: float | None = None,
        restart_period: int | None = None,
        reset_period: int | None = None,
        spectral_scaling: bool = False,
    ) -> Optimizer:
        return Optimizer(
            nlcg_optax.paper_nlcg(
                learning_rate,
                rule,
                diagonal_bfgs=diagonal_bfgs,
                step_control=step_control,
                period=period,
                threshold=threshold,
                layerwise_eta=layerwise_eta,
                restart_period=restart_period,
                reset_period=reset_period,
                spectral_scaling=bool(spectral_scaling),
            ),
            extras=("value",),
        )

    return build_paper_nlcg


def _paper_variants() -> dict[str, Builder]:
    """``paper_nlcg_fr`` and ``_pr`` as in the paper; a suffix departs from that."""
    rules: tuple[Literal["fr", "pr"], ...] = ("fr", "pr")
    preconditioning = {"": True, "_identity": False}
    controls: dict[str, Literal["step", "online"] | None] = {
        "": "step",
        "_online": "online",
        "_uncontrolled": None,
    }
    return {
        f"paper_nlcg_{rule}{preconditioned}{controlled}": _paper_nlcg(
            rule, diagonal_bfgs, control
        )
        for rule in rules
        for preconditioned, diagonal_bfgs in preconditioning.items()
        for controlled, control in controls.items()
    }


OPTIMIZERS: dict[str, Builder] = {
    "sgd": _sgd,
    "heavy_ball": _heavy_ball,
    "nesterov": _nesterov,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "lars": _lars,
    "lamb": _lamb,
    "muon": _muon,
    "shampoo": _shampoo,
    "lbfgs": _lbfgs,
    **{
        f"nlcg_{rule}{suffix and '_'}{suffix}": _nlcg(rule, preconditioner)
        for rule in NLCG_RULES
        for suffix, preconditioner in PRECONDITIONERS.items()
    },
    **_paper_variants(),
}


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Builds an optimiser.

    Args:
      name: a name in `OPTIMIZERS`.
      learning_rate: number or schedule.
      options: keyword options of that optimiser.

    Raises:
      ValueError: if the name or an option is unknown or out of its range.
    """
    builder = look_up("optimizer", name, OPTIMIZERS)
    options = dict(options or {})
    parameters = inspect.signature(builder).parameters
    known = [option for option in parameters if option != "learning_rate"]
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"optimizer_options has {option}={value!r}, which {name!r} does not "
                f"take; allowed are {known}"
            )
    return builder(learning_rate, **options)
