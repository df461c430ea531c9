"""Published specifications of Cloud TPU chips.

Source: the pages "TPU v5e" (https://cloud.google.com/tpu/docs/v5e) and "TPU v5p"
(https://cloud.google.com/tpu/docs/v5p) of the Cloud TPU documentation, tables of key
specifications, as read in 2025. The pages give the bandwidth between chips as the sum
of both directions; half of it is outgoing.
"""

from typing import NamedTuple

from experiments.registry import look_up

GIB = 2**30


class Chip(NamedTuple):
    """Peak figures of one chip.

    Attributes:
      flops: floating-point operations per second in bfloat16.
      memory: bytes of high-bandwidth memory.
      memory_bandwidth: bytes per second to and from it.
      link_bandwidth: bytes per second that leave the chip over all its links.
      network_dimensions: number of dimensions of the torus.
    """

    flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    network_dimensions: int


CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 400e9 / 2, 2),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 1200e9 / 2, 3),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as ``v5e:16x16``.

    Raises:
      ValueError: if the kind of chip is not in `CHIPS`.

    Examples:
      >>> chip_of("v5e:2x2").flops
      197000000000000.0
    """
    return look_up("topology", topology.partition(":")[0], CHIPS)
