"""What `experiments.bench.curvature` times: curvature products and steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import nlcg_optax
from experiments import models
from experiments.optimizers.baselines import matrix_axes_of

RATE = 1e-3
CLASSES = 100
GRADIENT = "gradient"
PERIOD = 10  # steps between refreshes, and steps in a turn of an optimizer

EVERY_STEP = (
    "step of NLCG, Gauss-Newton step size, period 1",
    "step of NLCG, Gauss-Newton plane",
)

PyTree = Any


class Inputs(NamedTuple):
    """Arguments of the compiled programs, so that none of them is a constant.

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
        return nlcg_optax.curvature.value_grad_and_hessian_vector_product(
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
    """The optimizers whose steps are timed, gradient included, with their targets."""
    one = optax.scale_by_learning_rate(1.0)

    def with_preconditioner(
        preconditioner: optax.GradientTransformation | None,
    ) -> optax.GradientTransformation:
        # With the paper's beta, as when the recorded times were measured.
        return nlcg_optax.nlcg(
            RATE, preconditioner=preconditioner, beta_smoothing=0.0, beta_max=1.0
        )

    sampled = {
        "Hutchinson": nlcg_optax.scale_by_hutchinson(refresh_period=PERIOD),
        "equilibration": nlcg_optax.scale_by_equilibration(refresh_period=PERIOD),
        "Gauss-Newton-Bartlett": nlcg_optax.scale_by_gauss_newton_bartlett(
            refresh_period=PERIOD
        ),
        "orthogonalized": nlcg_optax.scale_by_orthogonalization(
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
