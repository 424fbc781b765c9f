"""Transforms on a part of the tree. A leaf outside a group is None inside it: no slots, no work."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from lossopt_jax._core import complaint, is_trainable, leaf_paths, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, Met, PartitionState, as_member
from lossopt_jax.transforms._paths import ByPath, chosen_by, is_pattern
from lossopt_jax.transforms._registry import registry


def _spread(where: str, prefix: Any, tree: Any) -> list[Any]:
    """A label or mask per leaf, from a function of the tree or a tree prefix of it."""
    if isinstance(prefix, ByPath):
        return prefix.labels(tree)
    if callable(prefix) and jax.tree_util.all_leaves([prefix]):  # a module with parameters is a tree, never called
        prefix = prefix(tree)
    structure = jax.tree.structure(tree, is_leaf=none_is_leaf)
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, tree, is_leaf=none_is_leaf), is_leaf=none_is_leaf)
    except ValueError:
        remedy = "give one value per leaf or subtree, or a function of the parameters"
        raise ValueError(complaint(where, "the tree", f"be a prefix of {structure}", prefix, remedy)) from None


def _chosen(where: str, mask: Any, tree: Any) -> list[bool]:
    return chosen_by(where, mask, tree) if is_pattern(mask) else [bool(keep) for keep in _spread(where, mask, tree)]


def _keep(tree: Any, chosen: list[bool]) -> Any:
    leaves, treedef = jax.tree.flatten(tree, is_leaf=none_is_leaf)
    return jax.tree.unflatten(treedef, [leaf if keep else None for leaf, keep in zip(leaves, chosen, strict=True)])


def _merge(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=none_is_leaf)


def _extra_of(extra: dict[str, Any], params: Any) -> dict[str, Any]:
    """Extra arguments for a group: a function of all parameters becomes one of the group's, the others held still."""
    if params is None or extra.get("value_fn") is None:
        return extra
    value_fn = extra["value_fn"]
    return extra | {"value_fn": lambda kept: value_fn(_merge(kept, params))}


def _walk(transformation: GradientTransformation) -> Iterator[GradientTransformation]:
    yield transformation
    for member in transformation._members():
        yield from _walk(member)


def _group_member(where: str, candidate: Any) -> GradientTransformation:
    member = as_member(where, candidate)
    for part in _walk(member):
        if "global_statistic" in part._flags and not dict(part.arguments).get("per_group", False):
            remedy = f"put {part.name} in a chain before {where}, or say {part.name}(…, per_group=True)"
            got = "the norm of one group only"
            raise ValueError(complaint(where, part.name, "see the whole tree", got, remedy))
    return member


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Masked(GradientTransformation):
    """The inner transform on some leaves; its state and its name are the inner one's."""

    inner: GradientTransformation
    mask: Any

    @property
    def name(self) -> str:
        return self.inner.name

    def _members(self) -> tuple[GradientTransformation, ...]:
        return (self.inner,)

    def _met_by(self, params: Any) -> list[tuple[Met, ...]] | None:
        chosen = self._chosen(params)
        met = self.inner._met_by(_keep(params, chosen))
        return met and [own if keep else () for own, keep in zip(met, chosen, strict=True)]

    def _chosen(self, tree: Any) -> list[bool]:
        return _chosen("masked", self.mask, tree)

    def _rebuilt(self, inner: GradientTransformation, chosen: Any) -> GradientTransformation:
        """The same around another transform, for leaves that are chosen already."""
        return dataclasses.replace(self, inner=inner, mask=chosen)

    def _init(self, params: Any) -> Any:
        return self.inner._init(_keep(params, self._chosen(params)))

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        chosen = self._chosen(updates if params is None else params)
        kept = None if params is None else _keep(params, chosen)
        inside, state = self.inner._run(_keep(updates, chosen), state, kept, _extra_of(extra, params))
        return _merge(inside, _keep(updates, [not keep for keep in chosen])), state

    def __repr__(self) -> str:
        return f"masked({self.inner!r}, {self.mask!r})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Selective(Masked):
    """The inner transform on some leaves, and nothing for the others."""

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        chosen = self._chosen(updates if params is None else params)
        kept = None if params is None else _keep(params, chosen)
        return self.inner._run(_keep(updates, chosen), state, kept, _extra_of(extra, params))

    def _chosen(self, tree: Any) -> list[bool]:
        return [not frozen for frozen in _chosen("selective_transform", self.mask, tree)]

    def _rebuilt(self, inner: GradientTransformation, chosen: Any) -> GradientTransformation:
        return super()._rebuilt(inner, jax.tree.map(lambda trained: not trained, chosen))

    def __repr__(self) -> str:
        return f"selective_transform({self.inner!r}, freeze_mask={self.mask!r})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Freeze(GradientTransformation):
    """No updates for some leaves."""

    mask: Any

    def _frozen(self, tree: Any) -> list[bool]:
        return _chosen("freeze", self.mask, tree)

    def _init(self, params: Any) -> tuple[()]:
        self._frozen(params)  # which may refuse
        return ()

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        frozen = self._frozen(updates if params is None else params)
        return _keep(updates, [not one for one in frozen]), state


