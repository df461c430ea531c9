import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training import meshes

pytestmark = pytest.mark.devices


@pytest.mark.parametrize(
    ("data", "shard", "shape"),
    [(None, 1, (8, 1)), (1, None, (1, 8)), (None, 4, (2, 4)), (4, 2, (4, 2))],
)
def test_sizes_of_the_mesh(data, shard, shape):
    mesh = meshes.make_mesh(data, shard)
    assert (mesh.axis_names, mesh.axis_sizes) == (("data", "shard"), shape)
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None), "data_devices=3 and shard_devices=None do not multiply to 8"),
        ((2, 2), "data_devices=2 and shard_devices=2 do not multiply to 8, the"),
        ((None, 16), "data_devices=None and shard_devices=16 do not multiply to 8"),
        ((None, None), "at most one of them may be None"),
    ],
)
def test_a_mesh_that_the_devices_do_not_fill_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(*arguments)


def test_unknown_axis_types_are_refused():
    with pytest.raises(ValueError, match="axis_types='manual' is unknown; allowed"):
        meshes.make_mesh(axis_types="manual")


def test_arrays_are_split_by_shape_alone_and_copied_where_that_cannot_be(caplog):
    mesh = meshes.make_mesh(2, 4)
    shapes = {
        "kernel": (3, 3, 64, 256),
        "square": (64, 64),
        "stack": (10, 64, 64),
        "odd": (45, 47),
        "small": (64,),
        "scalar": (),
    }
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    specs = {n: s.spec for n, s in meshes.shardings_of(mesh, params).items()}
    assert specs == {
        "kernel": P(None, None, None, "shard"),
        "square": P(None, "shard"),
        "stack": P(None, None, "shard"),
        "odd": P(),
        "small": P(),
        "scalar": P(),
    }
    with caplog.at_level(logging.WARNING):
        meshes.report_copies(mesh, params)
        meshes.report_copies(mesh, params)  # said once
        meshes.report_copies(meshes.make_mesh(), params)  # all are copies: not worth it
    (record,) = caplog.records
    assert record.getMessage() == (
        "no dimension of 1 of 6 parameters is divisible by shard_devices=4: every "
        "device holds a copy of ['odd'] (45, 47)"
    )


def test_copies_are_on_all_devices():
    tree = meshes.on_all_devices({"x": jnp.arange(3.0)})
    wanted = NamedSharding(meshes.make_mesh(), P())
    assert tree["x"].sharding.is_equivalent_to(wanted, 1)


def test_what_is_copied_is_told_by_the_first_process_alone(caplog, monkeypatch):
    params = {"odd": jax.ShapeDtypeStruct((45, 49), jnp.float32)}
    monkeypatch.setattr(meshes, "is_first", lambda: False)
    with caplog.at_level(logging.WARNING):
        meshes.report_copies(meshes.make_mesh(2, 4), params)
        assert not caplog.records
        monkeypatch.undo()
        meshes.report_copies(meshes.make_mesh(2, 4), params)
    assert "a copy of ['odd'] (45, 49)" in caplog.text
