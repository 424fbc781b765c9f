"""Euclidean norms that neither overflow nor vanish, each in one pass over memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import CPU_FUSES_SUMS, sums_apart, sums_in_one_loop
from lossopt_jax.kernels._blocks import Cut, sums_of_blocks

_Sums = Callable[..., tuple[jax.Array, ...]]


# Elements up to which one loop over three sums takes no longer than calling the matrix library, and maybe again.
_SMALL = 1 << 12
_FEW = 16


def _range(dtype: Any) -> tuple[float, float, int]:
    """Where a sum of squares may be trusted, and the power of 2 that moves the rest into the middle of the range.

    Above, squares overflow; below, those lost to underflow may matter.
    """
    most = jnp.finfo(dtype).maxexp
    return 2.0 ** -(most // 2), 2.0 ** (most - 2), most * 5 // 8


def _trusted(total: jax.Array) -> jax.Array:
    least, most, _ = _range(total.dtype)
    return (total > least) & (total < most)


def _factors(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """What lowers large elements and raises small ones."""
    _, _, shift = _range(dtype)
    return jnp.asarray(2.0**-shift, dtype), jnp.asarray(2.0**shift, dtype)


def _scaled_square(x: jax.Array, factor: jax.Array) -> jax.Array:
    # XLA would square constants by themselves, which overflows: (cx)² → c²x². The bound, whose square is infinite,
    # changes no sum but keeps the two together where x is a constant too; made from the factor, each sum has its own.
    bound = jnp.where(factor > 0, jnp.asarray(2.0 ** (jnp.finfo(x.dtype).maxexp * 3 // 4), x.dtype), 0)
    return jnp.square(jnp.minimum(jnp.abs(factor * x), bound))


@functools.partial(jax.jit, static_argnames="sums")
def _sums_of(x: jax.Array, down: jax.Array, up: jax.Array, sums: _Sums) -> tuple[jax.Array, ...]:
    return sums(jnp.square(x), _scaled_square(x, down), _scaled_square(x, up))


def _three_sums(parts: Sequence[jax.Array], sums: _Sums) -> tuple[jax.Array, ...]:
    """Σ x², and of lowered and of raised elements for where that is no use."""
    factors, of_each = _factors(parts[0].dtype), []
    for x in parts:
        factors = jax.lax.optimization_barrier(factors)  # or arrays of them would be written down, and shared
        of_each.append(_sums_of(x, *factors, sums))
    return tuple(functools.reduce(jnp.add, terms) for terms in zip(*of_each, strict=True))


def _root(total: jax.Array, lowered: jax.Array, raised: jax.Array) -> jax.Array:
    least, most, _ = _range(total.dtype)
    down, up = _factors(total.dtype)
    small, large = total < least, total >= most
    root = jnp.sqrt(jnp.where(small, raised, jnp.where(large, lowered, total)))
    return root * jnp.where(small, down, jnp.where(large, up, jnp.ones_like(up)))


def _norm_at_once(*parts: jax.Array, sums: _Sums = sums_apart) -> jax.Array:
    return _root(*_three_sums(parts, sums))


def _joined(parts: list[jax.Array]) -> list[jax.Array]:
    """Arrays end to end, a few together: a kernel for each costs more than its numbers."""
    flat = [x.reshape(-1) for x in parts]
    return [jnp.concatenate(flat[i : i + _FEW]) for i in range(0, len(flat), _FEW)]


def _norm_by_need(*parts: jax.Array, join: bool) -> jax.Array:
    """The same from one sum, and all three where it is no use: on a CPU each sum of a large array is a pass."""
    small, large = [x for x in parts if x.size <= _SMALL], [x for x in parts if x.size > _SMALL]
    small = _joined(small) if join else small
    known = _three_sums(small, sums_in_one_loop) if small else (jnp.zeros((), parts[0].dtype),) * 3
    # a contraction over all axes: one call of the matrix library
    total = functools.reduce(jnp.add, [jnp.tensordot(x, x, axes=x.ndim, precision="highest") for x in large], known[0])

    def again(*large: jax.Array) -> jax.Array:
        return _root(*map(jnp.add, known, _three_sums(large, sums_apart))) if large else _root(*known)

    # a branch even without large arrays: all these sums would become part of every kernel that uses the norm
    return jax.lax.cond(_trusted(total), lambda *_: jnp.sqrt(total), again, *large)


@jax.custom_jvp
@jax.jit
def norm(*parts: jax.Array) -> jax.Array:
    """‖·‖ of all elements of some arrays of one real dtype; its gradient is 0 at 0."""
    by_need = functools.partial(_norm_by_need, join=jax.device_count() == 1)  # shards stay where they are
    cpu = by_need if CPU_FUSES_SUMS else functools.partial(_norm_at_once, sums=sums_in_one_loop)
    return jax.lax.platform_dependent(*parts, cpu=cpu, default=_norm_at_once)


@norm.defjvp
def _norm_jvp(parts: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    length = norm(*parts)
    # in two steps, since XLA would multiply by 1/‖x‖, which may be below all normal numbers
    down, up = _factors(length.dtype)
    first = jnp.where(length > up, down, jnp.ones_like(down))
    divisor = jnp.where(length > 0, length, jnp.ones_like(length)) * first
    slope = [jnp.sum((first * x) / divisor * dx) for x, dx in zip(parts, tangents, strict=True)]
    return length, functools.reduce(jnp.add, slope)


def each_anew(makers: Sequence[Callable[..., Any]], *inputs: Any) -> list[Any]:
    """`make(*inputs)` of each, on a CPU with nothing in common: XLA:CPU would write down what two sums read."""

    def apart(*inputs: Any) -> list[Any]:
        made = []
        for make in makers:
            inputs = jax.lax.optimization_barrier(inputs)  # of the barrier before: two equal ones would be one
            made.append(make(*inputs))
        return made

    return jax.lax.platform_dependent(*inputs, cpu=apart, default=lambda *inputs: [make(*inputs) for make in makers])


def norms_of(
    make: Callable[[Any, Any], list[jax.Array]], arrays: Any, others: Any, cut: Cut | None = None
) -> tuple[list[jax.Array], jax.Array | None]:
    """The norm of each real array that a function makes of others, elementwise; none of them is written down.

    Not differentiable.

    Args:
      make: (arrays, others) → new arrays.
      arrays: a tuple of arrays of one shape.
      others: what else the function reads, as a tree.
      cut: None, or how to go through the arrays in blocks, for one CPU.

    Returns:
      (norms, done as of `in_blocks` or None).
    """
    count = len(jax.eval_shape(make, arrays, others))

    def in_blocks(square: Callable[[int, jax.Array], jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        sums, done = sums_of_blocks(lambda blocks: list(map(square, range(count), make(blocks, others))), arrays, cut)
        return list(map(jnp.sum, sums)), done

    def apart(square: Callable[[int, jax.Array], jax.Array], *inputs: Any) -> list[jax.Array]:
        def total(number: int, *inputs: Any) -> jax.Array:
            return jnp.sum(square(number, make(*inputs)[number]))

        return each_anew([functools.partial(total, number) for number in range(count)], *inputs)

    if cut is not None:
        totals, done = in_blocks(lambda _, x: jnp.square(x))
        return _by_need(totals, lambda square: in_blocks(square)[0]), done

    def by_need(*inputs: Any) -> list[jax.Array]:
        return _by_need(apart(lambda _, x: jnp.square(x), *inputs), lambda square: apart(square, *inputs))

    def at_once(*inputs: Any, sums: _Sums = sums_apart) -> list[jax.Array]:
        return [_norm_at_once(x, sums=sums) for x in make(*inputs)]

    cpu = by_need if CPU_FUSES_SUMS else functools.partial(at_once, sums=sums_in_one_loop)
    return jax.lax.platform_dependent(arrays, others, cpu=cpu, default=at_once), None


def _by_need(totals: list[jax.Array], sums: Callable[..., list[jax.Array]]) -> list[jax.Array]:
    """Norms from sums of squares, which are taken again, of lowered or raised elements, where one is no use."""

    def again() -> list[jax.Array]:
        factors = []
        for total in totals:
            down, up = jax.lax.optimization_barrier(_factors(total.dtype))
            factors.append(jnp.where(_trusted(total), jnp.ones_like(up), jnp.where(total < 1, up, down)))
        scaled = sums(lambda number, x: _scaled_square(x, factors[number]))
        found = [jnp.sqrt(total) / factor for total, factor in zip(scaled, factors, strict=True)]
        # XLA:CPU's sum of minima may lose a NaN (jax 0.10)
        return [jnp.where(jnp.isnan(total), total, root) for total, root in zip(totals, found, strict=True)]

    trusted = functools.reduce(jnp.logical_and, map(_trusted, totals))
    return jax.lax.cond(trusted, lambda: list(map(jnp.sqrt, totals)), again)
