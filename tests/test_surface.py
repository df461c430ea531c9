"""The public names: their list, their signatures' lengths, their docstrings."""

import importlib
import inspect
import pkgutil
import re

import pytest

import nlcg_optax

PUBLIC = {
    *("nlcg", "large_batch_nlcg", "tuning_free_nlcg", "paper_nlcg", "paper_schedule"),
    *("scale_by_nlcg", "damp_by_beta", "InnerProducts"),
    *("scale_by_kronecker", "scale_by_orthogonalization", "scale_by_hutchinson"),
    *("scale_by_equilibration", "scale_by_gauss_newton_bartlett"),
    *("scale_by_diagonal_secant", "scale_by_limited_memory"),
    *("scale_by_slope_ratio", "scale_by_curvature_step", "scale_by_subspace_step"),
    "scale_by_hager_zhang_linesearch",
    *("minimize", "MinimizeResult", "Status", "Method"),
    *("nlcg_method", "limited_memory_method"),
    *("hessian_vector_product", "gauss_newton_vector_product"),
    *("hessian_along", "gauss_newton_along"),
    *("virtual_batch", "split_parameters", "fill_masked", "only_extra_args"),
    *("for_linesearch", "diagnostics"),
}


def test_the_list_of_public_names():
    assert set(nlcg_optax.__all__) == PUBLIC
    assert len(nlcg_optax.__all__) == len(PUBLIC)


def test_help_names_them_all_in_groups():
    doc = inspect.getdoc(nlcg_optax)
    groups = re.findall(r"^([A-Z][a-z ]+):$", doc, re.MULTILINE)
    assert groups == [
        *("Optimizers", "Direction", "Preconditioners", "Step sizes"),
        *("Deterministic problems", "Curvature", "Wrappers", "Diagnostics"),
    ]
    named = re.findall(r"(?<!`)`(\w+)`", doc)
    assert sorted(named) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_function_has_an_example(name):
    thing = getattr(nlcg_optax, name)
    doc = inspect.getdoc(thing)
    assert doc
    if inspect.isfunction(thing):
        for section in ("Args:", "Returns:", "Examples:\n  >>> "):
            assert section in doc


@pytest.mark.parametrize(
    ("name", "most"),
    [("nlcg", 10), ("scale_by_nlcg", 9), ("scale_by_hager_zhang_linesearch", 5)],
)
def test_few_arguments(name, most):
    assert len(inspect.signature(getattr(nlcg_optax, name)).parameters) <= most


@pytest.mark.parametrize(
    "room",
    [
        *("contrib", "curvature", "direction", "linesearch", "paper"),
        *("preconditioners", "step_size", "wrappers"),
    ],
)
def test_a_room_exports_its_states_and_diagnostics(room):
    package = importlib.import_module(f"nlcg_optax.{room}")
    assert all(hasattr(package, name) for name in package.__all__)
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"nlcg_optax.{room}.{found.name}")
        for name, thing in vars(module).items():
            is_own = getattr(thing, "__module__", "") == module.__name__
            if is_own and re.match(r"[A-Z]\w+(State|Diagnostics)$", name):
                assert name in package.__all__
