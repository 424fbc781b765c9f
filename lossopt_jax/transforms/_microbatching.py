"""A function of a large batch, evaluated slice by slice."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, axes_of, check_scalar, complaint, compute_dtype, leaf_paths, none_is_leaf

_WAYS = ("sum", "mean", "concat")


def _size(where: str, batches: list[Any], axes: list[int]) -> int:
    """The number of rows, on which all leaves of all batches must agree."""
    sizes = {}
    for number, (batch, axis) in enumerate(zip(batches, axes, strict=True)):
        for path, leaf in zip(leaf_paths(batch), jax.tree.leaves(batch, is_leaf=none_is_leaf), strict=True):
            if leaf is None:
                continue
            (along,) = axes_of(where, axis, jnp.ndim(leaf))
            sizes.setdefault(jnp.shape(leaf)[along], f"{number}/{path}" if path else f"{number}")
    if len(sizes) != 1:
        got = ", ".join(f"{size} in {path!r}" for size, path in sizes.items()) or "no arrays"
        raise ValueError(complaint(where, "batches", "have one number of rows", got))
    return next(iter(sizes))


def _ways(accumulator: Any, shapes: Any) -> list[str]:
    try:
        ways = jax.tree.leaves(jax.tree.broadcast(accumulator, shapes))
    except ValueError:
        must, got = f"be a prefix of {jax.tree.structure(shapes)}", jax.tree.structure(accumulator)
        raise ValueError(complaint("microbatch", "accumulator", must, got)) from None
    for way, leaf in zip(ways, jax.tree.leaves(shapes), strict=True):
        if way not in _WAYS:
            raise ValueError(complaint("microbatch", "accumulator", f"be among {', '.join(_WAYS)}", repr(way)))
        if way == "mean" and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(complaint("microbatch", "a mean", "be of floating numbers", leaf.dtype, 'say "sum"'))
        if way == "concat" and not leaf.shape:
            raise ValueError(complaint("microbatch", "what is concatenated", "have rows", "a scalar", 'say "sum"'))
    return ways


def _wide(dtype: Any) -> Any:
    """What is summed in."""
    return compute_dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def microbatch(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    microbatch_size: int,
    accumulator: Any = "sum",
    *,
    in_axes: int | Sequence[int] = 0,
) -> Callable[..., Any]:
    """Evaluate a function of a batch slice by slice, in the memory that one slice takes.

        sum: Σ fᵢ;    mean: Σ nᵢ fᵢ / Σ nᵢ;    concat: (f₁, f₂, …) along the first axis

    over slices of nᵢ rows, of which the last is shorter where the size does not divide. Sums are taken in float32
    (float64 for float64) and rounded once.

    Args:
      fun: a function of arrays, such as `jax.value_and_grad(loss)`. A mean over unmasked rows is no mean over slices:
        return the sum and the number of rows, and accumulate both by "sum".
      argnums: which positional arguments have rows; each may be a tree.
      microbatch_size: rows in a slice, ≥ 1.
      accumulator: "sum", "mean" or "concat"; or a tree of those, a prefix of what `fun` returns.
      in_axes: the axis of the rows, one for all or one for each of `argnums`.

    Returns:
      A function of the same arguments, with results of the same types.

    Raises:
      ValueError: batches of different sizes, or no such accumulator.
      TypeError: the mean of integers.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> loss = lambda w, x, y: jnp.mean((x @ w - y) ** 2)
      >>> batch = jnp.ones((10, 2)), jnp.zeros(10)
      >>> lo.transforms.microbatch(jax.value_and_grad(loss), (1, 2), 4, "mean")(jnp.ones(2), *batch)
      (Array(4., dtype=float32), Array([4., 4.], dtype=float32))

    Differs from: optax, whose sizes must divide, and whose accumulators are an enumeration.
    """
    check_scalar("microbatch", "microbatch_size", microbatch_size, within=COUNT)
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    axes = [in_axes] * len(numbers) if isinstance(in_axes, int) else list(in_axes)
    if len(axes) != len(numbers):
        raise ValueError(complaint("microbatch", "in_axes", f"have {len(numbers)} entries like argnums", len(axes)))

    @functools.wraps(fun)
    def sliced(*args: Any, **kwargs: Any) -> Any:
        if not all(-len(args) <= number < len(args) for number in numbers):
            must = f"name some of the {len(args)} positional arguments"
            raise ValueError(complaint("microbatch", "argnums", must, numbers))
        size = _size("microbatch", [args[number] for number in numbers], axes)
        whole, rest = divmod(size, microbatch_size)

        def part(start: Any, length: int) -> Any:
            """`fun` of some rows."""
            given = list(args)
            for number, axis in zip(numbers, axes, strict=True):
                given[number] = jax.tree.map(
                    lambda leaf, axis=axis: jax.lax.dynamic_slice_in_dim(leaf, start, length, axis % jnp.ndim(leaf)),
                    args[number],
                )
            return fun(*given, **kwargs)

        if whole == 0 or (whole == 1 and not rest):
            return fun(*args, **kwargs)
        shapes = jax.eval_shape(lambda: part(0, microbatch_size))
        ways, treedef = _ways(accumulator, shapes), jax.tree.structure(shapes)

        def weighted(leaf: jax.Array, way: str, rows: int) -> jax.Array:
            wide = jnp.asarray(leaf, _wide(leaf.dtype))
            return wide * (rows / size) if way == "mean" else wide

        def added(sums: list[Any], results: Any, rows: int) -> list[Any]:
            leaves = jax.tree.leaves(results)
            return [
                before if way == "concat" else before + weighted(leaf, way, rows)
                for before, leaf, way in zip(sums, leaves, ways, strict=True)
            ]

        def one(sums: list[Any], number: jax.Array) -> tuple[list[Any], list[Any]]:
            results = part(number * microbatch_size, microbatch_size)
            rows = [leaf for leaf, way in zip(jax.tree.leaves(results), ways, strict=True) if way == "concat"]
            return added(sums, results, microbatch_size), rows

        zeros = [
            None if way == "concat" else jnp.zeros(leaf.shape, _wide(leaf.dtype))
            for leaf, way in zip(jax.tree.leaves(shapes), ways, strict=True)
        ]
        sums, stacked = jax.lax.scan(one, zeros, jnp.arange(whole))
        last = part(whole * microbatch_size, rest) if rest else None
        sums = added(sums, last, rest) if rest else sums
        joined = iter(stacked)
        ends = jax.tree.leaves(last) if rest else [None] * len(ways)
        results = [
            _joined(next(joined), end) if way == "concat" else total.astype(shape.dtype)
            for total, end, way, shape in zip(sums, ends, ways, jax.tree.leaves(shapes), strict=True)
        ]
        return treedef.unflatten(results)

    return sliced


def _joined(stacked: jax.Array, end: Any) -> jax.Array:
    """Rows of slices, and those of the last one, behind each other."""
    rows = stacked.reshape(-1, *stacked.shape[2:])
    return rows if end is None else jnp.concatenate([rows, end])
