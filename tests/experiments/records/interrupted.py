"""Runs that end before their time, and the comparison of their records."""

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.records.files import read_record
from experiments.records.run import record_run
from experiments.training.checkpoints import Checkpoints

# Batches that do not divide the training set, an average, and a curvature method.
CONFIG = RunConfig(
    optimizer="nlcg",
    optimizer_options={"preconditioner": "secant"},
    learning_rate=0.02,
    batch_size=24,
    epochs=12,
    epochs_per_report=3,
    ema_decay=0.99,
)


class KilledError(Exception):
    """Stands for the end of a process."""


def go(
    folder,
    compiled,
    dataset,
    config=CONFIG,
    killed_at=None,
    seen=None,
    **settings,
):
    """Runs with checkpoints, as ``main`` does, and ends at a report if told to."""

    def on_report(report, evaluation):
        if seen is not None:
            seen.append(report)
        if report.number == killed_at:
            raise KilledError

    with Checkpoints(str(folder / "checkpoints"), config, **settings) as checkpoints:
        return record_run(
            folder / "run.jsonl",
            compiled,
            config,
            dataset,
            on_report=on_report,
            checkpoints=checkpoints,
        )


def without_seconds(lines):
    timed = ("seconds", "compile_seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def assert_same_record(path, whole):
    record = read_record(path)
    assert without_seconds(record.steps) == without_seconds(whole.steps)
    assert without_seconds(record.evaluations) == without_seconds(whole.evaluations)
    assert without_seconds([record.summary]) == without_seconds([whole.summary])
    seconds = record.series("seconds")
    assert np.all(np.diff(seconds) > 0)
    assert record.summary["seconds"] == pytest.approx(seconds[-1])
