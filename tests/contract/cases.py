"""The optimizers under contract: every rule, form and preconditioner, and how to run.

A `Case` holds a factory and its arguments, so that tests can wrap the factory
(``optax.inject_hyperparams``) or replace an argument (``case.make(state_dtype=...)``).
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import (
    nlcg,
    paper_nlcg,
    scale_by_curvature_step,
    scale_by_diagonal_secant,
    scale_by_equilibration,
    scale_by_gauss_newton_bartlett,
    scale_by_hutchinson,
    scale_by_kronecker,
    scale_by_nlcg,
    scale_by_orthogonalization,
    scale_by_slope_ratio,
    scale_by_subspace_step,
)
from nlcg_optax.contrib import (
    scale_by_daniel,
    scale_by_nlcg_with_restart_memory,
    scale_by_scaled_cg_step,
)
from nlcg_optax.dtypes import with_standard_promotion

RATE = 0.05
# Optax's second moments and its zoom search promote dtypes implicitly.
PROMOTING = {
    "rms",
    "factored",
    "backtracking",
    "backtracking_rms",
    "zoom",
    "zoom_secant",
}
SEARCH_EXTRAS = ("value", "grad", "value_fn")


# Both with the gradient's norm, so that the step dies out at an optimum.
ORTHOGONAL = scale_by_orthogonalization(restore_norm=True, vectors=optax.identity())
KRONECKER = scale_by_kronecker(
    refresh_period=2, relative_damping=1e-2, diagonal=optax.identity()
)


def _unit_noise(key: jax.Array, output: jax.Array) -> jax.Array:
    # The output loss is half a square, of curvature one.
    return jax.random.normal(key, output.shape).astype(output.dtype)


class Case(NamedTuple):
    """An optimizer, and which extra arguments its ``update`` needs."""

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    extras: tuple[str, ...] = ()

    @property
    def searches(self) -> bool:
        """Whether the step size comes from a line search."""
        return "grad" in self.extras

    def make(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        tx = self.factory(**{**self.kwargs, **overrides})
        return with_standard_promotion(tx) if self.name in PROMOTING else tx

    def extra_args(
        self, value: jax.Array, grad: Any, value_fn: Callable[..., Any]
    ) -> dict[str, Any]:
        known = {"value": value, "grad": grad, "value_fn": value_fn}
        known["outputs_fn"] = value_fn  # the loss as the only output of a model
        return {name: known[name] for name in self.extras}


def _stochastic(name: str, extras: tuple[str, ...] = (), **kwargs: Any) -> Case:
    return Case(name, nlcg, {"learning_rate": RATE, **kwargs}, extras)


def _paper(name: str, **kwargs: Any) -> Case:
    return Case(name, paper_nlcg, {"learning_rate": RATE, **kwargs}, ("value",))


def _deterministic(name: str, **kwargs: Any) -> Case:
    return Case(name, nlcg, kwargs, SEARCH_EXTRAS)


def with_rate(
    direction: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory of a direction followed by a learning rate."""

    def chained(
        learning_rate: optax.ScalarOrSchedule, **kwargs: Any
    ) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            direction(**kwargs), optax.scale_by_learning_rate(learning_rate)
        )

    # `optax.inject_hyperparams` reads the names of the arguments.
    rate = inspect.signature(chained).parameters["learning_rate"]
    given = inspect.signature(direction).parameters.values()
    chained.__signature__ = inspect.Signature(
        [
            rate,
            *(p.replace(kind=p.KEYWORD_ONLY) for p in given if p.kind != p.VAR_KEYWORD),
        ]
    )
    return chained


chained = with_rate(scale_by_nlcg)  # with arguments that `nlcg` does not take


