"""Small leaves side by side: their slots in a few flat arrays, and one run of the rules for all leaves of a group."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    COUNT,
    as_compute,
    check_scalar,
    complaint,
    compute_dtype,
    dtype_of,
    is_complex,
    is_trainable,
    map_arrays,
    none_is_leaf,
)
from lossopt_jax.kernels import loaded
from lossopt_jax.transforms._base import GradientTransformation, as_member
from lossopt_jax.transforms._chain import Chain
from lossopt_jax.transforms._groups import Freeze, Masked, Partition, _keep
from lossopt_jax.transforms._lift import RuleTransformation, WrapperTransformation
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Extent, Rule

# Wrappers whose arithmetic on trees is elementwise or sums over all leaves, so that where a leaf ends is not seen.
_WRAPPERS = ("gpa", "hypergradient", "lookahead", "mechanize", "sam", "schedule_free")


_FEW = 16  # leaves that a flat concatenation may join


class Packed(NamedTuple):
    """A tree of parameters, packed: the tree itself, None where a leaf is in a group, and the flat groups."""

    whole: Any
    packed: tuple[Any, ...]


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _common_dtype(leaves: list[Any]) -> Any:
    dtypes = {dtype_of(leaf) for leaf in leaves}
    return dtypes.pop() if len(dtypes) == 1 else compute_dtype(dtypes.pop())


def _stored_like(leaf: Any, parameter: Any) -> Any:
    return leaf.astype(dtype_of(parameter)) if is_trainable(parameter) else leaf


def _joined(parts: list[Any], shapes: list[tuple[int, ...]], dtype: Any = None) -> Any:
    """Leaves end to end along the axes of their parameters; any axes in front of those stay."""
    if any(part is None for part in parts):
        return None
    if any(isinstance(part, jax.ShapeDtypeStruct) for part in parts):
        return jax.ShapeDtypeStruct((sum(map(math.prod, shapes)),), dtype)
    arrays = [jnp.asarray(part, dtype) for part in parts]
    if len({array.dtype for array in arrays}) > 1:
        arrays = list(map(as_compute, arrays))
    fronts = [array.shape[: array.ndim - len(shape)] for array, shape in zip(arrays, shapes, strict=True)]
    flat = [
        jax.lax.reshape(array, (*front, math.prod(shape)))
        for array, front, shape in zip(arrays, fronts, shapes, strict=True)
    ]
    return _concatenated(flat, len(fronts[0]))


def _concatenated(arrays: list[jax.Array], axis: int) -> jax.Array:
    """One concatenation of a few concatenations, kept apart by a barrier.

    XLA:CPU turns that into a loop, of which equal groups share the code; a flat one becomes straight code for every
    group anew, whose compile time grows with the square of its length.
    """
    if len(arrays) < _FEW:
        return jax.lax.concatenate(arrays, axis)
    pieces = [jax.lax.concatenate(arrays[i : i + _FEW // 2], axis) for i in range(0, len(arrays), _FEW // 2)]
    return jax.lax.concatenate(jax.lax.optimization_barrier(pieces), axis)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which leaves of a tree lie in which group, in order, and each one's shape."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    def _pieces(self, group: int, flat: Any) -> Iterator[tuple[int, Any]]:
        """The leaves of a group, cut out of its array."""
        start = 0
        for index in self.groups[group]:
            shape, size = self.shapes[index], math.prod(self.shapes[index])
            if flat is None:
                yield index, None
                continue
            piece = jax.lax.slice_in_dim(flat, start, start + size, axis=flat.ndim - 1)
            yield index, jax.lax.reshape(piece, (*flat.shape[:-1], *shape))
            start += size

    def pack(self, tree: Any, apart: frozenset[int] = frozenset(), dtypes: tuple[Any, ...] | None = None) -> Packed:
        """A tree like the parameters; the groups in `apart` are left as leaves."""
        return self._close(self.treedef.flatten_up_to(tree), (None,) * len(self.groups), apart, dtypes)

    def _close(self, leaves: list[Any], packed: tuple[Any, ...], apart: Any, dtypes: Any = None) -> Packed:
        together = list(packed)
        for number, group in enumerate(self.groups):
            if number in apart or together[number] is not None:
                continue
            parts, shapes = [leaves[i] for i in group], [self.shapes[i] for i in group]
            together[number] = _joined(parts, shapes, dtypes[number] if dtypes else None)
            for index in group:
                leaves[index] = None
        return Packed(self.treedef.unflatten(leaves), tuple(together))

    def open(self, tree: Packed, apart: frozenset[int]) -> Packed:
        """Some of the groups as leaves again."""
        leaves = self.treedef.flatten_up_to(tree.whole)
        for number in apart:
            for index, piece in self._pieces(number, tree.packed[number]):
                leaves[index] = piece
        packed = tuple(None if number in apart else flat for number, flat in enumerate(tree.packed))
        return Packed(self.treedef.unflatten(leaves), packed)

    def close(self, tree: Packed) -> Packed:
        """All groups flat again."""
        return self._close(self.treedef.flatten_up_to(tree.whole), tree.packed, ())

    def unpack(self, tree: Packed) -> Any:
        """The tree in the parameters' own structure; `tree` may have groups as leaves already."""
        flat = frozenset(number for number, flat in enumerate(tree.packed) if flat is not None)
        return self.open(tree, flat).whole

    def each(self, values: list[Any]) -> Packed:
        """One value per leaf, on which the leaves of a group agree, for a packed tree."""
        return Packed(self.treedef.unflatten(values), tuple(values[group[0]] for group in self.groups))


