"""Walking pytrees in which a leaf may be an array, None, or an object that is none of our business."""

from collections.abc import Callable
from typing import Any

import jax

from lossopt_jax._core._checks import complaint
from lossopt_jax._core._dtypes import dtype_of, is_array_like, is_complex, is_trainable


def none_is_leaf(node: Any) -> bool:
    return node is None


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_paths(tree: Any) -> list[str]:
    """Readable paths of the leaves, None included: `"layers/0/kernel"`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=none_is_leaf)
    return ["/".join(_key_name(key) for key in path) for path, _ in leaves]


def map_arrays(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply to the array leaves of `tree`; None and foreign objects stay as they are."""
    return jax.tree.map(
        lambda leaf, *others: (
            function(leaf, *others) if is_array_like(leaf) and all(other is not None for other in others) else leaf
        ),
        tree,
        *rest,
        is_leaf=none_is_leaf,
    )


def check_real_leaves(where: str, tree: Any, remedy: str) -> None:
    """Refuse a tree with a leaf that is neither None nor a real floating array.

    Raises:
      TypeError: such a leaf, by its path.
    """
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree, is_leaf=none_is_leaf), strict=True):
        if leaf is not None and (not is_trainable(leaf) or is_complex(leaf)):
            got = dtype_of(leaf) if is_array_like(leaf) else repr(leaf)
            raise TypeError(complaint(where, f"the leaf at {path!r}", "be a real floating array", got, remedy))


def first_difference(expected: Any, given: Any) -> str:
    """Says where two trees part: the first path that only one of them has, else both structures."""
    left, right = leaf_paths(expected), leaf_paths(given)
    missing = [path for path in left if path not in set(right)]
    surplus = [path for path in right if path not in set(left)]
    if missing:
        return f"nothing at {missing[0]!r}"
    if surplus:
        return f"an unexpected leaf at {surplus[0]!r}"
    return f"the structure {jax.tree.structure(given)} for {jax.tree.structure(expected)}"
