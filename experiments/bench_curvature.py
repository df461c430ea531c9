"""``python -m experiments.bench_curvature``: what curvature costs, in gradients.

The peers take turns in one process, on a small residual network and one batch of random
images; every time is divided by that of the gradient in the same turn. The ratios mean
something on a busy machine, the milliseconds only on a quiet one.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.progress
import rich.table
import tyro

import nlcg_optax
from experiments import models
from experiments.preconditioners import matrix_axes_of
from experiments.timing import median_ratio, timed

RATE = 1e-3
CLASSES = 100
GRADIENT = "gradient"
PERIOD = 10  # of refreshes; a turn of an optimiser is as many steps

EVERY_STEP = (
    "step of NLCG, Gauss-Newton step size, period 1",
    "step of NLCG, Gauss-Newton plane",
)
PARTS: tuple[Literal["products", "steps"], ...] = ("products", "steps")

PyTree = Any


@dataclasses.dataclass(frozen=True)
class BenchCurvatureArguments:
    """Times curvature products and second-order steps, as ratios to one gradient.

    Attributes:
      rounds: turns that each peer takes.
      model: name of a model of `experiments.models`.
      batch_size: images in the batch.
      image_size: of their sides.
      parts: what is timed beside the gradient: products of curvature, and steps of
        optimisers.
      json: file for the figures.
    """

    rounds: int = 7
    model: str = "resnet8"
    batch_size: int = 64
    image_size: int = 32
    parts: tuple[Literal["products", "steps"], ...] = PARTS
    json: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of a peer.

    Attributes:
      peer: its name.
      ms: median of its time, for an optimiser of a step's.
      least_ms: the least of them.
      ratio: median over turns of its time over the gradient's in the same turn.
      target: what the ratio should not exceed, if there is such a number.
    """

    peer: str
    ms: float
    least_ms: float
    ratio: float
    target: float | None


