"""From what users hand in to arrays of equal length, and from those to batches of one shape."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import complaint


def as_examples(where: str, data: Any) -> tuple[Any, Any, int]:
    """(x, y, number of examples) of a pair of arrays or trees of them.

    Raises:
      TypeError: not a pair, or text.
      ValueError: nothing in it, or lengths that differ.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"{type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
        raise TypeError(complaint(where, "data", "be a pair (x, y)", got, "pass a tuple of inputs and targets"))
    x, y = (as_arrays(where, name, part) for name, part in zip(("x", "y"), data, strict=True))
    return x, y, count(where, (x, y))


def as_arrays(where: str, name: str, tree: Any) -> Any:
    """Lists and NumPy arrays as JAX arrays; text is refused."""
    if isinstance(tree, list) and not any(isinstance(item, dict | tuple) for item in tree):
        tree = jnp.asarray(tree)
    try:
        return jax.tree.map(jnp.asarray, tree)
    except TypeError as error:
        remedy = "encode text and missing values as numbers first"
        raise TypeError(complaint(where, name, "hold numbers", str(error).split("\n")[0], remedy)) from None


def count(where: str, tree: Any) -> int:
    """The common length of the leading axis."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if any(not shape for shape in shapes):
        raise ValueError(complaint(where, "data", "have a leading axis of examples", f"shapes {shapes}"))
    lengths = {shape[0] for shape in shapes}
    if len(lengths) > 1:
        got = f"shapes {shapes}"
        raise ValueError(complaint(where, "x and y", "hold the same number of examples", got, "check the split"))
    if not lengths or lengths == {0}:
        raise ValueError(complaint(where, "data", "hold at least one example", "none", "check the filter or the split"))
    return lengths.pop()


def batch_rows(order: jax.Array, size: int, batch_size: int) -> tuple[jax.Array, jax.Array | None]:
    """Row numbers [steps, batch] from an order of rows, and which of them count (None: all).

    A ragged last batch is filled up with row 0, masked.
    """
    steps = -(-size // batch_size)
    padding = steps * batch_size - size
    rows = jnp.pad(order, (0, padding)).reshape(steps, batch_size)
    if not padding:
        return rows, None
    return rows, (jnp.arange(steps * batch_size) < size).reshape(steps, batch_size)


def take(tree: Any, rows: jax.Array) -> Any:
    """The examples of these rows."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), tree)


def equal_batches(where: str, data: Iterable[Any]) -> Iterator[tuple[Any, Any, jax.Array | None]]:
    """Batches of the first one's length; a shorter one is filled up and masked."""
    longest = 0
    for batch in data:
        x, y, size = as_examples(where, batch)
        longest = max(longest, size)
        if size == longest:
            yield x, y, None
        else:
            yield _padded(x, longest), _padded(y, longest), jnp.arange(longest) < size


def _padded(tree: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jnp.pad(x, [(0, size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)), tree)


def check_batch_size(where: str, batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(complaint(where, "batch_size", "be an int", f"{batch_size!r}"))
    if batch_size < 1:
        raise ValueError(complaint(where, "batch_size", "be ≥ 1", batch_size))
    return batch_size
