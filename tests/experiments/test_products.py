"""Counting matrix products in a traced program."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import products


def counted(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return products.operations(jax.make_jaxpr(function)(*arrays).jaxpr)


def test_products_are_counted_by_turns_and_the_dearer_branch():
    # [3, 4] times [4, 5]: 60 multiplications and as many additions.
    assert counted(jnp.matmul, (3, 4), (4, 5)) == 120
    square = (4, 4)  # 128 each
    assert counted(
        lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x), square
    ) == (7 * 128)

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert counted(jax.jit(either), square) == 2 * 128
    with pytest.raises(ValueError, match="unknown length"):
        counted(
            lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ x, x),
            square,
        )


def test_muon_costs_five_steps_of_newton_schulz():
    cost = products.cost_of(products.PEERS["Muon"], [(8, 3), (5,)])
    # X X^T and A^2 of 3 by 3, and their sum times X, on the shorter side.
    assert cost.operations == 5 * 2 * (3 * 3 * 8 + 3**3 + 3 * 3 * 8)
    assert products.cost_of(products.PEERS["Adam"], [(8, 3), (5,)]).operations == 0


def test_parts_of_the_direction_and_the_fewest_operations():
    parts = {
        part.name: pytest.approx(part[1:]) for part in products.parts_of([(8, 3), (5,)])
    }
    # G G^T and G^T G, 2 (8 8 3 + 3 3 8), and as much for the products with the roots.
    products_of_both = 2 * (8 * 8 * 3 + 3 * 3 * 8)
    cubes = 8**3 + 3**3
    assert parts == {
        "polar factor": (5 * 2 * (72 + 27 + 72), 3 * 3 * 3 * 8 + 17 * 3**3),
        "second moments": (products_of_both, products_of_both / 20),
        "products with roots": (products_of_both, products_of_both),
        "roots from eigenvectors": (2 * cubes / 10, cubes / 10),
        "eigendecompositions": (9 * cubes / 10, 9 * cubes / 10),
    }
    preset = products.PEERS["NLCG large batch"]
    whole = products.cost_of(preset, [(8, 3), (5,)]).operations
    assert whole == 5 * 2 * (72 + 27 + 72) + 2 * products_of_both


def test_one_polynomial_of_the_gram_matrix_is_all_steps_of_newton_schulz(x64):
    # What the fewest operations of the polar factor rely on, and their number.
    a, b, c = 3.4445, -4.775, 2.0315
    x = jax.random.normal(jax.random.key(0), (3, 8))
    x = x / jnp.linalg.norm(x)
    gram, polynomial, count = x @ x.T, jnp.eye(3), 0
    for step in range(5):
        square = gram @ gram
        step_of = a * jnp.eye(3) + b * gram + c * square
        polynomial = step_of @ polynomial
        gram = step_of @ (step_of @ gram)
        # The first polynomial is a product with one, and the last A is not needed.
        count += 1 + (step > 0) + 2 * (step < 4)
    assert count == 17
    expected = x
    for _ in range(5):
        a_matrix = expected @ expected.T
        expected = a * expected + (b * a_matrix + c * a_matrix @ a_matrix) @ expected
    assert jnp.allclose(polynomial @ x, expected, rtol=1e-9, atol=1e-11)


def test_the_presets_add_the_products_of_their_factors(capsys):
    products.main(["--small"])
    text = capsys.readouterr().out
    assert all(name in text for name in products.PEERS)


def test_an_interrupted_count_says_how_to_start_again(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(products, "cost_of", interrupted)
    with pytest.raises(SystemExit):
        products.main(["--small"])
    command = "start again with: python -m experiments.bench.products --small"
    assert command in capsys.readouterr().err
