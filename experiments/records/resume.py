"""Taking a record back to the step of a checkpoint, so that a run can continue it."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from experiments.config import RunConfig, changes
from experiments.records.files import Line, RunRecord, read_record, record_lines


def interrupted_record(path: Path, config: RunConfig) -> RunRecord | None:
    """What an earlier call of the same run has left, or None.

    Raises:
      ValueError: if the file is not a record, or one of another run.
    """
    if not path.exists():
        return None
    if not record_lines(path, interrupted=True):
        return None  # killed before the header was written
    record = read_record(path, interrupted=True)
    changed = changes(record.config.settings(), config.settings())
    if changed:
        raise ValueError(
            f"the record {str(path)!r} is of another configuration: {changed}; resume "
            "with its own configuration, or name another record (and folder of "
            "checkpoints)"
        )
    return record


class Kept(NamedTuple):
    """What a record that was taken back says about the report to resume.

    Attributes:
      evaluation: the last evaluation; if there is none, only the step at which the
        record begins.
      steps: the steps after it; none if the record lacks the first ones.
    """

    evaluation: Line
    steps: list[Line]


def take_back(path: Path, step: int) -> Kept | None:
    """Drops all lines after a step, and an incomplete last line.

    Args:
      path: path of the record.
      step: step of the checkpoint; later steps and evaluations are dropped, as are
        resumptions from there on and the reason why the run was stopped.

    Returns:
      The last evaluation until that step and the steps since; None, with the file
      unchanged, if there is no record or it begins later.

    Raises:
      ValueError: if steps are missing in between; the record stays as it is.
    """
    lines = record_lines(path, interrupted=True) if path.exists() else []
    begin = json.loads(lines[0]).get("begins_at", 0) if lines else None
    if begin is None or begin > step:
        return None
    kept: list[str] = []
    steps, evaluation = 0, {"step": begin}
    since: list[Line] = []
    for text in lines:
        line = json.loads(text)
        kind, at = line.pop("kind"), line.get("step")
        if kind in ("summary", "stopped"):
            continue
        if kind in ("step", "resumed") and at >= step:
            continue
        if kind == "step":
            steps += 1
            since.append(line)
        if kind == "evaluation":
            if at > step:
                continue
            evaluation, since = line, []
        kept.append(text)
    if steps != step - begin:
        raise ValueError(
            f"the record {str(path)!r} has {steps} of the {step - begin} steps before "
            "the checkpoint; bring back the one that was written with it, or move it "
            f"away for a new one that begins at step {step}"
        )
    beside = path.with_name(f"{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    is_whole = begin == 0 or "seconds" in evaluation
    return Kept(evaluation, since if is_whole else [])
