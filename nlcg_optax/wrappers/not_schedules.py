"""Arguments that ``optax.inject_hyperparams`` must not call or turn into arrays."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nlcg_optax.validation import is_function

Factory = TypeVar("Factory", bound=Callable[..., Any])


def not_schedules(
    *names: str,
    static: Sequence[str] = (),
    others: Callable[..., Any] | None = None,
) -> Callable[[Factory], Factory]:
    """Marks arguments that Optax must not call as schedules or turn into arrays.

    ``optax.inject_hyperparams(factory)`` treats each function among the arguments as a
    schedule, calls it with the step count, and turns each number into an array, unless
    its ``static_args`` name the argument. It binds the arguments to the signature of
    the factory. There this decorator replaces a marked function by one that raises
    TypeError, with the remedy, if a step count makes it raise or not return a number. A
    schedule of numbers passes. A number on which shapes depend is replaced by an equal
    one that stays a number.

    Args:
      *names: names of the arguments that may be functions.
      static: names of numbers on which shapes depend.
      others: another factory, which receives the ``**kwargs`` of this one.

    Returns:
      A decorator, which returns the factory itself.

    Examples:
      >>> import optax
      >>> @not_schedules("rule")
      ... def factory(rule):
      ...     return optax.scale(rule(2 + 1j))
      >>> rule = lambda x: x.imag if jnp.iscomplexobj(x) else None
      >>> tx = optax.inject_hyperparams(factory, static_args=("rule",))(rule)
      >>> tx = optax.inject_hyperparams(factory)(rule)
      >>> tx.init(jnp.ones(1))
      Traceback (most recent call last):
      ...
      TypeError: rule is a function that optax.inject_hyperparams took for a sche...
    """

    class Signature(inspect.Signature):
        def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
            bound = super().bind(*args, **kwargs)
            for name in names:
                if is_function(bound.arguments.get(name)):
                    bound.arguments[name] = _guarded(name, bound.arguments[name])
            for name in static:
                value = bound.arguments.get(name, self.parameters[name].default)
                bound.arguments[name] = _not_injected(value)
            return bound

    def mark(factory: Factory) -> Factory:
        signature = Signature.from_callable(factory)
        if others is not None:
            own = dict(signature.parameters)
            del own["kwargs"]
            rest = inspect.signature(others).parameters
            new = [p for name, p in rest.items() if name not in own]
            signature = signature.replace(parameters=[*own.values(), *new])
        factory.__dict__["__signature__"] = signature
        return factory

    return mark


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def refused(reason: str) -> TypeError:
        return TypeError(
            f"{name} is a function that optax.inject_hyperparams took for a schedule "
            "and called with the step count; give optax.inject_hyperparams "
            f"static_args=('{name}',), or the name of a choice instead of a function "
            f"(it {reason})"
        )

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or not _is_step_count(args[0]):
            return function(*args, **kwargs)
        try:
            value = function(*args, **kwargs)
        except Exception as error:
            raise refused(f"raised {type(error).__name__}") from error
        if not _is_number(value):
            raise refused(f"returned {value!r}")
        return value

    return guarded


def _not_injected(value: Any) -> Any:
    """An equal number of a type that Optax does not turn into an array."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return np.int64(value) if isinstance(value, int) else np.longdouble(value)


def _is_number(value: Any) -> bool:
    """Whether this may be a schedule's value: a real scalar that is not a boolean."""
    if not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)):
        return False
    is_real = jnp.issubdtype(jnp.result_type(value), jnp.integer) or jnp.issubdtype(
        jnp.result_type(value), jnp.floating
    )
    return bool(is_real) and jnp.ndim(value) == 0


def _is_step_count(value: Any) -> bool:
    is_scalar = isinstance(value, jax.Array) and value.ndim == 0
    return is_scalar and jnp.issubdtype(value.dtype, jnp.integer)
