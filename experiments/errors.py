"""How commands end when something goes wrong that the user can put right."""

from collections.abc import Iterator
from contextlib import contextmanager

from experiments.data import NotPreparedError
from experiments.training import DivergedError


@contextmanager
def ending_with_a_message() -> Iterator[None]:
    """Ends the program with a line, not a trace, and leaves what was written.

    Raises:
      SystemExit: for wrong input, a disk that is full or a path that cannot be, a run
        that diverges, and data that is not prepared.
    """
    try:
        yield
    except (ValueError, OSError, DivergedError, NotPreparedError) as error:
        raise SystemExit(f"error: {error}") from error
