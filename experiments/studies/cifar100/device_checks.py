"""What a device computes, how fast, and what an update costs there, in one record."""

import dataclasses
import functools
from pathlib import Path

from experiments.bench.device import check_parity, images_per_second
from experiments.bench.update import measure, resnet50_shapes
from experiments.bench.update_peers import STREAM
from experiments.config import RunConfig
from experiments.records.json_file import write_json
from experiments.tuning.jobs import PlannedJob
from experiments.tuning.runner import Runner

OURS = "nlcg FR"
SMALL_LEAVES = 3


def device_checks(
    config: RunConfig, out: Path, runner: Runner, *, small: bool
) -> PlannedJob:
    """The checks as a job of a study, which leaves ``checks.json``.

    Args:
      config: the configuration whose loss, gradient and speed are checked.
      out: folder of the study.
      runner: runner that has the data.
      small: whether updates are timed on a few small arrays only.
    """
    job = functools.partial(_check, config, out / "checks.json", runner, small)
    return PlannedJob(out / "checks.json", job)


def _check(config: RunConfig, path: Path, runner: Runner, small: bool) -> str:
    dataset = runner.dataset(config)
    parities = [
        check_parity(config, dataset, dtype) for dtype in ("float32", "bfloat16")
    ]
    speed = images_per_second(config, dataset)
    shapes = resnet50_shapes()
    updates = measure(
        shapes[-SMALL_LEAVES:] if small else shapes,
        rounds=2 if small else 20,
        on_turn=lambda _: None,
    )
    checks = {
        "parity": [p._asdict() for p in parities],
        "images_per_second": speed,
        "updates": [dataclasses.asdict(update) for update in updates],
    }
    write_json(path, checks)
    differences = ", ".join(
        f"{p.compute_dtype} {p.loss_difference:.1e} (gradient "
        f"{p.gradient_difference:.1e})"
        for p in parities
    )
    ours, stream = (next(u for u in updates if u.peer == n) for n in (OURS, STREAM))
    return (
        f"loss differs from the CPU's by {differences}; {speed:.0f} images/s; an "
        f"update of {OURS} takes {ours.update_ratio:.2f} of Adam's, at "
        f"{ours.gigabytes_per_second:.0f} GB/s of {stream.gigabytes_per_second:.0f}"
    )
