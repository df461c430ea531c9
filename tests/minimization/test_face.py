"""Arguments and results of `minimize` as people who come from SciPy expect them."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlcg_optax import Status, minimize
from nlcg_optax.minimization import arguments
from nlcg_optax.minimization import program as programs

START = np.array([-1.2, 1.0], np.float32)


def rosenbrock(x, offset=0.0):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + offset


def parabola(x, a=1.5):
    return jnp.sum((x - a) ** 2)


@pytest.mark.parametrize(
    "x0",
    [3.0, 3, [0, 1], (0.0, 1), [[0.5], [1]], np.int64(3), np.arange(2), jnp.arange(2)],
)
def test_starts_are_cast_as_in_scipy(x0):
    result = minimize(parabola, x0)
    assert result.x.shape == np.shape(x0)
    np.testing.assert_allclose(result.x, 1.5, rtol=1e-6)


@pytest.mark.parametrize("x0", [[1, jnp.log(2.0)], (jnp.int32(1), np.float64(2.0))])
def test_numbers_and_scalars_of_jax_are_an_array(x0):
    start = arguments.as_start(x0)
    np.testing.assert_array_equal(start, np.array([float(x) for x in x0], np.float32))
    traced = jax.jit(lambda last: minimize(parabola, [0.0, last]).x)(jnp.float32(1.0))
    np.testing.assert_allclose(traced, [1.5, 1.5], rtol=1e-6)
    # Scalars of JAX alone are a tree, as elsewhere in JAX.
    tree = [jnp.float32(1.0), jnp.float32(2.0)]
    assert jax.tree.structure(arguments.as_start(tree)) == jax.tree.structure(tree)


@pytest.mark.parametrize("x0", [2**70, [2**70, 1.0], (2**70, 1j)])
def test_integers_of_any_size_become_floats(x0):
    start = arguments.as_start(x0)
    assert start.dtype == (jnp.complex64 if 1j in np.atleast_1d(x0) else jnp.float32)
    assert start.ravel()[0] == 2.0**70  # a power of two, and so exact


def test_a_float64_start_that_becomes_float32_is_told_once(monkeypatch):
    monkeypatch.setattr(arguments, "_warned", set())
    with pytest.warns(UserWarning, match="jax_enable_x64") as told:
        minimize(parabola, np.zeros(2))
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimize(parabola, np.zeros(2))


def test_arguments_that_are_no_tuple_are_the_only_one():
    for args in (3.0, (3.0,), jnp.full(2, 3.0)):
        np.testing.assert_allclose(minimize(parabola, jnp.zeros(2), args).x, 3.0)


def test_arguments_may_hold_functions_and_names():
    def fun(x, model, names, target):
        return jnp.sum((model(x) - target[names[0]]) ** 2)

    for factor in (2.0, 4.0):
        args = (lambda x, c=factor: c * x, ("a",), {"a": 8.0})
        result = minimize(fun, jnp.zeros(2), args)
        np.testing.assert_allclose(result.x, 8.0 / factor)


def test_a_function_written_for_numpy_is_told_what_to_use():
    def assigning(x):
        residuals = np.zeros(2)
        residuals[0] = x[0]
        return jnp.sum(residuals)

    for fun, error in (
        (lambda x: np.sum(np.exp(x)), jax.errors.TracerArrayConversionError),
        (assigning, ValueError),
    ):
        with pytest.raises(error) as told:
            minimize(fun, jnp.zeros(2))
        assert "jax.numpy in place of numpy" in "".join(told.value.__notes__)


def test_an_array_of_one_number_is_told_how_to_become_a_number():
    with pytest.raises(TypeError, match="take its only entry, as jnp.squeeze does"):
        minimize(lambda x: x[:1] ** 2, jnp.ones(2))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"maxiter": 5}, TypeError, "max_iterations"),
        ({"jac": True}, TypeError, "derivatives are taken by JAX"),
        ({"bounds": [(0, 1)]}, TypeError, "sigmoid"),
        ({"gtol": 1e-5}, TypeError, 'tol_kind="absolute"'),
        ({"color": "red"}, TypeError, "color='red'"),
        ({"callback": 3}, TypeError, "callback=3"),
        ({"callback": lambda: None}, TypeError, r"\(progress, x\)"),
        ({"callback": lambda x, progress: None}, TypeError, r"\(progress, x\)"),
        ({"x0": [[1, 2], [3]]}, ValueError, "different lengths"),
        ({"x0": np.array([1, None])}, TypeError, r"x0=array\(\[1, None\]"),
        ({"tol": "small"}, ValueError, "tol='small'"),
        ({"max_evaluations": None}, ValueError, "max_evaluations=None"),
        ({"patience": jnp.array([7])}, ValueError, r"patience has the shape \(1,\)"),
        ({"x0": {"a": jnp.ones(2), "f": jax.nn.relu}}, TypeError, r"x0\['f'\]"),
        ({"x0": {}}, ValueError, "x0={}"),
        ({"x0": [True]}, TypeError, "x0"),
        ({"x0": [1.0, jnp.array(True)]}, TypeError, r"x0\[1\].* has dtype bool"),
        ({"x0": jnp.ones(2, bool)}, TypeError, "x0=.* has dtype bool; .* Close over"),
        ({"x0": {"n": jnp.arange(2)}}, TypeError, r"x0\['n'\]=.* has dtype int32"),
        ({"x0": np.array(["a"])}, TypeError, "x0=.* has dtype <U1"),
        ({"method": "BFGS"}, ValueError, "use 'limited-memory'"),
        ({"method": "l-bfgs-b"}, ValueError, "use 'limited-memory'"),
        ({"method": "CG"}, ValueError, r"use 'pr\+'"),
        ({"method": "Powell"}, ValueError, "allowed are .*'limited-memory'"),
        ({"method": None}, TypeError, "allowed are the names .*'limited-memory'"),
        ({"max_iterations": 2.5}, ValueError, "max_iterations=2.5"),
        ({"state": {}}, TypeError, "state= is a dict"),
    ],
)
def test_what_there_is_not_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        minimize(**{"fun": parabola, "x0": jnp.zeros(2), **kwargs})


def test_integers_of_numpy_are_integers():
    for three in (np.int64(3), np.array(3), jnp.int32(3)):
        result = minimize(rosenbrock, START, max_iterations=three)
        assert (int(result.status), int(result.nit)) == (Status.MAX_ITERATIONS, 3)
        # A kink that rounding hides: no iteration makes progress.
        result = minimize(lambda x: 2.0**30 + abs(x), 1.0, patience=three)
        assert (int(result.status), int(result.nit)) == (Status.STAGNATION, 3)


def test_limits_of_any_type_need_one_program(monkeypatch):
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    unlimited = minimize(rosenbrock, START)
    for no_limit in (sys.maxsize, 10**12, np.int64(2**40)):
        result = minimize(
            rosenbrock,
            START,
            max_iterations=no_limit,
            max_evaluations=no_limit,
            patience=no_limit,
        )
        assert int(result.nit) == int(unlimited.nit)
    for tol in (1e-3, np.float32(1e-3), np.float64(1e-3), np.array(1e-3)):
        result = minimize(
            rosenbrock, START, tol=tol, max_iterations=np.int64(9), max_evaluations=99.5
        )
        assert int(result.nit) == 9
    (program,) = programs._programs.values()
    assert program.run._cache_size() == 1


def test_a_start_without_a_dtype_of_its_own_needs_one_program(monkeypatch):
    # More iterations than are made until Python looks for Ctrl-C.
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    for x0 in (jnp.full(3, -1.0), jnp.full(3, -1.0, jnp.float32), [-1.0] * 3):
        result = minimize(lambda x: jnp.sum((x - 1) ** 4), x0)
        assert int(result.nit) > programs.FIRST_TURNS
    (program,) = programs._programs.values()
    assert program.run._cache_size() == 1


def test_the_result_by_scipys_names():
    result = minimize(rosenbrock, START, tol=None)
    lines = str(result).splitlines()
    assert lines[0].split() == ["message:", *result.message.split()]
    assert len(lines) <= 15
    assert "State" not in str(result)
    np.testing.assert_array_equal(result.jac, result.grad)
    assert int(result.njev) == int(result.ngev)
    np.testing.assert_array_equal(result["x"], result.x)
    assert "x" in result
    assert "hess_inv" not in result
    assert result.get("nit") == result.nit
    assert result.get("hess_inv") is None
    assert {"x", "fun", "message", "success", "nit"} <= set(dict(result))
    items = dict(result.items())
    assert tuple(items) == result.keys()
    assert items["x"] is result.x
    assert items["message"] == result.values()[0] == result.message
    with pytest.raises(AttributeError, match=r"jax\.hessian"):
        _ = result.hess_inv
    with pytest.raises(KeyError, match=r"jax\.hessian"):
        _ = result["hess_inv"]
    with pytest.raises(AttributeError, match="there are message, x, fun"):
        _ = result.xopt
    with pytest.raises(KeyError, match="there are"):
        _ = result["xopt"]
    large = minimize(lambda p: sum(map(parabola, p)), [jnp.zeros((30, 40))] * 9)
    assert len(str(large).splitlines()) <= 15
    assert max(map(len, str(large).splitlines())) < 90


def test_a_start_without_a_gradient_is_told():
    # exp(-x²/2) is less than every number of float32 at 20.
    def bump(x):
        return -jnp.exp(-0.5 * jnp.sum(x**2))

    far = minimize(bump, jnp.array([20.0]))
    assert (int(far.nit), float(far.grad[0])) == (0, 0.0)
    assert "underflows" in far.message
    batch = jax.vmap(lambda x: minimize(bump, x))(jnp.array([[1.0], [20.0]]))
    assert ["underflows" in message for message in batch.message] == [False, True]
    near = minimize(parabola, jnp.array([1.5, 1.5]), tol=1.0, tol_kind="absolute")
    assert "stationary" in near.message
    slack = minimize(parabola, jnp.array([1.5, 1.6]), tol=1.0, tol_kind="absolute")
    assert (int(slack.nit), slack.message) == (0, "converged: the tolerance is met")


def test_numbers_out_of_the_objective():
    def fun(x):
        return parabola(x), {"size": x.shape[0], "ok": True, "half": 0.5, "none": ()}

    aux = minimize(fun, jnp.zeros(2), has_aux=True).aux
    assert (int(aux["size"]), bool(aux["ok"]), float(aux["half"])) == (2, True, 0.5)
    assert float(minimize(lambda x: 2.0, jnp.zeros(2)).fun) == 2.0
    with pytest.raises(TypeError, match=r"aux\['name'\]='fit'"):
        minimize(lambda x: (parabola(x), {"name": "fit"}), jnp.zeros(2), has_aux=True)


def test_a_state_that_does_not_fit_is_refused():
    def fun(p):
        return parabola(p["a"]) + jnp.sum((p["b"] - 2) ** 4)

    def tree(a, b):
        return {"a": jnp.zeros(a), "b": jnp.zeros(b)}

    result = minimize(fun, tree(2, 3), max_iterations=2)
    for x0 in (tree(3, 2), tree(4, 6)):
        with pytest.raises(ValueError, match=r"state= .*\{a: float32\[2\], b: float32"):
            minimize(fun, x0, state=result.state)
    with pytest.raises(ValueError, match="state= .*`method`"):
        minimize(fun, tree(2, 3), state=result.state, method="hs+")
    with pytest.raises(TypeError, match=r"state= .*pass its \.state"):
        minimize(fun, tree(2, 3), state=result)
    with pytest.raises(ValueError, match="state= .*auxiliary"):
        minimize(
            lambda p: (fun(p), p["a"]), tree(2, 3), has_aux=True, state=result.state
        )


class Model:
    dtype = jnp.float32  # as of a layer of Flax linen

    def __call__(self, x):
        return 2 * x


class Wrapped:
    def __jax_array__(self):
        return jnp.ones(2)


def test_arguments_that_only_look_like_arrays_are_closed_over():
    model = minimize(lambda x, m: jnp.sum((m(x) - 1) ** 2), jnp.zeros(2), (Model(),))
    np.testing.assert_allclose(model.x, 0.5, rtol=1e-5)
    array = minimize(lambda x, w: jnp.sum((x - w) ** 2), jnp.zeros(2), (Wrapped(),))
    np.testing.assert_allclose(array.x, 1, rtol=1e-5)


def test_arguments_that_are_no_numbers_are_closed_over():
    def fun(x, dtype, names, shift):
        assert names[1] == "b"
        return jnp.sum((x.astype(dtype) - shift) ** 2)

    args = (jnp.float32, np.array(["a", "b"]), np.float32(2))
    result = minimize(fun, jnp.zeros(2), args=args)
    np.testing.assert_allclose(result.x, 2, rtol=1e-5)
