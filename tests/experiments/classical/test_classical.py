"""The classical benchmark: problems, counter, profiles, and a small regression."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import nlcg_optax
from experiments.classical import counting, problems_mgh, profiles, verdict
from experiments.classical.__main__ import SOLVERS, main

PROBLEMS = {problem.name: problem for problem in problems_mgh.problems()}


def test_there_are_48_starts_of_different_names():
    assert len(problems_mgh.problems()) == len(PROBLEMS) == 48


@pytest.mark.parametrize("name", PROBLEMS)
def test_published_minimum_is_reached_by_gauss_newton(x64, name):
    problem = PROBLEMS[name]
    residuals, jacobian = (
        jax.jit(problem.residuals),
        jax.jit(jax.jacfwd(problem.residuals)),
    )
    reached = []
    for method in ("trf", "lm"):
        end = scipy.optimize.least_squares(
            lambda x: np.asarray(residuals(x)),
            problem.start,
            lambda x: np.asarray(jacobian(x)),
            method=method,
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=3000,
        )
        reached.append(2 * end.cost)
    expected = [*problem.minima, *problem.at_infinity]
    # The paper prints six digits.
    assert any(
        np.isclose(f, g, rtol=2e-5, atol=1e-12) for f in reached for g in expected
    )


def test_a_start_value_of_the_paper(x64):
    # f at the standard start of Rosenbrock's, Wood's and Powell's singular function.
    values = [
        float(PROBLEMS[n].objective(PROBLEMS[n].start))
        for n in ("rosenbrock", "wood", "powell_singular")
    ]
    np.testing.assert_allclose(values, [24.2, 19192.0, 215.0])


@pytest.mark.parametrize(
    ("name", "most_work"),
    [("rosenbrock", 60), ("beale", 30), ("powell_singular", 120), ("bard", 60)],
)
def test_small_regression_of_quality_and_work(x64, name, most_work):
    problem = PROBLEMS[name]
    result = nlcg_optax.minimize(problem.objective, problem.start)
    assert bool(result.success)
    assert abs(float(result.fun) - problem.minima[0]) <= 1e-6
    assert float(result.evaluations) <= most_work


def test_counter_charges_thirds_and_stops(x64):
    counter = counting.Counter(lambda x: jnp.sum(x**2), 2.0, 60.0, 3)
    start = counting.use(counter, np.array([1.0, 2.0, 3.0]))
    assert start.shape == (4,)
    np.testing.assert_allclose(counting.counted(start), 14.0)
    value, grad = jax.value_and_grad(counting.counted)(start)
    np.testing.assert_allclose(value, 14.0)
    np.testing.assert_allclose(grad, [2.0, 4.0, 6.0, 0.0])
    assert (counter.values, counter.gradients) == (1, 1)
    np.testing.assert_allclose(counter.work, 4 / 3)
    with pytest.raises(counting.OutOfBudget):
        counter.value_and_grad(start[:3])


def _record(work, solved, value, dimension=1):
    return {
        "work": work,
        "solved": solved,
        "value": value,
        "dimension": dimension,
        "start_value": 1.0,
        "seconds": 1.0,
    }


RECORDS = {
    "fast": {"a": _record(2.0, True, 0.0), "b": _record(4.0, False, 0.5)},
    "slow": {"a": _record(8.0, True, 0.1), "b": _record(4.0, True, 0.0)},
}


def test_profiles_by_hand():
    curves = profiles.performance_profile(RECORDS, np.array([1.0, 3.9, 4.0]))
    np.testing.assert_allclose(curves["fast"], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(curves["slow"], [0.5, 0.5, 1.0])
    budgets = profiles.data_profile(RECORDS, np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(budgets["slow"], [0.0, 0.5, 1.0])
    best = profiles.best_values(RECORDS)
    assert best == {"a": 0.0, "b": 0.0}
    assert profiles.is_solved_with_value(RECORDS["fast"]["a"], best["a"])
    assert not profiles.is_solved_with_value(RECORDS["slow"]["a"], best["a"])
    assert profiles.work_ratio(RECORDS, "slow", "fast") == (pytest.approx(4.0), 1)
    area = profiles.area(RECORDS)
    assert area["fast"] == pytest.approx(0.5, abs=1e-3)
    assert area["slow"] == pytest.approx(0.5 + 0.5 * 3 / 5, abs=2e-3)


def test_the_table_by_hand():
    head, _, slow, fast, *note = profiles.table(RECORDS, "fast").splitlines()
    assert head == (
        "| solver | solved | work / fast | area under profile "
        "| µs per gradient-equivalent |"
    )
    # Work 8 against 2 on the one problem that both solved; a second for 8 and for 4.
    assert slow.startswith("| slow | 2 | 4.00 | 0.8")
    assert slow.endswith(" | 187500 |")
    assert fast.startswith("| fast | 1 | 1.00 | 0.5")
    assert note == ["", "In every row: solved+f 1, problems 2, both solved 1."]


def test_seconds_are_divided_by_the_work_of_the_same_run():
    # In float32 the work ends at the first solution, the seconds at the end of the run.
    single = {"says_success": None, "total_work": 8.0}
    records = {"one": {"a": {**_record(2.0, True, 0.0), **single}}}
    row = profiles.table(records, "one").splitlines()[2]
    assert "| 125000 |" in row


def test_no_two_solvers_share_color_and_dashes():
    looks = profiles.looks(SOLVERS)
    assert list(looks) == list(SOLVERS)
    assert len({(look.color, look.dashes) for look in looks.values()}) == len(SOLVERS)


def test_the_report_reads_records_of_a_killed_run(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    lines = [
        json.dumps({"solver": solver, "problem": problem, **record})
        for solver, by in zip(SOLVERS, RECORDS.values(), strict=False)
        for problem, record in by.items()
    ]
    path.write_text("\n".join([*lines, '{"solver": "SciPy']))
    given = ["--report-only", f"--records={path}", f"--output={tmp_path}"]
    main(given)
    assert f"| {SOLVERS[1]} | 2 | 4.00 |" in capsys.readouterr().out
    assert (tmp_path / "records.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_input_ends_with_one_line(tmp_path):
    path = tmp_path / "records.jsonl"
    given = ["--report-only", f"--records={path}"]
    with pytest.raises(SystemExit, match=r"error: records='.*' holds none of"):
        main(given)
    path.write_text('{"kind": "header"}\n')
    with pytest.raises(SystemExit, match=r"error: .*records.jsonl:1 is not a record"):
        main(given)
    with pytest.raises(SystemExit, match=r"error: solvers has 'newton'; allowed are"):
        main([*given, "--solvers", "newton"])


def test_a_solution_in_float32_is_one_that_float64_hardly_improves(x64):
    third = np.float32(1 / 3)
    problem = verdict.Judge(lambda x: jnp.sum((x - 1 / 3) ** 2) + 1.0)
    points = [np.float32([0, 0]), np.float32([0.3, 0.4]), np.float32([third, third])]
    path = list(zip([1.0, 2.0, 3.0], points, strict=True))
    found = verdict.judge(problem, path, start_value=1 + 2 / 9)
    assert found.solved
    assert found.work == 3.0
    assert 0 <= found.left <= 2e-15  # (1/3 - third)², twice
    # Of 1 + something tiny: half a unit in the last place, or one of f itself.
    assert 2**-24 <= found.rounding <= 2**-22
    early = verdict.judge(problem, path[:2], start_value=1 + 2 / 9)
    assert not early.solved
    np.testing.assert_allclose(
        early.left, (1 / 3 - 0.3) ** 2 + (0.4 - 1 / 3) ** 2, 1e-5
    )
    # A point above the start is none, however flat it is there.
    assert not verdict.judge(problem, path, start_value=0.5).solved


def test_a_run_without_a_lower_value_ends(x64):
    counter = counting.Counter(
        lambda x: jnp.sum(x**2), 100.0, 60.0, 1, patience=2.0, keeps_path=True
    )
    values = [counter.value_and_grad(np.array([x]))[0] for x in (3.0, 2.0, 2.5, 4.0)]
    assert values == [9.0, 4.0, 6.25, 16.0]
    assert [(work, float(x[0])) for work, x in counter.path] == [(1, 3.0), (2, 2.0)]
    with pytest.raises(counting.OutOfBudget):
        counter.value_and_grad(np.array([1.0]))


def test_problem_objective_is_the_sum_of_squares():
    problem = dataclasses.replace(PROBLEMS["beale"], residuals=lambda x: 2 * x)
    np.testing.assert_allclose(problem.objective(jnp.array([1.0, 2.0])), 20.0)
