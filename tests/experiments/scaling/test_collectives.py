"""Communication of compiled programs: the inspector, and what an update adds."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import RunConfig
from experiments.scaling import peers
from experiments.scaling.collectives import (
    Collective,
    added,
    bytes_by_dtype,
    collectives,
    totals,
)
from experiments.scaling.compiled_step import Problem, communication_of, lower_step
from experiments.training import meshes
from nlcg_optax import nlcg, scale_by_diagonal_secant

pytestmark = pytest.mark.devices

DEVICES = 8


def found_in(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return collectives(compiled.as_text())


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(1, None)


def on(mesh, array, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))


def test_every_kind_is_seen_with_its_bytes(mesh):
    x = on(mesh, jnp.ones([16, 4]), P("shard"))
    copied = NamedSharding(mesh, P())
    (gather,) = found_in(lambda x: jax.lax.with_sharding_constraint(x, copied), x)
    assert gather[0] == "all-gather"
    assert (gather.bytes, gather.group_size) == (16 * 4 * 4, DEVICES)
    assert gather.sent_bytes == 16 * 4 * 4 * 7 / 8

    def by_hand(part):
        ring = [(i, (i + 1) % DEVICES) for i in range(DEVICES)]
        total = jax.lax.psum(jnp.sum(part), "shard")
        scattered = jax.lax.psum_scatter(jnp.ones([DEVICES, 4]) * part[0, 0], "shard")
        moved = jax.lax.ppermute(part.astype(jnp.bfloat16), "shard", ring)
        swapped = jax.lax.all_to_all(
            jnp.ones([DEVICES, 4]) * part[1, 0], "shard", 0, 0, tiled=True
        )
        return total + scattered.sum() + moved.sum() + swapped.sum()

    split = jax.shard_map(
        lambda x: by_hand(x)[None],
        mesh=mesh,
        in_specs=P("shard"),
        out_specs=P("shard"),
        check_vma=False,
    )
    kinds = totals(found_in(split, x))
    assert kinds["all-reduce"] == (1, 4)
    assert kinds["reduce-scatter"] == (1, DEVICES * 4 * 4)
    assert kinds["collective-permute"][0] == 1
    assert kinds["all-to-all"] == (1, DEVICES * 4 * 4)


def test_turns_of_a_loop_count(mesh):
    x = on(mesh, jnp.ones([16]), P("shard"))

    def loop(x):
        def body(x, _):
            return x * jnp.sum(x * x), None

        return jax.lax.scan(body, x, length=5)[0]

    (reduce,) = found_in(loop, x)
    assert (reduce.times, reduce.is_scalar) == (5, True)
    assert totals([reduce]) == {"all-reduce": (5, 20)}

    def until(x):
        return jax.lax.while_loop(
            lambda x: jnp.max(x) < 1e6, lambda x: x + 1 + jnp.sum(x * x), x
        )

    # Both the condition and the body talk, in unknown number.
    assert {one.times for one in found_in(until, x)} == {None}


# As the TPU compiler writes it, shortened.
TPU_TEXT = """
%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[64]{0:T(128)}, /*index=1*/bf16[3,3]{1,0}) all-reduce(%a, %b), \
replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1
  %ag = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), \