def _groups_of(indices: list[int], shapes: tuple[tuple[int, ...], ...], most: int) -> Iterator[tuple[int, ...]]:
    """Leaves of one shape fill groups of their own, what is left of each shape shares the rest.

    XLA compiles the kernels of equal groups once.
    """
    rest: list[int] = []
    for shape in sorted({shapes[i] for i in indices}, key=lambda shape: (math.prod(shape), shape)):
        equal = [i for i in indices if shapes[i] == shape]
        full = len(equal) // most * most
        yield from (tuple(equal[i : i + most]) for i in range(0, full, most))
        rest += equal[full:]
    yield from (tuple(rest[i : i + most]) for i in range(0, len(rest), most))


def _over_packed(function: Callable[[Packed], Any], state: Any) -> Any:
    return jax.tree.map(lambda node: function(node) if _is_packed(node) else node, state, is_leaf=_is_packed)


def _decisions(tx: GradientTransformation, params: Any) -> Iterator[list[Any]]:
    """What every mask and every label inside says of each leaf, outer ones first."""
    if isinstance(tx, Masked):
        chosen = tx._chosen(params)
        yield chosen
        yield from _decisions(tx.inner, _keep(params, chosen))
    elif isinstance(tx, Freeze):
        yield tx._frozen(params)
    elif isinstance(tx, Partition):
        labels = tx._labels(params)
        yield labels
        for label, member in tx.groups:
            yield from _decisions(member, _keep(params, [own == label for own in labels]))
    else:
        for member in tx._members():
            yield from _decisions(member, params)


def _rebuilt(tx: GradientTransformation, decisions: Iterator[list[Any]], layout: _Layout) -> GradientTransformation:
    """The same composition for packed trees: masks and labels as trees of that layout."""
    if isinstance(tx, Masked):
        mask = layout.each(next(decisions))
        return tx._rebuilt(_rebuilt(tx.inner, decisions, layout), mask)
    if isinstance(tx, Freeze):
        return Freeze(layout.each(next(decisions)))
    if isinstance(tx, Partition):
        labels = layout.each(next(decisions))
        return Partition(labels, tuple((label, _rebuilt(member, decisions, layout)) for label, member in tx.groups))
    members = tuple(_rebuilt(member, decisions, layout) for member in tx._members())
    return dataclasses.replace(tx, members=members) if members else tx


