"""Runs whose weights or evaluated losses are no longer finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.records.files import read_record
from experiments.training import DivergedError, Evaluation, Program
from experiments.training.checkpoints import Checkpoints
from tests.experiments.records.interrupted import CONFIG, go


def test_weights_that_are_not_finite_are_no_checkpoint_and_no_success(
    compiled, few_digits, tmp_path
):
    def overflowing(state, split):
        """The last update of the second report overflows, after a finite loss."""
        state, metrics = compiled.train(state, split)
        factor = np.inf if state.step == 16 else 1.0
        params = jax.tree.map(lambda leaf: factor * leaf, state.params)
        return state._replace(params=params), metrics

    with pytest.raises(
        DivergedError,
        match=r"weights became infinite or nan at step 15 with optimizer='nlcg' and le",
    ):
        go(tmp_path, compiled._replace(train=overflowing), few_digits)
    record = read_record(tmp_path / "run.jsonl")
    assert np.isfinite(record.series("loss")).tolist() == [True] * 16
    assert record.stopped.startswith("weights became infinite or nan at step 15 with")
    assert [line["step"] for line in record.evaluations] == [8]
    assert record.summary is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]


@pytest.mark.parametrize(
    ("calls", "name", "steps", "saved"),
    [(2, "train_loss", 16, [8]), (8, "test_loss", 32, [16, 24, 32])],
)
def test_an_evaluation_that_is_not_finite_stops_a_run(
    calls, name, steps, saved, compiled, few_digits, tmp_path, monkeypatch
):
    evaluations = [Evaluation(jnp.float32(0.5), jnp.float32(0.9))] * calls
    evaluations += [Evaluation(jnp.float32(np.nan), jnp.float32(0.1))] * 2
    found = iter(evaluations)
    # Two per report: of the training and of the validation set.
    monkeypatch.setattr(Program, "evaluate", lambda *_: next(found))
    what = f"{name} became nan after {steps} steps with optimizer='nlcg'"
    with pytest.raises(DivergedError, match=what):
        go(tmp_path, compiled, few_digits)
    record = read_record(tmp_path / "run.jsonl")
    assert record.stopped.startswith(what)
    assert record.summary is None
    with Checkpoints(str(tmp_path / "checkpoints"), CONFIG) as checkpoints:
        assert checkpoints.steps == saved
