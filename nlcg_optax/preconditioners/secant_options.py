"""The arguments of the diagonal secant, checked, and what follows from them."""

from typing import NamedTuple

import optax

from nlcg_optax import validation

SECANTS = ("difference", "hvp")


class Options(NamedTuple):
    """Arguments of `scale_by_diagonal_secant`, and two options of the paper's program.

    Attributes:
      learning_rate: that of the step, or None.
      secant: the source of y.
      refresh_period: steps between secant pairs.
      eps: the ε of the formula.
      damping: added to h before the division.
      reset_period: steps between resets of h to one, or None.
      spectral_scaling: whether yᵀy replaces yᵀp in the last term of the formula.
    """

    learning_rate: optax.ScalarOrSchedule | None
    secant: str
    refresh_period: int
    eps: float
    damping: float
    reset_period: int | None
    spectral_scaling: bool

    @property
    def from_grads(self) -> bool:
        """Whether y is a difference of gradients."""
        return self.secant == "difference"

    @property
    def from_params(self) -> bool:
        """Whether p is a difference of parameters."""
        return self.from_grads and self.learning_rate is None


def checked_options(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    secant: str = "difference",
    refresh_period: int = 1,
    eps: float = 1e-8,
    damping: float = 1e-8,
    reset_period: int | None = None,
    spectral_scaling: bool = False,
) -> Options:
    """Returns the `Options` with these values; raises where one is out of its range."""
    validation.check_choice("secant", secant, SECANTS)
    validation.check_positive_int("refresh_period", refresh_period)
    if reset_period is not None:
        validation.check_positive_int("reset_period", reset_period)
    validation.check_positive("eps", eps)
    validation.check_non_negative("damping", damping)
    if learning_rate is not None and secant == "hvp":
        raise ValueError(
            f"learning_rate={learning_rate!r} must be None with secant='hvp', which "
            "does not depend on the length of the step"
        )
    return Options(
        learning_rate,
        secant,
        refresh_period,
        eps,
        damping,
        reset_period,
        spectral_scaling,
    )
