"""Settings of all tests: eight virtual CPU devices; float64 where asked for."""

import os
import tempfile

# Read when JAX starts its backend, which no import of ours does before this line.
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# A folder for compiled programs; from the first process of a session to its workers,
# or from .ci/run to several sessions.
_PROGRAMS = "NLCG_OPTAX_TEST_PROGRAMS"


def pytest_configure(config):
    """Compiles a program once a session, and not once in every test and worker."""
    if _PROGRAMS not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="nlcg_optax-programs-")
        os.environ[_PROGRAMS] = folder.name

        def clean_up():
            del os.environ[_PROGRAMS]
            folder.cleanup()

        config.add_cleanup(clean_up)
    jax.config.update("jax_compilation_cache_dir", os.environ[_PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
