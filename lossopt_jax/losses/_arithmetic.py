"""Products and sums that keep what floating point would lose."""

import jax
import jax.numpy as jnp


def guarded_product(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight · value, where 0 · ±∞ = 0 in value and in both gradients; linear in each."""
    return weight * jnp.where((weight == 0) & jnp.isinf(value), 0.0, value)


def headroom(size: int) -> float:
    """A factor that lets `size` numbers be added without overflow; a power of two, so it changes no bit of a mean."""
    return 0.5 ** max(size - 1, 0).bit_length()


def event_mean(values: jax.Array) -> jax.Array:
    """The mean over the last axis; 0 where it is empty."""
    size = values.shape[-1]
    return jnp.sum(values * headroom(size), axis=-1) / (max(size, 1) * headroom(size))
