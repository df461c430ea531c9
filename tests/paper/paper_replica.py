"""An independent NumPy float64 replica of the paper's system.

It is written only from the page that restates the system's behaviour (sections A to
F) and shares no code with the package, so that the two can disagree. It favours plain
code over speed. Letters in the comments name the sections of that page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# Each row of the controller's table is (a, c, k): a ratio above 1 + a * threshold, and
# below the row before it, multiplies b by c and undoes the fraction k of the last step.
# Upper ends of the intervals are inclusive, hence the strict comparison in `_bad_row`.
BAD_ROWS = (
    (0.15, 0.5, 0.9),
    (0.125, 0.7, 0.7),
    (0.10, 0.8, 0.5),
    (0.075, 0.9, 0.3),
    (0.05, 0.95, 0.2),
    (0.025, 0.975, 0.1),
    (0.01, 1.0, 0.1),
)
SMALLEST_MULTIPLIER = 1e-4
# The page writes this number out where it forms M^-1, and a symbol elsewhere, so it
# does not follow `PaperConfig.eps`.
PRECONDITIONER_EPS = 1e-8


@dataclass(frozen=True)
class PaperConfig:
    """The options of the system; steps count from 0."""

    rule: Literal["fr", "pr"]
    bfgs: bool
    controller: Literal["online", "step"] | None
    layerwise: bool
    learning_rate: Callable[[int], float]
    fr_restart_period: int | None
    bfgs_reset_period: int | None
    bfgs_spectral: bool
    period: int = 5  # Of the "step" controller.
    threshold: float = 1.0  # The controller's tau.
    eps: float = 1e-8
    eta: float = 0.001  # Of the layer-wise scaling.


def _split(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Cuts a flat vector into one array per variable."""
    parts, offset = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(flat[offset : offset + size].reshape(shape).copy())
        offset += size
    return parts