def scale_by_slope_ratio_of_nlcg(
    initial_step_size: float = 1e-3, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    """The slope-ratio step along the direction with these arguments."""
    return scale_by_slope_ratio(
        scale_by_nlcg(**kwargs), initial_step_size=initial_step_size
    )


def _chained(
    name: str,
    extras: tuple[str, ...] = (),
    direction: Callable[..., optax.GradientTransformation] = scale_by_nlcg,
    **kwargs: Any,
) -> Case:
    return Case(name, with_rate(direction), {"learning_rate": RATE, **kwargs}, extras)


STOCHASTIC = [
    # As the paper has it; most of the others keep the default, which is smoothed.
    _stochastic("fr", rule="fr", beta_smoothing=0.0, beta_max=1.0),
    _stochastic("pr+", rule="pr+"),
    _chained("hz", rule="hz"),
    _stochastic("constant", rule=0.9),
    _chained("daniel", ("value_fn",), direction=scale_by_daniel),
    _chained("per_leaf", rule="pr+", scope="per_leaf"),
    _stochastic("smoothed", rule="fr", beta_smoothing=0.5),
    _chained("restarted", rule="hs", restart="powell", restart_period=7),
    _chained(
        "restart_memory",
        direction=functools.partial(scale_by_nlcg_with_restart_memory, memory=2),
    ),
    _stochastic("rms", rule="fr", preconditioner=optax.scale_by_rms()),
    _stochastic(
        "factored",
        rule="pr+",
        preconditioner=optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    ),
    _chained("orthogonal", rule="hz", preconditioner=ORTHOGONAL),
    _stochastic("kronecker", preconditioner=KRONECKER),
    _stochastic(
        "secant_rate", rule="fr", preconditioner=scale_by_diagonal_secant(RATE)
    ),
    _stochastic("secant_params", preconditioner=scale_by_diagonal_secant()),
    _stochastic(
        "secant_hvp",
        ("value_fn",),
        preconditioner=scale_by_diagonal_secant(secant="hvp", refresh_period=2),
    ),
    _stochastic(
        "hutchinson",
        ("value_fn",),
        preconditioner=scale_by_hutchinson(refresh_period=2, power=0.5),
    ),
    _stochastic(
        "equilibration", ("value_fn",), preconditioner=scale_by_equilibration()
    ),
    _stochastic(
        "bartlett",
        ("outputs_fn",),
        preconditioner=scale_by_gauss_newton_bartlett(_unit_noise, power=0.5),
    ),
    _stochastic(
        "curvature_step", ("value_fn",), step_control=scale_by_curvature_step()
    ),
    _stochastic(
        "scaled_cg_step",
        ("value_fn",),
        rule="ls",
        step_control=scale_by_scaled_cg_step(),
    ),
    _stochastic(
        "subspace_step", ("value_fn",), rule=0.0, step_control=scale_by_subspace_step()
    ),
    _chained(
        "slope_ratio",
        ("value",),
        direction=scale_by_slope_ratio_of_nlcg,
        initial_step_size=RATE,
    ),
    _paper("paper_fr_step", rule="fr", step_control="step"),
    _paper("paper_pr_online", rule="pr", step_control="online"),
    _paper("paper_layerwise", rule="fr", step_control="step", layerwise_eta=0.05),
]

DETERMINISTIC = [
    _deterministic("search"),
    _deterministic(
        "search_secant", preconditioner=scale_by_diagonal_secant(secant="hvp")
    ),
    _deterministic(
        "zoom",
        linesearch=optax.scale_by_zoom_linesearch(
            30, curv_rtol=0.1, initial_guess_strategy="one"
        ),
    ),
    _deterministic(
        "backtracking",
        linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True),
    ),
    _deterministic(
        "backtracking_rms",
        preconditioner=optax.scale_by_rms(),
        linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True),
    ),
]

CASES = STOCHASTIC + DETERMINISTIC
BY_NAME = {case.name: case for case in CASES}

# One for each form and preconditioner, where a test is dear.
KEY_CASES = [
    BY_NAME[name]
    for name in (
        "pr+",
        "rms",
        "factored",
        "orthogonal",
        "kronecker",
        "secant_rate",
        "secant_params",
        "secant_hvp",
        "hutchinson",
        "curvature_step",
        "subspace_step",
        "paper_fr_step",
        "paper_pr_online",
        "search",
        "search_secant",
        "backtracking_rms",
    )
]


def ids(case: Case) -> str:
    """The name of a case, for ``pytest.mark.parametrize(..., ids=ids)``."""
    return case.name


def make_step(
    case: Case, tx: optax.GradientTransformationExtraArgs, value_fn: Callable[..., Any]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """One step of training, ``(params, state) -> (params, state)``, not yet jitted."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, derivative = jax.value_and_grad(value_fn)(params)
        grad = jax.tree.map(jnp.conj, derivative)  # the steepest ascent
        # Optax's zoom search reads the slope off the ascent, all others off jax.grad's.
        extra_args = case.extra_args(
            value, grad if case.name == "zoom" else derivative, value_fn
        )
        updates, state = tx.update(grad, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def small_params(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """A matrix and a vector, not all zero anywhere, far from the optimum."""
    w = jnp.array([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]])
    return {"b": jnp.array([0.5, -1.0]).astype(dtype), "w": w.astype(dtype)}


def small_loss(params: dict[str, jax.Array]) -> jax.Array:
    """A smooth nonlinear loss with curvatures from 0.2 to 12, zero at the optimum."""
    scale = jnp.array([[1.0, 4.0], [0.2, 1.0], [3.0, 0.5]])
    w, b = params["w"], params["b"]
    kept = jnp.abs(w - 0.5).astype(scale.dtype) ** 2
    bend = jnp.abs(b + w[0]).astype(scale.dtype) ** 2
    return 0.5 * jnp.sum(scale * kept) + jnp.sum(jnp.log1p(bend)) + jnp.sum(bend)


@functools.cache
def compiled_step(
    name: str,
) -> tuple[optax.GradientTransformationExtraArgs, Callable[[Any, Any], Any]]:
    """The optimizer of a case and its jitted step on `small_loss`, compiled once."""
    case = BY_NAME[name]
    tx = case.make()
    return tx, jax.jit(make_step(case, tx, small_loss))


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Collects the messages of all compilations inside the context."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Compiling"):
                messages.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield messages
    finally:
        logger.removeHandler(handler)
