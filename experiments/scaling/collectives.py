"""The communication of a compiled program, read from its HLO.

For example ``collectives(jax.jit(f).lower(x).compile().as_text())``.
"""

import collections
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.scaling.hlo_loops import lines_with_turns

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)

# An instruction is `name = type kind(operands), attributes`. An asynchronous one is
# counted at `kind-start`, not at `kind-done`.
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})"
    r"(?P<start>-start)?\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\]")
# Three notations for groups of devices: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=4] {'a'}.
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUPS_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")


class Collective(NamedTuple):
    """One instruction.

    Attributes:
      kind: one of `KINDS`.
      arrays: dtype and shape of each result array, on one device.
      group_size: number of devices per group; 0 if the text does not say.
      times: how often it runs; None in a loop whose number of iterations is not in the
        text, such as a line search.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group_size: int
    times: int | None = 1

    @property
    def bytes(self) -> int:
        """Bytes of the whole array: of the result, or of a reduce-scatter's operand."""
        return sum(self.bytes_by_dtype.values())

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """The same per dtype, for example of gradients in bfloat16."""
        parts = self.group_size if self.kind == "reduce-scatter" else 1
        sizes: collections.Counter[str] = collections.Counter()
        for dtype, shape in self.arrays:
            sizes[dtype] += parts * itemsize(dtype) * math.prod(shape)
        return dict(sizes)

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in the best algorithm for long arrays.

        An all-reduce of n bytes over p devices sends ``2 n (p - 1) / p``, its halves
        (all-gather, reduce-scatter) and an all-to-all ``n (p - 1) / p``, the others n
        (Chan et al., *Collective communication: theory, practice, and experience*,
        2007). As in `bytes`, one iteration of a loop is counted.
        """
        share = 1 - 1 / self.group_size if self.group_size else 1.0
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        if self.kind in ("all-gather", "reduce-scatter", "all-to-all"):
            return share * self.bytes
        return float(self.bytes)

    @property
    def is_scalar(self) -> bool:
        """Whether every array is a single number."""
        return all(math.prod(shape) == 1 for _, shape in self.arrays)


class Total(NamedTuple):
    """Sums for one kind; a loop counts once if its number of iterations is unknown.

    Attributes:
      operations: number of operations.
      bytes: bytes of their arrays.
    """

    operations: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """All collective instructions of a compiled program, in order.

    Args:
      hlo: text from ``jax.jit(...).lower(...).compile().as_text()``.

    Examples:
      >>> text = "%s = f32[4,2]{1,0} all-reduce(%x), replica_groups={{0,1}}"
      >>> (found,) = collectives(text)
      >>> found.kind, found.arrays, found.group_size, found.times
      ('all-reduce', (('f32', (4, 2)),), 2, 1)
      >>> found.bytes, found.sent_bytes
      (32, 32.0)
    """
    found = []
    for line, times in lines_with_turns(hlo):
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        arrays = [
            (dtype, tuple(int(n) for n in sizes.split(",") if n))
            for dtype, sizes in _ARRAY.findall(match["type"])
        ]
        if match["start"]:
            arrays = _results_of_start(match["kind"], arrays)
        found.append(
            Collective(match["kind"], tuple(arrays), _group_size(match["rest"]), times)
        )
    return found


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """Count and bytes of each kind that occurs."""
    sums: dict[str, Total] = {}
    for one in found:
        before, times = sums.get(one.kind, Total(0, 0)), one.times or 1
        sums[one.kind] = Total(
            before.operations + times, before.bytes + times * one.bytes
        )
    return {kind: sums[kind] for kind in KINDS if kind in sums}


def bytes_by_dtype(found: Iterable[Collective]) -> dict[str, int]:
    """Bytes of each dtype; their sum is that of `totals`."""
    sums: collections.Counter[str] = collections.Counter()
    for one in found:
        for dtype, size in one.bytes_by_dtype.items():
            sums[dtype] += (one.times or 1) * size
    return dict(sums)


def added(
    found: Sequence[Collective], reference: Sequence[Collective]
) -> dict[str, Total]:
    """Count and bytes of each kind minus those of a reference, where they differ."""
    mine, other, nothing = totals(found), totals(reference), Total(0, 0)
    differences = {
        kind: Total(
            mine.get(kind, nothing).operations - other.get(kind, nothing).operations,
            mine.get(kind, nothing).bytes - other.get(kind, nothing).bytes,
        )
        for kind in KINDS
    }
    return {kind: total for kind, total in differences.items() if any(total)}


def itemsize(dtype: str) -> int:
    """Bytes per element of an HLO dtype, at least one.

    Examples:
      >>> itemsize("bf16"), itemsize("pred"), itemsize("c64"), itemsize("f8e4m3fn")
      (2, 1, 8, 1)
    """
    digits = re.search(r"\d+", dtype)
    return max(1, int(digits[0]) // 8) if digits else 1


def _results_of_start(
    kind: str, arrays: list[tuple[str, tuple[int, ...]]]
) -> list[tuple[str, tuple[int, ...]]]:
    """The results, without the operands and the counters of a permutation."""
    if kind == "all-reduce":
        return arrays  # the same as for the synchronous instruction
    if kind == "collective-permute":
        return arrays[1:2]
    return arrays[len(arrays) // 2 :]


def _group_size(attributes: str) -> int:
    if listed := _GROUPS_LISTED.search(attributes):
        return len(listed[1].split(","))
    if iota := _GROUPS_IOTA.search(attributes):
        return int(iota[1])
    if mesh := _GROUPS_MESH.search(attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # A part of an axis is written 'axis':(stride)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 0
