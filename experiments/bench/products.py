"""``python -m experiments.bench.products``: what directions on matrices cost.

Counts the multiplications and additions of all matrix products in one update, at the
shapes of ResNet-50, from the traced program: no time is measured, nothing is compiled.
`large_batch_nlcg` has two rows: an update between two refreshes of the Kronecker roots,
and one with a refresh, whose eigendecompositions are not counted. A second table splits
this into parts, eigendecompositions included, next to the fewest operations known for
each. The last line is for loss and gradient of one image, to which all this adds.
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

from experiments import models
from experiments.bench.update import SMALL_LEAVES, Shape, resnet50_shapes
from experiments.errors import ending_with_a_message
from experiments.optimizers.baselines import matrix_axes_of
from nlcg_optax import (
    large_batch_nlcg,
    scale_by_kronecker,
    scale_by_orthogonalization,
    tuning_free_nlcg,
)

MODULE = "experiments.bench.products"
RATE = 1e-2
REFERENCE = "Muon"
REFRESH_PERIOD = 10  # of the Kronecker roots
# Operations of an eigendecomposition with vectors over the cube of the size: Golub and
# Van Loan, "Matrix Computations", fourth edition, section 8.3.
DECOMPOSITION = 9


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


class Part(NamedTuple):
    """A part of the direction of the presets.

    Attributes:
      name: name of the part.
      operations: multiplications and additions in one update; those of a refresh count
        a tenth.
      fewest: the fewest that are known to suffice, see `parts_of`.
    """

    name: str
    operations: float
    fewest: float


def parts_of(shapes: Sequence[Shape]) -> list[Part]:
    """What the direction consists of, and what could be saved.

    - A product that is symmetric, such as X X^T, needs one of its halves only.
    - Five Newton-Schulz steps of an m x n matrix, m <= n, are one polynomial of its
      Gram matrix A: its half, 17 symmetric products of m x m (five A^2, four products
      of the polynomials so far, and A for the next step by two more, four times) and
      one product with the matrix. It squares the condition number, which float32 cannot
      afford.
    - Second moments could be taken at refreshes alone.
    - The products with the roots are needed in every step.
    """
    nested = optax.with_extra_args_support(scale_by_kronecker())
    kept, refreshed = (
        cost_of(Peer(lambda: nested, {"refresh": due}), shapes).operations
        for due in (False, True)
    )
    polar = cost_of(
        Peer(lambda: scale_by_orthogonalization(vectors=optax.identity()), {}), shapes
    ).operations
    matrices = [
        sorted((math.prod(shape[:-1]), shape[-1])) for shape in shapes if len(shape) > 1
    ]
    # Each factor is multiplied like the moments that it is made of.
    moments = products = kept / 2
    recomposed = (refreshed - kept) / REFRESH_PERIOD
    decomposed = DECOMPOSITION * recomposed / 2
    fewest = float(sum(3 * m**2 * n + 17 * m**3 for m, n in matrices))
    return [
        Part("polar factor", polar, fewest),
        Part("second moments", moments, moments / 2 / REFRESH_PERIOD),
        Part("products with roots", products, products),
        Part("roots from eigenvectors", recomposed, recomposed / 2),
        Part("eigendecompositions", decomposed, decomposed),
    ]


def operations_per_image() -> float:
    """Those of loss and gradient of ResNet-50 on a 224-pixel image, as XLA counts."""
    model = models.build("resnet50", 1000)
    image = jnp.zeros([1, 224, 224, 3])
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), image, train=False)
    )

    def loss(params: Any, statistics: Any, image: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        return jnp.sum(model.apply(variables, image, train=False))

    lowered = jax.jit(jax.value_and_grad(loss)).lower(
        variables["params"], variables["batch_stats"], image
    )
    cost = lowered.cost_analysis() or {}
    return float(cost.get("flops", math.nan))


def operations(program: Any) -> int:
    """Multiplications and additions in the matrix products of a jaxpr.

    The body of a scan counts once per turn; of a conditional, the most expensive branch
    counts.

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
      small: use only the last 3 leaves and no image, to test the command.
    """

    small: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    given = tyro.cli(ProductsArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments, again="start again with"):
        run(given, rich.console.Console())


def run(given: ProductsArguments, console: rich.console.Console) -> None:
    """Counts and prints the tables."""
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
    console.print(table)
    console.print(_table_of_parts(parts_of(shapes)))
    if not given.small:
        per_image = operations_per_image() / 1e9
        console.print(f"loss and gradient of one image: {per_image:.1f} GFlop")


def _table_of_parts(parts: Sequence[Part]) -> rich.table.Table:
    whole = Part(
        "whole", sum(x.operations for x in parts), sum(x.fewest for x in parts)
    )
    title = f"NLCG large batch, mean of {REFRESH_PERIOD} updates"
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("part")
    for heading in ("GFlop", "fewest known"):
        table.add_column(heading, justify="right")
    for part in (*parts, whole):
        table.add_row(
            part.name, f"{part.operations / 1e9:.1f}", f"{part.fewest / 1e9:.1f}"
        )
    return table


if __name__ == "__main__":
    main()