class Inputs(NamedTuple):
    """What compiled programs are called with; nothing of it is a constant of theirs.

    Attributes:
      params: the parameters.
      directions: two trees like them.
      images: a batch.
      labels: its classes.
    """

    params: PyTree
    directions: tuple[PyTree, PyTree]
    images: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network on one batch, as functions of its parameters.

    Attributes:
      apply: from parameters and images to logits, in training mode.
      inputs: the parameters and the batch.
    """

    apply: Callable[[PyTree, jax.Array], jax.Array]
    inputs: Inputs

    def losses(self, inputs: Inputs) -> dict[str, Callable[[PyTree], jax.Array]]:
        """The functions that ``update`` takes, on the batch of ``inputs``."""

        def outputs_fn(params: PyTree) -> jax.Array:
            return self.apply(params, inputs.images)

        def output_loss_fn(logits: jax.Array) -> jax.Array:
            return jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits, inputs.labels)
            )

        return {
            "value_fn": lambda params: output_loss_fn(outputs_fn(params)),
            "outputs_fn": outputs_fn,
            "output_loss_fn": output_loss_fn,
        }


def make_problem(model_name: str, batch_size: int, image_size: int) -> Problem:
    """Builds the network and draws a batch."""
    model = models.build(model_name, CLASSES)
    keys = jax.random.split(jax.random.key(0), 5)
    images = jax.random.normal(keys[0], [batch_size, image_size, image_size, 3])
    labels = jax.random.randint(keys[1], [batch_size], 0, CLASSES)
    variables = model.init(keys[2], images[:1], train=False)
    params = variables["params"]
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=list(rest)
        )
        return logits

    first, second = (optax.tree.random_like(key, params) for key in keys[3:])
    return Problem(apply, Inputs(params, (first, second), images, labels))


def functions(problem: Problem) -> dict[str, tuple[Callable[..., Any], float | None]]:
    """What is timed alone: functions of the inputs, with their targets."""

    def value(x: Inputs) -> Any:
        return problem.losses(x)["value_fn"](x.params)

    def gradient(x: Inputs) -> Any:
        return jax.grad(problem.losses(x)["value_fn"])(x.params)

    def hessian_product(x: Inputs) -> Any:
        return nlcg_optax.hessian_vector_product(
            problem.losses(x)["value_fn"], x.params, x.directions[0]
        )

    def everything(x: Inputs) -> Any:
        return nlcg_optax.value_grad_and_hessian_vector_product(
            problem.losses(x)["value_fn"], x.params, x.directions[0]
        )

    def gauss_newton_product(x: Inputs) -> Any:
        f = problem.losses(x)
        return nlcg_optax.gauss_newton_vector_product(
            f["outputs_fn"], f["output_loss_fn"], x.params, x.directions[0]
        )

    def hessian(count: int) -> Callable[[Inputs], Any]:
        return lambda x: nlcg_optax.hessian_along(
            problem.losses(x)["value_fn"], x.params, x.directions[:count]
        )

    def gauss_newton(count: int) -> Callable[[Inputs], Any]:
        return lambda x: nlcg_optax.gauss_newton_along(
            problem.losses(x)["outputs_fn"],
            problem.losses(x)["output_loss_fn"],
            x.params,
            x.directions[:count],
        )

    return {
        GRADIENT: (gradient, None),
        "value": (value, None),
        "Hessian-vector product": (hessian_product, 3.0),
        "value, gradient and HVP": (everything, None),
        "Gauss-Newton-vector product": (gauss_newton_product, None),
        "Hessian, 1 direction": (hessian(1), None),
        "Hessian, 2 directions": (hessian(2), 2.0),
        "Gauss-Newton, 1 direction": (gauss_newton(1), None),
        "Gauss-Newton, 2 directions": (gauss_newton(2), 2.0),
    }


def optimizers() -> dict[str, tuple[optax.GradientTransformation, float | None]]:
    """Whose steps are timed, gradient included, with their targets."""
    one = optax.scale_by_learning_rate(1.0)

    def with_preconditioner(
        preconditioner: optax.GradientTransformation | None,
    ) -> optax.GradientTransformation:
        return nlcg_optax.nlcg(RATE, preconditioner=preconditioner)

    sampled = {
        "Hutchinson": nlcg_optax.scale_by_hutchinson(refresh_period=PERIOD),
        "equilibration": nlcg_optax.scale_by_equilibration(refresh_period=PERIOD),
        "Gauss-Newton-Bartlett": nlcg_optax.scale_by_gauss_newton_bartlett(
            refresh_period=PERIOD
        ),
        "orthogonalised": nlcg_optax.scale_by_orthogonalisation(
            weight_dimension_numbers=matrix_axes_of
        ),
        "Kronecker": nlcg_optax.scale_by_kronecker(
            refresh_period=PERIOD, weight_dimension_numbers=matrix_axes_of
        ),
    }
    peers: dict[str, tuple[optax.GradientTransformation, float | None]] = {
        "step of Adam": (optax.adam(RATE), None),
        "step of Muon": (
            optax.contrib.muon(RATE, muon_weight_dimension_numbers=matrix_axes_of),
            None,
        ),
        "step of NLCG": (with_preconditioner(None), None),
    }
    for name, preconditioner in sampled.items():
        target = 1.3 if name == "Hutchinson" else None
        peers[f"step of NLCG, {name}"] = (with_preconditioner(preconditioner), target)
    for period in (1, PERIOD):
        step = nlcg_optax.scale_by_curvature_step("gauss_newton", refresh_period=period)
        peers[f"step of NLCG, Gauss-Newton step size, period {period}"] = (
            optax.chain(nlcg_optax.scale_by_nlcg(), step, one),
            None,
        )
    plane = nlcg_optax.scale_by_subspace_step("gauss_newton")
    peers["step of NLCG, Gauss-Newton plane"] = (
        optax.chain(nlcg_optax.scale_by_nlcg(0.0), plane, one),
        None,
    )
    return peers


def make_step(
    problem: Problem, tx: optax.GradientTransformation, refresh: bool | None = None
) -> Callable[[PyTree, Inputs], tuple[PyTree, Inputs]]:
    """One step of training on the batch, gradient included."""
    tx = optax.with_extra_args_support(tx)

    def step(state: PyTree, inputs: Inputs) -> tuple[PyTree, Inputs]:
        losses, params = problem.losses(inputs), inputs.params
        grads = jax.grad(losses["value_fn"])(params)
        updates, state = tx.update(grads, state, params, **losses, refresh=refresh)
        return state, inputs._replace(params=optax.apply_updates(params, updates))

    return step


def measure(
    problem: Problem,
    rounds: int,
    on_turn: Callable[[str], None],
    parts: Sequence[str] = PARTS,
) -> list[Measurement]:
    """Measures all peers.

    Args:
      problem: the network on its batch.
      rounds: turns that each peer takes; one more goes before and is not counted.
      on_turn: called with the name of the peer whose turn begins.
      parts: which peers; the gradient is always one.
    """
    calls: dict[str, Callable[[], float]] = {}
    targets: dict[str, float | None] = {}
    for name, (function, target) in functions(problem).items():
        if name == GRADIENT or "products" in parts:
            on_turn(name)
            calls[name], targets[name] = _call(problem, function), target
    for name, (tx, target) in optimizers().items():
        if "steps" in parts:
            on_turn(name)
            calls[name] = _steps(problem, tx, amortised=name not in EVERY_STEP)
            targets[name] = target
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            on_turn(name)
            times[name].append(call())
    return [
        Measurement(
            peer=name,
            ms=1e3 * statistics.median(own[1:]),
            least_ms=1e3 * min(own[1:]),
            ratio=median_ratio(own, times[GRADIENT]),
            target=targets[name],
        )
        for name, own in times.items()
    ]


def _call(problem: Problem, function: Callable[[Inputs], Any]) -> Callable[[], float]:
    """A turn of a function: the time of one call."""
    compiled = jax.jit(function).lower(problem.inputs).compile()
    return lambda: timed(compiled, problem.inputs)[0]


def _steps(
    problem: Problem, tx: optax.GradientTransformation, *, amortised: bool
) -> Callable[[], float]:
    """A turn of an optimiser: the mean time of a step over one period of refreshes."""
    start = (tx.init(problem.inputs.params), problem.inputs)
    # Convolutions are slow inside XLA's conditionals on CPUs: two programs take turns.
    first, others = (
        jax.jit(make_step(problem, tx, refresh)).lower(*start).compile()
        for refresh in ((True, False) if amortised else (None, None))
    )

    def run(carry: tuple[PyTree, Inputs]) -> tuple[PyTree, Inputs]:
        carry = first(*carry)
        for _ in range(PERIOD - 1):
            carry = others(*carry)
        return carry

    # Every turn begins anew: what a long training does to the numbers is no matter.
    return lambda: timed(run, start)[0] / PERIOD


def table(measurements: Sequence[Measurement], title: str) -> rich.table.Table:
    """The measurements for the terminal."""
    result = rich.table.Table(title=title, title_justify="left")
    result.add_column("peer")
    for heading in ("ms", "least ms", "/ gradient", "target"):
        result.add_column(heading, justify="right")
    for m in measurements:
        target = "" if m.target is None else f"{m.target:g}"
        result.add_row(
            m.peer, f"{m.ms:.1f}", f"{m.least_ms:.1f}", f"{m.ratio:.2f}", target
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(BenchCurvatureArguments, args=arguments)
    console = rich.console.Console()
    problem = make_problem(given.model, given.batch_size, given.image_size)
    peers = len(functions(problem)) if "products" in given.parts else 1
    peers += len(optimizers()) if "steps" in given.parts else 0
    with rich.progress.Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=peers * (given.rounds + 2))
        measurements = measure(
            problem,
            given.rounds,
            lambda name: progress.update(task, advance=1, description=name),
            given.parts,
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.inputs.params))
    device = jax.devices()[0].device_kind
    title = (
        f"{given.model}, {size:,} parameters, {given.batch_size} images, {device}, "
        f"medians of {given.rounds} turns"
    )
    console.print(table(measurements, title))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "model": given.model,
            "parameters": size,
            "batch_size": given.batch_size,
            "image_size": given.image_size,
            "device": device,
            "jax": jax.__version__,
            "rounds": given.rounds,
            "measurements": [dataclasses.asdict(m) for m in measurements],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
