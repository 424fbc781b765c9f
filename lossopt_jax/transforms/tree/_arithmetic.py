"""Sums, differences, products of trees, leaf by leaf."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    complaint,
    compute_dtype,
    dtype_of,
    first_difference,
    is_complex,
    is_trainable,
    leaf_paths,
    none_is_leaf,
    standard_promotion,
)


def over_leaves(where: str, function: Callable[..., Any], tree: Any, *rest: Any, one_shape: bool = True) -> Any:
    """A function of corresponding leaves; None in the first tree stays None, whatever the others have there.

    Dtypes are promoted as `jnp` does by default, whatever the caller has configured.

    Raises:
      ValueError: another structure, by a path; or shapes that differ where they must be one, other than ().
      Exception: whatever the function raises, with a note that names the path.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=none_is_leaf)
    columns = [leaves, *(_aligned(where, tree, treedef, other) for other in rest)]
    made = []
    with standard_promotion():
        for row in zip(*columns, strict=True):
            if row[0] is None:
                made.append(None)
                continue
            try:
                if one_shape and len(shapes := {getattr(x, "shape", ()) for x in row}) > 1 and len(shapes - {()}) > 1:
                    raise ValueError(complaint(where, "leaves", "have one shape", f"{[jnp.shape(x) for x in row]}"))
                made.append(function(*row))
            except Exception as error:
                error.add_note(f"{where}: in the leaf at {leaf_paths(tree)[len(made)]!r}")
                raise
    return treedef.unflatten(made)


def _aligned(where: str, tree: Any, treedef: Any, other: Any) -> list[Any]:
    try:
        leaves = treedef.flatten_up_to(other)
    except ValueError:
        raise ValueError(complaint(where, "trees", "have one structure", first_difference(tree, other))) from None
    for number, (leaf, mine) in enumerate(zip(leaves, jax.tree.leaves(tree, is_leaf=none_is_leaf), strict=True)):
        if mine is not None and (leaf is None or isinstance(leaf, dict | list | tuple)):
            path = leaf_paths(tree)[number]
            got = "None" if leaf is None else f"a {type(leaf).__name__}"
            raise ValueError(complaint(where, f"trees at {path!r}", "have an array each", got))
    return leaves


@functools.cache
def _low(dtype: Any) -> bool:
    """Whether arithmetic is done in another dtype and rounded once."""
    return bool(jnp.issubdtype(dtype, jnp.inexact)) and compute_dtype(dtype) != dtype


def in_compute_dtype(function: Callable[..., Any], *leaves: Any) -> Any:
    """A function of some leaves, in float32 where they are of half precision, and rounded once."""
    if not any([_low(dtype_of(x)) for x in leaves]):
        return function(*leaves)
    dtype = jnp.result_type(*leaves)
    wide = compute_dtype(dtype)
    return function(*(jnp.asarray(x).astype(wide) for x in leaves)).astype(dtype)


def add(tree_x: Any, tree_y: Any, *other_trees: Any) -> Any:
    """The sum of two trees and more: x + y + …, leaf by leaf.

    In float32 where leaves are of half precision, and rounded once. What holds for all arithmetic here: dtypes are
    promoted as `jnp` does by default; None in the first tree stays None; leaves have one shape, or are scalars.

    Raises:
      ValueError: trees or leaves of another shape, by the path.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.add({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])})
      {'w': Array([4., 6.], dtype=float32)}

    Differs from: optax, which broadcasts leaves against each other and rounds after every tree.
    """
    if not other_trees:  # one rounding as it is
        return over_leaves("tree.add", operator.add, tree_x, tree_y)

    def total(*leaves: Any) -> Any:
        return functools.reduce(operator.add, leaves)

    return over_leaves("tree.add", functools.partial(in_compute_dtype, total), tree_x, tree_y, *other_trees)


def sub(tree_x: Any, tree_y: Any) -> Any:
    """The difference of two trees: x − y, leaf by leaf; see `add`."""
    return over_leaves("tree.sub", operator.sub, tree_x, tree_y)


def mul(tree_x: Any, tree_y: Any) -> Any:
    """The product of two trees: x · y, leaf by leaf; see `add`."""
    return over_leaves("tree.mul", operator.mul, tree_x, tree_y)


