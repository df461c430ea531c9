"""Checkpoints of a run: their content, their integrity, and how a run resumes.

Orbax writes them in the background, each into a folder that gets its name only once it
is complete: a process killed in the middle of a write leaves the earlier ones intact.
A checkpoint holds the state, which also determines the order of the data and the
augmentation, the configuration, and a checksum of the bits of every array. The
checksums do not depend on how arrays are split over devices or processes, so a run may
resume with a different number of either.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from experiments.config import RunConfig, changes
from experiments.errors import UserError

PyTree = Any

STATE, RUN = "state", "run"  # the two parts of a checkpoint
MESSAGE_LENGTH = 300
SECONDS = 45.0  # of work that a killed run may lose, plus the time of one call


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none in the folder can be read."""


class Restored(NamedTuple):
    """What a run resumes from.

    Attributes:
      step: step at which the checkpoint was taken.
      state: the state, with the structure, shapes and shardings of the target.
      progress: numbers that the caller saved with the state.
    """

    step: int
    state: PyTree
    progress: Mapping[str, float]


class Checkpoints:
    """The checkpoints of one run; a context manager that waits until all are written.

    Args:
      directory: folder for this run alone, created if missing: a path, or the address
        of a bucket.
      config: configuration of the run, saved with each checkpoint.
      every: number of reports between checkpoints; the last report always has one.
      keep: number of checkpoints to keep, the newest ones.
      seconds: time after which a checkpoint is saved within a report, at the end of a
        compiled call. Not in runs of several processes, whose clocks differ.

    Attributes:
      seconds: as given.

    Raises:
      CheckpointError: if the folder cannot be created or written.
      ValueError: if ``every`` or ``keep`` is below 1, or ``seconds`` not positive.
    """

    def __init__(
        self,
        directory: str,
        config: RunConfig,
        *,
        every: int = 1,
        keep: int = 3,
        seconds: float = SECONDS,
    ):
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")
        if not seconds > 0:
            raise ValueError(f"seconds={seconds!r} must be greater than 0")
        self.seconds = seconds
        path = epath.Path(directory)
        self.directory = path if "://" in directory else path.absolute()
        self.every = every
        self._last_report = config.epochs // config.epochs_per_report
        self._config = config.settings()
        self._check_directory()
        with self._writing("the folder of checkpoints"):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._writing("a checkpoint"):
                self._manager.wait_until_finished()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def is_due(self, report: int) -> bool:
        """Whether a checkpoint is due after this number of reports."""
        return report % self.every == 0 or report == self._last_report

    def save(self, step: int, state: PyTree, progress: Mapping[str, float]) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Raises:
          CheckpointError: if this checkpoint or the one before could not be written.
        """
        arrays = _without_keys(state)
        run = {
            "config": self._config,
            "progress": dict(progress),
            "checksums": _checksums(arrays),
        }
        with self._writing(f"the checkpoint of step {step} or the one before"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.StandardSave(arrays),
                        RUN: ocp.args.JsonSave(run),
                    }
                ),
            )

    def restore(self, target: PyTree) -> Restored | None:
        """Reads the newest checkpoint that is intact; None if there are no checkpoints.

        Newer ones that are corrupt are kept under another name, and a warning says so.

        Args:
          target: a state with the wanted structure, shapes, dtypes and shardings.

        Raises:
          ValueError: if the configuration differs from the saved one.
          CheckpointError: if there are checkpoints but none can be read.
        """
        broken: dict[int, Exception] = {}
        for step in reversed(self.steps):
            run, failure = _agreed(partial(self._read_run, step))
            if run is not None:
                self._check_config(run["config"])
                arrays, failure = _agreed(partial(self._read_arrays, step, target))
                if arrays is not None and _checksums(arrays) == run["checksums"]:
                    self._set_aside(broken)
                    state = _with_keys(arrays, target)
                    return Restored(step, state, run["progress"])
            broken[step] = failure or ValueError(
                "the arrays differ from those that were saved"
            )
        if broken:
            raise CheckpointError(
                f"none of the checkpoints in {str(self.directory)!r} can be read; "
                f"nothing was changed; move the folder away to start again. "
                f"{_reasons(broken)}"
            )
        return None

    def _read_run(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(**{RUN: ocp.args.JsonRestore()})
        with self._reader() as reader:
            run = reader.restore(step, args=args)[RUN]
        return {name: run[name] for name in ("config", "progress", "checksums")}

    def _read_arrays(self, step: int, target: PyTree) -> PyTree:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_keys(target))
        args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)})
        with self._reader() as reader:
            return reader.restore(step, args=args)[STATE]

    @contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        """Reads without waiting for the other processes, since one of them may fail."""
        if jax.process_count() == 1:
            yield self._manager
            return
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, multiprocessing_options=alone
        )
        with ocp.CheckpointManager(self.directory, options=options) as reader:
            yield reader

    def _check_config(self, saved: dict[str, Any]) -> None:
        changed = changes(saved, self._config)
        if changed:
            raise ValueError(
                f"the run in {str(self.directory)!r} has another configuration: "
                f"{changed}; resume it with its own, or name another folder"
            )

    def _set_aside(self, broken: Mapping[int, Exception]) -> None:
        if not broken:
            return
        if jax.process_index() == 0:
            for step in broken:
                folder = self.directory / str(step)
                folder.rename(self.directory / f"{step}.broken-{_count(folder)}")
        multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._manager.reload()
        warnings.warn(
            f"in {str(self.directory)!r} an earlier checkpoint is used, and "
            f"corrupt ones were renamed. {_reasons(broken)}",
            stacklevel=3,
        )

    def _check_directory(self) -> None:
        # Orbax would notice at the first checkpoint.
        probe = self.directory / f"probe-{jax.process_index()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        # From a bucket: an OSError, or whatever its client raises.
        except Exception as error:
            raise CheckpointError(
                f"the folder of checkpoints {str(self.directory)!r} cannot be made or "
                "written; name a folder that can, or the address of a bucket "
                f"({_line(error)})"
            ) from error

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        # From the writing thread: an OSError, or whatever TensorStore turns it into.
        except Exception as error:
            full = os.strerror(errno.ENOSPC) in str(error)
            raise CheckpointError(
                f"{what} could not be written to {str(self.directory)!r}"
                f"{', the disk is full' if full else ''}; complete checkpoints there "
                "are intact, and the same command resumes from them once there is room "
                f"({_line(error)})"
            ) from error


def _agreed(
    read: Callable[[], PyTree],
) -> tuple[PyTree, None] | tuple[None, Exception]:
    """What was read, or why reading failed, on this process or on any other.

    So all processes continue with the same checkpoint.
    """
    found, failure = None, None
    try:
        found = read()
    # A corrupt checkpoint raises whatever Orbax and TensorStore do.
    except Exception as error:
        failure = error
    failed = multihost_utils.process_allgather(np.int32(failure is not None))
    if failure is None and np.any(failed):
        first = int(np.argmax(failed))
        failure = CheckpointError(f"process {first} could not read it")
    return (found, None) if failure is None else (None, failure)


def _reasons(broken: Mapping[int, Exception]) -> str:
    return "; ".join(f"step {step}: {_line(error)}" for step, error in broken.items())


def _line(error: Exception) -> str:
    """The start of a message: TensorStore appends entire specifications to its own."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first[:MESSAGE_LENGTH]}"


def _count(folder: epath.Path) -> int:
    """Number of corrupt checkpoints of this step that were set aside before."""
    return len(list(folder.parent.glob(f"{folder.name}.broken-*")))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: PyTree) -> PyTree:
    """The tree, with random keys replaced by their bits."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def _with_keys(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old))
            if _is_key(old)
            else leaf
        ),
        tree,
        like,
    )


def _checksums(tree: PyTree) -> list[int]:
    sums = _bit_sums(jax.tree.leaves(tree))
    # Each sum is over a whole array, so every device holds the same number.
    return [int(np.asarray(leaf.addressable_shards[0].data)) for leaf in sums]


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_bit_sum(leaf) for leaf in leaves]


def _bit_sum(leaf: jax.Array) -> jax.Array:
    """The sum of the bits of the elements, as integers, modulo 2**32."""
    if jnp.iscomplexobj(leaf):
        return _bit_sum(leaf.real) + _bit_sum(leaf.imag)
    if leaf.dtype == jnp.bool_:
        return jnp.sum(leaf, dtype=jnp.uint32)
    width = jnp.uint32 if leaf.dtype.itemsize > 4 else f"uint{8 * leaf.dtype.itemsize}"
    bits = jax.lax.bitcast_convert_type(leaf, width)
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
