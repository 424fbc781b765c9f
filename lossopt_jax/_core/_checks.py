"""Static checks. Values are looked at only where they are concrete; shapes, dtypes and names always."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt_jax._core._jax import is_tracer


def complaint(where: str, argument: str, must: str, got: Any, remedy: str = "") -> str:
    """One form for every error: `where: argument must …, got …; do this`."""
    return f"{where}: {argument} must {must}, got {got}" + (f"; {remedy}" if remedy else "")


class Range(NamedTuple):
    """What a scalar must be, in words and as a test of a Python float."""

    words: str
    holds: Callable[[float], bool]


REAL = Range("be a real number", lambda x: not math.isnan(x))
FRACTION = Range("be in [0, 1)", lambda x: 0 <= x < 1)
UNIT = Range("be in [0, 1]", lambda x: 0 <= x <= 1)
NONNEGATIVE = Range("be ≥ 0 and finite", lambda x: 0 <= x < math.inf)
POSITIVE = Range("be > 0", lambda x: x > 0)
NONPOSITIVE = Range("be ≤ 0 and finite", lambda x: -math.inf < x <= 0)
AT_LEAST_ONE = Range("be ≥ 1", lambda x: x >= 1)
COUNT = Range("be an integer ≥ 1", lambda x: x >= 1 and x == int(x))

# A name has one meaning, so it has one range; where a rule means another, it says `Annotated[Scalar, …]`.
# A hyperparameter that is not listed may be any real number.
RANGES: dict[str, Range] = {
    **dict.fromkeys(("b1", "b2", "b3", "decay", "momentum", "rho", "mu_x", "mu_y"), FRACTION),
    **dict.fromkeys(("dampening", "label_smoothing", "slow_step_size"), UNIT),
    **dict.fromkeys(("learning_rate", "max_learning_rate", "weight_decay", "decay_rate", "eps"), NONNEGATIVE),
    **dict.fromkeys(("momentum_decay", "eps_root", "epsilon", "eps_confidence", "max_delta", "max_norm"), NONNEGATIVE),
    **dict.fromkeys(("initial_scale", "initial_accumulator_value", "min_norm", "trust_coefficient"), NONNEGATIVE),
    **dict.fromkeys(("low", "high", "batch_size", "clipping_threshold", "min_step_size", "max_step_size"), POSITIVE),
    **dict.fromkeys(("sync_period", "memory_size"), COUNT),
    "seed": Range("be an integer in [0, 2³²)", lambda x: 0 <= x < 2**32 and x == int(x)),
}


def concrete(value: Any) -> bool:
    """Whether a value can be looked at without a tracer complaining."""
    return not is_tracer(value) and not isinstance(value, jax.ShapeDtypeStruct)


def check_scalar(
    where: str, name: str, value: Any, *, must: str = REAL.words, remedy: str = "", within: Range | None = None
) -> None:
    """Refuse what is not a real scalar, or is a concrete one out of range: `within`, or that of its name.

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
        allowed = within or RANGES.get(name, REAL)
        if not allowed.holds(float(value)):
            raise ValueError(complaint(where, name, allowed.words, float(value), remedy))


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


def axes_of(where: str, axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """One axis or several of an array, counted from the front.

    Raises:
      ValueError: an axis that the array lacks.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(-ndim <= a < ndim for a in axes):
        must = f"name axes of an array that has {ndim}"
        raise ValueError(complaint(where, "axis", must, axis, "choose leaves of one rank with masked or partition"))
    return tuple(a % ndim for a in axes)


def along_leading_axes(where: str, name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask or weights of the shape of the values, or of their leading axes, spread over all of them.

    Only leading axes: so no square case can be read in two ways.
    """
    if array.shape != shape[: array.ndim]:
        must = f"have the shape of values, {shape}, or of its leading axes"
        raise ValueError(complaint(where, name, must, f"{array.shape}", f"broadcast {name} to {shape}"))
    return jax.numpy.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)