@registry.register()
def masked(inner: Any, mask: Any) -> GradientTransformation:
    """Apply a transform to some leaves; the others pass through **unchanged**, as raw gradients.

    That is what a chain needs (weight decay on matrices only) and not what freezing means: a masked-out gradient that
    reaches `apply_updates` is added to its parameter. To leave leaves alone give them None gradients, or a label of
    their own in `partition`.

    Args:
      inner: a transform.
      mask: a tree of bools or a prefix of one, or a function of the parameters that returns it, which may look at
        structure, shapes and dtypes and is evaluated while tracing. Or path patterns, a string, a compiled
        `re.Pattern` or a tuple of those (see `by_path`): `"*/kernel"`.

    Raises:
      ValueError: the mask is no prefix of the parameters' tree, a pattern matches nothing, or `inner` holds a rule that
        must see the whole tree.

    Source: the same meaning as optax's `masked`.
    """
    return Masked(_group_member("masked", inner), mask)


@registry.register()
def selective_transform(optimizer: Any, *, freeze_mask: Any) -> GradientTransformation:
    """Train some parameters and leave the others as they are, without slots and without work.

    Args:
      optimizer: what trains the others.
      freeze_mask: the frozen leaves, as the mask of `masked`: `"encoder/*"`.

    Raises:
      ValueError: as `masked`.

    Example:
      >>> import lossopt_jax as lo
      >>> tx = lo.transforms.selective_transform(lo.optimizers.adam(0.1), freeze_mask="encoder/*")
      >>> lo.get_slot(tx.init({"encoder": {"w": 1.0}, "head": 0.0}), "mu")
      {'encoder': {'w': None}, 'head': Array(0., dtype=float32)}

    Differs from: optax, whose masked leaves hold a MaskedNode, and whose rule is wherever it is put in a chain.
    """
    return Selective(_group_member("selective_transform", optimizer), freeze_mask)


@registry.register()
def freeze(mask: Any) -> GradientTransformation:
    """No updates for some leaves, whatever stands before or behind it in a chain.

    First in a chain it spares the others the work; `selective_transform` spares their memory too.

    Args:
      mask: the frozen leaves, as the mask of `masked`: `"*/bias"`.

    Raises:
      ValueError: as `masked`.

    Differs from: optax, where weight decay behind it in a chain moves frozen leaves.
    """
    return Freeze(mask)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Partition(GradientTransformation):
    """One transform per label."""

    labels_of: Any
    groups: tuple[tuple[str, GradientTransformation], ...]

    def _members(self) -> tuple[GradientTransformation, ...]:
        return tuple(member for _, member in self.groups)

    def _met_by(self, params: Any) -> list[tuple[Met, ...]] | None:
        labels, met = self._labels(params), {}
        for label, member in self.groups:
            inside = member._met_by(_keep(params, [own == label for own in labels]))
            if inside is None:
                return None
            met[label] = inside
        return [tuple(m.inside(label) for m in met[label][i]) if label in met else () for i, label in enumerate(labels)]

    def _labels(self, tree: Any) -> list[Any]:
        labels = _spread("partition", self.labels_of, tree)
        known = {label for label, _ in self.groups}
        leaves = jax.tree.leaves(tree, is_leaf=none_is_leaf)
        for path, leaf, label in zip(leaf_paths(tree), leaves, labels, strict=True):
            if is_trainable(leaf) and label not in known:
                where = f"the label of {path!r}"
                raise ValueError(complaint("partition", where, f"be among {sorted(map(str, known))}", repr(label)))
        return labels

    def _init(self, params: Any) -> PartitionState:
        labels = self._labels(params)
        return PartitionState(
            {label: member._init(_keep(params, [own == label for own in labels])) for label, member in self.groups}
        )

    def _run(
        self, updates: Any, state: PartitionState, params: Any, extra: dict[str, Any]
    ) -> tuple[Any, PartitionState]:
        labels = self._labels(updates if params is None else params)
        result, groups, extra = _keep(updates, [False] * len(labels)), {}, _extra_of(extra, params)
        for label, member in self.groups:
            chosen = [own == label for own in labels]
            kept = None if params is None else _keep(params, chosen)
            inside, groups[label] = member._run(_keep(updates, chosen), state.groups[label], kept, extra)
            result = _merge(result, inside)
        return result, PartitionState(groups)

    def __repr__(self) -> str:
        return f"partition({dict(self.groups)!r}, {self.labels_of!r})"


@registry.register("multi_transform")
def partition(transformations: Mapping[str, Any], param_labels: Any) -> GradientTransformation:
    """Apply one transform per group of parameters.

    Args:
      transformations: label → transform.
      param_labels: a tree of labels or a prefix of one, or a function of the parameters that returns it, such as
        `by_path({"*/bias": "slow", "*": "fast"})`. A label for all parameters needs no tree.

    Raises:
      ValueError: a leaf with a label that has no transform (the message names its path), or a rule that means the
        whole tree, such as a global norm, inside a group without `per_group=True`.

    Example:
      >>> import lossopt_jax as lo
      >>> sgd = lo.optimizers.sgd
      >>> tx = lo.partition({"fast": sgd(0.1), "slow": sgd(0.01)}, {"w": "slow", "b": "fast"})
      >>> sorted(lo.get_hyperparams(tx.init({"w": 1.0, "b": 0.0})))
      ['fast/learning_rate', 'slow/learning_rate']
    """
    if not isinstance(transformations, Mapping):
        raise TypeError(complaint("partition", "transformations", "map labels to transforms", f"{transformations!r}"))
    groups = tuple((label, _group_member("partition", member)) for label, member in transformations.items())
    return Partition(param_labels, groups)
