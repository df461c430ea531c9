"""The table of the contract: every part of the package that builds a transformation.

One row each for every public transformation, wrapper and preset, every conjugacy rule,
every preconditioner alone and nested in the direction, every step size, the line
search, and some nestings. `test_table` asserts that no public name is missing.

A row holds a factory and its arguments, so that a test can wrap the factory
(``optax.inject_hyperparams``) or replace an argument (``row.make(state_dtype=...)``).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import nlcg_optax as n
from nlcg_optax import contrib, paper
from nlcg_optax.direction.rules import RULES
from nlcg_optax.dtypes import with_standard_promotion

RATE = 0.05
SEARCH_EXTRAS = ("value", "grad", "value_fn")
GAUSS_NEWTON_EXTRAS = ("outputs_fn", "output_loss_fn")


class Row(NamedTuple):
    """A transformation and how to run it.

    Attributes:
      name: identifies the row.
      factory: builds the transformation.
      kwargs: arguments of the factory.
      extras: the extra arguments that ``update`` needs.
      promotes: whether it contains parts of Optax that promote dtypes implicitly.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    kwargs: dict[str, Any]
    extras: tuple[str, ...] = ()
    promotes: bool = False

    @property
    def searches(self) -> bool:
        """Whether the step size comes from a line search."""
        return "grad" in self.extras

    def make(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation, with some arguments replaced."""
        tx = self.factory(**{**self.kwargs, **overrides})
        return with_standard_promotion(tx) if self.promotes else tx


def _unit_noise(key: jax.Array, outputs: jax.Array) -> jax.Array:
    # The loss of `running.small_loss` is half a square of its outputs, or nearly.
    return jax.random.normal(key, outputs.shape).astype(outputs.dtype)


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

    # `optax.inject_hyperparams` binds the arguments to the signature.
    signature = inspect.signature(direction)
    rate = inspect.signature(chained).parameters["learning_rate"]
    given = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in signature.parameters.values()
        if p.kind != p.VAR_KEYWORD and p.name != rate.name
    ]
    chained.__signature__ = signature.replace(parameters=[rate, *given])
    return chained


chained = with_rate(n.scale_by_nlcg)  # with arguments that `nlcg` does not take


def _slope_ratio(
    initial_step_size: float = 1e-3, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    """The slope-ratio step along the direction with these arguments."""
    return n.scale_by_slope_ratio(
        n.scale_by_nlcg(**kwargs), initial_step_size=initial_step_size
    )


def _stochastic(name: str, extras: tuple[str, ...] = (), **kwargs: Any) -> Row:
    promotes = kwargs.pop("promotes", False)
    return Row(name, n.nlcg, {"learning_rate": RATE, **kwargs}, extras, promotes)


def _paper(name: str, **kwargs: Any) -> Row:
    return Row(name, n.paper_nlcg, {"learning_rate": RATE, **kwargs}, ("value",))


def _deterministic(name: str, promotes: bool = False, **kwargs: Any) -> Row:
    return Row(name, n.nlcg, kwargs, SEARCH_EXTRAS, promotes)


def _chained(
    name: str,
    extras: tuple[str, ...] = (),
    direction: Callable[..., optax.GradientTransformation] = n.scale_by_nlcg,
    **kwargs: Any,
) -> Row:
    factory = with_rate(direction)
    return Row(name, factory, {"learning_rate": RATE, **kwargs}, extras)


def _nested(
    name: str, make: Callable[[], Any], extras: tuple[str, ...] = (), **kwargs: Any
) -> Row:
    """A row whose transformation is built whole, without arguments of its own."""
    return Row(name, make, {}, extras, **kwargs)


def _searched(direction: Any, search: Any) -> optax.GradientTransformation:
    return optax.chain(direction, optax.scale(-1.0), search)


# The rules that are run by every property: one that keeps one tree, two trees, all
# products, and those of the line searches.
_RULES = [
    # As the paper has it; most of the others keep the default, which is smoothed.
    _stochastic("fr", rule="fr", beta_smoothing=0.0, beta_max=1.0),
    _stochastic("pr+", rule="pr+"),
    _chained("hz", rule="hz"),
    _chained("hs", rule="hs"),
    _chained("dk", rule="dk"),
    _stochastic("constant", rule=0.9),
]
# The others differ from these by a formula of scalars only, see tests/direction.
RULES_OF_SCALARS = [
    _chained(f"rule {name}", rule=name)
    for name in RULES
    if name not in {row.kwargs["rule"] for row in _RULES}
]

_DIRECTIONS = [
    _chained("daniel", ("value_fn",), direction=contrib.scale_by_daniel),
    _chained("per_leaf", rule="pr+", scope="per_leaf"),
    _chained("narrow", rule="pr+", scope="per_leaf", state_dtype="bfloat16"),
    _stochastic("smoothed", rule="fr", beta_smoothing=0.5),
    _chained("restarted", rule="hs", restart="powell", restart_period=7),
    _chained(
        "restart_memory",
        direction=functools.partial(
            contrib.scale_by_nlcg_with_restart_memory, memory=2
        ),
    ),
    _chained("halves", ("half_grads",), direction=contrib.scale_by_nlcg_across_halves),
    _nested(
        "damped",
        lambda: optax.chain(
            n.damp_by_beta(n.scale_by_nlcg("pr+", beta_max=0.9, beta_smoothing=0.9)),
            optax.scale_by_learning_rate(RATE),
        ),
    ),
]

# Both with the gradient's norm, so that the step dies out at an optimum.
_ORTHOGONAL = {"restore_norm": True, "vectors": optax.identity()}
_KRONECKER = {
    "refresh_period": 2,
    "relative_damping": 1e-2,
    "diagonal": optax.identity(),
}
# Names, factories, arguments and extra arguments of the preconditioners.
PRECONDITIONERS = {
    "kronecker": (n.scale_by_kronecker, _KRONECKER, ()),
    "orthogonal": (n.scale_by_orthogonalization, _ORTHOGONAL, ()),
    "hutchinson": (
        n.scale_by_hutchinson,
        {"refresh_period": 2, "power": 0.5},
        ("value_fn",),
    ),
    "equilibration": (n.scale_by_equilibration, {}, ("value_fn",)),
    "bartlett": (
        n.scale_by_gauss_newton_bartlett,
        {"likelihood": _unit_noise, "power": 0.5},
        ("outputs_fn",),
    ),
    "secant_params": (n.scale_by_diagonal_secant, {}, ()),
    "secant_hvp": (
        n.scale_by_diagonal_secant,
        {"secant": "hvp", "refresh_period": 2},
        ("value_fn",),
    ),
    "limited_memory": (n.scale_by_limited_memory, {"memory": 3}, ()),
}
# These need the previous direction, which only a direction gives.
ONLY_NESTED = ("secant_hvp",)
_PRECONDITIONED = [
    *(
        _stochastic(name, extras, preconditioner=factory(**kwargs))
        for name, (factory, kwargs, extras) in PRECONDITIONERS.items()
    ),
    *(
        _chained(f"{name} alone", extras, direction=factory, **kwargs)
        for name, (factory, kwargs, extras) in PRECONDITIONERS.items()
        if name not in ONLY_NESTED
    ),
    _stochastic(
        "secant_rate", rule="fr", preconditioner=n.scale_by_diagonal_secant(RATE)
    ),
    _stochastic("kronecker defaults", preconditioner=n.scale_by_kronecker()),
    _stochastic(
        "hutchinson gauss_newton",
        GAUSS_NEWTON_EXTRAS,
        preconditioner=n.scale_by_hutchinson("gauss_newton"),
    ),
    # Optax's.
    _stochastic("rms", rule="fr", preconditioner=optax.scale_by_rms(), promotes=True),
    _stochastic(
        "factored",
        rule="pr+",
        preconditioner=optax.scale_by_factored_rms(min_dim_size_to_factor=2),
        promotes=True,
    ),
]

# Names, transformations and extra arguments of what follows the direction.
STEP_SIZES = {
    "curvature_step": (n.scale_by_curvature_step, ("value_fn",)),
    "curvature_step gauss_newton": (
        lambda: n.scale_by_curvature_step("gauss_newton", refresh_period=3),
        GAUSS_NEWTON_EXTRAS,
    ),
    "subspace_step": (n.scale_by_subspace_step, ("value_fn",)),
    "subspace_step gauss_newton": (
        lambda: n.scale_by_subspace_step("gauss_newton"),
        GAUSS_NEWTON_EXTRAS,
    ),
    "scaled_cg_step": (contrib.scale_by_scaled_cg_step, ("value_fn",)),
    "loss_ratio": (paper.scale_by_loss_ratio, ("value",)),
}
_STEP_RULES = {"subspace_step": 0.0, "scaled_cg_step": "ls"}
_STEPPED = [
    *(
        _stochastic(
            name,
            extras,
            rule=_STEP_RULES.get(name, "pr+"),
            step_control=make(),
        )
        for name, (make, extras) in STEP_SIZES.items()
    ),
    _chained("slope_ratio", ("value",), direction=_slope_ratio, initial_step_size=RATE),
    _nested(
        "layer-wise ratio",
        lambda: optax.chain(paper.scale_by_layerwise_ratio(), n.nlcg(RATE)),
    ),
]

_SEARCHED = [
    _deterministic("search"),
    _deterministic(
        "search_secant", preconditioner=n.scale_by_diagonal_secant(secant="hvp")
    ),
    _deterministic(
        "zoom",
        promotes=True,
        linesearch=optax.scale_by_zoom_linesearch(
            30, curv_rtol=0.1, initial_guess_strategy="one"
        ),
    ),
    _deterministic(
        "backtracking",
        promotes=True,
        linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True),
    ),
    _deterministic(
        "backtracking_rms",
        promotes=True,
        preconditioner=optax.scale_by_rms(),
        linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True),
    ),
    _nested(
        "hager_zhang",
        lambda: _searched(n.scale_by_nlcg("hz"), n.scale_by_hager_zhang_linesearch()),
        SEARCH_EXTRAS,
    ),
    _nested(
        "hager_zhang of L-BFGS",
        lambda: _searched(
            n.scale_by_limited_memory(3),
            n.scale_by_hager_zhang_linesearch(
                initial_step="one", quadratic_step="adaptive"
            ),
        ),
        SEARCH_EXTRAS,
    ),
]

PRESETS = [
    Row("nlcg", n.nlcg, {"learning_rate": RATE, "weight_decay": 1e-3}),
    Row("large_batch_nlcg", n.large_batch_nlcg, {"learning_rate": RATE}),
    Row("tuning_free_nlcg", n.tuning_free_nlcg, {}, ("value",)),
    Row("tuning_free_nlcg horizon", n.tuning_free_nlcg, {"num_steps": 30}, ("value",)),
    _paper("paper_fr_step", rule="fr", step_control="step"),
    _paper("paper_pr_online", rule="pr", step_control="online"),
    _paper("paper_layerwise", rule="fr", step_control="step", layerwise_eta=0.05),
]

_WRAPPED = [
    _nested("virtual_batch", lambda: n.virtual_batch(n.nlcg(RATE), 2)),
    _nested("only_extra_args", lambda: n.only_extra_args(n.nlcg(RATE), ("value",))),
    _nested(
        "for_linesearch",
        lambda: n.for_linesearch(
            _searched(n.scale_by_nlcg("fr"), n.scale_by_hager_zhang_linesearch())
        ),
        SEARCH_EXTRAS,
    ),
    _nested(
        "feed_step_multiplier",
        lambda: optax.chain(
            paper.feed_step_multiplier(
                n.scale_by_nlcg(), paper.scale_by_loss_ratio("online")
            ),
            optax.scale_by_learning_rate(RATE),
        ),
        ("value",),
    ),
]

_NESTINGS = [
    # A direction of a direction, and preconditioners in one another.
    _chained(
        "kronecker of secant",
        preconditioner=n.scale_by_kronecker(diagonal=n.scale_by_diagonal_secant()),
    ),
    _chained(
        "orthogonal of kronecker",
        preconditioner=optax.chain(
            n.scale_by_kronecker(), n.scale_by_orthogonalization(restore_norm=True)
        ),
    ),
    _nested(
        "virtual_batch of a preset",
        lambda: n.virtual_batch(n.large_batch_nlcg(RATE), 2),
    ),
    _nested(
        "search of kronecker",
        lambda: n.nlcg(preconditioner=n.scale_by_kronecker()),
        SEARCH_EXTRAS,
    ),
]

ROWS = [
    *_RULES,
    *RULES_OF_SCALARS,
    *_DIRECTIONS,
    *_PRECONDITIONED,
    *_STEPPED,
    *_SEARCHED,
    *PRESETS,
    *_WRAPPED,
    *_NESTINGS,
]
# Public, but no row, and why.
NO_ROWS = {
    "split_parameters": "runs under a mapped axis only, in test_sharding",
}
BY_NAME = {row.name: row for row in ROWS}
