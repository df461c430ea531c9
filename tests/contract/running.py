"""How the rows of the table are run: a problem, a step, and which rows a test takes."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract.table import BY_NAME, PRESETS, ROWS, RULES_OF_SCALARS, Row

# One of each kind: the rows that `make test` runs. `make test-slow` runs the others.
FAST = (
    "pr+",
    "kronecker",
    "secant_rate",
    "secant_hvp",
    "limited_memory",
    "paper_pr_online",
    "search",
)
# Of these `make test` runs the properties that compile several programs a row.
DEAR = ("pr+", "secant_hvp", "search")
# One for each form and preconditioner, for properties of which each costs seconds.
KEY = (
    *("pr+", "rms", "factored", "orthogonal", "kronecker", "limited_memory"),
    *("secant_rate", "secant_params", "secant_hvp", "hutchinson"),
    *("curvature_step", "subspace_step", "slope_ratio"),
    *("paper_fr_step", "paper_pr_online"),
    *("search", "search_secant", "backtracking_rms"),
)
# And the presets: the rows that `make test` runs where all rows would take a minute.
WIDE = (*KEY, *(row.name for row in PRESETS))
# Reasons for which properties leave rows out.
OF_SCALARS = {
    row.name: "the program of another rule, but for a formula of scalars"
    for row in RULES_OF_SCALARS
}
OPTAX_SEARCHES = dict.fromkeys(
    ("zoom", "backtracking", "backtracking_rms"), "a limitation of Optax's own search"
)
# How the names of rows begin whose numbers are compared in float64: inverse roots and
# polar factors enlarge roundings where a matrix has almost no gradient, and the first
# steps of a search or of a tuning-free step do so, too.
AMPLIFYING = (
    *("kronecker", "orthogonal", "large_batch_nlcg", "tuning_free_nlcg"),
    *("search", "hager_zhang", "for_linesearch", "virtual_batch of a preset"),
)


def amplifies(row: Row) -> bool:
    """Whether the numbers of a row are to be compared in float64."""
    return row.name.startswith(AMPLIFYING)


def _params(chosen: Iterable[tuple[Any, ...]], fast: Iterable[tuple[Any, ...]]) -> Any:
    def name(values: tuple[Any, ...]) -> str:
        return "-".join(getattr(value, "name", str(value)) for value in values)

    quick = {name(values) for values in fast}
    return [
        pytest.param(
            *values,
            id=name(values),
            marks=[] if name(values) in quick else [pytest.mark.slow],
        )
        for values in chosen
    ]


def _rows(names: Iterable[str] | None, without: dict[str, str]) -> list[Row]:
    unknown = set(without) - set(BY_NAME)
    assert not unknown, unknown
    rows = ROWS if names is None else [BY_NAME[name] for name in names]
    return [row for row in rows if row.name not in without]


def each_row(
    *,
    names: Iterable[str] | None = None,
    without: dict[str, str] | None = None,
    fast: Iterable[str] | None = FAST,
) -> pytest.MarkDecorator:
    """Parametrizes a test by ``row``.

    Args:
      names: of the rows; None for all.
      without: names of rows that are left out, and why.
      fast: names of the rows that ``make test`` runs; None for all.
    """
    rows = _rows(names, without or {})
    quick = [(row,) for row in rows if fast is None or row.name in fast]
    return pytest.mark.parametrize(
        "row", _params([(row,) for row in rows], quick), scope="module"
    )


def each_row_with_one(
    argument: str,
    choices: Sequence[Any],
    *,
    names: Iterable[str] | None = None,
    without: dict[str, str] | None = None,
    fast: Iterable[str] | None = FAST,
) -> pytest.MarkDecorator:
    """Parametrizes a test by ``row`` and one choice for each row, in turn.

    What a choice does to a row depends on the kind of the row only, so those of
    `FAST`, one of each kind, meet every choice in ``make test-slow``.
    """
    rows = _rows(names, without or {})
    in_turn = itertools.cycle(choices)
    each = [(row, next(in_turn)) for row in rows]
    quick = [pair for pair in each if fast is None or pair[0].name in fast]
    met = {(row.name, choice) for row, choice in each}
    all_choices = [
        (row, choice)
        for row in rows
        for choice in choices
        if row.name in FAST and (row.name, choice) not in met
    ]
    return pytest.mark.parametrize(
        ("row", argument), _params([*each, *all_choices], quick)
    )


class ModelLoss(NamedTuple):
    """The loss of a model, and its two parts, of which some curvatures are made."""

    outputs_fn: Callable[[Any], jax.Array]
    output_loss_fn: Callable[[jax.Array], jax.Array]

    def __call__(self, params: Any) -> jax.Array:
        return self.output_loss_fn(self.outputs_fn(params))


def small_params(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """A matrix and a vector, not all zero anywhere, far from the optimum."""
    w = jnp.array([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]])
    return {"b": jnp.array([0.5, -1.0]).astype(dtype), "w": w.astype(dtype)}


def _small_outputs(params: dict[str, jax.Array]) -> jax.Array:
    w, b = params["w"], params["b"]
    return jnp.concatenate([w - 0.5, (b + w[0])[None]])


def _small_output_loss(outputs: jax.Array) -> jax.Array:
    scale = jnp.array([[1.0, 4.0], [0.2, 1.0], [3.0, 0.5]])
    square = jnp.abs(outputs).astype(scale.dtype) ** 2
    return (
        0.5 * jnp.sum(scale * square[:3])
        + jnp.sum(jnp.log1p(square[3]))
        + jnp.sum(square[3])
    )


# Smooth and nonlinear, with curvatures from 0.2 to 12, zero at the optimum.
small_loss = ModelLoss(_small_outputs, _small_output_loss)


def extra_args(
    row: Row, value: jax.Array, grad: Any, value_fn: Callable[..., Any]
) -> dict[str, Any]:
    """The extra arguments that a row needs.

    The loss counts as the only output of a model where it is no `ModelLoss`.
    """
    if isinstance(value_fn, ModelLoss):
        outputs_fn, output_loss_fn = value_fn
    else:
        outputs_fn, output_loss_fn = value_fn, lambda output: output
    known = {
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "outputs_fn": outputs_fn,
        "output_loss_fn": output_loss_fn,
        "half_grads": (grad, grad),
    }
    return {name: known[name] for name in row.extras}


def make_step(
    row: Row, tx: optax.GradientTransformationExtraArgs, value_fn: Callable[..., Any]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """One step of training, ``(params, state) -> (params, state)``, not yet jitted."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, derivative = jax.value_and_grad(value_fn)(params)
        grad = jax.tree.map(jnp.conj, derivative)  # the steepest ascent
        # Optax's zoom search reads the slope off the ascent, all others off jax.grad's.
        known = extra_args(
            row, value, grad if row.name == "zoom" else derivative, value_fn
        )
        updates, state = tx.update(grad, state, params, **known)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def compiled_step(
    name: str,
) -> tuple[optax.GradientTransformationExtraArgs, Callable[[Any, Any], Any]]:
    """The transformation of a row and its jitted step on `small_loss`, made once."""
    row = BY_NAME[name]
    tx = row.make()
    return tx, jax.jit(make_step(row, tx, small_loss))


def types(tree: Any) -> Any:
    """The shape, dtype, weak type and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


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
