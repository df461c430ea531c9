"""Settings of the whole suite: devices, a cache of compiled programs, float64.

Most users have one device, and the package's programs differ where there is one; so the
suite runs on one CPU device. Tests of several devices carry the marker ``devices`` and
run by themselves, on eight virtual devices: ``pytest --devices``.

Most of the time of a test is the compilation of its programs, so XLA is asked for less
work, see `_compile_quickly`. ``pytest --optimized`` compiles as users do; the tests
that need this carry the marker ``optimized``.
"""

import gc
import mmap
import os
import tempfile
from pathlib import Path

import jax
import jaxlib
import pytest

DEVICES = 8
EXPERIMENTS = Path(__file__).parent / "experiments"

# Folder of compiled programs: pytest passes it to its workers, .ci/run to all suites.
_PROGRAMS = "NLCG_OPTAX_TEST_PROGRAMS"

# Fusions are compiled without MLIR, one LLVM module per program, with few LLVM
# optimizations.
_QUICK_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)


def pytest_addoption(parser):
    parser.addoption(
        "--devices",
        action="store_true",
        help=f"run the tests of several devices, on {DEVICES} virtual ones; only these",
    )
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile with all optimizations of XLA, which takes twice the time",
    )


def _known_to_xla(flags):
    """The flags that this jaxlib has; XLA ends the process at an unknown one."""
    names = {flag: flag.removeprefix("--").split("=")[0].encode() for flag in flags}
    known = set()
    for library in Path(jaxlib.__file__).parent.glob("*.so"):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            known |= {flag for flag, name in names.items() if content.find(name) >= 0}
    return [flag for flag in flags if flag in known]


def _compile_quickly():
    """Halves the processor time of the suite, here and in the processes it starts.

    XLA's passes over a program stay the same but for the choice of a few fusions, so
    that what a test reads in a compiled program, such as collectives, constants and
    buffers, is what users have. The code that LLVM makes of it is another, and rounds
    otherwise, as that for another machine would.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    missing = [flag for flag in _QUICK_FLAGS if flag not in given]
    # The caller's flags come last, so they take precedence.
    os.environ["XLA_FLAGS"] = " ".join([*_known_to_xla(missing), *given])


def pytest_configure(config):
    """Sets devices and compiler, and compiles a program once per session only."""
    # JAX's own objects live long: at Python's default the search for cycles among them
    # takes a tenth of the time.
    gc.set_threshold(50_000)
    if not config.getoption("--optimized"):
        _compile_quickly()
    if config.getoption("--devices"):
        jax.config.update("jax_num_cpu_devices", DEVICES)
        # XLA sizes its thread pools by the cores. In small ones, sums over the devices
        # can wait for a share that no thread is left to run (jaxlib 0.10.2).
        os.environ.setdefault("NPROC", str(2 * DEVICES))
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
    """Keeps the tests of several devices, or all others, as the programs allow."""
    several = config.getoption("--devices")
    optimized = config.getoption("--optimized")
    kept, left_out = [], []
    for item in items:
        marked = {mark.name for mark in item.iter_markers()}
        fits = ("devices" in marked) == several
        fits &= optimized or "optimized" not in marked
        (kept if fits else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Forbids implicit promotion of ranks and dtypes in the tests of the package.

    Not in those of the experiments, where models and Optax's optimizers promote.
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
def leak_checks():
    """Looks for tracers that outlive their trace.

    JAX then traces each operation anew, and after each asks the garbage collector for
    every object that it knows: the tests with this fixture trace every transformation,
    and those of earlier tests are hidden.
    """
    gc.collect()
    gc.freeze()
    with jax.checking_leaks():
        yield
    gc.unfreeze()


@pytest.fixture
def standard_promotion():
    """JAX's defaults for one test: what users write, and some of Optax, promotes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
