"""Along which axes of which parameter the memory of a composition runs, as its rules declare."""

import dataclasses
import math
from typing import Any

import jax

from lossopt_jax._core import is_array_like, is_trainable, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, PartitionState
from lossopt_jax.transforms._chain import Chain
from lossopt_jax.transforms._groups import Masked, Partition, _keep
from lossopt_jax.transforms._lift import RuleTransformation, WrapperTransformation
from lossopt_jax.transforms._offload import OffloadState
from lossopt_jax.transforms._packing import PackSmall
from lossopt_jax.transforms._rule import Axes, Extent, Slot, extents
from lossopt_jax.transforms._views import Flatten, SplitRealAndImaginary


@dataclasses.dataclass(frozen=True)
class Run:
    """An array of a state: its shape, and the parameter along some of whose axes it runs.

    Args:
      shape: of the array.
      parameter: what stands for the parameter, or None for an array that belongs to none.
      axes: as a `Slot` declares them, one for each axis of the array.
      beside: the shapes of arrays that are read with it and run along the same axes, its own among them.
      offloaded: whether it is kept in the memory of the host.
    """

    shape: tuple[int, ...]
    parameter: Any = None
    axes: Axes = ()
    beside: tuple[tuple[int, ...], ...] = ()
    offloaded: bool = False

    @property
    def whole(self) -> bool:
        """Whether it runs along all axes of its parameter."""
        return self.parameter is not None and set(range(len(self.parameter.shape))) <= {
            axis for axis in self.axes if not isinstance(axis, Extent)
        }


def _alone(tree: Any) -> Any:
    """Arrays that belong to no parameter."""
    return jax.tree.map(lambda x: Run(x.shape), tree)


def _along(parameter: Any, axes: Axes, node: Any) -> Any:
    """One array, or what keeps one: those of its parts that have as many axes run along them."""
    parts = [x.shape for x in jax.tree.leaves(node) if len(x.shape) == len(axes)]
    return jax.tree.map(
        lambda x: Run(x.shape, parameter, axes, tuple(parts)) if len(x.shape) == len(axes) else Run(x.shape), node
    )


def _slot_runs(slot: Slot, arguments: dict[str, Any], parameter: Any, node: Any) -> Any:
    """What a rule remembers of one leaf."""
    if node is None:
        return None
    axes = slot.axes(parameter.shape, arguments)
    if isinstance(axes, list):
        return tuple(_along(parameter, own, part) for own, part in zip(axes, node, strict=True))
    return _along(parameter, axes, node)


def _rule_runs(tx: RuleTransformation | WrapperTransformation, params: Any, state: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
    arguments = dict(tx.arguments)

    def of_slot(name: str, slot: Slot) -> Any:
        held = state.slots[name]
        if slot.per == "tree":
            return _alone(held)
        nodes = treedef.flatten_up_to(held)
        return treedef.unflatten(
            [_slot_runs(slot, arguments, leaf, node) for leaf, node in zip(leaves, nodes, strict=True)]
        )

    return state._replace(
        step=_alone(state.step),
        slots={name: of_slot(name, slot) for name, slot in tx.rule.slots.items()},
        hyperparams=_alone(state.hyperparams),
    )


def _matched(params: Any, state: Any) -> Any:
    """The runs of a state that its owner alone knows: what lies under a parameter's path, of its shape, is its own."""
    known = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_trainable(leaf)}

    def of(path: tuple[Any, ...], leaf: Any) -> Run:
        endings = (known.get(path[start:]) for start in range(len(path) + 1))  # the longest first
        for parameter in endings:
            if parameter is not None and parameter.shape == leaf.shape:
                return _along(parameter, tuple(range(len(leaf.shape))), leaf)
        return Run(leaf.shape)

    return jax.tree_util.tree_map_with_path(of, state)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a member sees of a parameter."""

    shape: tuple[int, ...]
    dtype: Any
    parameter: Any
    axes: Axes


def _seen_runs(tx: WrapperTransformation, member: GradientTransformation, params: Any, state: Any) -> Any:
    """The runs of a member, by the axes of the parameters behind what it sees."""
    if tx.rule.seen is None:
        return _runs(member, params, state)

    def seen(leaf: Any) -> Any:
        if not is_trainable(leaf):
            return leaf
        axes = tx.axes_seen(leaf.shape)
        return _Seen(extents(axes, leaf.shape), leaf.dtype, leaf, axes)

    def behind(run: Run) -> Run:
        if run.parameter is None:
            return run
        axes = tuple(axis if isinstance(axis, Extent) else run.parameter.axes[axis] for axis in run.axes)
        return dataclasses.replace(run, parameter=run.parameter.parameter, axes=axes)

    return jax.tree.map(behind, _runs(member, jax.tree.map(seen, params, is_leaf=none_is_leaf), state))


def _runs(tx: GradientTransformation, params: Any, state: Any) -> Any:
    """`state_runs` of a transform, given the shapes of its state."""
    if isinstance(tx, Chain):
        members = zip(tx.names, tx.members, strict=True)
        return {name: _runs(member, params, state[name]) for name, member in members}
    if isinstance(tx, Masked):
        return _runs(tx.inner, _keep(params, tx._chosen(params)), state)
    if isinstance(tx, Partition):
        labels = tx._labels(params)
        kept = {label: _keep(params, [own == label for own in labels]) for label, _ in tx.groups}
        return PartitionState({label: _runs(member, kept[label], state.groups[label]) for label, member in tx.groups})
    if isinstance(tx, PackSmall):  # a group is a parameter of its own, which lies nowhere
        layout, dtypes, inner = tx._plan(params)
        return _runs(inner, layout.pack(params, dtypes=dtypes), state)
    if isinstance(tx, Flatten):
        return _alone(state)
    if isinstance(tx, SplitRealAndImaginary):
        return _runs(tx.inner, tx._there(params, params), state)
    if isinstance(tx, OffloadState):
        inside = _runs(tx.inner, params, state)
        return jax.tree.map(lambda run: dataclasses.replace(run, offloaded=tx.moves(math.prod(run.shape))), inside)
    if isinstance(tx, RuleTransformation):
        return _rule_runs(tx, params, state)
    if isinstance(tx, WrapperTransformation):
        names, several = tx.rule.members, len(tx.members) != 1
        states = state.inner.groups if several else {names[0]: state.inner}
        inner = {
            name: _seen_runs(tx, member, params, states[name]) for name, member in zip(names, tx.members, strict=True)
        }
        own = _rule_runs(tx, params, state)
        return own._replace(inner=PartitionState(inner) if several else inner[names[0]])
    return _matched(params, state)


def state_runs(tx: GradientTransformation, params: Any) -> Any:
    """A tree like the state that `tx.init(params)` makes, with a `Run` for each array; nothing is allocated.

    Args:
      tx: any transform.
      params: as `init` takes them, with something that has shape and dtype in place of each array.
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
    arrays = {index: leaf for index, leaf in enumerate(leaves) if is_array_like(leaf)}

    def init(arrays: dict[int, jax.Array]) -> Any:
        return tx.init(treedef.unflatten([arrays.get(index, leaf) for index, leaf in enumerate(leaves)]))

    return _runs(tx, params, jax.eval_shape(init, arrays))
