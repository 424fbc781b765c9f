"""The annotation that makes a parameter a hyperparameter, and how configured objects compare."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

# A hyperparameter that lives in the state: a number, an array, a tracer, or a schedule (step → value).
# The annotation decides, never `callable()`: a mask is a function too.
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
