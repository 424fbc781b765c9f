"""The leaf program: what a composition of elementwise rules does to one leaf, run block by block.

    (p, slots), g, scalars → (p, slots)

It is the composition's own `_run` on a tree in which one leaf is a block and every other one is None. Members that
look at whole leaves or trees run before it, as ever; what a member measures of the tree (a clip's factor) is a scalar.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import cpu_cores, dtype_of, none_is_leaf
from lossopt_jax.kernels import block_of, in_blocks
from lossopt_jax.transforms._base import GradientTransformation, RuleState, apply_leaf
from lossopt_jax.transforms._chain import Chain


def _is_rule(node: Any) -> bool:
    return isinstance(node, RuleState)


class _Slots:
    """The slots in a state that have the parameters' tree, as lists of leaves."""

    def __init__(self, state: Any, params: Any):
        self.treedef = jax.tree.structure(params, is_leaf=none_is_leaf)
        shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params, is_leaf=none_is_leaf)]

        def per_leaf(tree: Any) -> bool:
            leaves, treedef = jax.tree.flatten(tree, is_leaf=none_is_leaf)
            pairs = zip(leaves, shapes, strict=False)
            return treedef == self.treedef and all(x is None or jnp.shape(x) == shape for x, shape in pairs)

        rules = jax.tree.leaves(state, is_leaf=_is_rule)
        self.places = [(i, name) for i, rule in enumerate(rules) for name in rule.slots if per_leaf(rule.slots[name])]

    def of(self, state: Any) -> list[list[Any]]:
        rules = jax.tree.leaves(state, is_leaf=_is_rule)
        return [jax.tree.leaves(rules[i].slots[name], is_leaf=none_is_leaf) for i, name in self.places]

    def put(self, state: Any, slots: list[list[Any]]) -> Any:
        rules, outer = jax.tree.flatten(state, is_leaf=_is_rule)
        for (i, name), leaves in zip(self.places, slots, strict=True):
            rules[i] = rules[i]._replace(slots=rules[i].slots | {name: jax.tree.unflatten(self.treedef, leaves)})
        return jax.tree.unflatten(outer, rules)


def _tail(
    chain: Chain, updates: Any, state: dict[str, Any], params: Any, extra: dict[str, Any]
) -> tuple[Any, dict[str, Any], Chain]:
    """Run the members that need whole leaves: (their updates, their states, the rest, which needs only blocks)."""
    members = list(chain.members)
    start = len(members)
    while start and members[start - 1]._blockwise:
        start -= 1
    measures = bool(start) and members[start - 1]._measures
    start -= measures
    head = Chain(chain.names[:start], tuple(members[:start]))
    updates, before = head._run(updates, {name: state[name] for name in head.names}, params, extra)
    if measures:
        members[start] = members[start]._measured(updates, state[chain.names[start]])
    fixed = tuple(member._fixed(params) for member in members[start:])
    return updates, before, Chain(chain.names[start:], fixed)


def _blocks(rows: list[list[Any]]) -> dict[int, int]:
    """Leaf → block length, from each leaf's gradient (None where it is not trained), parameter and slots.

    Not for one without slots, which is a single loop as it is; nor for half precision, which XLA:CPU would convert as a
    whole; nor for one that holds so much of all elements that the other cores would wait for the one that takes it.
    """
    most = 2 * sum(row[0].size for row in rows if row[0] is not None) / cpu_cores()

    def length(row: list[Any]) -> int | None:
        wide = all(x is not None and dtype_of(x) in (jnp.float32, jnp.float64) for x in row)
        return block_of(row[0].size) if len(row) > 2 and wide and row[0].size <= most else None

    return {index: found for index, row in enumerate(rows) if (found := length(row)) is not None}


def _once_done(state: Any, old: Any, ends: list[jax.Array]) -> Any:
    """The state, whose numbers change when all loops have ended.

    So each loop keeps its own counter until then, and no number is overwritten in place before the last loop that reads
    it, which XLA:CPU's region analysis alone does not see to (from jax 0.12).
    """
    if not ends:
        return state
    done = functools.reduce(jnp.logical_and, ends)
    return jax.tree.map(lambda new, before: jnp.where(done, new, before) if new.ndim == 0 else new, state, old)


def run_in_blocks(
    transformation: GradientTransformation, params: Any, state: Any, updates: Any, extra: dict[str, Any], ok: Any
) -> tuple[Any, Any]:
    """`_run` and `apply_leaf` on gradients that `_enter` has seen, large leaves block by block.

    Args:
      ok: None, or a flag without which parameters and state stay as they are.
    """
    lone = not isinstance(transformation, Chain)
    chain = Chain(("",), (transformation,)) if lone else transformation
    before = {"": state} if lone else state
    updates, head, tail = _tail(chain, updates, before, params, extra)
    old = {name: before[name] for name in tail.names}

    slots = _Slots(old, params)
    held = slots.of(old)
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
    flow = treedef.flatten_up_to(updates)
    nothing = [None] * len(leaves)
    own = [[s[i] for s in held if s[i] is not None] for i in range(len(leaves))]
    blocks = _blocks([[u, p, *slots] for u, p, slots in zip(flow, leaves, own, strict=True)])

    def only(index: int, leaf: Any) -> list[Any]:
        return [*nothing[:index], leaf, *nothing[index + 1 :]]

    def program(index: int, updated: tuple[Any, ...], read: tuple[Any, ...]) -> tuple[Any, ...]:
        p, *blocks_of_slots = updated
        given = iter(blocks_of_slots)
        inside = slots.put(old, [nothing if s[index] is None else only(index, next(given)) for s in held])
        here, at = treedef.unflatten(only(index, read[0])), treedef.unflatten(only(index, p))
        u, after = tail._run(here, inside, at, extra)
        new = [apply_leaf(p, treedef.flatten_up_to(u)[index])]
        new += [s[index] for s in slots.of(after) if s[index] is not None]
        return tuple(new if ok is None else map(functools.partial(jnp.where, ok), new, updated))

    results, ends = {}, []
    for index, length in blocks.items():
        arrays = (leaves[index], *own[index])
        results[index], done = in_blocks(functools.partial(program, index), arrays, (flow[index],), length)
        ends.append(done)

    rest = [None if i in results else u for i, u in enumerate(flow)]
    u, new = tail._run(treedef.unflatten(rest), old, params, extra)
    after = [apply_leaf(p, x) for p, x in zip(leaves, treedef.flatten_up_to(u), strict=True)]
    new = head | new
    if ok is not None:
        after, new = jax.tree.map(functools.partial(jnp.where, ok), (after, new), (leaves, before))
    new_tail = _once_done({name: new[name] for name in tail.names}, old, ends)
    found = slots.of(new_tail)
    for index, (p, *blocks_of_slots) in results.items():
        after[index], given = p, iter(blocks_of_slots)
        for leaves_of_slot in found:
            if leaves_of_slot[index] is not None:
                leaves_of_slot[index] = next(given)
    new |= slots.put(new_tail, found)
    return treedef.unflatten(after), new[""] if lone else {name: new[name] for name in chain.names}
