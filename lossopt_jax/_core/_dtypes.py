"""The dtype policy: storage in whatever the user chose, arithmetic in float32 or better."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def default_float() -> Any:
    """JAX's default float: float32, or float64 under `jax_enable_x64`. Hyperparameters and schedules live in it."""
    return jnp.result_type(float)


@functools.cache
def compute_dtype(dtype: Any) -> Any:
    """The dtype arithmetic runs in: float32 for integers and half precision; float64 and complex as they are."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return np.dtype(dtype) if wide else np.dtype(np.float32)


def widest_float(dtypes: Iterable[Any]) -> Any:
    """float64 if a dtype is of double precision, complex128 too, else float32."""
    return np.dtype(np.float64 if any(jnp.finfo(dtype).bits == 64 for dtype in dtypes) else np.float32)


def as_compute(value: Any) -> jax.Array:
    """`value` as a strongly typed array in its compute dtype."""
    array = value if isinstance(value, jax.Array) else jnp.asarray(value)
    dtype = compute_dtype(array.dtype)
    return array if array.dtype == dtype and not array.weak_type else jax.lax.convert_element_type(array, dtype)


def as_default_float(value: Any) -> jax.Array:
    """`value` as a strongly typed array of the default float; never the caller's own buffer."""
    return jnp.array(value, default_float(), copy=True)


def is_array_like(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype, or is a Python number that JAX treats as an array."""
    return (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) or (
        isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    )


def is_float0(leaf: Any) -> bool:
    """Whether a leaf is the symbolic zero that `jax.grad` gives for an integer input."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def is_trainable(leaf: Any) -> bool:
    """Whether a leaf is an array, shape or number of a floating or complex dtype."""
    return is_array_like(leaf) and not is_float0(leaf) and jnp.issubdtype(dtype_of(leaf), jnp.inexact)


def is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(dtype_of(leaf), jnp.complexfloating)


def dtype_of(leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    return jnp.result_type(type(leaf)) if dtype is None else dtype if dtype == jax.dtypes.float0 else np.dtype(dtype)
