"""The commands that measure costs of `minimize`, at sizes of no interest."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classical
from experiments.classical import __main__ as command
from experiments.classical import first_calls, large, many, real_work
from experiments.records.files import origin


def test_many_fits_are_solved_and_drawn(tmp_path, capsys):
    path = tmp_path / "many.md"
    solver = "nlcg_optax limited-memory"
    given = ["--parameters", "3", "--fits", "1", "4", "--repeats", "1"]
    given += ["--solvers", solver, f"--output={path}"]
    given += [f"--records={path.with_suffix('.jsonl')}"]
    many.main(given)
    rows = path.read_text().splitlines()[2:]
    # The only solver is the best one: each of its fits counts as solved.
    cells = [[cell.strip() for cell in row.split("|")[1:5]] for row in rows]
    assert cells == [["3", "1", solver, "1"], ["3", "4", solver, "4"]]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert solver in capsys.readouterr().out
    for line in path.with_suffix(".jsonl").read_text().splitlines():
        assert json.loads(line).items() >= origin().items()
    # What is recorded is not run again, not even the times.
    before = path.read_bytes(), path.with_suffix(".jsonl").read_bytes()
    many.main(given)
    assert (path.read_bytes(), path.with_suffix(".jsonl").read_bytes()) == before
    with pytest.raises(SystemExit, match="error: .*newton"):
        many.main(["--solvers", "newton"])


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (command.main, []),
        (real_work.main, []),
        (many.main, ["--parameters=3", "--fits=1", "--solvers=jaxopt LBFGS"]),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    main, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for module in ("jaxopt", "experiments.classical.problems"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(classical, "problems", raising=False)
    message = (
        r"error: .*(jaxopt|problems).*pip install -e '\.\[experiments,classical\]'"
    )
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_the_curve_by_hand():
    # A constant 1, amplitude 2, rate exp(0), from t = 0 to t = 5.
    np.testing.assert_allclose(
        many.curve(jnp.array([1.0, 2.0, 0.0]))[jnp.array([0, -1])],
        [3.0, 1.0 + 2.0 * np.exp(-5.0)],
        rtol=1e-6,
    )


def test_large_problems_on_one_device(tmp_path):
    path = tmp_path / "large.md"
    given = ["--parameters", "200", "--devices", "1", "--iterations", "3"]
    large.main([*given, "--repeats", "1", f"--output={path}"])
    table, made = path.read_text().split("\n\n")
    assert made.startswith(f"Commit {origin()['commit']}; Python 3.")
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert [row[2] for row in rows] == list(large.solvers())
    assert {row[3] for row in rows} == {"3"}
    start = float(large.objective(jnp.asarray(large.start(200))))
    assert all(float(row[7]) < start for row in rows)
    assert all(row[9] == "0 |" for row in rows)  # no array is gathered
    # The difference from one device needs the value on one device.
    with pytest.raises(SystemExit):
        large.main(["--devices", "4", "1"])


def test_a_first_call_and_a_call_with_new_data(tmp_path):
    command = [sys.executable, "-m", first_calls.MODULE, "nlcg_optax", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"first", "again"}
    assert any(tmp_path.glob("jit__run-*"))  # the program is kept for the next process
    names = ("nlcg_optax", "optax lbfgs", "SciPy L-BFGS-B")  # always installed
    ends = [first_calls.SOLVERS[name](first_calls.objective(0)) for name in names]
    values = [float(first_calls.objective(0)(jnp.asarray(x))) for x in ends]
    # SciPy's gradient tolerance, 1e-5, and ours leave less than this of the sum.
    np.testing.assert_allclose(values, min(values), rtol=1e-3)
