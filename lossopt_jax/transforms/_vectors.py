"""Vectors made of several arrays: what rules that see the whole tree calculate with.

Each is a list of real arrays, not all of one dtype; a scalar takes the dtype of the array that it meets.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Vector: TypeAlias = list[jax.Array]


def inner(left: Vector, right: Vector, dtype: Any) -> jax.Array:
    """⟨x, y⟩, summed in one dtype."""
    terms = [jnp.sum(x * y).astype(dtype) for x, y in zip(left, right, strict=True)]
    return functools.reduce(jnp.add, terms, jnp.zeros((), dtype))


def absolute_sum(vector: Vector, dtype: Any) -> jax.Array:
    """‖x‖₁, summed in one dtype."""
    return functools.reduce(jnp.add, [jnp.sum(jnp.abs(x)).astype(dtype) for x in vector], jnp.zeros((), dtype))


def scaled(factor: jax.Array, vector: Vector) -> Vector:
    """a x."""
    return [factor.astype(x.dtype) * x for x in vector]


def difference(left: Vector, right: Vector) -> Vector:
    """x − y."""
    return [x - y for x, y in zip(left, right, strict=True)]


def add_scaled(left: Vector, factor: jax.Array, right: Vector) -> Vector:
    """x + a y."""
    return [x + factor.astype(x.dtype) * y for x, y in zip(left, right, strict=True)]


def combined(a: jax.Array, left: Vector, b: jax.Array, right: Vector) -> Vector:
    """a x + b y."""
    return [a.astype(x.dtype) * x + b.astype(y.dtype) * y for x, y in zip(left, right, strict=True)]


def averaged(decay: jax.Array, old: Vector, new: Vector) -> Vector:
    """β x + (1−β) y."""
    return combined(decay, old, 1 - decay, new)
