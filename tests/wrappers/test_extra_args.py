"""Extra arguments of `update` that are forwarded by name."""

from nlcg_optax.wrappers.extra_args import bind_extra_args


def test_bind_extra_args_passes_only_what_is_accepted():
    bound = bind_extra_args(lambda w, x, *, y=1.0: w + x * y, {"x": 2.0, "z": 9.0})
    assert bound(1.0) == 3.0
    untouched = lambda w: w
    assert bind_extra_args(untouched, {"x": 2.0}) is untouched
