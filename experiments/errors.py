"""How commands end: on bad input with its error, on Ctrl-C with the command to resume.

Every command runs its work within `ending_with_a_message`.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax

INTERRUPTED = 130  # exit status of a command that SIGINT ended, as shells give it


class UserError(Exception):
    """An error that the user can correct; its text says how."""


@contextmanager
def ending_with_a_message(
    module: str,
    arguments: Sequence[str] | None = None,
    *,
    again: str = "resume with",
) -> Iterator[None]:
    """Ends the program with one line instead of a trace.

    Args:
      module: module of the command, such as ``"experiments.run"``.
      arguments: arguments of the command; those of the process by default.
      again: text before the command in the line that Ctrl-C leaves: ``"resume with"``
        where the command continues what it left, or ``"start again with"``.

    Raises:
      SystemExit: with ``error: ...`` for a `UserError`, a ValueError or an OSError
        (wrong input, a full disk, an impossible path); with status 130 for Ctrl-C.
    """
    try:
        yield
    except (UserError, ValueError, OSError) as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end(f"interrupted; {again}: {command_line(module, arguments)}", INTERRUPTED)


@contextmanager
def needing(extras: str, otherwise: str = "") -> Iterator[None]:
    """Runs code whose imports need optional dependencies of this package.

    Args:
      extras: the extras in pyproject.toml that hold them, separated by commas.
      otherwise: text after the command that installs them, such as another way.

    Raises:
      UserError: if an import fails; the message says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{error}; install it with pip install -e '.[{extras}]'{otherwise}"
        ) from error


def command_line(module: str, arguments: Sequence[str] | None = None) -> str:
    """The command as it was given, to be pasted into a shell.

    Examples:
      >>> command_line("experiments.run", ["--record", "my runs/a.jsonl"])
      "python -m experiments.run --record 'my runs/a.jsonl'"
    """
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", "-m", module, *given])


def _end(message: str, status: int) -> None:
    if not jax.distributed.is_initialized():
        if status == 1:
            raise SystemExit(message)
        print(f"\n{message}", file=sys.stderr, flush=True)
        raise SystemExit(status)
    # The usual exit would wait for the other processes, which wait for this one.
    print(message, file=sys.stderr, flush=True)
    os._exit(status)
