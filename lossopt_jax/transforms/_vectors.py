"""Vectors made of several arrays: what rules that see the whole tree calculate with.

Each is a list of real arrays, not all of one dtype; a scalar takes the dtype of the array that it meets.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from lossopt_jax._core import sums_in_one_loop

Vector: TypeAlias = list[jax.Array]


def one_vector(leaves: Vector, dtype: Any) -> tuple[jax.Array, Callable[[jax.Array], Vector]]:
    """The arrays behind each other in one dtype, and the way back."""
    ends = list(itertools.accumulate((leaf.size for leaf in leaves), initial=0))

    def back(vector: jax.Array) -> Vector:
        parts = [vector[a:b] for a, b in itertools.pairwise(ends)]
        return [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]

    return jnp.concatenate([jnp.zeros(0, dtype), *(leaf.reshape(-1).astype(dtype) for leaf in leaves)]), back


@jax.custom_jvp
def accurate_sum(x: jax.Array) -> jax.Array:
    """In rows on a CPU, where one loop over a million numbers would lose four digits."""
    return jax.lax.platform_dependent(x, cpu=lambda x: sums_in_one_loop(x)[0], default=jnp.sum)


accurate_sum.defjvp(lambda primals, tangents: (accurate_sum(*primals), jnp.sum(*tangents)))


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
