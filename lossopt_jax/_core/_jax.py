"""The only place that looks at JAX's version, backend names and compiler flags."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

# From jax 0.10 XLA:CPU sums f(x) at memory speed; before, it wrote f(x) down first.
CPU_FUSES_SUMS = jax.__version_info__ >= (0, 10)


def is_tracer(value: Any) -> bool:
    """Whether `value` is abstract here: under `jit`, `vmap`, `grad` or `scan`."""
    return isinstance(value, jax.core.Tracer)


def holds_tracers(tree: Any) -> bool:
    """Whether any leaf is abstract; by the few types that there are, since this runs before every step."""
    return any(issubclass(kind, jax.core.Tracer) for kind in set(map(type, jax.tree.leaves(tree))))


@contextmanager
def standard_promotion() -> Iterator[None]:
    """Callables that are not ours may mix dtypes and ranks, whatever the caller has configured."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


_ROW = 1 << 7


def sums_in_one_loop(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each of some arrays of one shape and dtype, for XLA:CPU, which runs several one after the other.

    Row by row, since such a loop adds one number after the other to one sum, whose last bits get lost.
    """

    def add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(map(jnp.add, left, right))

    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    size = terms[0].size
    if size <= 2 * _ROW:
        return tuple(jax.lax.reduce(terms, zeros, add, tuple(range(terms[0].ndim))))
    if jax.device_count() > 1:
        return sums_apart(*terms)  # rows would tear shards
    flat, whole = [term.reshape(-1) for term in terms], size // _ROW * _ROW
    rows = jax.lax.reduce(tuple(x[:whole].reshape(-1, _ROW) for x in flat), zeros, add, (1,))
    rest = jax.lax.reduce(tuple(x[whole:] for x in flat), zeros, add, (0,))
    return add(sums_in_one_loop(*rows), rest)


def sums_apart(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The same for all others: XLA fuses them, and shards add up, not gather, one number."""
    return tuple(map(jnp.sum, terms))


def cpu_cores() -> int:
    """The cores that this process may use, which XLA:CPU shares its work among."""
    available = getattr(os, "sched_getaffinity", None)  # not on every platform
    return len(available(0)) if available else os.cpu_count() or 1


def on_one_cpu(tree: Any) -> bool:
    """Whether all arrays of a tree lie on one CPU device, as those do that are not anywhere yet."""
    if jax.default_backend() != "cpu":
        return False
    if jax.device_count() == 1:
        return True
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    devices = [sharding.device_set for sharding in shardings if sharding is not None]
    return len(set().union(*devices)) <= 1


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


HOST_MEMORY = "pinned_host"


@functools.lru_cache
def _leaves_in_host_memory(platform: str) -> bool:
    """By trying: a memory may be listed that no program writes to, as XLA:CPU's in jax 0.7."""
    kinds = {memory.kind for memory in jax.devices(platform)[0].addressable_memories()}
    if HOST_MEMORY not in kinds:
        return False
    with jax.ensure_compile_time_eval():
        kept = jax.device_put(jnp.zeros((), device=jax.devices(platform)[0]), jax.memory.Space.Host)
    return kept.sharding.memory_kind == HOST_MEMORY


def keeps_host_memory() -> bool:
    """Whether programs of the default backend leave arrays in the memory of the host if told to."""
    return _leaves_in_host_memory(jax.default_backend())


def in_host_memory(array: jax.Array) -> jax.Array:
    """The array in the memory of the host, its sharding as it was; inside programs too."""
    if not is_tracer(array) and rests_in_host_memory(array):
        return array  # which would be copied
    return jax.device_put(array, jax.memory.Space.Host)


def in_device_memory(array: jax.Array) -> jax.Array:
    """The array where it can be calculated with."""
    return jax.device_put(array, jax.memory.Space.Device)


def rests_in_host_memory(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.typeof(leaf).memory_space is jax.memory.Space.Host


def pallas_modules(platform: str) -> tuple[Any, Any]:
    """Pallas, and its words for "tpu" or "gpu" (Triton), imported on use: it takes as long as the rest of jax."""
    words = {"tpu": "tpu", "gpu": "triton"}[platform]
    return import_module("jax.experimental.pallas"), import_module(f"jax.experimental.pallas.{words}")


def zeros_alike(x: jax.Array) -> jax.Array:
    """Zeros of an array's shape and dtype that lie where it lies, also within a program, whatever the array holds."""
    zeros = jnp.zeros_like(x)
    if jax.device_count() == 1:
        return zeros
    try:
        shard_alike = import_module("jax.experimental.shard_alike").shard_alike
    except ImportError:  # gone in jax 0.12: a choice that XLA does not see through, so that it computes x for nothing
        return jnp.where(jax.lax.optimization_barrier(jnp.ones((), bool)), zeros, x)
    return shard_alike(x, zeros)[1]


def bind_equation(equation: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of one equation of a jaxpr at other inputs."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.10
    outputs = equation.primitive.bind(*functions, *inputs, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def inlinable(equation: Any) -> Any:
    """The jaxpr of a plain call of a jitted function, else None."""
    if equation.primitive.name not in ("jit", "pjit"):
        return None
    shardings = (*equation.params["in_shardings"], *equation.params["out_shardings"])
    plain = all(type(sharding).__name__ == "UnspecifiedValue" for sharding in shardings)
    return equation.params["jaxpr"] if plain else None


def dependencies(function: Any, *arguments: jax.Array) -> list[set[int]]:
    """For each array that a function returns, the numbers of the arguments that it is made from."""

    def within(jaxpr: Any, given: list[set[int]]) -> list[set[int]]:
        known = dict(zip(jaxpr.invars, given, strict=True))

        def of(variable: Any) -> set[int]:
            return set() if hasattr(variable, "val") else known.get(variable, set())

        for equation in jaxpr.eqns:
            sources = [of(variable) for variable in equation.invars]
            inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
            results = [set().union(*sources)] * len(equation.outvars) if inner is None else within(inner.jaxpr, sources)
            known |= zip(equation.outvars, results, strict=True)
        return [of(variable) for variable in jaxpr.outvars]

    closed = jax.make_jaxpr(function)(*arguments)
    return within(closed.jaxpr, [{number} for number in range(len(arguments))])
