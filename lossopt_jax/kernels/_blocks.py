"""Elementwise updates in one pass over memory, for CPUs.

XLA:CPU makes a loop over memory for every output: an update of p, m and v reads p, m, v and g up to three times. Cut
into blocks that stay in a core's cache between those loops, it reads and writes each array once.

A block loop runs on one core. Loops of several arrays run side by side, one per core, provided that none needs memory
which another has used; and there must be more than eight, from where on XLA shares work out between its threads.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lossopt_jax._core import dependencies

# Elements: four blocks of float32 fit into half a megabyte, and the end of a loop is nothing beside its turns.
_BLOCK = 1 << 15
_LEAST_BLOCK = 1 << 13
_LEAST_ARRAY = 1 << 17

Arrays = tuple[jax.Array, ...]


class Cut(NamedTuple):
    """How arrays are cut into blocks: the length of one of the first array, and whether it is to keep its rows."""

    length: int
    rows: int | None = None


def cut_of(size: int, multiple: int = 1, row: int | None = None) -> Cut | None:
    """How to cut an array of some size; None where blocks would not pay.

    Args:
      size: its number of elements, which the length of a block divides.
      multiple: what divides the length of a block.
      row: None, or the length of the last axis, of which blocks then hold whole ones: they come as [rows, ...].
    """
    if not _LEAST_ARRAY <= size < 2**31:
        return None
    multiple = row or multiple
    lengths = range(_BLOCK // multiple * multiple, _LEAST_BLOCK, -multiple)
    length = next((length for length in lengths if size % length == 0), None)
    return None if length is None else Cut(length, row and length // row)


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


def _cut(arrays: list[jax.Array], index: jax.Array, count: int, rows: int | None) -> Arrays:
    """The part number `index` of `count` equal ones of each array."""
    parts = [lax.dynamic_slice(x, (index * (x.size // count),), (x.size // count,)) for x in arrays]
    return tuple(parts if rows is None else [x.reshape(rows, -1) for x in parts])


def _put(arrays: list[jax.Array], blocks: Arrays, index: jax.Array) -> list[jax.Array]:
    return [
        lax.dynamic_update_slice(x, block.reshape(-1), (index * block.size,))
        for x, block in zip(arrays, blocks, strict=True)
    ]


def _loop(
    turn: Callable[[jax.Array, jax.Array, list[jax.Array]], list[jax.Array]], held: list[jax.Array], count: int
) -> tuple[list[jax.Array], jax.Array]:
    """`held = turn(index, more, held)` so many times, `more` being True; and a flag that is True when all is done."""

    def step(carry: tuple[jax.Array, jax.Array, list[jax.Array]]) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        index, more, held = carry
        return index + 1, index + 1 < count, turn(index, more, held)

    first = jnp.zeros((), jnp.int32), jnp.ones((), bool), held
    index, more, held = lax.while_loop(lambda carry: carry[1], step, first)
    return held, ~more & (index > 0)


def in_blocks(
    body: Callable[[Arrays, Arrays], Arrays], updated: Arrays, read: Arrays, cut: Cut
) -> tuple[Arrays, jax.Array]:
    """`body(updated, read)` block by block, in place where the caller compiles with `cpu_compiler_options`.

    Args:
      body: new values of the updated arrays, element by element.
      updated: arrays of one size, any dtypes, or of a part of that which corresponds element by element of the part.
      read: more of those.
      cut: from `cut_of`, for the first array.

    Returns:
      (arrays, done): `done` is True, and known only when the loop has run. Whoever uses it keeps the loop's counter
      alive, which would otherwise lend its memory to the next loop and so make that one wait.
    """
    flat_read, flat = [x.reshape(-1) for x in read], [x.reshape(-1) for x in updated]
    start, count, rows = jnp.zeros((), jnp.int32), updated[0].size // cut.length, cut.rows
    entangled = _entangled(body, _cut(flat, start, count, rows), _cut(flat_read, start, count, rows))

    def turn(index: jax.Array, more: jax.Array, held: list[jax.Array]) -> list[jax.Array]:
        def blocks() -> Arrays:
            return body(_cut(held, index, count, rows), _cut(flat_read, index, count, rows))

        # a branch is a border for XLA's fusions: the new blocks stand side by side before the first is written back,
        # where otherwise whole arrays would be copied in every turn
        new = lax.cond(more, blocks, lambda: _cut(held, index, count, rows)) if entangled else blocks()
        return _put(held, new, index)

    held, done = _loop(turn, flat, count)
    return tuple(x.reshape(old.shape) for x, old in zip(held, updated, strict=True)), done


def sums_of_blocks(
    make: Callable[[Arrays], list[jax.Array]], read: Arrays, cut: Cut
) -> tuple[list[jax.Array], jax.Array]:
    """The sum of all blocks of each array that a function makes, element by element: (a block each, `done`).

    So no number is ever waited for: adding up within a block is left to whoever takes the sums.
    """
    flat, count = [x.reshape(-1) for x in read], read[0].size // cut.length

    def blocks(index: jax.Array) -> list[jax.Array]:
        return make(_cut(flat, index, count, cut.rows))

    def turn(index: jax.Array, more: jax.Array, held: list[jax.Array]) -> list[jax.Array]:
        return [total + block for total, block in zip(held, blocks(index), strict=True)]

    made = jax.eval_shape(blocks, jnp.zeros((), jnp.int32))
    return _loop(turn, [jnp.zeros(x.shape, x.dtype) for x in made], count)
