"""The leaf program: all that a composition of rules does to one leaf, as one function.

    (p, g, slots), scalars → (p, slots)

What a rule measures of the leaf (a norm) is taken first, from arrays that are made again and never written down. What
is left has no operation across elements: on CPUs a large leaf takes it block by block, in one pass over memory.
Members that look at the whole tree run before it, as ever; what they measure (a clip's factor) is a scalar, and so is
what a wrapper multiplies its gradients by.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, cpu_cores, dtype_of, none_is_leaf
from lossopt_jax.kernels import Codes, Cut, cut_of, in_blocks, is_stored, of_shape
from lossopt_jax.transforms._base import GradientTransformation, PartitionState, apply_leaf
from lossopt_jax.transforms._chain import Chain, unused
from lossopt_jax.transforms._lift import Member, WrapperTransformation, multiplied
from lossopt_jax.transforms._measures import Whole, measured_in_place
from lossopt_jax.transforms._rule import Constants, Rule, measured_by, once_measured
from lossopt_jax.transforms._scaling import scale

# Elements from which on an array is worth a pass of its own to keep another array from being written.
_LARGE = 1 << 17

_Statics = tuple[tuple[str, Any], ...]
_Slots = list[dict[str, Any]]  # of one leaf, by rule


@dataclasses.dataclass(frozen=True)
class _Path:
    """The rules that a leaf meets, and what each is given besides the leaf."""

    rules: tuple[tuple[Rule, _Statics], ...]
    constants: list[Constants]

    def _given(self, number: int, p: jax.Array, slots: _Slots) -> tuple[Any, ...]:
        """What a rule takes after the gradient."""
        (rule, _), (t, scalars, shared, value, _) = self.rules[number], self.constants[number]
        needs = tuple({"params": p, "value": value}[need] for need in rule.needs)
        return slots[number] | shared, t, scalars, needs

    def through(self, p: jax.Array, g: jax.Array, slots: _Slots, measured: list[Any]) -> tuple[jax.Array, _Slots]:
        """The update and the slots after as many rules as are measured."""
        p, after = as_compute(p), []
        for number, found in enumerate(measured):
            rule, statics = self.rules[number]
            own, t, scalars, needs = self._given(number, p, slots)
            needs = needs if rule.measure is None else (*needs, found)
            g, new = once_measured(rule, dict(statics), g, own, t, scalars, needs)
            after.append(new)
        return g, after

    def _measure(
        self, whole: Whole, leaf: tuple[jax.Array, jax.Array, _Slots, list[Any]]
    ) -> tuple[Any, dict[str, Any]]:
        """What the first rule not measured yet says of its gradient, and its slots after that."""
        p, g, slots, measured = leaf
        number = len(measured)
        rule, statics = self.rules[number]
        u, _ = self.through(p, g, slots, measured)
        found, after = measured_by(rule, dict(statics), whole, u, *self._given(number, as_compute(p), slots))
        return found, {name: after[name] for name in slots[number]}

    def measure(
        self, p: jax.Array, g: jax.Array, slots: _Slots, blocks: Cut | None
    ) -> tuple[list[Any], _Slots, list[jax.Array]]:
        """What each rule measures of the tree or of this leaf, the slots that this changes, and what loops it took."""
        measured, slots, ends = [], list(slots), []
        for number, (rule, _) in enumerate(self.rules):
            found = self.constants[number].measured
            if rule.measures_leaves:
                cut = blocks if all(jnp.ndim(x) == 0 for x in jax.tree.leaves(measured)) else None
                leaf = p, g, slots, measured
                (found, slots[number]), done = measured_in_place(self._measure, p.shape, leaf, cut)
                ends += [] if done is None else [done]
            measured.append(found)
        return measured, slots, ends


@functools.lru_cache(maxsize=4096)
def _program(rules: tuple[tuple[Rule, _Statics], ...], cut: Cut | None) -> Callable[..., Any]:
    """(p, g, slots, constants, ok) → (p, slots, of each loop over blocks whether it has ended).

    Compiled, so that leaves of equal shape and dtype are traced once.
    """

    def leaf(p: jax.Array, g: jax.Array, slots: _Slots, constants: list[Constants], ok: Any) -> Any:
        path = _Path(rules, constants)
        measured, known, ends = path.measure(p, g, slots, cut)
        held, treedef = jax.tree.flatten(known)
        if ok is not None:
            before = jax.tree.leaves(slots)
            held = [x if x is old else jnp.where(ok, x, old) for x, old in zip(held, before, strict=True)]
        moving = [number for number, moves in enumerate(of_shape(known, p.shape)) if moves]

        def filled(parts: tuple[Any, ...]) -> _Slots:
            given = dict(zip(moving, parts, strict=True))
            return treedef.unflatten([given.get(number, x) for number, x in enumerate(held)])

        def on_part(updated: tuple[Any, ...], read: tuple[Any, ...]) -> tuple[Any, ...]:
            u, after = path.through(updated[0], read[0], filled(updated[1:]), measured)
            leaves = treedef.flatten_up_to(after)
            new = (apply_leaf(updated[0], u), *(leaves[number] for number in moving))
            return new if ok is None else tuple(map(functools.partial(jnp.where, ok), new, updated))

        arrays = (p, *(held[number] for number in moving))
        if cut is None or any(jnp.ndim(x) for x in jax.tree.leaves(measured)):
            p, *parts = on_part(arrays, (g,))
        else:
            (p, *parts), done = in_blocks(on_part, arrays, (g,), cut)
            ends.append(done)
        return p, filled(tuple(parts)), ends

    return jax.jit(leaf)


def _tail(
    chain: Chain, updates: Any, state: dict[str, Any], params: Any, extra: dict[str, Any]
) -> tuple[Any, dict[str, Any], Chain]:
    """Run the members that need the whole tree: (their updates, their states, the rest, which leaves meet alone)."""
    members, names = list(chain.members), chain.names

    def run(start: int, stop: int, updates: Any) -> tuple[Any, dict[str, Any]]:
        part = Chain(names[start:stop], tuple(members[start:stop]))
        return part._run(updates, {name: state[name] for name in part.names}, params, extra)

    start = len(members)
    while start and members[start - 1]._met_by(params) is not None:
        start -= 1
    last = max(start - 1, 0)  # which may only measure the tree
    light = last  # from where on members are run for it to measure, and by the leaves again
    while light and _is_light(members[light - 1], params):
        light -= 1
    updates, before = run(0, light, updates)
    if last < start:
        seen, between = run(light, last, updates)
        measured = members[last]._measured(seen, state[names[last]], extra)
        if measured is None:
            updates, after = run(last, start, seen)
            before, light = before | between | after, start
        else:
            members[last] = measured
    return updates, before, Chain(names[light:], tuple(members[light:]))


def _is_light(member: GradientTransformation, params: Any) -> bool:
    """Whether leaves meet the member alone and it remembers nothing of them, so that it may run twice."""
    met = member._met_by(params)
    return met is not None and not any(one.transformation.rule.slots_per("leaf") for own in met for one in own)


def _at(state: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        state = (state.groups if isinstance(state, PartitionState) else state)[key]
    return state


def _put(state: Any, keys: tuple[str, ...], new: Any) -> Any:
    if not keys:
        return new
    groups = dict(state.groups if isinstance(state, PartitionState) else state)
    groups[keys[0]] = _put(groups[keys[0]], keys[1:], new)
    return PartitionState(groups) if isinstance(state, PartitionState) else groups


class _Leaves:
    """The rules that the leaves of a tree meet, by the keys of their states, and the slots that belong to leaves."""

    def __init__(self, tail: Chain, params: Any):
        self.met = tail._met_by(params)
        self.rules = {one.keys: one.transformation for own in self.met for one in own}
        self.treedef = jax.tree.structure(params, is_leaf=none_is_leaf)

    def constants(self, state: Any, extra: dict[str, Any]) -> dict[tuple[str, ...], Constants]:
        return {keys: rule._constants(_at(state, keys), extra) for keys, rule in self.rules.items()}

    def slots(self, state: Any) -> dict[tuple[str, ...], dict[str, list[Any]]]:
        """Keys → name → a slot per leaf."""
        return {
            keys: {
                name: self.treedef.flatten_up_to(_at(state, keys).slots[name]) for name in rule.rule.slots_per("leaf")
            }
            for keys, rule in self.rules.items()
        }

    def put(self, state: Any, slots: dict[tuple[str, ...], dict[str, list[Any]]]) -> Any:
        for keys, own in slots.items():
            held = _at(state, keys)
            trees = {name: self.treedef.unflatten(leaves) for name, leaves in own.items()}
            state = _put(state, keys, held._replace(slots=held.slots | trees))
        return state


def _cut(p: jax.Array, g: jax.Array, slots: _Slots, most: float) -> Cut | None:
    """How a leaf is cut into blocks; None if they would not pay.

    Not for one without slots, which is a single loop as it is; nor for half precision, which XLA:CPU would convert as a
    whole; nor for one of more than `most` elements, which the other cores would wait for, unless it has slots in codes,
    which would be written down decoded. Those can be cut between two blocks of codes, or else, if not all of them are
    whole, between rows.
    """
    moving = [x for x in jax.tree.leaves(slots, is_leaf=is_stored) if x.shape == p.shape]
    codes = [x.block for x in moving if isinstance(x, Codes)]
    whole = all(p.shape[-1] % block == 0 for block in codes)
    wide = all(dtype_of(x) in (jnp.float32, jnp.float64, jnp.uint8) for x in jax.tree.leaves((p, g, moving)))
    pays = moving and wide and (codes or p.size <= most)
    return cut_of(p.size, max(codes, default=1), None if whole else p.shape[-1]) if pays else None


def _once_done(state: Any, old: Any, ends: list[jax.Array]) -> Any:
    """The state, whose numbers change when all loops have ended.

    So each loop keeps its own counter until then, and no number is overwritten in place before the last loop that reads
    it, which XLA:CPU's region analysis alone does not see to (from jax 0.12).
    """
    if not ends:
        return state
    done = functools.reduce(jnp.logical_and, ends)
    return jax.tree.map(lambda new, before: jnp.where(done, new, before) if new.ndim == 0 else new, state, old)


@dataclasses.dataclass(frozen=True)
class _Applied(Member):
    """A member whose updates are added where they are made: parameters come out in place of updates."""

    ok: Any
    blocks: bool

    def __call__(
        self, updates: Any, params: Any = None, state: Any = None, ok: Any = None, factor: Any = None
    ) -> tuple[Any, Any]:
        state = self.state if state is None else state
        ok = self.ok if ok is None else ok if self.ok is None else ok & self.ok
        return run_by_leaf(self.transformation, self.params, state, updates, self.extra, ok, self.blocks, factor)

    def skipped(self, updates: Any) -> tuple[Any, Any]:
        return self.params, self.state


def _run_around(
    transformation: WrapperTransformation, params: Any, state: Any, updates: Any, extra: dict[str, Any], ok: Any, *rest
) -> tuple[Any, Any]:
    """`run_by_leaf` of a wrapper that passes the updates of its member on."""
    after, new = transformation._run(updates, state, params, extra, lambda *given: _Applied(*given, ok, *rest))
    if ok is None:
        return after, new
    own, before = (held._replace(inner=None) for held in (new, state))
    return after, jax.tree.map(functools.partial(jnp.where, ok), own, before)._replace(inner=new.inner)


def _behind(factor: jax.Array, chain: Chain, state: dict[str, Any]) -> tuple[Chain, dict[str, Any]]:
    """A chain and its state behind one rule more, a factor that stands in that rule's state."""
    first = scale(factor)
    name = unused(first.name, list(chain.names))
    return Chain((name, *chain.names), (first, *chain.members)), {name: first._init(()), **state}