replica_groups=[2,8]<=[16], dimensions={0}
  %agd = f32[16,8]{1,0} all-gather-done(%ag)
  ROOT %rs = f32[2]{0} reduce-scatter(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_the_text_of_the_tpu_compiler():
    found = {one.kind: one for one in collectives(TPU_TEXT)}
    assert found["all-reduce"] == Collective(
        "all-reduce", (("f32", (64,)), ("bf16", (3, 3))), 4, 3
    )
    assert found["all-gather"] == Collective("all-gather", (("f32", (16, 8)),), 8)
    assert found["reduce-scatter"].bytes == 2 * 4 * 2
    assert bytes_by_dtype([found["all-reduce"]]) == {
        "f32": 3 * 64 * 4,
        "bf16": 3 * 9 * 2,
    }


def test_the_communication_of_a_step_by_hand():
    """Three turns of 256 and 18 bytes over 4; a gather of 512 and a cut of 16."""
    found = collectives(TPU_TEXT)
    scalars = Collective("all-reduce", (("f32", ()), ("s32", (1,))), 4, 5)
    told = communication_of([*found, scalars, scalars._replace(times=None)])
    assert told["collectives"] == {
        "all-reduce": (3 + 5 + 1, 3 * 274 + 6 * 8),
        "all-gather": (1, 512),
        "reduce-scatter": (1, 16),
    }
    assert told["collective_bytes"] == 3 * 274 + 6 * 8 + 512 + 16
    assert told["collective_bytes_by_dtype"] == {
        "f32": 3 * 256 + 6 * 4 + 512 + 16,
        "bf16": 3 * 18,
        "s32": 6 * 4,
    }
    # Of n bytes over p devices 2 n (p - 1) / p, the halves of it n (p - 1) / p.
    reduced, gathered, cut = 1.5 * (3 * 274 + 6 * 8), 7 / 8 * 512, 1 / 2 * 16
    assert told["sent_bytes"] == reduced + gathered + cut
    assert told["scalar_collectives"] == 5 + 1


class Network(nn.Module):
    """Layers large enough to be split."""

    @nn.compact
    def __call__(self, x):
        for width in (64, 128):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(8)(x)


def built(text):
    """A peer by its name and options."""
    name, options = peers.choice(text)
    return peers.build(name, 0.1, options)


@functools.cache
def data_parallel_step(name):
    """What a step with data over the devices and parameters on all of them sends."""
    mesh, model = meshes.make_mesh(), Network()
    x = jax.ShapeDtypeStruct(
        (16, 64), jnp.float32, sharding=NamedSharding(mesh, P("data"))
    )
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones([1, 64])))
    tx = optax.with_extra_args_support(built(name).transformation)
    state = jax.eval_shape(tx.init, params)

    def step(params, state, x):
        def loss(params):
            return jnp.mean((model.apply(params, x) - 1) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    copied = lambda tree: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P())
        ),
        tree,
    )
    return found_in(step, copied(params), copied(state), x)


RMS, SECANT = (f"nlcg,preconditioner={name}" for name in ("rms", "secant"))
IDENTITY_OR_DIAGONAL = ["nlcg,rule=fr", "nlcg", "nlcg,rule=hs", RMS]


@pytest.mark.parametrize(
    "name", [*IDENTITY_OR_DIAGONAL, "paper_nlcg,rule=pr,step_control=online"]
)
def test_an_update_adds_at_most_two_scalar_all_reduces_to_data_parallel_sgd(name):
    plain, found = data_parallel_step("sgd"), data_parallel_step(name)
    assert set(totals(found)) == {"all-reduce"}
    extra = added(found, plain)
    assert set(extra) <= {"all-reduce"}
    operations, size = extra.get("all-reduce", (0, 0))
    assert operations <= 2
    # Scalars, and not a parameter: three products and four counts fit in 64 bytes.
    assert 0 <= size <= 64


def test_what_a_hessian_vector_product_adds_is_told(capsys):
    extra = added(data_parallel_step(SECANT), data_parallel_step("nlcg"))
    with capsys.disabled():
        print(f"\na Hessian-vector product adds {extra}")
    params = 64 * 64 + 64 + 64 * 128 + 128 + 128 * 8 + 8
    # Summed over devices like a gradient, in one term or in two: the tangent of a
    # product has two. Nothing is gathered.
    assert set(extra) == {"all-reduce"}
    assert 4 * params <= extra["all-reduce"].bytes <= 2 * 4 * params


