"""Splits as `tfds.core.ShardBasedBuilder` takes them, file by file.

The builders that shuffle need TensorFlow for splits of more than a gigabyte.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

# Key and features of each example of a file.
Shard: TypeAlias = Callable[[], Iterator[tuple[int | str, dict[str, Any]]]]


def shards(
    examples: Iterator[tuple[int | str, dict[str, Any]]], total: int, size: int
) -> list[Shard]:
    """Cuts examples into files, which must be written in their order.

    Args:
      examples: the examples with their keys, read once.
      total: their number.
      size: examples per file; those of one file are in memory together.
    """
    # Each file begins where the last one ended.
    shard = functools.partial(itertools.islice, examples, size)
    return [shard] * math.ceil(total / size)
