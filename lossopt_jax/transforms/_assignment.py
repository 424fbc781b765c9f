"""Pairs of rows and columns of the least cost: shortest augmenting paths, one row after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lossopt_jax._core import complaint, compute_dtype, default_float, dtype_of, is_array_like

# A matching: the column of each row, the row of each column, and prices u of rows and v of columns with
# c − u − v ≥ 0, where it is 0 for a pair. A column without a row has v = 0, whence not all columns need a row.
_NOBODY = -1
_Matching = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _at(array: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, index, keepdims=False)


def _start(cost: jax.Array) -> _Matching:
    """Each row bids for its cheapest column, which takes the first of them."""
    n, m = cost.shape
    rows, cheapest = lax.iota(jnp.int32, n), jnp.min(cost, 1)
    finite = cheapest < jnp.inf
    wanted = jnp.where(finite, jnp.argmin(cost, 1).astype(jnp.int32), m)
    row_of = jnp.full(m, n, jnp.int32).at[wanted].min(rows, mode="drop")
    column_of = jnp.where(finite & (row_of[jnp.minimum(wanted, m - 1)] == rows), wanted, _NOBODY)
    return column_of, jnp.where(row_of < n, row_of, _NOBODY), jnp.where(finite, cheapest, 0), jnp.zeros_like(cost[0])


def _path(
    cost: jax.Array, matching: _Matching, row: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Dijkstra's algorithm from a row to the nearest column without one.

    Returns (distances of columns, the row before each, which are final, the last distance, the column); no column for
    a row that has one, and where only infinite costs lead on.
    """
    _, row_of, u, v = matching
    m = cost.shape[1]
    order = lax.iota(jnp.int32, m) + jnp.where(row_of == _NOBODY, 0, m)  # among the nearest, those without a row first

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        distance, before, final, row, reached, _ = carry
        # Not below `reached`, lest by rounding what is final got another row before it.
        through = jnp.maximum(_at(cost, row) - v - (_at(u, row) - reached), reached)
        before = jnp.where(through < distance, row, before)
        distance = jnp.minimum(distance, through)
        ahead = jnp.where(final, jnp.inf, distance)
        # Two plain reductions run several times as fast as one argmin.
        reached = lax.reduce(ahead, jnp.full((), jnp.inf, ahead.dtype), lambda x, y: jnp.where(x < y, x, y), (0,))
        place = jnp.min(jnp.where(ahead == reached, order, 2 * m))
        place = jnp.where(reached < jnp.inf, place, _NOBODY)
        return distance, before, final | (order == place), _at(row_of, place - m), reached, place

    nowhere = (jnp.full(m, jnp.inf, cost.dtype), jnp.full(m, _NOBODY, jnp.int32), jnp.zeros(m, bool))
    # Under vmap a matrix that is done comes here too, and must not search on.
    place = jnp.where(_at(matching[0], row) == _NOBODY, m, _NOBODY).astype(jnp.int32)
    carry = (*nowhere, row, jnp.zeros((), cost.dtype), place)
    distance, before, final, _, reached, column = lax.while_loop(lambda carry: carry[-1] >= m, step, carry)
    return distance, before, final, jnp.where(column == _NOBODY, 0, reached), column


