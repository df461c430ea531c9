"""Several processes as one program: how they connect and synchronize.

Every process runs the same command on its own devices. `connect` must be called before
anything else; after it `jax.devices()` lists the devices of all processes. Launching
and restarting processes is left to the tools of a cluster, see ``experiments/launch``.
"""

import dataclasses
import socket
import time

import jax
from orbax.checkpoint import multihost

from experiments.errors import UserError

RETRY_SECONDS = 0.5
BARRIER_SECONDS = 600


class CoordinatorError(UserError):
    """The processes could not connect to each other."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """How this process joins the others; by default it is the only one.

    Attributes:
      auto: whether to read the other options from the environment, as on a TPU slice,
        GKE or Slurm.
      coordinator: address and port of process 0, such as ``10.0.0.1:8476``.
      count: number of processes.
      index: index of this process, from 0.
      start_seconds: how long to wait for all processes to start.
      heartbeat_seconds: time without a heartbeat after which a process counts as dead
        and the others exit.
    """

    auto: bool = False
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    start_seconds: int = 300
    heartbeat_seconds: int = 100

    def __post_init__(self) -> None:
        by_hand = (self.coordinator, self.count, self.index)
        given = (
            f"coordinator={self.coordinator!r}, count={self.count!r} and "
            f"index={self.index!r}"
        )
        if any(value is not None for value in by_hand) and None in by_hand:
            raise ValueError(f"{given}: give all three of them, or none")
        if self.auto and self.coordinator is not None:
            raise ValueError(f"auto=True cannot be combined with {given}")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(
                    f"coordinator={self.coordinator!r} must be an address and a port, "
                    "such as '10.0.0.1:8476'"
                )
        if self.count is not None and self.index not in range(self.count):
            raise ValueError(
                f"index={self.index!r} must be from 0 to below count={self.count!r}"
            )
        for name in ("start_seconds", "heartbeat_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")


def connect(options: ProcessOptions) -> None:
    """Joins the other processes; does nothing if this is the only process.

    Raises:
      CoordinatorError: if the coordinator cannot be reached, not all processes start in
        time, or the environment of ``auto`` names no coordinator.
    """
    if not options.auto and options.coordinator is None:
        return
    if options.coordinator is not None and options.index != 0:
        _wait_for(options.coordinator, options.start_seconds)
    # Only has an effect on CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.count,
            options.index,
            initialization_timeout=options.start_seconds,
            heartbeat_timeout_seconds=options.heartbeat_seconds,
            shutdown_timeout_seconds=options.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        if options.auto and isinstance(error, ValueError):
            raise CoordinatorError(
                "auto=True finds no cluster in the environment, such as a TPU slice, "
                "GKE or Slurm; elsewhere give coordinator, count and index "
                f"({error})"
            ) from error
        raise CoordinatorError(
            f"the processes did not connect in {options.start_seconds} s: "
            f"coordinator={options.coordinator!r}, count={options.count!r}, "
            f"index={options.index!r}; all must be started with the same coordinator "
            f"and count ({str(error).partition(chr(10))[0]})"
        ) from error


def _wait_for(coordinator: str, seconds: int) -> None:
    """Waits for the coordinator; JAX itself would abort if it cannot reach it."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise CoordinatorError(
                    f"coordinator={coordinator!r} was not reached in {seconds} s "
                    f"({error}); is process 0 running there, and does a firewall let "
                    "its port through?"
                ) from error
        time.sleep(RETRY_SECONDS)


def wait_for_all(what: str) -> None:
    """Blocks until all processes have called it; ``what`` names the place.

    The first exchange between CPU devices fails if a process is half a minute late for
    it, as after a compilation on a busy host.
    """
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * BARRIER_SECONDS)


def is_first() -> bool:
    """Whether this process writes the output that all would write identically."""
    return jax.process_index() == 0
