import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb

import nlcg_optax
from experiments import optimizers
from experiments.optimizers import preconditioners


def square(params):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


RULES = [{"rule": rule} for rule in ("fr", "hs", "hz", "daniel", "constant", "replay")]
PRECONDITIONERS = [
    {"preconditioner": name}
    for name in preconditioners.PRECONDITIONERS
    if name != "none"
]
CASES = [
    *((name, {}) for name in optimizers.OPTIMIZERS),
    *(("nlcg", options) for options in RULES),
    *(("nlcg", options) for options in PRECONDITIONERS),
    ("nlcg", {"step": "curvature", "curvature_period": 2}),
    ("nlcg", {"rule": "constant", "beta": 0.0, "step": "subspace"}),
    ("nlcg", {"across_halves": True}),
    ("large_batch_nlcg", {"preconditioner": "orthogonal", "restore_norm": True}),
    ("tuning_free_nlcg", {"preconditioner": "none"}),
    ("paper_nlcg", {"rule": "pr", "diagonal_bfgs": False, "step_control": "online"}),
    ("paper_nlcg", {"step_control": "none", "layerwise_eta": 0.001}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_optimizer_updates_with_its_extras_only(name, options):
    optimizer = optimizers.build(name, 0.05, options)
    tx = optax.with_extra_args_support(optimizer.transformation)

    def update(params):
        grads = jax.grad(square)(params)
        extras = {
            "value": square(params),
            "value_fn": square,
            "outputs_fn": lambda params: square(params)[None],
            "output_loss_fn": jnp.sum,
            "half_grads": (grads, grads),
        }
        given = {extra: extras[extra] for extra in optimizer.extras}
        return tx.update(grads, tx.init(params), params, **given)

    params = {
        "Conv_0": {"kernel": jnp.ones([3, 3, 2, 4])},
        "BatchNorm_0": {"scale": jnp.ones([4])},
        "Dense_0": {"kernel": jnp.ones([4, 5]), "bias": jnp.ones([5])},
    }
    updates, _ = jax.eval_shape(update, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_the_papers_rmsprop():
    tx = optimizers.build("rmsprop", 0.1).transformation
    params, grad = jnp.array([1.0, 2.0]), jnp.array([3.0, -0.5])
    state, square_mean, momentum = tx.init(params), np.ones(2), np.zeros(2)
    for _ in range(3):
        updates, state = tx.update(grad, state, params)
        square_mean = 0.9 * square_mean + 0.1 * grad**2
        momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(square_mean + 1)
        np.testing.assert_allclose(updates, -momentum, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lars", "lamb", "muon", "nlcg"])
def test_batch_normalization_does_not_decay(name):
    # Neither one along the other, so that no trust ratio undoes the decay.
    params = {"BatchNorm_0": jnp.ones([3]), "Dense_0": 1.0 + jnp.eye(3)}
    grads = {"BatchNorm_0": jnp.ones([3]), "Dense_0": 0.1 * jnp.ones([3, 3])}
    steps = {}
    for decay in (0.0, 0.5):
        tx = optimizers.build(name, 0.05, {"weight_decay": decay}).transformation
        steps[decay], _ = jax.jit(tx.update)(grads, tx.init(params), params)
    chex.assert_trees_all_equal(steps[0.0]["BatchNorm_0"], steps[0.5]["BatchNorm_0"])
    assert (steps[0.0]["Dense_0"] != steps[0.5]["Dense_0"]).any()


def test_a_constant_and_a_replayed_beta_are_the_same_numbers():
    params = jnp.array([1.0, 2.0])
    runs = []
    for options in (
        {"rule": "constant", "beta": 0.5},
        {"rule": "replay", "betas": [0.5] * 3},
    ):
        options["preconditioner"] = "rms"
        tx = optimizers.build("nlcg", 0.1, options).transformation
        state, out = tx.init(params), []
        for scale in (1.0, 0.7, 0.4):
            updates, state = tx.update(scale * params, state, params)
            out.append(updates)
        runs.append(out)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6)


def updates_of(tx, extras, activation, steps=5):
    """What an optimizer makes of the same losses on a matrix and a vector."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=[8, 3]))
    params = {"w": jnp.ones([3, 2]), "b": jnp.zeros([2])}
    state, out = tx.init(params), []
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        def outputs(params):
            return activation(inputs @ params["w"] + params["b"])

        def loss(outputs):
            return jnp.mean(jnp.square(outputs - 0.3))

        value, grads = jax.value_and_grad(lambda p: loss(outputs(p)))(params)
        given = {"value": value, "outputs_fn": outputs, "output_loss_fn": loss}
        given = {name: given[name] for name in extras}
        updates, state = tx.update(grads, state, params, **given)
        return updates, optax.apply_updates(params, updates), state

    for _ in range(steps):
        updates, params, state = step(params, state)
        out.append(updates)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset", "options"),
    [
        ("large_batch_nlcg", nlcg_optax.large_batch_nlcg(0.05), {}),
        (
            "tuning_free_nlcg",
            optax.chain(nlcg_optax.tuning_free_nlcg(4), optax.scale(0.05)),
            {"num_steps": 4},
        ),
    ],
)
def test_presets_are_those_of_the_package(name, preset, options):
    named = optimizers.build(name, 0.05, options)
    expected = updates_of(preset, named.extras, jnp.tanh)
    # The same program but for a weight decay of zero.
    found = updates_of(named.transformation, named.extras, jnp.tanh)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize("option", [{"reset_period": 2}, {"spectral_scaling": True}])
def test_the_options_that_the_paper_switched_off(option):
    named = optimizers.build("paper_nlcg", 0.1, option)
    found = updates_of(named.transformation, named.extras, jnp.positive)
    expected = updates_of(
        nlcg_optax.paper_nlcg(0.1, **option), named.extras, jnp.positive
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    plain = updates_of(nlcg_optax.paper_nlcg(0.1), named.extras, jnp.positive)
    assert np.abs(found[-1]["w"] - plain[-1]["w"]).max() > 1e-4


@pytest.mark.parametrize(
    ("rate", "options", "expected"),
    [
        (optax.constant_schedule(jnp.float32(1.0)), {}, (0.0025,)),
        (2.0, {}, (0.005,)),
        (optax.constant_schedule(0.5), {"rate": 0.02, "warmup_steps": 3}, (0.01, 3)),
    ],
)
def test_the_learning_rate_multiplies_that_of_schedule_free_adamw(
    rate, options, expected
):
    named = optimizers.build("schedule_free_adamw", rate, options)
    found = updates_of(named.transformation, named.extras, jnp.tanh)
    theirs = updates_of(optax.contrib.schedule_free_adamw(*expected), (), jnp.tanh)
    # The same program but for where two constants are multiplied.
    chex.assert_trees_all_close(found, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "adam",
            {"momentum": 0.9},
            r"momentum=0\.9, which 'adam' does not take; allowed",
        ),
        ("nlcg", {"beta": 0.5}, r"beta=0\.5, .* with rule='pr\+', .*'beta_max'"),
        (
            "nlcg",
            {"preconditioner": "rms", "refresh_period": 3},
            "refresh_period=3, .*rms",
        ),
        ("nlcg", {"rule": "constant", "beta_max": 0.5}, "beta_max=0.5, .*'constant'"),
        ("nlcg", {"curvature_period": 2}, "curvature_period=2, .* step='none'"),
        ("nlcg", {"rule": "cg"}, "rule='cg' is unknown; allowed are"),
        (
            "nlcg",
            {"preconditioner": "adam"},
            "preconditioner='adam' is unknown; allowed",
        ),
        ("nlcg", {"step": "long"}, "step='long' is unknown; allowed are"),
        (
            "large_batch_nlcg",
            {"rule": "fr"},
            "rule='fr', which 'large_batch_nlcg' does",
        ),
        ("paper_nlcg", {"step_control": "on"}, "step_control='on' is unknown"),
        ("nlcg", {"beta_max": "abc"}, "beta_max='abc', which must be a number or None"),
        (
            "tuning_free_nlcg",
            {"num_steps": "abc"},
            "num_steps='abc', which must be a number or None",
        ),
        (
            "nlcg",
            {"across_halves": "abc"},
            "across_halves='abc', which must be True or False",
        ),
        ("heavy_ball", {"momentum": None}, "momentum=None, which must be a number"),
        (
            "nlcg",
            {"rule": "replay", "betas": "abc"},
            "betas='abc', which must be a tuple",
        ),
        (
            "nlcg:lion",
            {},
            "optimizer='nlcg:lion' names the module 'nlcg', which cannot",
        ),
    ],
)
def test_options_that_are_not_allowed_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.build(name, 0.1, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("muon", {"ramp": "None"}),
        ("ordered_nlcg", {"restart": "powell"}),
        ("nlcg", {"beta_max": None, "across_halves": True}),
    ],
)
def test_options_that_are_none_by_default(name, options):
    assert optimizers.build(name, 0.1, options).gradient_equivalents == 1.0


def test_a_value_that_cannot_be_used_is_no_traceback():
    name, options = optimizers.choice_of("nlcg,beta_max=true")
    message = r"optimizer='nlcg' cannot be built with .*\{'beta_max': True\}: b"
    with pytest.raises(ValueError, match=message):
        optimizers.build(name, 0.1, options)


@pytest.mark.parametrize(
    ("name", "options", "cost"),
    [
        ("sgd", {}, 1.0),
        ("adam", {"b1": 0.8}, 1.0),
        ("nlcg", {"preconditioner": "rms", "beta_smoothing": 0.9}, 1.0),
        ("nlcg", {"rule": "fr", "preconditioner": "secant"}, 1.4),
        ("nlcg", {"preconditioner": "secant", "refresh_period": 1}, 3.0),
        ("nlcg", {"preconditioner": "bartlett"}, 1.1),
        ("nlcg", {"rule": "daniel"}, 3.0),
        ("nlcg", {"step": "curvature", "curvature_period": 2}, 4 / 3),
        ("nlcg", {"step": "subspace"}, 8 / 3),
        ("large_batch_nlcg", {}, 1.0),
        ("tuning_free_nlcg", {"preconditioner": "hutchinson"}, 1.2),
        ("paper_nlcg", {}, 1.0),
    ],
)
def test_the_cost_of_a_step_in_gradients(name, options, cost):
    built = optimizers.build(name, 0.1, options)
    assert built.gradient_equivalents == pytest.approx(cost)


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("muon", {"momentum": 0.8}, "Muon, momentum 0.8"),
        (
            "adamw",
            {"b1": 0.87801, "weight_decay": 0.1},
            "AdamW, β₁ 0.878, weight decay 0.1",
        ),
        ("nlcg", {}, "NLCG PR+"),
        (
            "nlcg",
            {"rule": "fr", "preconditioner": "kronecker", "beta_max": 0.95},
            "NLCG FR, Kronecker, β ≤ 0.95",
        ),
        ("nlcg", {"rule": "constant", "beta": 0.9}, "NLCG, β = 0.9"),
        ("nlcg", {"rule": "replay", "betas": [0.1, 0.2]}, "NLCG replayed β"),
        ("nlcg", {"across_halves": True}, "NLCG PR+, across halves"),
        (
            "nlcg",
            {"step": "curvature", "curvature_period": 5},
            "NLCG PR+, curvature step, curvature every 5",
        ),
        ("large_batch_nlcg", {}, "NLCG large batch"),
        ("tuning_free_nlcg", {"preconditioner": "rms"}, "NLCG tuning-free, RMS"),
        ("paper_nlcg", {}, "Paper NLCG FR"),
        (
            "paper_nlcg",
            {"rule": "pr", "diagonal_bfgs": False, "step_control": "none"},
            "Paper NLCG PR, no diagonal BFGS, no control",
        ),
    ],
)
def test_labels(name, options, label):
    assert optimizers.label_of(name, options) == label


def test_no_two_optimizers_share_a_label_or_a_color():
    labels = {optimizers.label_of(name, options) for name, options in CASES}
    assert len(labels) == len(CASES)
    colors = {to_rgb(optimizers.color_of(name)) for name in optimizers.OPTIMIZERS}
    assert len(colors) == len(optimizers.OPTIMIZERS)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("adam", "adam", {}),
        (
            "nlcg,rule=pr+,beta_max=0.9,refresh_period=5,across_halves=true",
            "nlcg",
            {
                "rule": "pr+",
                "beta_max": 0.9,
                "refresh_period": 5,
                "across_halves": True,
            },
        ),
        ("my_module:mine,b=1e-05", "my_module:mine", {"b": 1e-5}),
    ],
)
def test_a_name_with_options_is_one_word(text, name, options):
    assert optimizers.choice_of(text) == (name, options)
    assert optimizers.text_of(name, options) == text


def test_none_is_a_value():
    assert optimizers.choice_of("muon,ramp=None") == ("muon", {"ramp": None})


@pytest.mark.parametrize("option", ["learning_rate", "l2", "warmup_fraction"])
def test_an_option_with_the_name_of_a_setting_is_refused(option):
    with pytest.raises(ValueError, match=f"an option of 'mine' is named '{option}'"):
        optimizers.register(
            "mine",
            lambda rate: optax.sgd(rate),
            label="Mine",
            color="red",
            space=optimizers.space_around(0.1),
            options=lambda given: {option: 0.1},
        )
    assert "mine" not in optimizers.OPTIMIZERS


def test_a_word_without_a_value_is_refused():
    with pytest.raises(
        ValueError, match="optimizer='nlcg,rule' has 'rule'; a name may"
    ):
        optimizers.choice_of("nlcg,rule")


@pytest.mark.parametrize(
    ("name", "extras", "message"),
    [
        ("adam", (), "name='adam' is taken"),
        ("my,adam", (), "name='my,adam' must be a word without a colon"),
        (
            "mine",
            ("loss",),
            r"the extras of 'mine' have 'loss'; allowed are \('value',",
        ),
    ],
)
def test_a_registration_that_is_wrong_is_refused(name, extras, message):
    space = optimizers.space_around(0.1)
    with pytest.raises(ValueError, match=message):
        optimizers.register(
            name, optax.sgd, label="SGD", color="red", space=space, extras=extras
        )
