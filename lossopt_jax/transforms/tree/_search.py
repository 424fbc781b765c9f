"""Finding and replacing parts of any tree by name: states of this library, of others, nested in anything."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lossopt_jax._core import complaint
from lossopt_jax.transforms._base import Hyperparameter
from lossopt_jax.transforms._hyperparams import _pinned


@dataclasses.dataclass(frozen=True)
class NamedTupleKey:
    """A step of a path into a NamedTuple: the names of its type and of the field."""

    tuple_name: str
    name: str

    def __str__(self) -> str:
        return f"{self.tuple_name}.{self.name}"


_Path = tuple[Any, ...]
_Filter = Callable[[_Path, Any], bool]


def _is_named(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """What lies directly in a node, with the step to it; and how the node is made of it."""
    entries, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inside: inside is not node)
    steps = [path[0] if path else None for path, _ in entries]
    if _is_named(node):
        steps = [NamedTupleKey(type(node).__name__, step.name) for step in steps]
    return [(step, child) for step, (_, child) in zip(steps, entries, strict=True) if step is not None], treedef


def _name(step: Any) -> Any:
    return getattr(step, "name", getattr(step, "key", getattr(step, "idx", None)))


def _readable(path: _Path) -> str:
    return "/".join(str(_name(step)) for step in path)


def _matches(key: Any, path: _Path, node: Any) -> bool:
    """Whether a key says the node's type, or the end of its path: one name, or several with slashes between."""
    if _is_named(node) and type(node).__name__ == key:
        return True
    if not path or isinstance(path[-1], jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey):
        return False
    if not isinstance(key, str):
        return _name(path[-1]) == key
    names = [str(_name(step)) for step in path]
    return any("/".join(names[start:]) == key for start in range(len(names)))


def _found(node: Any, key: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    if _matches(key, path, node):
        yield path, node.value if isinstance(node, Hyperparameter) else node
    if not isinstance(node, Hyperparameter):
        for step, child in _children(node)[0]:
            yield from _found(child, key, (*path, step))


def get_all_with_path(tree: Any, key: Any, filtering: _Filter | None = None) -> list[tuple[_Path, Any]]:
    """All parts of a tree that a key names, with their paths.

    Args:
      tree: any tree, such as a state.
      key: a field of a NamedTuple or of another node with attributes, a key of a dict, the name of a NamedTuple's
        type; or the end of a path, with slashes between the names, "scale_by_adam/slots/mu". A hyperparameter of this
        library is found as its value.
      filtering: (path, value) → whether it counts, or None.

    Returns:
      A list of (path, value), outer parts before those in them. A path is made of JAX's keys, with `NamedTupleKey`
      (`tuple_name`, `name`) for fields of NamedTuples.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> state = lo.optimizers.adam(0.1).init(jnp.zeros(2))
      >>> lo.tree.get_all_with_path(state, "scale_by_adam/slots/nu")[0][1]
      Array([0., 0.], dtype=float32)
    """
    return [(path, value) for path, value in _found(tree, key) if filtering is None or filtering(path, value)]


def get(tree: Any, key: Any, default: Any = None, filtering: _Filter | None = None) -> Any:
    """The one part of a tree that a key names, or a default.

    Args:
      tree: any tree, such as a state.
      key: see `get_all_with_path`.
      default: what is returned if nothing is found.
      filtering: (path, value) → whether it counts, or None.

    Raises:
      KeyError: several parts; the message lists their paths.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.get(lo.optimizers.adam(0.5).init(jnp.zeros(2)), "learning_rate")
      Array(0.5, dtype=float32)
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        paths = [_readable(path) for path, _ in found]
        raise KeyError(complaint("tree.get", "key", "name one part", f"{key!r} for {paths}", "say more of the path"))
    return found[0][1] if found else default


def set(tree: Any, filtering: _Filter | None = None, /, **kwargs: Any) -> Any:
    """A tree with other values for all parts that some keys name.

    A hyperparameter of this library is pinned to its value, and released by None, as `set_hyperparams` does.

    Args:
      tree: any tree, such as a state; it stays as it is.
      filtering: (path, value) → whether it counts, or None.
      **kwargs: key → new value; see `get_all_with_path`. A path goes as `**{"scale_by_adam/slots/mu": zeros}`.

    Raises:
      KeyError: a key that names nothing, or nothing that passes the filter.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> state = lo.tree.set(lo.optimizers.adam(0.5).init(jnp.zeros(2)), learning_rate=0.25)
      >>> lo.tree.get(state, "learning_rate")
      Array(0.25, dtype=float32)

    Differs from: optax, which misses what lies in a list beside a part that is replaced.
    """
    for key in kwargs:
        if not get_all_with_path(tree, key, filtering):
            names = sorted({str(_name(path[-1])) for path in _paths(tree)})
            must = "name a part" if filtering is None else "name a part that passes the filter"
            raise KeyError(complaint("tree.set", "keys", must, f"{key!r}, where there are {names}"))

    def replaced(node: Any, path: _Path = ()) -> Any:
        ours = isinstance(node, Hyperparameter)
        for key, value in kwargs.items():
            if _matches(key, path, node) and (filtering is None or filtering(path, node.value if ours else node)):
                return _pinned(node, value) if ours else value
        children, treedef = _children(node)
        return node if ours or not children else treedef.unflatten([replaced(x, (*path, step)) for step, x in children])

    return replaced(tree)


def _paths(node: Any, path: _Path = ()) -> Iterator[_Path]:
    if path and not isinstance(path[-1], jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey):
        yield path
    if not isinstance(node, Hyperparameter):
        for step, child in _children(node)[0]:
            yield from _paths(child, (*path, step))