def div(tree_x: Any, tree_y: Any) -> Any:
    """The quotient of two trees: x / y, leaf by leaf; see `add`."""
    return over_leaves("tree.div", operator.truediv, tree_x, tree_y)


class _Factor:
    """A scalar that changes no floating dtype: cast once for each dtype that it meets, at least to float32."""

    def __init__(self, where: str, scalar: Any):
        if jnp.shape(scalar) != ():
            got = f"shape {jnp.shape(scalar)}"
            raise ValueError(complaint(where, "scalar", "be a scalar", got, "multiply by a tree with lo.tree.mul"))
        self._scalar, self._cast = scalar, {}

    def times(self, x: Any) -> Any:
        """The product in compute dtype; of an integer, or of something real and complex, what `jnp` makes of it."""
        dtype = dtype_of(x)
        if dtype not in self._cast:
            self._cast[dtype] = self._beside(dtype)
        return self._cast[dtype] * (x.astype(compute_dtype(dtype)) if _low(dtype) else x)

    def _beside(self, dtype: Any) -> Any:
        kinds = jnp.complexfloating if is_complex(self._scalar) else jnp.inexact
        return jnp.asarray(self._scalar).astype(compute_dtype(dtype)) if jnp.issubdtype(dtype, kinds) else self._scalar


def scale(scalar: Any, tree: Any) -> Any:
    """A tree times a scalar: c · x.

    Floating and complex leaves keep their dtype, whatever the scalar's: half precision is multiplied in float32 and
    rounded once. An integer leaf times a float becomes a float.

    Raises:
      ValueError: an array with axes for a scalar.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.scale(0.5, {"w": jnp.array([1.0, 2.0]), "frozen": None})
      {'frozen': None, 'w': Array([0.5, 1. ], dtype=float32)}

    Differs from: optax, where a float32 array makes bfloat16 leaves float32, and a number is rounded to bfloat16.
    """
    factor = _Factor("tree.scale", scalar)

    def scaled(x: Any) -> Any:
        product = factor.times(x)
        return product.astype(dtype_of(x)) if _low(dtype_of(x)) and not is_complex(product) else product

    return over_leaves("tree.scale", scaled, tree)


def add_scale(tree_x: Any, scalar: Any, tree_y: Any) -> Any:
    """A tree plus a multiple of another: x + c · y, leaf by leaf.

    The scalar changes no dtype, as in `scale`; half precision is rounded once; see `add` for the rest.
    """
    factor = _Factor("tree.add_scale", scalar)

    def added(x: Any, y: Any) -> Any:
        return x + factor.times(y)

    return over_leaves("tree.add_scale", functools.partial(in_compute_dtype, added), tree_x, tree_y)


def conj(tree: Any) -> Any:
    """The complex conjugate of every leaf."""
    return over_leaves("tree.conj", jnp.conj, tree)


def real(tree: Any) -> Any:
    """The real part of every leaf."""
    return over_leaves("tree.real", jnp.real, tree)


def clip(tree: Any, min_value: Any = None, max_value: Any = None) -> Any:
    """Every element brought between two bounds; every leaf keeps its dtype.

        u = min(max(x, a), b)

    NaN stays NaN. An integer goes to the next integer within the bounds.

    Args:
      tree: a tree of real arrays.
      min_value: a, a scalar, or None for no bound.
      max_value: b, likewise.

    Differs from: optax, where a bound changes the dtype of integers and of half precision.
    """
    below, above = (None if bound is None else jnp.asarray(bound) for bound in (min_value, max_value))

    def within(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        if is_trainable(x):
            return jnp.clip(x, *(None if bound is None else bound.astype(x.dtype) for bound in (below, above)))
        # a comparison, since an infinity is no integer
        x = x if below is None else jnp.where(x < below, jnp.ceil(below).astype(x.dtype), x)
        return x if above is None else jnp.where(x > above, jnp.floor(above).astype(x.dtype), x)

    return over_leaves("tree.clip", within, tree)


def where(condition: Any, tree_x: Any, tree_y: Any) -> Any:
    """One tree or the other: x where the condition holds, else y, leaf by leaf.

    Args:
      condition: a scalar bool, or an array that broadcasts against every leaf.
      tree_x: what is taken where it is true.
      tree_y: what is taken where it is false.
    """
    return over_leaves("tree.where", functools.partial(jnp.where, condition), tree_x, tree_y)
