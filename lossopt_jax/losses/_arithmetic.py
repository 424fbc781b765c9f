"""Products and sums that keep what floating point would lose."""

from collections.abc import Callable
from typing import Any

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


def absolute(error: jax.Array) -> jax.Array:
    """|e|, whose derivative at 0 is 0; that of jnp.abs is 1 there."""
    return error * jax.lax.stop_gradient(jnp.sign(error))


@jax.custom_jvp
def floored_log(x: jax.Array) -> jax.Array:
    """log x, where it and its derivative take x for at least 1e-30 (float64: 1e-300)."""
    return jnp.log(_floored(x))


@floored_log.defjvp
def _floored_log_jvp(primals: Any, tangents: Any) -> Any:
    return floored_log(*primals), tangents[0] / _floored(primals[0])


def _floored(x: jax.Array) -> jax.Array:
    floor = 1e-300 if x.dtype == jnp.float64 else 1e-30
    return jnp.where(x < floor, floor, x)


@jax.custom_jvp
def expm1(x: jax.Array) -> jax.Array:
    """e^x − 1, whose derivative is e^x to its last bits; that of jnp.expm1 is the value + 1."""
    return jnp.expm1(x)


@expm1.defjvp
def _expm1_jvp(primals: Any, tangents: Any) -> Any:
    return jnp.expm1(primals[0]), jnp.exp(primals[0]) * tangents[0]


@jax.custom_jvp
def exp_excess(d: jax.Array) -> jax.Array:
    """e^d − 1 − d, by its series where that would cancel."""
    small = jnp.abs(d) < 0.5
    x = jnp.where(small, d, 0.0)
    series = jnp.zeros_like(d)
    for n in range(16 if d.dtype == jnp.float64 else 9, 1, -1):
        series = (series + 1) * x / n
    return jnp.where(small, series * x, jnp.expm1(d) - d)


@exp_excess.defjvp
def _exp_excess_jvp(primals: Any, tangents: Any) -> Any:
    return exp_excess(*primals), jnp.expm1(primals[0]) * tangents[0]


def over_batches(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays whose `vmap` is itself on more leading axes: its `cond` stays one, of the whole batch.

    It names axes from the end, and is differentiated by nobody: it stands in the body of a `custom_jvp`.
    """

    def batched(size: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        pairs = zip(arrays, mapped, strict=True)
        out = over_batches(function)(*(x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in pairs))
        return out, jax.tree.map(lambda _: True, out)

    call = jax.custom_batching.custom_vmap(function)
    call.def_vmap(batched)
    return call
