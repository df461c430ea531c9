"""Settings of all tests: eight virtual CPU devices; float64 where asked for."""

import os

# Read when JAX starts its backend, which no import of ours does before this line.
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Switches float64 on for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def strict_promotion():
    """Forbids implicit dtype promotion for one test."""
    with jax.numpy_dtype_promotion("strict"):
        yield
