"""Static checks. Values are looked at only where they are concrete; shapes, dtypes and names always."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lossopt_jax._core._jax import is_tracer


def complaint(where: str, argument: str, must: str, got: Any, remedy: str = "") -> str:
    """One form for every error: `where: argument must …, got …; do this`."""
    return f"{where}: {argument} must {must}, got {got}" + (f"; {remedy}" if remedy else "")


_FRACTION: tuple[str, Callable[[float], bool]] = ("be in [0, 1)", lambda x: 0 <= x < 1)
_NONNEGATIVE: tuple[str, Callable[[float], bool]] = ("be ≥ 0 and finite", lambda x: 0 <= x < math.inf)
_POSITIVE: tuple[str, Callable[[float], bool]] = ("be > 0", lambda x: x > 0)

# One meaning per name, so one range per name. A hyperparameter that is not listed may be any real number.
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": _NONNEGATIVE,
    "b1": _FRACTION,
    "b2": _FRACTION,
    "b3": _FRACTION,
    "decay": _FRACTION,
    "momentum": _FRACTION,
    "eps": _NONNEGATIVE,
    "eps_root": _NONNEGATIVE,
    "weight_decay": _NONNEGATIVE,
    "max_delta": _NONNEGATIVE,
    "max_norm": _NONNEGATIVE,
    "initial_scale": _NONNEGATIVE,
    "decay_rate": _NONNEGATIVE,
    "low": _POSITIVE,
    "high": _POSITIVE,
    "seed": ("be an integer in [0, 2³²)", lambda x: 0 <= x < 2**32 and x == int(x)),
    "label_smoothing": ("be in [0, 1]", lambda x: 0 <= x <= 1),
    "threshold": ("be a real number", lambda x: not math.isnan(x)),
    "batch_size": _POSITIVE,
}


def concrete(value: Any) -> bool:
    """Whether a value can be looked at without a tracer complaining."""
    return not is_tracer(value) and not isinstance(value, jax.ShapeDtypeStruct)


def check_scalar(where: str, name: str, value: Any, *, must: str = "be a real number", remedy: str = "") -> None:
    """Refuse what is not a real scalar, or is a concrete one out of the range of its name.

    Raises:
      TypeError: a string, a bool, a complex number, an object without a dtype.
      ValueError: an array that is not 0-d, NaN, or a concrete value out of range.
    """
    if isinstance(value, bool | str | bytes | complex | None.__class__) or not (
        isinstance(value, int | float) or (hasattr(value, "dtype") and hasattr(value, "shape"))
    ):
        raise TypeError(complaint(where, name, must, f"{value!r}", remedy or "pass a number or a 0-d array"))
    dtype = getattr(value, "dtype", None)
    if dtype is not None and not (jax.numpy.issubdtype(dtype, np.floating) or jax.numpy.issubdtype(dtype, np.integer)):
        raise TypeError(complaint(where, name, must, f"an array of {dtype}", remedy or "pass a real number"))
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(complaint(where, name, "be a scalar", f"an array of shape {shape}", remedy or "vmap over it"))
    if concrete(value):
        words, holds = RANGES.get(name, ("be a real number", lambda x: not math.isnan(x)))
        if not holds(float(value)):
            raise ValueError(complaint(where, name, words, float(value), remedy))


def bound_arguments(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, defaults included; a call that does not fit says what would."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its arguments are {signature}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def along_leading_axes(where: str, name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask or weights of the shape of the values, or of their leading axes, spread over all of them.

    Only leading axes: so no square case can be read in two ways.
    """
    if array.shape != shape[: array.ndim]:
        must = f"have the shape of values, {shape}, or of its leading axes"
        raise ValueError(complaint(where, name, must, f"{array.shape}", f"broadcast {name} to {shape}"))
    return jax.numpy.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)
