"""The annotation that makes a parameter a hyperparameter, and how configured objects compare."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class StatefulSchedule(Protocol):
    """A hyperparameter that follows from what training sees, such as the loss, through a state of its own.

    An object with these three methods stands wherever a hyperparameter takes a schedule. Its state is kept beside the
    value, in the optimizer's state. In each update the value is `schedule(state, **extra)`, and the next state
    `schedule.update(state, **extra)` of the same state, where extra is what `update` of the optimizer is given:
    `value`, `grad`, `loss`, …, as far as the method takes them. Both are pure, and traced.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> class Halving(lo.schedules.StatefulSchedule):
      ...     '''Half the rate for good whenever the loss has doubled.'''
      ...
      ...     def init(self):
      ...         return {"rate": 0.5, "last": jnp.inf}
      ...
      ...     def update(self, state, *, value):
      ...         rate = jnp.where(value > 2 * state["last"], state["rate"] / 2, state["rate"])
      ...         return {"rate": rate, "last": value}
      ...
      ...     def __call__(self, state):
      ...         return state["rate"]
      >>> tx = lo.optimizers.sgd(Halving())
      >>> state = tx.init(0.0)
      >>> for loss in (1.0, 3.0, 3.0):
      ...     updates, state = tx.update(1.0, state, 0.0, value=loss)
      >>> float(lo.get_hyperparams(state)["learning_rate"])
      0.25
    """

    def init(self) -> Any:
        """The first state: a tree of arrays and numbers, whose types and shapes stay."""

    def update(self, state: Any, **extra: Any) -> Any:
        """The state for the next update."""

    def __call__(self, state: Any, **extra: Any) -> Any:
        """The value in this update; also called for a new optimizer state, with nothing else."""


# A hyperparameter that lives in the state: a number, an array, a tracer, a schedule (step → value), or a
# StatefulSchedule. The annotation decides, never `callable()`: a mask is a function too.
Scalar: TypeAlias = float | jax.Array | np.ndarray | Callable[[Any], Any]


def comparable(value: Any) -> Any:
    """A hashable stand-in: values by value, arrays and other unhashable objects by identity."""
    if isinstance(value, tuple):
        return tuple(comparable(item) for item in value)
    if isinstance(value, jax.Array | np.ndarray):
        return ("object", id(value))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    # 1 == 1.0 == True, but they are different static arguments
    return (type(value).__name__, value)


def accepts_keyword(function: Callable[..., Any], name: str) -> bool:
    """Whether `function(name=…)` is a legal call, by its signature."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
