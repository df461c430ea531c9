"""The registry of optimizers: one registration holds all that experiments need."""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from experiments.optimizers.labels import with_options
from experiments.optimizers.spaces import SearchSpace
from experiments.registry import look_up

EXTRAS = (
    "value",
    "grad",
    "value_fn",
    "outputs_fn",
    "output_loss_fn",
    "half_grads",
)

# Names that a search gives another meaning, see `experiments.tuning.samplers`.
RESERVED = ("learning_rate", "l2", "warmup_fraction")

Options = Mapping[str, Any]


class Optimizer(NamedTuple):
    """An optimizer with its needs and its cost.

    Attributes:
      transformation: the Optax transformation.
      extras: the extra arguments that its ``update`` takes, from `EXTRAS`.
      gradient_equivalents: mean cost of a step in gradients, including the gradient
        itself, which also yields the loss; a Hessian-vector product counts two.
    """

    transformation: optax.GradientTransformation
    extras: tuple[str, ...] = ()
    gradient_equivalents: float = 1.0


@dataclasses.dataclass(frozen=True)
class Registration:
    """The arguments of `register`; see there."""

    build: Callable[..., optax.GradientTransformation]
    label: str | Callable[[Options], str]
    color: str
    space: SearchSpace | Callable[[Options], SearchSpace]
    extras: tuple[str, ...] | Callable[[Options], tuple[str, ...]]
    gradient_equivalents: float | Callable[[Options], float]
    options: Callable[[Options], Options]
    finds_learning_rate: bool


OPTIMIZERS: dict[str, Registration] = {}


def register(
    name: str,
    build: Callable[..., optax.GradientTransformation],
    *,
    label: str | Callable[[Options], str],
    color: str,
    space: SearchSpace | Callable[[Options], SearchSpace],
    extras: tuple[str, ...] | Callable[[Options], tuple[str, ...]] = (),
    gradient_equivalents: float | Callable[[Options], float] = 1.0,
    options: Callable[[Options], Options] | None = None,
    finds_learning_rate: bool = False,
) -> None:
    """Adds an optimizer to `OPTIMIZERS`.

    Args:
      name: name that configurations and commands use.
      build: from the learning rate (a number or a schedule) and the options, as
        keywords, to the Optax transformation. Floats may be traced.
      label: text for tables and legends, which is followed by the options that were
        set; or a function from these options to the whole text.
      color: color of its curves, any Matplotlib color.
      space: space for tuning, see `space_around`; or a function from all options.
      extras: extra arguments that its ``update`` takes, from `EXTRAS`; or a function
        from all options.
      gradient_equivalents: mean cost of a step in gradients, see `Optimizer`; or a
        function from all options.
      options: from the options that were set to all options that are allowed with them,
        with their defaults; None for the keywords of ``build``.
      finds_learning_rate: whether there is no learning rate to choose; that of the
        configuration multiplies the one that it finds.

    Raises:
      ValueError: if the name is taken or has a colon or a comma, an extra is unknown,
        or an option has a name of `RESERVED`.
    """
    if name in OPTIMIZERS:
        raise ValueError(f"name={name!r} is taken; each optimizer is registered once")
    if not name or set(name) & set(":,= "):
        raise ValueError(
            f"name={name!r} must be a word without a colon, comma, equals sign or space"
        )
    if not callable(extras):
        _check_extras(name, extras)
    options = options or (lambda _: keyword_options(build))
    for option in options({}):
        if option in RESERVED:
            raise ValueError(
                f"an option of {name!r} is named {option!r}; {RESERVED} are settings "
                "of the run"
            )
    OPTIMIZERS[name] = Registration(
        build,
        label,
        color,
        space,
        extras,
        gradient_equivalents,
        options,
        finds_learning_rate,
    )


def keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a function that have a default, by name."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def registration_of(name: str) -> Registration:
    """The registration of a name, such as ``adam`` or ``my_module:my_name``.

    The part before a colon is a module that registers the name; it is imported.

    Raises:
      ValueError: if the name is unknown, or the module cannot be imported.
    """
    module, _, short = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"optimizer={name!r} names the module {module!r}, which cannot be "
                f"imported ({error}); it must be in the folder in which the command "
                "runs, or on PYTHONPATH"
            ) from error
    return look_up("optimizer", short, OPTIMIZERS)


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    options: Options | None = None,
) -> Optimizer:
    """Builds an optimizer.

    Args:
      name: a name in `OPTIMIZERS`, or ``my_module:my_name``.
      learning_rate: number or schedule.
      options: options of that optimizer.

    Raises:
      ValueError: if the name or an option is unknown, or a value is of another type or
        out of its range.

    Examples:
      >>> build("nlcg", 0.1, {"preconditioner": "secant"}).gradient_equivalents
      1.4
    """
    registration = registration_of(name)
    complete = _all_options(name, registration, options or {})
    extras, cost = registration.extras, registration.gradient_equivalents
    needed = extras(complete) if callable(extras) else extras
    _check_extras(name, needed)
    try:
        transformation = registration.build(learning_rate, **complete)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(
            f"optimizer={name!r} cannot be built with the optimizer_options "
            f"{dict(options)}: {error}"
        ) from error
    return Optimizer(
        transformation,
        needed,
        cost(complete) if callable(cost) else cost,
    )


def label_of(name: str, options: Options | None = None) -> str:
    """The label of an optimizer with the options that were set.

    Examples:
      >>> label_of("nlcg", {"preconditioner": "kronecker", "beta_max": 0.9})
      'NLCG PR+, Kronecker, β ≤ 0.9'
    """
    label = registration_of(name).label
    given = options or {}
    return label(given) if callable(label) else with_options(label, given)


def color_of(name: str) -> str:
    """The color of an optimizer, whatever its options."""
    return registration_of(name).color


def finds_learning_rate(name: str) -> bool:
    """Whether an optimizer has no learning rate to choose."""
    return registration_of(name).finds_learning_rate


def search_space(name: str, options: Options | None = None) -> SearchSpace:
    """The search space of an optimizer with the options that were set.

    Raises:
      ValueError: if the name or an option is unknown.
    """
    registration = registration_of(name)
    space = registration.space
    complete = _all_options(name, registration, options or {})
    return space(complete) if callable(space) else space


def _all_options(name: str, registration: Registration, given: Options) -> Options:
    allowed = registration.options(given)
    complete = dict(allowed)
    for option, value in given.items():
        if option not in allowed:
            kinds = [
                f"{key}={default!r}"
                for key, default in ({**allowed, **given}).items()
                if key in allowed and isinstance(default, str)
            ]
            of_kind = f" with {', '.join(kinds)}" if kinds else ""
            raise ValueError(
                f"optimizer_options has {option}={value!r}, which {name!r} does not "
                f"take{of_kind}; allowed are {list(allowed)}"
            )
        default = allowed[option]
        if isinstance(value, str) and value == "None" and not isinstance(default, str):
            value = None
        kind = _kind_of(default, registration.build, option)
        is_none = value is None and default is not None
        if kind is not None and (isinstance(value, str) or is_none):
            raise ValueError(
                f"optimizer_options has {option}={value!r}, which must be {kind}, "
                f"such as the default of {name!r}, {default!r}"
            )
        complete[option] = value
    return complete


def _kind_of(default: Any, function: Callable[..., Any], option: str) -> str | None:
    """The kind of an option that cannot be a text; None if it can be one."""
    if _is_number(default):
        return "a number"
    if isinstance(default, bool):
        return "True or False"
    if default is None:
        parameter = inspect.signature(function).parameters.get(option)
        found = inspect.Parameter.empty if parameter is None else parameter.annotation
        types = set(typing.get_args(found) or (found,))  # none: it may be anything
        return "a number or None" if types <= {int, float, type(None)} else None
    return None if isinstance(default, str) else f"a {type(default).__name__}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_extras(name: str, extras: tuple[str, ...]) -> None:
    for extra in extras:
        if extra not in EXTRAS:
            raise ValueError(
                f"the extras of {name!r} have {extra!r}; allowed are {EXTRAS}"
            )
