"""The only place that looks at JAX's version, backend names and compiler flags."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

# From jax 0.10 XLA:CPU sums f(x) at memory speed; before, it wrote f(x) down first.
CPU_FUSES_SUMS = jax.__version_info__ >= (0, 10)


def is_tracer(value: Any) -> bool:
    """Whether `value` is abstract here: under `jit`, `vmap`, `grad` or `scan`."""
    return isinstance(value, jax.core.Tracer)


def standard_promotion() -> AbstractContextManager[Any]:
    """Callables that are not ours may mix dtypes, whatever the caller has configured."""
    return jax.numpy_dtype_promotion("standard")


def sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each of some arrays of one shape and dtype, all in one pass and none of them materialised."""
    if CPU_FUSES_SUMS or jax.default_backend() != "cpu":
        return tuple(map(jnp.sum, terms))

    def add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(map(jnp.add, left, right))

    # several at once escape the rewriting that materialises one; not used elsewhere, since shards gather, not reduce
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
