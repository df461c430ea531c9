"""Checkpoints alone; `test_resume` is about whole runs."""

import dataclasses
import gc
import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import RunConfig
from experiments.training.checkpoints import CheckpointError, Checkpoints

CONFIG = RunConfig(optimizer_options={"beta_smoothing": 0.9})

# After one error Orbax closes the event loop to which TensorStore reports the others.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected():
    """What such an error leaves behind is warned of here and not in a later test."""
    yield
    gc.collect()


def state_of(number):
    """What TrainState may hold: numbers of every kind, keys, and nothing."""
    key = jax.random.key(number)
    return {
        "weights": jax.random.normal(key, [64, 32]),
        "half": jnp.full([3], number, jnp.bfloat16),
        "step": jnp.asarray(number, jnp.int32),
        "mask": jnp.arange(5) % 2 == 0,
        "complex": jnp.asarray([1 + 2j * number]),
        "key": key,
        "empty": (),
    }


def save(folder, *steps, config=CONFIG, **settings):
    with Checkpoints(str(folder), config, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"seconds": 1.5 * step})


def restore(folder, config=CONFIG, target=None):
    with Checkpoints(str(folder), config) as checkpoints:
        return checkpoints.restore(state_of(0) if target is None else target)


def largest_file(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_state_comes_back_bit_for_bit_and_the_oldest_go(tmp_path):
    assert restore(tmp_path) is None
    assert not list(tmp_path.iterdir())
    save(tmp_path, 3, 6, 9, keep=2)
    found = restore(tmp_path)
    assert (found.step, found.progress) == (9, {"seconds": 13.5})
    chex.assert_trees_all_equal_dtypes(found.state, state_of(9))
    chex.assert_trees_all_equal(found.state, state_of(9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "9"]


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
    )
    state = {"weights": jnp.arange(1 << 16, dtype=jnp.float32)}
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = overwrite(state)
        target = {"weights": jnp.zeros(1 << 16)}
    found = restore(tmp_path, target=target)
    chex.assert_trees_all_equal(found.state["weights"], jnp.arange(1 << 16) * 1.0)


def test_a_state_comes_back_in_another_sharding(tmp_path):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    def placed(number, spec):
        return jax.device_put(state_of(number)["weights"], NamedSharding(mesh, spec))

    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(1, {"weights": placed(1, P("data", None))}, {})
    for spec in (P(None, "data"), P()):
        target = {"weights": placed(0, spec)}
        found = restore(tmp_path, target=target).state["weights"]
        assert found.sharding == target["weights"].sharding
        chex.assert_trees_all_equal(found, state_of(1)["weights"])


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    half = tmp_path / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "2", half)
    largest_file(half).unlink()
    assert restore(tmp_path).step == 2


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.unlink(),
    ],
    ids=["a flipped bit", "cut short", "missing"],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(damage, tmp_path):
    save(tmp_path, 1, 2)
    damage(largest_file(tmp_path / "2"))
    with pytest.warns(UserWarning, match=r"corrupt ones were renamed\. step 2: "):
        found = restore(tmp_path)
    assert found.step == 1
    chex.assert_trees_all_equal(found.state, state_of(1))
    # It is still there, and the run can write its own step 2.
    assert (tmp_path / "2.broken-0").is_dir()
    save(tmp_path, 2)
    assert restore(tmp_path).step == 2


def test_nothing_is_touched_if_all_checkpoints_are_broken(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        flip_a_bit(largest_file(tmp_path / str(step)))
    with pytest.raises(
        CheckpointError, match=r"none .* can be read; .* step 2: .* step 1"
    ):
        restore(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_changed_configuration_is_refused(tmp_path):
    save(tmp_path, 1)
    changed = dataclasses.replace(CONFIG, batch_size=32, optimizer_options={})
    with pytest.raises(
        ValueError, match="optimizer_options={} was {'beta_.*, batch_size=32 was 256;"
    ):
        restore(tmp_path, changed)
    another_model = dataclasses.replace(CONFIG, model="cnn")
    with pytest.raises(ValueError, match="configuration: model='cnn' was 'mlp'; res"):
        restore(tmp_path, another_model)
    elsewhere = dataclasses.replace(CONFIG, shard_devices=8, axis_types="explicit")
    assert restore(tmp_path, elsewhere).step == 1


def test_a_full_disk_loses_nothing_that_was_complete(tmp_path):
    save(tmp_path, 1)
    # A limit on the size of files stands for the disk: the write fails half-way.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"could not be written to .* are intact"
        ):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert restore(tmp_path).step == 1
    save(tmp_path, 2)
    assert restore(tmp_path).step == 2


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_told(name, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=f"folder of checkpoints '.*/{name}' cannot be made or w"
    ):
        Checkpoints(str(tmp_path / name), CONFIG)


@pytest.mark.skipif(not Path("/proc").exists(), reason="a folder of Linux")
def test_a_folder_that_cannot_be_written_is_told():
    with pytest.raises(
        CheckpointError, match="folder of checkpoints '/proc' cannot be made or written"
    ):
        Checkpoints("/proc", CONFIG)


@pytest.mark.parametrize("settings", [{"every": 0}, {"keep": 0}])
def test_numbers_out_of_range_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="=0 must be an integer of at least 1"):
        Checkpoints(str(tmp_path), CONFIG, **settings)


def test_checkpoints_are_due_every_so_many_reports_and_at_the_end(tmp_path):
    config = RunConfig(epochs=14, epochs_per_report=2)
    checkpoints = Checkpoints(str(tmp_path), config, every=3)
    assert [n for n in range(1, 8) if checkpoints.is_due(n)] == [3, 6, 7]