def _match_one(cost: jax.Array, matching: _Matching) -> _Matching:
    """Give the first row without a column one, moving others along a shortest path."""
    n, m = cost.shape
    column_of, row_of, u, v = matching
    row = jnp.argmax(column_of == _NOBODY).astype(jnp.int32)
    distance, before, final, reached, column = _path(cost, matching, row)
    v = v - jnp.where(final, jnp.maximum(reached - distance, 0), 0)

    def move(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        column_of, row_of, column = carry
        row = _at(before, column)
        return column_of.at[row].set(column), row_of.at[column].set(row), _at(column_of, row)

    gone = jnp.where((_at(column_of, row) == _NOBODY) & (column == _NOBODY), m, _at(column_of, row))
    column_of = column_of.at[row].set(gone)
    column_of, row_of, _ = lax.while_loop(
        lambda carry: (carry[2] != _NOBODY) & (carry[2] < m), move, (column_of, row_of, column)
    )
    # Anew from the pair itself, so that rounding does not add up over the rows.
    paired = (column_of != _NOBODY) & (column_of < m)
    own = jnp.clip(column_of, 0, m - 1)
    return column_of, row_of, jnp.where(paired, cost[lax.iota(jnp.int32, n), own] - v[own], u), v


@jax.jit
def _columns_of_rows(cost: jax.Array) -> jax.Array:
    """The column of each row, of which there are no more than columns; float32 or float64, no NaN and no −∞."""
    matching = lax.while_loop(
        lambda matching: jnp.any(matching[0] == _NOBODY), lambda matching: _match_one(cost, matching), _start(cost)
    )
    # Rows without a finite pair left take the columns that are.
    column_of, row_of, m = *matching[:2], cost.shape[1]
    left = jnp.flatnonzero(row_of == _NOBODY, size=cost.shape[0], fill_value=0).astype(jnp.int32)
    without = column_of == m
    return jnp.where(without, left[jnp.cumsum(without.astype(jnp.int32)) - 1], column_of)


def _as_costs(cost: jax.Array) -> jax.Array:
    """In a floating dtype, without what the search cannot see, and small enough for sums of some."""
    if not jnp.issubdtype(cost.dtype, jnp.floating):
        whole = cost if cost.dtype.itemsize > 2 else cost.astype(jnp.int32)
        # Every row gets a column, so only differences within a row count, and those may be exact where costs are not.
        unsigned = jnp.dtype(f"uint{8 * whole.dtype.itemsize}")
        return (whole - jnp.min(whole, 1, keepdims=True)).astype(unsigned).astype(default_float())
    cost = cost.astype(compute_dtype(cost.dtype))
    most = float(jnp.finfo(cost.dtype).max) / 8
    large = jnp.any((jnp.abs(cost) > most) & jnp.isfinite(cost))
    unseen = jnp.isnan(cost) | (cost == -jnp.inf)
    seen = jnp.where(large, cost / 8, cost)
    return jnp.where(jnp.any(unseen), jnp.where(unseen, -1, jnp.zeros_like(cost)), seen)


def hungarian_algorithm(cost_matrix: Any) -> tuple[jax.Array, jax.Array]:
    """An assignment of the least cost: min(n, m) pairs (i, j), no row and no column in two of them.

        min Σ c[i, j]

    By shortest augmenting paths, O(min(n, m)² max(n, m)), on prices that are found anew from each pair; the total is
    that of the best assignment but for rounding of single costs. Integers are exact up to differences of 2²⁴ in a row
    (in a column, where there are fewer of those), halves are computed in float32. For batches, vmap.

    Args:
      cost_matrix: c [n, m], real. +∞ forbids a pair.

    Returns:
      (i, j), arrays of min(n, m) integers, i ascending, so that the cost is `cost_matrix[i, j].sum()`. It is +∞ where
      no assignment is finite, and NaN or −∞ where any cost is: such a pair is then among those returned. No gradient
      flows through the choice.

    Raises:
      ValueError: no matrix.
      TypeError: complex costs.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> cost = jnp.array([[8, 4, 7], [5, 2, 3], [9, 6, 7], [9, 4, 8]])
      >>> i, j = lo.transforms.hungarian_algorithm(cost)
      >>> print(i, j, cost[i, j].sum())
      [0 1 3] [0 2 1] 15

    Differs from: optax, which leaves the order of pairs open, and whose `base_hungarian_algorithm` never ends where
      costs forbid every assignment.
    Source: Jonker & Volgenant 1987, doi:10.1007/BF02278710; Crouse 2016, doi:10.1109/TAES.2016.140952.
    """
    where = "hungarian_algorithm"
    if not is_array_like(cost_matrix):
        raise TypeError(complaint(where, "cost_matrix", "be an array", repr(cost_matrix)))
    if jnp.ndim(cost_matrix) != 2:
        shape = jnp.shape(cost_matrix)
        raise ValueError(complaint(where, "cost_matrix", "be a matrix", f"shape {shape}", "vmap over a batch"))
    dtype = dtype_of(cost_matrix)
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(complaint(where, "cost_matrix", "be real", dtype))
    n, m = cost_matrix.shape
    if not n or not m:
        return jnp.arange(0), jnp.arange(0)
    cost = lax.stop_gradient(jnp.asarray(cost_matrix))
    taken = _columns_of_rows(_as_costs(cost if n <= m else cost.T)).astype(jnp.arange(0).dtype)
    if n <= m:
        return jnp.arange(n), taken
    columns = jnp.argsort(taken)
    return taken[columns], columns


def base_hungarian_algorithm(cost_matrix: Any) -> tuple[jax.Array, jax.Array]:
    """`hungarian_algorithm` by the other name that optax has for it."""
    return hungarian_algorithm(cost_matrix)
