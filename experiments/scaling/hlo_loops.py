"""How often each line of a compiled program runs: its loops, read from the text."""

import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(
    r"(?:to_apply|calls|called_computations|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)
_KNOWN_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")

Turns = int | None


def lines_with_turns(hlo: str) -> Iterator[tuple[str, Turns]]:
    r"""Every line of the computations that run, and how often it runs.

    Every branch is counted as taken. The number of iterations of a loop comes from the
    compiler's annotation or, without one, from the only constant that its condition
    compares with; None means that the text does not determine it.

    Args:
      hlo: the text of a compiled program, or lines of one computation.

    Examples:
      >>> loop = 'while(%a), condition=%c, body=%b, {"known_trip_count":{"n":"5"}}'
      >>> text = ["%b (x: s32[]) -> s32[] {", "  %y = s32[] negate(%x)", "}"]
      >>> text += ["ENTRY %m (a: s32[]) -> s32[] {", f"  %w = s32[] {loop}", "}"]
      >>> list(lines_with_turns("\n".join(text)))[0]
      ('  %y = s32[] negate(%x)', 5)
    """
    computations, entry = _computations(hlo)
    turns: dict[str, Turns] = {}
    pending: list[tuple[str, Turns]] = [(entry, 1)]
    while pending:
        name, times = pending.pop()
        if name not in computations:
            continue
        turns[name] = _sum(turns[name], times) if name in turns else times
        for line in computations[name]:
            pending += _callees(line, times, computations)
    for name, lines in computations.items():
        if name in turns:
            for line in lines:
                yield line, turns[name]


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines by computation, and the name of the entry computation."""
    name = entry = ""
    lines: dict[str, list[str]] = {"": []}
    for line in hlo.splitlines():
        header = None if line[:1].isspace() else _HEADER.match(line)
        if header is not None:
            name = header[2]
            lines[name] = []
            if header[1]:
                entry = name
        else:
            lines[name].append(line)
    return lines, entry


def _callees(
    line: str, times: Turns, computations: dict[str, list[str]]
) -> list[tuple[str, Turns]]:
    if loop := _WHILE.search(line):
        condition, body = loop.groups()
        known = _KNOWN_TURNS.search(line)
        bounds = _BOUND.findall("\n".join(computations.get(condition, ())))
        if known is not None:
            inner: Turns = int(known[1])
        else:
            inner = int(bounds[0]) if len(bounds) == 1 else None
        if times is not None and inner is not None:
            return [(body, times * inner)]
        return [(body, None)]
    return [
        (name, times)
        for called in _CALLED.findall(line)
        for name in re.findall(r"[\w.-]+", called)
    ]


def _sum(one: Turns, other: Turns) -> Turns:
    return None if one is None or other is None else one + other
