"""Settings of the whole suite: devices, a cache of compiled programs, float64.

Most users have one device, and the package's programs differ where there is one; so the
suite runs on one CPU device. Tests of several devices carry the marker ``devices`` and
run by themselves, on eight virtual devices: ``pytest --devices``.
"""

import os
import tempfile
from pathlib import Path

import jax
import pytest

DEVICES = 8
EXPERIMENTS = Path(__file__).parent / "experiments"

# Folder of compiled programs: pytest passes it to its workers, .ci/run to all suites.
_PROGRAMS = "NLCG_OPTAX_TEST_PROGRAMS"


def pytest_addoption(parser):
    parser.addoption(
        "--devices",
        action="store_true",
        help=f"run the tests of several devices, on {DEVICES} virtual ones; only these",
    )


def pytest_configure(config):
    """Sets the number of devices, and compiles a program once per session only."""
    if config.getoption("--devices"):
        jax.config.update("jax_num_cpu_devices", DEVICES)
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


def pytest_collection_modifyitems(config, items):
    """Keeps the tests of several devices, or all others."""
    several = config.getoption("--devices")
    kept, left_out = [], []
    for item in items:
        marked = item.get_closest_marker("devices") is not None
        (kept if marked == several else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Forbids implicit promotion of ranks and dtypes in the tests of the package.

    Not in those of the experiments, where models and Optax's optimizers promote. Leak
    checks are on in the tests named ``test_nothing_leaks_from_a_trace``, which trace
    every transformation; in the whole suite they would cost ten times its time, since
    under them JAX traces each operation anew.
    """
    if EXPERIMENTS in item.path.parents:
        return (yield)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        return (yield)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--devices"):
        terminalreporter.write_line(
            "Tests of several devices need a run of their own: pytest --devices"
        )


@pytest.fixture
def x64():
    """Switches float64 on for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def standard_promotion():
    """JAX's defaults for one test: what users write, and some of Optax, promotes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
