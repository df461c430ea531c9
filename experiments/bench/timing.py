"""Times of peers that take turns in one process, as ratios to a reference."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Returns the seconds until the arrays of a call are ready, and the arrays."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median over turns, without the first, of the ratio within a turn."""
    return statistics.median(
        own / other for own, other in zip(times[1:], reference[1:], strict=True)
    )
