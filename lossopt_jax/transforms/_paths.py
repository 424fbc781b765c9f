"""Groups of parameters by where they lie in the tree: labels and masks from paths, shapes and dtypes alone."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import complaint, dtype_of, is_trainable, leaf_paths, none_is_leaf

_SHOWN = 8


def _matches(pattern: str | re.Pattern[str], path: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) if isinstance(pattern, str) else bool(pattern.search(path))


def is_pattern(candidate: Any) -> bool:
    """A pattern, or a tuple of some."""
    if isinstance(candidate, tuple):
        return bool(candidate) and all(map(is_pattern, candidate))
    return isinstance(candidate, str | re.Pattern)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(repr, paths[:_SHOWN])) + more


def _shown(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)


def _check_used(where: str, patterns: Any, used: set[Any], paths: list[str]) -> None:
    for pattern in patterns:
        if pattern not in used:
            must = "match a parameter that no earlier one takes"
            raise ValueError(complaint(where, f"the pattern {_shown(pattern)}", must, f"the paths {_listed(paths)}"))


def chosen_by(where: str, patterns: Any, tree: Any) -> list[bool]:
    """Of each leaf, whether some pattern matches its path."""
    patterns = patterns if isinstance(patterns, tuple) else (patterns,)
    paths = leaf_paths(tree)
    matched = [{pattern for pattern in patterns if _matches(pattern, path)} for path in paths]
    _check_used(where, patterns if paths else (), set().union(*matched), paths)
    return list(map(bool, matched))


@dataclasses.dataclass(frozen=True)
class ByPath:
    """Labels of a tree's leaves; see `by_path`."""

    rules: tuple[tuple[str | re.Pattern[str], Any], ...] | Callable[[str, jax.ShapeDtypeStruct], Any]

    def __call__(self, tree: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=none_is_leaf), self.labels(tree))

    def labels(self, tree: Any) -> list[Any]:
        """A label per leaf; None for what cannot be trained."""
        leaves, paths = jax.tree.leaves(tree, is_leaf=none_is_leaf), leaf_paths(tree)
        if callable(self.rules):
            return [
                self.rules(path, jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf))) if is_trainable(leaf) else None
                for path, leaf in zip(paths, leaves, strict=True)
            ]
        first = [self._first(path) for path in paths]
        _check_used("by_path", dict(self.rules) if paths else (), {pattern for pattern, _ in first}, paths)
        free = [
            path for path, leaf, (p, _) in zip(paths, leaves, first, strict=True) if is_trainable(leaf) and p is None
        ]
        if free:
            raise ValueError(
                complaint("by_path", "a pattern", "match each leaf", f"none for {_listed(free)}", 'add "*"')
            )
        return [label for _, label in first]

    def _first(self, path: str) -> tuple[Any, Any]:
        return next((rule for rule in self.rules if _matches(rule[0], path)), (None, None))


def by_path(rules: Mapping[str | re.Pattern[str], Any] | Callable[[str, jax.ShapeDtypeStruct], Any]) -> ByPath:
    """Label parameters by their paths: for `partition`, `masked`, `freeze`, or optax's functions of that kind.

    A path is the keys on the way to a leaf, "encoder/layers/0/kernel". A string is a glob for the whole path, in which
    `*` is any run of characters, slashes included, `?` one character and `[ab]` one of some; a compiled `re.Pattern` is
    searched for. The first pattern that matches gives the label.

    Args:
      rules: pattern → label, in order; or a function (path, ShapeDtypeStruct) → label. Only leaves that can be
        trained are looked at, and nothing in the tree is called.

    Returns:
      A function of a tree that gives the tree of labels; two with equal rules are equal.

    Raises:
      ValueError: when used: a pattern that labels nothing, or a leaf without a label; the message lists paths.

    Example:
      >>> import lossopt_jax as lo
      >>> params = {"dense": {"kernel": 1.0, "bias": 0.0}, "scale": 1.0}
      >>> lo.by_path({"*/kernel": "matrix", "*": "rest"})(params)
      {'dense': {'bias': 'rest', 'kernel': 'matrix'}, 'scale': 'rest'}
    """
    if isinstance(rules, Mapping):
        for pattern in rules:
            if not is_pattern(pattern) or isinstance(pattern, tuple):
                raise TypeError(complaint("by_path", "patterns", "be strings or compiled", repr(pattern)))
        return ByPath(tuple(rules.items()))
    if not callable(rules):
        must = "map patterns to labels or be a function (path, shape and dtype) → label"
        raise TypeError(complaint("by_path", "rules", must, repr(rules)))
    return ByPath(rules)
