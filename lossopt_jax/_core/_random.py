"""A counter-based generator: bits from (seed, step, path, index), the same under any sharding and in any group."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def _mix(x: jax.Array) -> jax.Array:
    # Two rounds of multiply and xor-shift; constants of Wellons' "lowbias32" search (bias 0.17, hash-prospector).
    x = x ^ (x >> jnp.uint32(16))
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> jnp.uint32(15))
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def leaf_seed(seed: jax.Array, step: jax.Array, path: str) -> jax.Array:
    """One uint32 per (seed, step, leaf): `path` is the leaf's readable path."""
    name = jnp.uint32(zlib.crc32(path.encode()))
    return _mix(_mix(_mix(seed.astype(jnp.uint32)) ^ step.astype(jnp.uint32)) ^ name)


def random_bits(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 bits of `shape`, a pure function of the seed and each element's index.

    Every element hashes its own index, with no state shared between elements, so a sharded array computes exactly
    the bits that a whole one would, and a block of it the bits of its part.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mix(_mix(index ^ seed) + seed)


def random_normal(seed: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal values by the inverse of the distribution, on the bits of `random_bits`."""
    # 23 bits and a half: never ±1, where the inverse is infinite
    uniform = (random_bits(seed, shape) >> jnp.uint32(9)).astype(dtype) * 2.0**-22 + (2.0**-23 - 1.0)
    return 2**0.5 * jax.lax.erf_inv(uniform)
