"""Trees like another one: constants, casts, random numbers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import complaint, default_float, dtype_of, leaf_paths, none_is_leaf, standard_promotion
from lossopt_jax.transforms.tree._arithmetic import over_leaves


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """A tree of zeros with the shapes of another one, and its dtypes unless one is given."""
    return full_like(tree, 0, dtype)


def ones_like(tree: Any, dtype: Any = None) -> Any:
    """A tree of ones with the shapes of another one, and its dtypes unless one is given."""
    return full_like(tree, 1, dtype)


def full_like(tree: Any, fill_value: Any, dtype: Any = None) -> Any:
    """A tree of one value with the shapes of another one, and its dtypes unless one is given.

    Args:
      tree: a tree of arrays, or of shapes (`jax.ShapeDtypeStruct`).
      fill_value: what to fill with.
      dtype: of all leaves, or None for their own.
    """

    def filled(x: Any) -> jax.Array:
        return jnp.full_like(x, fill_value, dtype=dtype or dtype_of(x))

    return over_leaves("tree.full_like", filled, tree)


def batch_shape(tree: Any, shape: tuple[int, ...] = ()) -> Any:
    """Every leaf repeated along new leading axes: [...] → [*shape, ...]."""
    return over_leaves("tree.batch_shape", lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), tree)


def cast(tree: Any, dtype: Any) -> Any:
    """Every leaf in one dtype; None for no cast.

    Differs from: optax, whose leaves must be arrays.
    """
    return tree if dtype is None else over_leaves("tree.cast", lambda x: jnp.asarray(x).astype(dtype), tree)


def cast_like(tree: Any, other_tree: Any) -> Any:
    """Every leaf in the dtype of its counterpart in another tree, if that has one.

    Raises:
      ValueError: trees of another structure, by the path.
    """

    def cast_to(x: Any, other: Any) -> Any:
        return jnp.asarray(x).astype(other.dtype) if hasattr(other, "dtype") else x

    return over_leaves("tree.cast_like", cast_to, tree, other_tree, one_shape=False)


def dtype(tree: Any, mixed_dtype_handler: str | None = None) -> Any:
    """The dtype of a tree; of an empty one JAX's default float.

    Args:
      tree: a tree of arrays.
      mixed_dtype_handler: None for the one that all leaves share; "promote" for the one that holds them all, as
        `jnp` promotes; "highest" or "lowest" for that leaf's to which all others promote, or which promotes to them.

    Raises:
      ValueError: leaves that share none, by the path; or "highest" and "lowest" where neither of two promotes to
        the other.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.dtype([jnp.zeros(2, jnp.bfloat16), jnp.zeros(2)], "highest")
      dtype('float32')
    """
    known = (None, "promote", "highest", "lowest")
    if mixed_dtype_handler not in known:
        raise ValueError(
            complaint("tree.dtype", "mixed_dtype_handler", f"be among {known}", f"{mixed_dtype_handler!r}")
        )
    dtypes = [dtype_of(x) for x in jax.tree.leaves(tree)]
    if not dtypes:
        return jnp.dtype(default_float())
    if mixed_dtype_handler is None:
        other = next((n for n, own in enumerate(dtypes) if own != dtypes[0]), None)
        if other is not None:
            leaves = zip(leaf_paths(tree), jax.tree.leaves(tree, is_leaf=none_is_leaf), strict=True)
            paths = [path for path, x in leaves if x is not None]
            must = f"be {dtypes[0]} like the one at {paths[0]!r}"
            remedy = 'say mixed_dtype_handler="promote", "highest" or "lowest"'
            raise ValueError(complaint("tree.dtype", f"the leaf at {paths[other]!r}", must, dtypes[other], remedy))
        return dtypes[0]

    def chosen(left: Any, right: Any) -> Any:
        with standard_promotion():
            both = jnp.promote_types(left, right)
        if mixed_dtype_handler != "promote" and both not in (left, right):
            raise ValueError(complaint("tree.dtype", "leaves", "promote to one another", f"{left} and {right}"))
        return both if mixed_dtype_handler != "lowest" else right if both == left else left

    return functools.reduce(chosen, dtypes)


def split_key_like(rng_key: jax.Array, target_tree: Any) -> Any:
    """One key per leaf, split off a key; None stays None."""
    leaves, treedef = jax.tree.flatten(target_tree)
    return treedef.unflatten(jax.random.split(rng_key, len(leaves)))


def random_like(
    rng_key: jax.Array, target_tree: Any, sampler: Callable[..., Any] = jax.random.normal, dtype: Any = None
) -> Any:
    """A tree of random numbers with the shapes of another one.

    Args:
      rng_key: a key of `jax.random`; each leaf has its own, as `split_key_like` makes them.
      target_tree: a tree of arrays, or of shapes (`jax.ShapeDtypeStruct`).
      sampler: (key, shape, dtype) → array.
      dtype: of all leaves, or None for their own.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.random_like(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
      (2, 3)
    """
    keys = iter(jax.random.split(rng_key, len(jax.tree.leaves(target_tree))))

    def sample(x: Any) -> Any:
        return sampler(next(keys), getattr(x, "shape", ()), dtype or dtype_of(x))

    return over_leaves("tree.random_like", sample, target_tree)


def unwrap_random_key_data(input_tree: Any) -> Any:
    """A tree whose keys of `jax.random` are replaced by their bits, so that it can be compared or saved."""

    def bits(x: Any) -> Any:
        wrapped = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if wrapped else x

    return over_leaves("tree.unwrap_random_key_data", bits, input_tree)
