"""A model of a step on many chips, from what was compiled and published figures.

It is a model, no measurement. Its assumptions:

- A pass over the images takes the time of its operations at the chip's peak, or of its
  bytes at the peak of its memory, whichever is longer; both as the compiler counts
  them for a reference, momentum SGD, and in proportion to the images of a chip. An
  optimizer makes as many passes as its operations are times those of the reference.
- The reference reads and writes its state once besides. What another optimizer reads
  and writes beyond its passes takes the same time on any number of chips.
- Collectives run when nothing else does. Each takes the time of its bytes on all links
  of the chip in one direction, and one latency for each hop around the torus. Links
  wrap around in every dimension, which those of a part of a pod may not.
- Arguments take the memory that was compiled, temporaries in proportion to the images
  of a chip. Where both exceed the chip's memory the step is not modeled: it would
  need micro-batches.
- Data arrive in time, all chips are equally fast, nothing fails.
"""

import math
from typing import NamedTuple

from experiments.scaling.chips import Chip
from experiments.scaling.cost_table import Entry

HOP_SECONDS = 1e-6  # assumed; not published


class StepTime(NamedTuple):
    """Seconds of a step on each chip.

    Attributes:
      work: on images.
      update: of the state.
      communication: between chips.
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
      chip: its published figures.
      chips: how many there shall be.
      batch_size: images in a step on all of them together.

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
    """Bytes that a step without micro-batches takes on each of a number of chips."""
    images = entry.case.batch_size // entry.chips
    share = batch_size / chips / images
    return entry.cost.argument_bytes + share * entry.cost.temporary_bytes


def latency(chip: Chip, chips: int) -> float:
    """Seconds of an all-reduce of nothing: there and back half around each ring.

    Examples:
      >>> from experiments.scaling.chips import CHIPS
      >>> latency(CHIPS["v5e"], 256)
      3.2e-05
    """
    side = chips ** (1 / chip.network_dimensions)
    return 2 * chip.network_dimensions * math.ceil(side / 2 - 1e-9) * HOP_SECONDS
