"""Elementwise updates in one pass over memory, for CPUs.

XLA:CPU makes a loop over memory for every output: an update of p, m and v reads p, m, v and g up to three times. Cut
into blocks that stay in a core's cache between those loops, it reads and writes each array once.

A block loop runs on one core. Loops of several arrays run side by side, one per core, provided that none needs memory
which another has used; and there must be more than eight, from where on XLA shares work out between its threads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lossopt_jax._core import dependencies

# Elements: four blocks of float32 fit into half a megabyte, and the end of a loop is nothing beside its turns.
_BLOCK = 1 << 15
_LEAST_BLOCK = 1 << 13
_LEAST_ARRAY = 1 << 17

Arrays = tuple[jax.Array, ...]


def block_of(size: int) -> int | None:
    """The block length for an array of some size, a divisor of it; None where blocks would not pay."""
    if not _LEAST_ARRAY <= size < 2**31:
        return None
    return next((length for length in range(_BLOCK, _LEAST_BLOCK, -1) if size % length == 0), None)


def _entangled(body: Callable[[Arrays, Arrays], Arrays], updated: Arrays, read: Arrays) -> bool:
    """Whether in any order one update would overwrite what another has yet to read."""
    count = len(updated)
    sources = dependencies(lambda *arrays: body(arrays[:count], arrays[count:]), *updated, *read)
    waiting = {number: sources[number] - {number} for number in range(count)}
    while waiting:
        free = [number for number in waiting if not any(number in others for others in waiting.values())]
        if not free:
            return True
        for number in free:
            del waiting[number]
    return False


def in_blocks(
    body: Callable[[Arrays, Arrays], Arrays], updated: Arrays, read: Arrays, length: int
) -> tuple[Arrays, jax.Array]:
    """`body(updated, read)` block by block, in place where the caller compiles with `cpu_compiler_options`.

    Args:
      body: new values of the updated arrays, element by element.
      updated: arrays of one shape, any dtypes.
      read: more of that shape.
      length: from `block_of`.

    Returns:
      (arrays, done): `done` is True, and known only when the loop has run. Whoever uses it keeps the loop's counter
      alive, which would otherwise lend its memory to the next loop and so make that one wait.
    """
    count = updated[0].size // length
    flat_read, flat = [x.reshape(-1) for x in read], [x.reshape(-1) for x in updated]

    def cut(arrays: list[jax.Array], index: jax.Array) -> Arrays:
        return tuple(lax.dynamic_slice(x, (index * length,), (length,)) for x in arrays)

    start = jnp.zeros((), jnp.int32)
    entangled = _entangled(body, cut(flat, start), cut(flat_read, start))

    def turn(carry: tuple[jax.Array, jax.Array, list[jax.Array]]) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        index, more, held = carry

        def blocks() -> Arrays:
            return body(cut(held, index), cut(flat_read, index))

        # a branch is a border for XLA's fusions: the new blocks stand side by side before the first is written back,
        # where otherwise whole arrays would be copied in every turn
        new = lax.cond(more, blocks, lambda: cut(held, index)) if entangled else blocks()
        held = [lax.dynamic_update_slice(x, block, (index * length,)) for x, block in zip(held, new, strict=True)]
        return index + 1, index + 1 < count, held

    first = start, jnp.ones((), bool), flat
    index, more, held = lax.while_loop(lambda carry: carry[1], turn, first)
    return tuple(x.reshape(updated[0].shape) for x in held), ~more & (index > 0)
