"""Proves that matrices may be split over explicit axes, and devices have problems."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract.cases import BY_NAME, ORTHOGONAL, make_step
from tests.contract.test_eager_compilations import PARAMS, ROWS, updates
from tests.contract.test_sharding import AXIS_TYPES, DEVICES, _collectives

pytestmark = pytest.mark.devices

# --- matrices split over either side, over both, and on every device -----------------

MATRIX_SPECS = {
    "on every device": {"b": P(), "k": P(), "w": P()},
    "rows": {"b": P("x"), "k": P(None, "x"), "w": P("x")},
    "columns": {"b": P("x"), "k": P(None, None, "y"), "w": P(None, "x")},
    "both": {"b": P("y"), "k": P(None, "y", "x"), "w": P("x", "y")},
}


def _matrices():
    return {
        "b": jnp.asarray(np.cos(np.arange(4.0)), jnp.float32),
        "k": jnp.asarray(np.sin(np.arange(48.0)).reshape(3, 4, 4), jnp.float32),
        "w": jnp.asarray(np.sin(np.arange(32.0)).reshape(8, 4), jnp.float32),
    }


def _matrix_loss(params):
    return sum(
        jnp.sum(0.5 * (x - 0.5) ** 2) + jnp.sum(jnp.log1p(x**2))
        for x in jax.tree.leaves(params)
    )


def _matrix_run(case, mesh, specs, *, jitted, steps=2):
    """Parameters and state at first and at last, on a mesh or on one device."""
    tx = case.make()
    step = make_step(case, tx, _matrix_loss)
    step = jax.jit(step) if jitted else step
    params = _matrices()
    if mesh is not None:
        params = {
            name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
            for name, leaf in params.items()
        }
    first = carry = (params, tx.init(params))
    for _ in range(steps):
        carry = step(*carry)
    return first, carry


SPLIT_MATRICES = [
    pytest.param(
        name,
        which,
        jitted,
        marks=[]
        if jitted and name in ("kronecker", "orthogonal")
        else [pytest.mark.slow],
    )
    for name in (
        *("pr+", "factored", "orthogonal", "kronecker", "secant_params", "secant_hvp"),
        *("hutchinson", "restart_memory", "subspace_step", "scaled_cg_step"),
        *("paper_layerwise", "search"),
    )
    for which in MATRIX_SPECS
    for jitted in (True, False)
]


@pytest.mark.parametrize(("part", "which", "jitted"), SPLIT_MATRICES)
def test_split_matrices_have_the_numbers_of_one_device(part, which, jitted):
    """On explicit axes, where JAX asks for every sharding, and the types stay."""
    case, specs = BY_NAME[part], MATRIX_SPECS[which]
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        first, last = _matrix_run(case, mesh, specs, jitted=jitted)
        before, after = (jax.tree.map(jax.typeof, carry) for carry in (first, last))
        assert after == before
        for leaf, spec in specs.items():
            wanted = NamedSharding(mesh, spec)
            direction = optax.tree.get(last[1], "direction")[leaf]
            assert direction.sharding.is_equivalent_to(wanted, direction.ndim)
    _, alone = _matrix_run(case, None, specs, jitted=True)
    # Sums run in another order: roundings, carried through two steps and, for
    # Kronecker factors, inverse roots of condition number 1e2.
    chex.assert_trees_all_close(jax.device_get(last[0]), alone[0], rtol=1e-4, atol=1e-5)


def test_matrices_are_gathered_on_explicit_axes_as_on_automatic_ones():
    """What is gathered for a matrix split over its rows, and that it is counted."""
    found = {}
    for kind, axis_type in AXIS_TYPES.items():
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        with jax.set_mesh(mesh):
            w = jax.device_put(_matrices()["w"], NamedSharding(mesh, P("x")))
            tx = ORTHOGONAL
            update = jax.jit(tx.update).lower(w, tx.init(w), w).compile()
        found[kind] = sorted(_collectives(update.as_text()))
    assert found["auto"] == found["explicit"]
    assert "all-reduce" in {name for name, _ in found["explicit"]}


@pytest.mark.parametrize("search", ["zoom", "backtracking"])
def test_a_search_that_cannot_run_on_explicit_axes_says_so(search):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"linesearch cannot run .* AxisType\.Auto"),
    ):
        _matrix_run(BY_NAME[search], mesh, MATRIX_SPECS["rows"], jitted=True, steps=1)


# --- one problem per device ----------------------------------------------------------


def _mesh():
    return jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))


FEW_ROWS = ("kronecker", "limited memory", "hutchinson", "nlcg, line search")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[] if r in FEW_ROWS else pytest.mark.slow) for r in ROWS],
)
def test_the_check_of_varying_axes_passes(row):
    """Traced only: problems that differ between devices, and the same on each."""
    tx = optax.with_extra_args_support(ROWS[row]())

    def own_problem(parts):
        params = jax.tree.map(lambda x: x[0], parts)
        carry = (params, tx.init(params))
        for _ in range(2):
            carry = updates(tx, *carry)
        return jax.tree.map(lambda x: x[None], carry[0])

    def same_problem(params):
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (updates(tx, *c), None), carry, length=2)[0][0]

    many = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), PARAMS)
    for fn, params, spec in ((own_problem, many, P("x")), (same_problem, PARAMS, P())):
        mapped = jax.shard_map(fn, mesh=_mesh(), in_specs=spec, out_specs=spec)
        out = jax.eval_shape(mapped, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(out, params)


@pytest.mark.parametrize("part", ["pr+", "kronecker", "secant_params", "search"])
def test_shard_map_solves_one_problem_per_device(part):
    """With the default check of varying axes."""
    case, mesh = BY_NAME[part], _mesh()
    tx = case.make()
    starts = jnp.asarray(np.sin(np.arange(DEVICES * 6.0)).reshape(DEVICES, 3, 2) + 1)
    starts = starts.astype(jnp.float32)

    def run(start):
        step = make_step(case, tx, lambda w: jnp.sum(jnp.cosh(w - 0.5)))
        carry = (start, tx.init(start))
        for _ in range(2):
            carry = step(*carry)
        return carry[0]

    def on_device(part):
        return run(part[0])[None]

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    expected = jnp.stack([jax.jit(run)(start) for start in starts])
    # Another program: roundings, carried through two steps.
    np.testing.assert_allclose(jax.jit(mapped)(starts), expected, rtol=1e-4, atol=1e-5)
