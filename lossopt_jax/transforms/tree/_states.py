"""The parts of an optimizer's state that are made like the parameters."""

from collections.abc import Callable
from typing import Any

import jax

from lossopt_jax._core import none_is_leaf
from lossopt_jax.kernels import is_stored
from lossopt_jax.transforms._base import PartitionState
from lossopt_jax.transforms._chain import Chain
from lossopt_jax.transforms._groups import Masked, Partition
from lossopt_jax.transforms._lift import RuleTransformation, WrapperTransformation
from lossopt_jax.transforms._offload import OffloadState
from lossopt_jax.transforms._packing import PackSmall
from lossopt_jax.transforms._views import Viewed


@jax.tree_util.register_pytree_node_class
class _Params:
    """Stands for the tree of parameters, so that what another library's init copies of it shows."""

    def tree_flatten(self) -> tuple[tuple[()], None]:
        return (), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[()]) -> "_Params":
        return cls()


_Function = Callable[[Any], Any]


def _stands_for_params(node: Any) -> bool:
    return isinstance(node, _Params)


def _of_slots(tx: Any, state: Any, alike: _Function, alone: _Function) -> Any:
    """The state of a rule: a slot that has every parameter's shape is a tree of them, compressed or not."""

    def mapped(name: str, held: Any) -> Any:
        slot = tx.rule.slots.get(name)
        return (alike if slot and slot.shape == "param" and slot.per == "leaf" else alone)(held)

    return state._replace(
        step=alone(state.step),
        slots={name: mapped(name, held) for name, held in state.slots.items()},
        hyperparams=alone(state.hyperparams),
    )


def _mapped(tx: Any, state: Any, alike: _Function, alone: _Function) -> Any:
    if isinstance(tx, Chain):
        members = zip(tx.names, tx.members, strict=True)
        return {name: _mapped(member, state[name], alike, alone) for name, member in members}
    if isinstance(tx, Partition):
        return PartitionState(
            {label: _mapped(member, state.groups[label], alike, alone) for label, member in tx.groups}
        )
    if isinstance(tx, Masked | OffloadState):
        return _mapped(tx.inner, state, alike, alone)
    if isinstance(tx, PackSmall | Viewed):  # what these see is like no parameter
        return alone(state)
    if isinstance(tx, RuleTransformation):
        return _of_slots(tx, state, alike, alone)
    if isinstance(tx, WrapperTransformation):
        names, several = tx.rule.members, len(tx.members) != 1
        states = state.inner.groups if several else {names[0]: state.inner}
        of = alone if tx.rule.seen else alike  # what its members see is like no parameter
        inner = {name: _mapped(member, states[name], of, alone) for name, member in zip(names, tx.members, strict=True)}
        own = _of_slots(tx, state, alike, alone)
        return own._replace(inner=PartitionState(inner) if several else inner[names[0]])
    made = (tx.init if hasattr(tx, "init") else tx)(_Params())
    return jax.tree.map(
        lambda like, held: (alike if _stands_for_params(like) else alone)(held), made, state, is_leaf=_stands_for_params
    )


def map_params(
    initable: Any,
    f: Callable[..., Any],
    state: Any,
    /,
    *rest: Any,
    transform_non_params: _Function | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Apply a function to all that a state keeps in the image of the parameters: momenta, averages, copies.

    In this library's states those are the slots that are declared to have each parameter's shape; factored moments,
    scalars per parameter, packed groups and codes of `compress_state` are not. In another library's they are the
    trees that its `init` makes of the tree of parameters. None, for a parameter that a group leaves out, stays None.

    Args:
      initable: the transform that made the state, or its `init`, if it is not this library's.
      f: (array, *leaves of the other trees) → what takes the array's place.
      state: the state.
      *rest: trees like the parameters, handed to `f` leaf by leaf.
      transform_non_params: applied to every other array; None leaves them as they are.
      is_leaf: what counts as a leaf of the parts that are mapped, as in `jax.tree.map`.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx, params = lo.optimizers.sgd(0.1, momentum=0.9), {"w": jnp.ones(2)}
      >>> specs = lo.tree.map_params(tx, lambda _, spec: spec, tx.init(params), {"w": "a spec"})
      >>> lo.tree.get(specs, "slots/trace")
      {'w': 'a spec'}

    Differs from: optax, which maps factored moments too.
    """
    other = transform_non_params or (lambda x: x)

    def leaf(x: Any, *others: Any) -> Any:
        return x if x is None else jax.tree.map(other, x) if is_stored(x) else f(x, *others)

    def stops(node: Any) -> bool:
        return none_is_leaf(node) or is_stored(node) or (is_leaf is not None and is_leaf(node))

    def alike(tree: Any) -> Any:
        return jax.tree.map(leaf, tree, *rest, is_leaf=stops)

    def alone(tree: Any) -> Any:
        return jax.tree.map(other, tree)

    return _mapped(initable, state, alike, alone)
