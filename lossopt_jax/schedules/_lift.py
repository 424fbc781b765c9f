"""The lift of schedules: a curve in the step becomes a frozen, printable callable.

    @schedule("linear", steps=("transition_steps",), begins=("transition_begin",))
    def linear_schedule(step, *, init_value, end_value, transition_steps, transition_begin=0):
        return between(init_value, end_value, progress(step, transition_steps, transition_begin))

The curve sees the step and every number as an array, durations in the dtype of the step; any of them may be
traced. What it shares with the others is done here: checks, dtypes, comparison, printing.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import (
    Registry,
    as_default_float,
    bound_arguments,
    check_scalar,
    comparable,
    complaint,
    concrete,
    default_float,
)

registry = Registry("schedule")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """step → value, in JAX's default float; step 0 is the first update. Compares, hashes, prints itself, pickles."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, step: Any) -> jax.Array:
        """The value at a step: an int, or an array of steps, traced or not."""
        step = _step(step)
        factory = registry[self.name]
        numbers = {
            name: _number(value, step.dtype if name in factory.durations else default_float())
            for name, value in self.arguments
        }
        return as_default_float(factory.curve(step, **numbers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        return self.name, comparable(self.arguments)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"


def _step(step: Any) -> jax.Array:
    """A step as int32, where counting is exact; a float one as the default float."""
    step = jnp.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        return step.astype(default_float())
    return (jnp.minimum(step, 2**31 - 1) if step.dtype.itemsize > 4 else step).astype(jnp.int32)


def _number(value: Any, dtype: Any) -> Any:
    return value if value is None or isinstance(value, bool) else jnp.asarray(value, dtype)


def schedule(
    *aliases: str, steps: tuple[str, ...] = (), begins: tuple[str, ...] = (), check: Callable[..., None] | None = None
) -> Callable[[Callable[..., jax.Array]], Callable[..., Schedule]]:
    """Decorator: register a curve under its own name and these aliases.

    Args:
      *aliases: other names.
      steps: arguments that are durations, ≥ 1.
      begins: arguments that are durations, ≥ 0.
      check: called with the arguments by name; raises where concrete ones do not fit together.
    """

    def lift(curve: Callable[..., jax.Array]) -> Callable[..., Schedule]:
        own = list(inspect.signature(curve).parameters.values())[1:]
        parameters = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own]
        signature = inspect.Signature(parameters, return_annotation=Schedule)

        @functools.wraps(curve)
        def make(*args: Any, **kwargs: Any) -> Schedule:
            arguments = bound_arguments(curve.__name__, signature, args, kwargs)
            for name, value in arguments.items():
                if name in (*steps, *begins):
                    arguments[name] = _duration(curve.__name__, name, value, 1 if name in steps else 0)
                elif not isinstance(signature.parameters[name].default, bool) and value is not None:
                    check_scalar(curve.__name__, name, value)
            if check is not None:
                check(**arguments)
            return Schedule(curve.__name__, tuple(arguments.items()))

        make.__signature__ = signature
        del make.__wrapped__
        make.curve, make.durations = curve, frozenset((*steps, *begins))
        return registry.register(*aliases)(make)

    return lift


def _duration(where: str, name: str, value: Any, least: int) -> Any:
    """A whole number of steps: checked where it is concrete, any integer tracer otherwise."""
    check_scalar(where, name, value)
    if not concrete(value):
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(complaint(where, name, "be a whole number of steps", value.dtype, "cast to int32"))
        return value
    if float(value) != int(value):
        raise ValueError(complaint(where, name, "be a whole number of steps", value))
    if not least <= int(value) < 2**31:
        raise ValueError(complaint(where, name, f"be ≥ {least} and fit in int32", value))
    return int(value) if isinstance(value, int | float | np.generic) else value


def progress(step: jax.Array, steps: jax.Array, begin: jax.Array | int = 0) -> jax.Array:
    """The share of `steps` done since `begin`, in [0, 1]; 1 where a traced duration is 0.

    The difference is taken in integers, so that a step of 10⁹ is as exact as one of 10.
    """
    done = jnp.clip(step - begin, 0, steps)
    return ratio(jnp.where(steps > 0, done, jnp.ones_like(done)), jnp.maximum(steps, 1))


def ratio(count: jax.Array, steps: jax.Array) -> jax.Array:
    """count / steps in the default float."""
    dtype = default_float()
    return count.astype(dtype) / steps.astype(dtype)


def between(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """start at share 0, end at share 1, to the bit."""
    return (1 - share) * start + share * end
