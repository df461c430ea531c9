"""Descriptions of TPU slices, for compiling without a TPU."""

import os

import jax
from jax.experimental import topologies

from experiments.errors import UserError

# Replaces the metadata that libtpu would request from the server of a TPU machine, and
# allows several processes to load it, which is safe without a chip.
INSTEAD_OF_A_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class NoCompilerError(UserError):
    """The TPU compiler is not installed."""


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a slice such as ``v5e:16x16``.

    Raises:
      NoCompilerError: if libtpu is missing.
      ValueError: if the compiler does not know the slice.
    """
    for name, value in INSTEAD_OF_A_TPU.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError as error:
        raise NoCompilerError(
            "compiling for TPUs needs libtpu; install the extra: "
            "pip install 'nlcg-optax[tpu]'"
        ) from error
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"topology={topology!r} is not known to the TPU compiler; allowed are "
            f"slices such as 'v5e:2x2', 'v5e:16x16' and 'v5p:8x8x8' "
            f"({str(error).partition(chr(10))[0][:200]})"
        ) from error
    return list(description.devices)
