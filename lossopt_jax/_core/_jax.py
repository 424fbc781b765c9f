"""The only place that looks at JAX's version, backend names and compiler flags."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

# From jax 0.10 XLA:CPU sums f(x) at memory speed; before, it wrote f(x) down first.
CPU_FUSES_SUMS = jax.__version_info__ >= (0, 10)


def is_tracer(value: Any) -> bool:
    """Whether `value` is abstract here: under `jit`, `vmap`, `grad` or `scan`."""
    return isinstance(value, jax.core.Tracer)


@contextmanager
def standard_promotion() -> Iterator[None]:
    """Callables that are not ours may mix dtypes and ranks, whatever the caller has configured."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each of some arrays of one shape and dtype, all in one pass and none of them materialised."""
    if jax.default_backend() != "cpu":
        return tuple(map(jnp.sum, terms))

    def add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(map(jnp.add, left, right))

    # XLA:CPU runs several sums one after the other; elsewhere it fuses them, and shards add up, not gather, one number
    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    return tuple(jax.lax.reduce(terms, zeros, add, tuple(range(terms[0].ndim))))


def cpu_compiler_options() -> dict[str, bool]:
    """Options for `jax.jit(..., compiler_options=)` that let XLA:CPU update donated state in place.

    Without them copy insertion duplicates every slot that two outputs read (Lion's momentum, blocked loops), at the
    price of one single-threaded copy of the state in every step. Other backends reject the flag: an empty dict there.

    Example:
      >>> import jax, lossopt_jax as lo
      >>> step = jax.jit(lambda x: x + 1, compiler_options=lo.cpu_compiler_options())
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_copy_insertion_use_region_analysis": True}
