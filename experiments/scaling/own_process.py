"""Calls in a separate process, with a time limit and without risk to this one."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class StoppedError(RuntimeError):
    """The call was stopped, or its process died."""


def call_in_process(function: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """Returns ``function(*args)``, called in a new process.

    Args:
      function: a module-level function, so that the process can import it.
      *args: its arguments; they and the result must be picklable.
      seconds: time after which the process is killed.

    Raises:
      Exception: whatever the function raises.
      StoppedError: if the time is up, or the process dies, for example because the
        machine is out of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise StoppedError(f"stopped after {seconds / 60:g} minutes")
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise StoppedError(
            f"the process died with exit code {process.exitcode}"
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if error is not None:
        raise error
    return result


def _answer(
    sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    answer: tuple[Any, Exception | None]
    try:
        answer = (function(*args), None)
    except Exception as error:
        answer = (None, error)
    sender.send(answer)
