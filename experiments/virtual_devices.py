"""Several devices on a machine that has only a CPU."""

import os

FLAG = "--xla_force_host_platform_device_count"


def ask_for_virtual_devices(count: int) -> None:
    """Makes JAX split the CPU into ``count`` devices; call it before JAX starts one.

    Environment settings of the number of devices, of the platform or of the number of
    threads are kept.
    """
    if count == 1 or FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={count}"
    os.environ["XLA_FLAGS"] = flags.strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where virtual devices are
    os.environ.setdefault("NPROC", str(2 * count))  # a thread for every device