def _has_slots(tx: GradientTransformation) -> bool:
    """Whether anything would be kept packed; if not, leaves are better off alone."""
    own = isinstance(tx, RuleTransformation | WrapperTransformation) and tx.rule.slots_per("leaf")
    return bool(own) or any(map(_has_slots, tx._members()))


def _refusal(tx: GradientTransformation) -> str | None:
    """Why a member cannot run on packed leaves, if it cannot."""
    if isinstance(tx, Masked | Freeze | Partition | Chain):
        return None
    if not isinstance(tx, RuleTransformation | WrapperTransformation):
        return "a transform whose arithmetic this library does not know"
    rule: Rule = tx.rule
    if rule.lift == "leafwise" or "by_shape" in rule.flags:
        return f"a {rule.lift} rule, which sees where a leaf ends"
    if "key" in rule.needs:
        return "a rule whose random bits depend on each leaf's path"
    if rule.lift == "wrapper" and rule.name not in _WRAPPERS:
        return "a wrapper that may look at single leaves"
    for name, slot in rule.slots.items():
        axes = slot.shape((1, 1), dict(tx.arguments)) if slot.per == "leaf" and callable(slot.shape) else ()
        runs_along = isinstance(axes, tuple) and all(isinstance(axis, Extent) for axis in axes[:-2])
        if slot.shape == "leaf" or (axes not in ((), None) and not (runs_along and axes[-2:] == (0, 1))):
            return f"a rule with a slot, {name}, that is not shaped like its parameter"
    return None


def _check_packable(tx: GradientTransformation) -> None:
    reason = _refusal(tx)
    if reason:
        must, remedy = "hold elementwise and treewise rules alone", "pack the other members and chain them with it"
        raise ValueError(complaint("pack_small", "inner", must, f"{tx.name}, {reason}", remedy))
    for member in tx._members():
        _check_packable(member)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackSmall(GradientTransformation):
    """The inner transform on a packed tree; its state and its name are the inner one's."""

    inner: GradientTransformation
    max_leaf_size: int
    max_group_size: int

    @property
    def name(self) -> str:
        return self.inner.name

    def _members(self) -> tuple[GradientTransformation, ...]:
        return (self.inner,)

    def __repr__(self) -> str:
        return f"pack_small({self.inner!r}, {self.max_leaf_size}, {self.max_group_size})"

    def _plan(self, params: Any) -> tuple[_Layout, tuple[Any, ...], GradientTransformation]:
        """The layout, the dtype of each group, and the inner transform for it: from shapes, dtypes and masks alone."""
        leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
        decisions = list(_decisions(self.inner, params))
        shapes = tuple(tuple(jnp.shape(leaf)) if is_trainable(leaf) else () for leaf in leaves)
        alike: dict[Any, list[int]] = {}
        for index, leaf in enumerate(leaves):
            if is_trainable(leaf) and not is_complex(leaf) and math.prod(shapes[index]) <= self.max_leaf_size:
                # not the storage dtype: master weights run what they initialised at half precision in float32
                dtype = compute_dtype(dtype_of(leaf))
                alike.setdefault((dtype, *(each[index] for each in decisions)), []).append(index)
        runs = alike.values() if _has_slots(self.inner) else ()
        groups = [group for run in runs for group in _groups_of(run, shapes, self.max_group_size)]
        layout = _Layout(treedef, shapes, tuple(group for group in groups if len(group) > 1))
        dtypes = tuple(_common_dtype([leaves[index] for index in group]) for group in layout.groups)
        return layout, dtypes, _rebuilt(self.inner, iter(decisions), layout)

    def _init(self, params: Any) -> Any:
        layout, dtypes, inner = self._plan(params)
        state = inner._init(layout.pack(params, dtypes=dtypes))  # groups are taken apart, so they stay uncompressed
        return _over_packed(lambda tree: tree._replace(packed=loaded(tree.packed)), state)

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        if params is None:
            if jax.tree.leaves(updates):
                remedy = "call tx.update(grads, state, params)"
                raise TypeError(complaint("pack_small", "params", "be given to update", "nothing", remedy))
            params = updates
        layout, dtypes, inner = self._plan(params)
        gradients = layout.treedef.flatten_up_to(updates)
        # a leaf without a gradient keeps its slots, so its group is taken apart for this step
        trained = [{gradients[index] is not None for index in group} for group in layout.groups]
        apart = frozenset(number for number, has in enumerate(trained) if len(has) > 1)
        if apart:
            state = _over_packed(lambda tree: layout.open(tree, apart), state)
        flow, state = inner._run(
            layout.pack(updates, apart),
            state,
            layout.pack(params, apart, dtypes),
            self._extra(extra, layout, apart, params),
        )
        if apart:
            state = _over_packed(layout.close, state)
        return layout.unpack(flow), state

    def _extra(self, extra: dict[str, Any], layout: _Layout, apart: frozenset[int], params: Any) -> dict[str, Any]:
        extra = dict(extra)
        if extra.get("grad") is not None:
            extra["grad"] = layout.pack(extra["grad"], apart)
        if extra.get("value_fn") is not None:
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda packed: value_fn(map_arrays(_stored_like, layout.unpack(packed), params))
        return extra

    def unpack(self, state: Any, params: Any) -> Any:
        """A state, or one slot of it, with every leaf at its place in the tree of the parameters."""
        layout, _, _ = self._plan(params)
        return _over_packed(layout.unpack, state)


