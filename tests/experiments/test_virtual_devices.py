"""The environment that JAX reads when it starts its devices."""

import os

import pytest

from experiments.virtual_devices import ask_for_virtual_devices

NAMES = ("XLA_FLAGS", "JAX_PLATFORMS", "NPROC")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in NAMES:
        # Set before it is deleted: so it is as before afterwards, if it was not there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def environment():
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_devices_are_asked_for_with_a_thread_each(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    ask_for_virtual_devices(4)
    assert environment() == {
        "XLA_FLAGS": "--xla_dump_to=here --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "8",
    }


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("NPROC", "3")
    ask_for_virtual_devices(2)
    assert environment() == {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "tpu",
        "NPROC": "3",
    }
    before = environment()
    ask_for_virtual_devices(8)
    assert environment() == before


def test_one_device_needs_nothing():
    ask_for_virtual_devices(1)
    assert environment() == {}
