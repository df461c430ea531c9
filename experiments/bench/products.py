"""``python -m experiments.bench.products``: what directions on matrices cost.

Counts the multiplications and additions of all matrix products in one update, at the
shapes of ResNet-50, from the traced program: no time is measured, nothing is compiled.
Of `large_batch_nlcg` there are two rows, of an update between two refreshes of the
Kronecker roots and of one with a refresh, of which the eigendecompositions are not
counted.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.table
import tyro

from experiments.bench.update import SMALL_LEAVES, Shape, resnet50_shapes
from experiments.optimizers.baselines import matrix_axes_of
from nlcg_optax import large_batch_nlcg, tuning_free_nlcg

MODULE = "experiments.bench.products"
RATE = 1e-2
REFERENCE = "Muon"


class Peer(NamedTuple):
    """An optimizer and the extra arguments of its update."""

    build: Callable[[], optax.GradientTransformation]
    extra_args: dict[str, Any]


PEERS = {
    REFERENCE: Peer(
        lambda: optax.contrib.muon(RATE, muon_weight_dimension_numbers=matrix_axes_of),
        {},
    ),
    "NLCG large batch": Peer(lambda: large_batch_nlcg(RATE), {"refresh": False}),
    "NLCG large batch, refresh": Peer(
        lambda: large_batch_nlcg(RATE), {"refresh": True}
    ),
    "NLCG tuning-free": Peer(
        lambda: tuning_free_nlcg(100), {"refresh": False, "value": 1.0}
    ),
    "Adam": Peer(lambda: optax.adam(RATE), {}),
}


class Cost(NamedTuple):
    """What an update costs.

    Attributes:
      operations: multiplications and additions in matrix products.
      state_per_params: bytes of the state over bytes of the parameters.
    """

    operations: int
    state_per_params: float


def cost_of(peer: Peer, shapes: Sequence[Shape]) -> Cost:
    """Traces one update on float32 parameters."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    tx = optax.with_extra_args_support(peer.build())
    state = jax.eval_shape(tx.init, params)

    def update(grads: Any, state: Any, params: Any) -> Any:
        return tx.update(grads, state, params, **peer.extra_args)

    traced = jax.make_jaxpr(update)(params, state, params)
    return Cost(operations(traced.jaxpr), _bytes(state) / _bytes(params))


def operations(program: Any) -> int:
    """Multiplications and additions in the matrix products of a jaxpr.

    The body of a scan counts once per turn, of a conditional the most expensive branch.

    Raises:
      ValueError: if a loop with products has no known number of turns.
    """
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2 * outputs * math.prod(left[axis] for axis in contracted)
            continue
        inner = [operations(part) for part in _parts(equation)]
        if equation.primitive.name == "while" and any(inner):
            raise ValueError("a loop of unknown length has matrix products")
        is_choice = equation.primitive.name == "cond"
        turns = equation.params.get("length", 1)
        total += max(inner) if is_choice else turns * sum(inner)
    return total


def _parts(equation: Any) -> Iterator[Any]:
    """The programs within an equation, such as the body of a loop."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if hasattr(part, "eqns"):
                yield part
            elif hasattr(part, "jaxpr"):
                yield part.jaxpr


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class ProductsArguments:
    """Counts the matrix products of updates at the shapes of ResNet-50.

    Attributes:
      small: take the last 3 leaves only, as a test of the command.
    """

    small: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(ProductsArguments, prog=f"python -m {MODULE}", args=arguments)
    shapes = resnet50_shapes()
    shapes = shapes[-SMALL_LEAVES:] if given.small else shapes
    costs = {name: cost_of(peer, shapes) for name, peer in PEERS.items()}
    table = rich.table.Table(title=f"{len(shapes)} leaves", title_justify="left")
    table.add_column("peer")
    for heading in ("GFlop in products", f"/ {REFERENCE}", "state / params"):
        table.add_column(heading, justify="right")
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.operations / 1e9:.1f}",
            f"{cost.operations / costs[REFERENCE].operations:.2f}",
            f"{cost.state_per_params:.2f}",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