@pytest.mark.parametrize("name", ["nlcg", RMS, "secant"])
def test_products_of_split_leaves_are_fused(name, mesh):
    """However many leaves: at most two operations of scalars, and nothing else."""
    secant = nlcg(0.1, preconditioner=scale_by_diagonal_secant(0.1))
    tx = secant if name == "secant" else built(name).transformation
    widths = range(8, 56, 8)
    params = {f"w{n}": on(mesh, jnp.ones([64, n]), P("shard")) for n in widths}
    state = jax.jit(tx.init)(params)
    found = found_in(tx.update, params, state, params)
    assert 1 <= len(found) <= 2
    assert all(one.kind == "all-reduce" and one.is_scalar for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kronecker", "orthogonal"])
def test_what_matrix_preconditioners_send_for_split_leaves_is_told(name, mesh, capsys):
    """Unlike diagonals they need rows and columns of all devices."""
    tx = built(f"nlcg,preconditioner={name}").transformation
    params = {n: on(mesh, jnp.ones([64, 48]), P("shard")) for n in "ab"}
    state = jax.jit(tx.init)(params)
    sent = totals(found_in(tx.update, params, state, params))
    with capsys.disabled():
        print(f"\n{name}, two split leaves of 12 KB: {sent}")
    if name == "orthogonal":
        assert set(sent) == {"all-reduce"}
        # Gram matrices of each leaf in each turn of the iteration, and scalars.
        assert sent["all-reduce"].bytes > 2 * 4 * 48**2
    else:
        assert sent["all-gather"].bytes > 2 * 4 * 64 * 48


@functools.cache
def step_with_batch_normalization(partitioning, optimizer):
    """What a step of the small convolutional network sends: two normalized layers."""
    name, options = peers.choice(optimizer)
    config = RunConfig(
        model="cnn",
        optimizer=name,
        optimizer_options=options,
        batch_size=16,
        partitioning=partitioning,
    )
    problem = Problem(image_size=8, num_classes=10)
    lowered = lower_step(config, problem, meshes.make_mesh())
    return collectives(lowered.compile().as_text())


LAYERS = 2
PARAMETERS = 9 * 3 * 16 + 32 + 9 * 16 * 32 + 64 + 32 * 10 + 10
STATISTICS = 2 * (16 + 32)
# One operation a layer forwards and one backwards, and one for the gradients. Each
# device by itself has only the last.
OF_A_GRADIENT = {"jit": 2 * LAYERS + 1, "shard_map": 1}


@pytest.mark.slow
@pytest.mark.parametrize("partitioning", OF_A_GRADIENT)
def test_a_network_with_batch_normalization(partitioning):
    """Under jit every layer talks, in every pass; under shard_map once, at the end."""
    found = step_with_batch_normalization(partitioning, "nlcg")
    assert set(totals(found)) == {"all-reduce"}
    operations, size = totals(found)["all-reduce"]
    assert operations == OF_A_GRADIENT[partitioning]
    assert size >= 4 * (PARAMETERS + STATISTICS)
    passes = {"jit": 2, "shard_map": 1}[partitioning]
    assert size <= 4 * (PARAMETERS + passes * STATISTICS + 16)
    assert np.all([one.group_size == DEVICES for one in found])
    if partitioning == "jit":  # mean and variance of 16 channels, then of 32
        assert [one.bytes for one in found][:LAYERS] == [4 * 2 * 16, 4 * 2 * 32]


@pytest.mark.slow
@pytest.mark.parametrize("partitioning", OF_A_GRADIENT)
def test_a_further_pass_through_value_fn_talks_again(partitioning, capsys):
    """A Hessian-vector product, and every turn of a line search."""
    step = functools.partial(step_with_batch_normalization, partitioning)
    plain = step("nlcg")
    for name, passes in ((SECANT, 1), ("nlcg_search", 2)):
        extra = added(step(name), plain)
        with capsys.disabled():
            print(f"\n{partitioning}: {name} adds {extra} to nlcg")
        assert set(extra) == {"all-reduce"}
        operations, size = extra["all-reduce"]
        assert operations == passes * OF_A_GRADIENT[partitioning]
        assert passes * 4 * PARAMETERS <= size <= passes * 2 * 4 * (PARAMETERS + 200)
    # Two loops, of which the text does not say how often they turn.
    turns = [one.times for one in step("nlcg_search")]
    assert turns.count(None) == 2 * OF_A_GRADIENT[partitioning]


@pytest.mark.slow
def test_what_a_line_search_adds_is_told(capsys):
    found, plain = data_parallel_step("nlcg_search"), data_parallel_step("nlcg")
    extra = added(found, plain)
    with capsys.disabled():
        print(f"\na line search adds {extra}, each turn of its two loops counted once")
    params = 64 * 64 + 64 + 64 * 128 + 128 + 128 * 8 + 8
    assert set(extra) == {"all-reduce"}
    # A gradient and a value in either loop.
    assert [one.bytes for one in found if one.times is None] == [4 * params + 4] * 2