@registry.register()
def pack_small(inner: Any, max_leaf_size: int = 1024, max_group_size: int = 16) -> GradientTransformation:
    """Run a transform on small leaves side by side, in a few flat arrays instead of many small ones.

    Every leaf costs a few kernels, in each step and when compiling. Here real leaves of at most `max_leaf_size`
    elements, of one compute dtype, on which every mask and label inside agrees, are put end to end in groups; the inner
    transform sees a group as one array, and its slots are kept that way. Other leaves, groups of one, and complex
    ones stay as they are, and so do all leaves under rules that remember nothing. States and updates hold the same
    values as without (sums over the tree add up in another order). Equal leaves share a group, so that their kernels
    are compiled once.

    Not the default: slots lie under other paths (a checkpoint is of one layout), and leaves that are sharded, which
    cannot be seen under `jit`, would be gathered into their group: keep those larger than `max_leaf_size`.
    `get_slot(state, "mu")` is a pair `whole`, the parameters' tree with None for the leaves in groups, and `packed`,
    the flat groups; `tx.unpack(slot_or_state, params)` puts every leaf back at its place. `update` needs the
    parameters. A leaf without a gradient takes its group apart for that step and keeps its slots.

    Args:
      inner: elementwise and treewise rules, in chains, masks, partitions and wrappers that look at no single leaf.
      max_leaf_size: an integer ≥ 1, in elements.
      max_group_size: an integer ≥ 1, in leaves. Larger groups take fewer kernels and longer to compile.

    Raises:
      ValueError: `inner` holds a rule that sees where a leaf ends (leafwise, one slot per leaf, random bits by path),
        another library's transform, or one that must be outermost: those go around or beside.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "large": jnp.ones(2000)}
      >>> tx = lo.pack_small(lo.optimizers.adam(0.1))
      >>> mu = lo.get_slot(tx.init(params), "mu")
      >>> [group.shape for group in mu.packed], mu.whole["large"].shape
      ([(9,)], (2000,))
      >>> tx.unpack(mu, params)["w"].shape
      (2, 3)
    """
    for name, value in (("max_leaf_size", max_leaf_size), ("max_group_size", max_group_size)):
        check_scalar("pack_small", name, value, within=COUNT)
    member = as_member("pack_small", inner)
    _check_packable(member)
    return PackSmall(member, int(max_leaf_size), int(max_group_size))