def run_by_leaf(
    transformation: GradientTransformation,
    params: Any,
    state: Any,
    updates: Any,
    extra: dict[str, Any],
    ok: Any,
    blocks: bool,
    factor: Any = None,
) -> tuple[Any, Any]:
    """`_run` and `apply_leaf` on gradients that `_enter` has seen, with a program of its own for each large leaf.

    Args:
      ok: None, or a flag without which parameters and state stay as they are.
      blocks: go through leaves in blocks where that pays; for programs on one CPU.
      factor: None, or one of the gradients.
    """
    if isinstance(transformation, WrapperTransformation) and "passes_on" in transformation._flags:
        return _run_around(transformation, params, state, multiplied(factor, updates), extra, ok, blocks)
    lone = not isinstance(transformation, Chain)
    chain = Chain(("",), (transformation,)) if lone else transformation
    before = {"": state} if lone else state
    names = chain.names
    if factor is not None:
        chain, before = _behind(factor, chain, before)
    updates, head, tail = _tail(chain, updates, before, params, extra)
    old = {name: before[name] for name in tail.names}
    there = _Leaves(tail, params)
    leaves, flow = (there.treedef.flatten_up_to(tree) for tree in (params, updates))
    slots, constants = there.slots(old), there.constants(old, extra)
    most = 2 * sum(g.size for g in flow if g is not None) / cpu_cores()

    results, ends = {}, []
    for index, (met, p, g) in enumerate(zip(there.met, leaves, flow, strict=True)):
        rules = tuple((one.transformation.rule, one.transformation._statics) for one in met)
        own = [{name: each[index] for name, each in slots[one.keys].items()} for one in met]
        cut = _cut(p, g, own, most) if blocks and g is not None else None
        measures = g is not None and g.size >= _LARGE and any(rule.measures_leaves for rule, _ in rules)
        if cut is not None or measures:
            given = [constants[one.keys] for one in met]
            *results[index], own_ends = _program(rules, cut)(p, g, own, given, ok)
            ends += own_ends

    rest = [None if index in results else g for index, g in enumerate(flow)]
    u, new = tail._run(there.treedef.unflatten(rest), old, params, extra)
    after = [apply_leaf(p, x) for p, x in zip(leaves, there.treedef.flatten_up_to(u), strict=True)]
    new = head | new
    if ok is not None:
        after, new = jax.tree.map(functools.partial(jnp.where, ok), (after, new), (leaves, before))
    slots = there.slots(new)
    for index, (p, own) in results.items():
        after[index] = p
        for one, changed in zip(there.met[index], own, strict=True):
            for name, slot in changed.items():
                slots[one.keys][name][index] = slot
    new = _once_done(there.put(new, slots), before, ends)
    return there.treedef.unflatten(after), new[""] if lone else {name: new[name] for name in names}
