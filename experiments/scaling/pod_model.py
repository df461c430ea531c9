"""A model of a step on many chips, from compiled programs and published figures.

It is a model, not a measurement. Its assumptions:

- A pass over the images takes the time of its operations at the chip's peak rate, or of
  its bytes at the peak bandwidth of its memory, whichever is longer. Both are as the
  compiler counts them for a reference, momentum SGD, in proportion to the images per
  chip. The number of passes of an optimizer is its number of operations divided by that
  of the reference.
- In addition, the reference reads and writes its state once. What another optimizer
  reads and writes beyond its passes takes the same time on any number of chips.
- Collectives do not overlap with computation. Each takes the time of its bytes on all
  links of the chip in one direction, plus one latency per hop around the torus. Links
  wrap around in every dimension, which may not hold in a part of a pod.
- Arguments take the memory of the compiled program, temporaries in proportion to the
  images per chip. If both exceed the chip's memory the step is not modeled: it would
  need micro-batches.
- Chips never wait for data, all chips are equally fast, and nothing fails.
"""

import math
from typing import NamedTuple

from experiments.scaling.chips import Chip
from experiments.scaling.cost_table import Entry

HOP_SECONDS = 1e-6  # assumed; not published


class StepTime(NamedTuple):
    """Seconds per step on each chip.

    Attributes:
      work: time for the passes over the images.
      update: time for the update of the state.
      communication: time for communication between chips.
    """

    work: float
    update: float
    communication: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.work + self.update + self.communication

    @property
    def efficiency(self) -> float:
        """The share of the time that is work on images."""
        return self.work / self.total


def step_time(
    entry: Entry, reference: Entry, chip: Chip, chips: int, batch_size: int
) -> StepTime:
    """The time of a step on a number of chips.

    Args:
      entry: a compiled data-parallel step without micro-batches, for this kind of chip.
      reference: the same with momentum SGD.
      chip: published figures of the chip.
      chips: number of chips.
      batch_size: images per step on all chips together.

    Raises:
      ValueError: if the entry is of another kind.
    """
    cost, case = entry.cost, entry.case
    if case.layout != "data" or case.micro_batches != 1 or cost.failure:
        raise ValueError(
            f"the model needs a data-parallel step without micro-batches that fits, "
            f"not {case}"
        )
    images = case.batch_size // entry.chips
    share = batch_size / chips / images
    image_bytes = images * case.image_size**2 * 3
    state_bytes = reference.cost.argument_bytes - image_bytes
    pass_bytes = reference.cost.bytes_accessed - 2 * state_bytes
    passes = round(cost.flops / reference.cost.flops)
    work = (
        passes
        * share
        * max(
            reference.cost.flops / chip.flops,
            pass_bytes / chip.memory_bandwidth,
        )
    )
    update = (cost.bytes_accessed - passes * pass_bytes) / chip.memory_bandwidth
    if chips == 1:
        return StepTime(work, update, 0.0)
    sent = cost.sent_bytes * (1 - 1 / chips) / (1 - 1 / entry.chips)
    operations = sum(count for count, _ in cost.collectives.values())
    communication = sent / chip.link_bandwidth + operations * latency(chip, chips)
    return StepTime(work, update, communication)


def memory_bytes(entry: Entry, chips: int, batch_size: int) -> float:
    """Bytes per chip that a step without micro-batches needs."""
    images = entry.case.batch_size // entry.chips
    share = batch_size / chips / images
    return entry.cost.argument_bytes + share * entry.cost.temporary_bytes


def latency(chip: Chip, chips: int) -> float:
    """Seconds of an empty all-reduce: half around each ring and back.

    Examples:
      >>> from experiments.scaling.chips import CHIPS
      >>> latency(CHIPS["v5e"], 256)
      3.2e-05
    """
    side = chips ** (1 / chip.network_dimensions)
    return 2 * chip.network_dimensions * math.ceil(side / 2 - 1e-9) * HOP_SECONDS