class PaperReplica:
    """Runs the system one step at a time.

    Each entry of `history` holds: `beta`; `rho`; `b`, the multiplier after the step;
    `direction`, flattened and before the controller's correction; `update`, what was
    added to the parameters, flattened; `h`, flattened; `skipped`, whether the BFGS
    update was skipped (None where none was due: BFGS off, or t = 0); and `ratio`, the
    controller's (None where it did not act).
    """

    def __init__(self, config: PaperConfig, params: list[np.ndarray]):
        self.config = config
        self.params = [np.array(w, dtype=np.float64) for w in params]
        self.history: list[dict[str, Any]] = []
        self._t = 0
        self._b = 1.0
        self._h = np.ones(sum(w.size for w in self.params))
        self._loss_average = 0.0
        self._old_loss_average = 0.0
        # What the previous step leaves behind; all of it is set at t = 0.
        self._g_prev = np.zeros_like(self._h)
        self._s_prev = np.zeros_like(self._h)
        self._d_prev = np.zeros_like(self._h)
        self._rho_prev = 0.0

    def step(self, grads: list[np.ndarray], loss: float) -> list[np.ndarray]:
        """Takes one step from a mini-batch's gradient and loss at `params`."""
        # The page does not order its sections within a step. They run as F, A, B, C,
        # D, E: whatever comes after F, y included, sees only the scaled gradient.
        lr = float(self.config.learning_rate(self._t))
        grads = [np.asarray(g, dtype=np.float64) for g in grads]
        if self.config.layerwise:
            pairs = zip(self.params, grads, strict=True)
            grads = [self._scale(w, g) for w, g in pairs]
        # Inner products and beta are global, so the rest works on one flat vector of
        # all variables concatenated.
        g = np.concatenate([x.ravel() for x in grads])
        skipped = self._update_h(g, lr)
        beta, rho, s, d = self._direction(g)
        self._average_loss(float(loss))
        update, ratio = self._update(lr, d, float(loss))

        changes = _split(update, [w.shape for w in self.params])
        self.params = [w + x for w, x in zip(self.params, changes, strict=True)]
        self.history.append(
            {"beta": beta, "rho": rho, "b": self._b, "direction": d, "update": update}
            | {"h": self._h, "skipped": skipped, "ratio": ratio}
        )
        # The stored direction is always d, also where the controller corrected the
        # applied step.
        self._g_prev, self._s_prev, self._d_prev, self._rho_prev = g, s, d, rho
        self._t += 1
        return [w.copy() for w in self.params]

    def _scale(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Section F for one variable; one that is all zero stays frozen, as there."""
        eta, eps = self.config.eta, self.config.eps
        w_norm = math.sqrt(float(np.sum(w * w)))
        g_norm = math.sqrt(float(np.sum(g * g)))
        return eta * w_norm / (g_norm + eps + 0.1 * eta * w_norm) * g

    def _update_h(self, g: np.ndarray, lr: float) -> bool | None:
        """Section A: updates h and says whether a due update was skipped."""
        if not self.config.bfgs or self._t == 0:
            return None
        # A reset comes before the step's update is considered and takes its place.
        reset_period = self.config.bfgs_reset_period
        if reset_period is not None and self._t % reset_period == 0:
            self._h = np.ones_like(self._h)
            return True
        eps, h = self.config.eps, self._h
        y = g - self._g_prev
        # The learning rate is the current step's, b is the one the previous step left,
        # and the direction is the stored one: p ignores the controller's correction.
        p = lr * self._b * self._d_prev
        ys = float(np.sum(y * p))
        php = float(np.sum(p * (h * p)))
        if ys < eps or php < eps:
            return True
        # The spectral option changes this divisor alone; the test above stays.
        divisor = float(np.sum(y * y)) if self.config.bfgs_spectral else ys
        removed = ((h * p) ** 2 + eps) / (php + eps)
        added = (y**2 + eps) / (divisor + eps)
        self._h = np.abs(h - removed + added)
        return False

    def _direction(self, g: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        """Section B: returns beta, rho, s and d."""
        r = -g
        # M^-1 is exactly 1 without BFGS and at t = 0. Afterwards it comes from h, also
        # where h is still, or again, 1.
        if self.config.bfgs and self._t > 0:
            s = r / (self._h + PRECONDITIONER_EPS)
        else:
            s = r.copy()
        rho = float(np.sum(r * s))
        if self._t == 0:
            return 0.0, rho, s, s.copy()
        numerator = rho
        if self.config.rule == "pr":
            # s_prev is as the previous step stored it, with that step's M^-1.
            numerator = rho - float(np.sum(r * self._s_prev))
        beta = numerator / (self._rho_prev + self.config.eps)
        beta = min(max(beta, 0.0), 1.0)
        # The page calls this the FR restart, so PR does not see it.
        k = self.config.fr_restart_period
        if self.config.rule == "fr" and k is not None and self._t % k == 0:
            beta = 0.0
        # The paper has no descent safeguard: d may point uphill.
        return beta, rho, s, s + beta * self._d_prev

    def _average_loss(self, loss: float) -> None:
        """Section C; the average starts, as L and as L_old, at the first loss."""
        if self._t == 0:
            self._loss_average = loss
            self._old_loss_average = loss
        else:
            self._loss_average = 0.7 * self._loss_average + 0.3 * loss

    def _update(
        self, lr: float, d: np.ndarray, loss: float
    ) -> tuple[np.ndarray, float | None]:
        """Sections D and E: returns the applied step and the controller's ratio."""
        ratio = self._ratio(loss)
        if ratio is None:
            # Also between two actions in "step" mode.
            return lr * self._b * d, None
        b_before = self._b
        row = self._bad_row(ratio)
        if row is None:
            growth = 1.05 if self.config.controller == "step" else 1.02
            self._b = min(1.0, growth * b_before)
            return lr * self._b * d, ratio
        _, c, k = row
        self._b = max(c * b_before, SMALLEST_MULTIPLIER)
        # The part undone belongs to the last step, so it carries the multiplier from
        # before this action, but, as the page has it, the current learning rate.
        kept = (1.0 - k) * lr * self._b * d
        undone = k * lr * b_before * self._d_prev
        return kept - undone, ratio

    def _ratio(self, loss: float) -> float | None:
        """The controller's ratio; both averages already hold the current loss."""
        if self._t == 0 or self.config.controller is None:
            return None
        if self.config.controller == "online":
            return loss / self._loss_average
        if self._t % self.config.period != 0:
            return None
        ratio = self._loss_average / self._old_loss_average
        self._old_loss_average = self._loss_average
        return ratio

    def _bad_row(self, ratio: float) -> tuple[float, float, float] | None:
        """The row of the table a ratio falls in, or None if the ratio is good.

        A ratio of exactly 1 + .01 tau, which the page leaves open, counts as good.
        """
        for row in BAD_ROWS:
            if ratio > 1.0 + row[0] * self.config.threshold:
                return row
        return None


def noisy_problem(
    seed: int,
) -> tuple[
    list[np.ndarray],
    Callable[[int, list[np.ndarray]], tuple[float, list[np.ndarray]]],
]:
    """A small ill-conditioned, nonconvex regression with mini-batch noise.

    Every step draws its own batch of inputs x and noisy targets. The loss is the mean
    of log(1 + z^2 / 2) over the residuals z, which is nonconvex and has bounded
    gradients, plus a weak quadratic that keeps the parameters from drifting away.

    Returns:
        The initial parameters, and a stateless function from a step and parameters to
        the loss and gradients of that step's batch.
    """
    shapes: list[tuple[int, ...]] = [(4, 3), (3,), (2, 2, 2)]
    size = sum(math.prod(shape) for shape in shapes)
    batch_size, decay = 24, 1e-3
    # NumPy pads short seeds with zeros, so a word that is 0 here and 1 below keeps the
    # two streams apart.
    rng = np.random.default_rng([seed, 0])
    scales = np.logspace(0.0, -1.0, size)[rng.permutation(size)]
    target = rng.normal(size=size)
    start = target + rng.normal(size=size)

    def value_and_grad(
        step: int, params: list[np.ndarray]
    ) -> tuple[float, list[np.ndarray]]:
        theta = np.concatenate([w.ravel() for w in params]).astype(np.float64)
        batch = np.random.default_rng([seed, 1, step])
        x = batch.normal(size=(batch_size, size)) * scales
        z = x @ (theta - target) - 0.5 * batch.normal(size=batch_size)
        loss = np.mean(np.log1p(0.5 * z**2)) + 0.5 * decay * np.sum(theta**2)
        grad = x.T @ (z / (1.0 + 0.5 * z**2)) / batch_size + decay * theta
        return float(loss), _split(grad, shapes)

    return _split(start, shapes), value_and_grad
