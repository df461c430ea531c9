"""Optimisers by name, each with what it asks for and what it costs.

A name fixes the kind (rule and preconditioner); the numbers are options, which a
configuration or a search may set.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import optax

import nlcg_optax
from experiments.preconditioners import matrix_axes_of, orthogonalised_matrices
from experiments.registry import look_up
from experiments.weight_decay import decay_mask

HVP_COST = 2.0  # gradient-equivalents of a Hessian-vector product
NLCG_RULES = ("fr", "pr+", "hs")

Builder = Callable[..., "Optimizer"]


class Optimizer(NamedTuple):
    """An optimiser with its needs and its price.

    Attributes:
      transformation: the Optax transformation.
      extras: the extra arguments that its ``update`` takes, out of ``value`` and
        ``value_fn``.
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


def _nlcg(rule: str) -> Builder:
    def build_nlcg(
        learning_rate: optax.ScalarOrSchedule,
        *,
        beta_max: float = 1.0,
        beta_smoothing: float = 0.0,
    ) -> Optimizer:
        return Optimizer(
            nlcg_optax.nlcg(
                learning_rate, rule, beta_max=beta_max, beta_smoothing=beta_smoothing
            )
        )

    return build_nlcg


def _nlcg_rms(rule: str) -> Builder:
    def build_nlcg_rms(
        learning_rate: optax.ScalarOrSchedule,
        *,
        beta_max: float = 1.0,
        beta_smoothing: float = 0.0,
        decay: float = 0.999,
        weight_decay: float = 0.0,
    ) -> Optimizer:
        return Optimizer(
            nlcg_optax.nlcg(
                learning_rate,
                rule,
                # The second moment of Adam, so that Adam is the fixed-momentum peer.
                preconditioner=optax.scale_by_rms(decay, bias_correction=True),
                beta_max=beta_max,
                beta_smoothing=beta_smoothing,
                weight_decay=weight_decay,
                weight_decay_mask=decay_mask,
            )
        )

    return build_nlcg_rms


def _nlcg_orthogonal(rule: str) -> Builder:
    def build_nlcg_orthogonal(
        learning_rate: optax.ScalarOrSchedule,
        *,
        beta_max: float = 1.0,
        beta_smoothing: float = 0.0,
        decay: float = 0.999,
        weight_decay: float = 0.0,
    ) -> Optimizer:
        return Optimizer(
            nlcg_optax.nlcg(
                learning_rate,
                rule,
                # Muon's step, so that Muon is the fixed-momentum peer.
                preconditioner=orthogonalised_matrices(decay),
                beta_max=beta_max,
                beta_smoothing=beta_smoothing,
                weight_decay=weight_decay,
                weight_decay_mask=decay_mask,
            )
        )

    return build_nlcg_orthogonal


def _nlcg_secant(rule: str) -> Builder:
    def build_nlcg_secant(
        learning_rate: optax.ScalarOrSchedule,
        *,
        beta_max: float = 1.0,
        beta_smoothing: float = 0.0,
        refresh_period: int = 5,
    ) -> Optimizer:
        return Optimizer(
            nlcg_optax.nlcg(
                learning_rate,
                rule,
                preconditioner=nlcg_optax.scale_by_diagonal_secant(
                    secant="hvp", refresh_period=refresh_period
                ),
                beta_max=beta_max,
                beta_smoothing=beta_smoothing,
            ),
            extras=("value_fn",),
            gradient_equivalents=1.0 + HVP_COST / refresh_period,
        )

    return build_nlcg_secant


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
    **{f"nlcg_{rule}": _nlcg(rule) for rule in NLCG_RULES},
    **{f"nlcg_{rule}_rms": _nlcg_rms(rule) for rule in NLCG_RULES},
    **{f"nlcg_{rule}_secant": _nlcg_secant(rule) for rule in NLCG_RULES},
    **{f"nlcg_{rule}_orthogonal": _nlcg_orthogonal(rule) for rule in NLCG_RULES},
    **_paper_variants(),
}


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Mapping[str, int | float] | None = None,
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
