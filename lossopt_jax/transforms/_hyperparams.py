"""Reading and writing hyperparameters and slots of any state, ours inside anything."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import Range, check_scalar, complaint, in_device_memory, none_is_leaf, rests_in_host_memory
from lossopt_jax.kernels import loaded
from lossopt_jax.transforms._base import Hyperparameter, RuleState, WrapperState
from lossopt_jax.transforms._registry import registry


def _is_hyperparameter(node: Any) -> bool:
    return isinstance(node, Hyperparameter)


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]


def _full_keys(paths: list[list[str]]) -> list[str]:
    """Paths that end in rule and name, as label, rule and name; whole where that would say two things."""

    def of(path: list[str]) -> str:
        return "/".join([path[i + 1] for i, part in enumerate(path[:-1]) if part == "groups"] + path[-2:])

    keys = list(map(of, paths))
    return [
        key if keys.count(key) == 1 else "/".join(part for part in path if part not in ("groups", "inner"))
        for key, path in zip(keys, paths, strict=True)
    ]


def _located(state: Any) -> tuple[list[str], list[Any], Any, list[bool]]:
    """Full keys of the hyperparameters, among all leaves of a state."""
    entries, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_hyperparameter)
    leaves = [leaf for _, leaf in entries]
    ours = list(map(_is_hyperparameter, leaves))
    paths = [
        [*names[:-2], names[-1]]
        for (path, _), own in zip(entries, ours, strict=True)
        if own
        for names in [_names(path)]
    ]
    keys = iter(_full_keys(paths))
    return [next(keys) if own else "" for own in ours], leaves, treedef, ours


def _short(full: str, all_keys: list[str]) -> str:
    """The key without the rule's name, unless that would say two things."""
    parts = full.split("/")
    short = "/".join([*parts[:-2], parts[-1]])
    same = [key for key in all_keys if "/".join([*key.split("/")[:-2], key.split("/")[-1]]) == short]
    return short if len(same) == 1 else full


def get_hyperparams(state: Any) -> dict[str, jax.Array]:
    """The hyperparameters in a state: `{"learning_rate": …, "b1": …}`.

    Works on the state of any composition, also inside another library's or a training state. In a group of
    `partition` the key is `"<label>/learning_rate"`; a name that two rules of one chain share is `"<rule>/<name>"`.
    A schedule's value is the one that the last update used (before the first: the one it will use).
    """
    keys, leaves, _, ours = _located(state)
    named = [key for key, own in zip(keys, ours, strict=True) if own]
    values = [leaf.value for leaf, own in zip(leaves, ours, strict=True) if own]
    return {_short(key, named): value for key, value in zip(named, values, strict=True)}


def set_hyperparams(state: Any, **values: Any) -> Any:
    """A state with other hyperparameters; nothing is recompiled.

    A value is pinned: a schedule is no longer followed until None releases it. The bare name sets every
    hyperparameter of that name; `**{"encoder/learning_rate": 1e-4}` sets one group's.

    Args:
      state: any state that holds ours.
      **values: numbers, 0-d arrays or tracers; None releases.

    Raises:
      ValueError: an unknown name (the message lists the known ones), or a concrete value out of range.
      TypeError: no number.
    """
    keys, leaves, treedef, ours = _located(state)
    named = [key for key, own in zip(keys, ours, strict=True) if own]
    known = [_short(key, named) for key in named]
    for name, value in values.items():
        wanted = [i for i, key in enumerate(keys) if ours[i] and _matches(name, key, named)]
        if not wanted:
            raise ValueError(complaint("set_hyperparams", "names", f"be among {known}", repr(name)))
        for i in wanted:
            if value is not None and jnp.ndim(leaves[i].value) == 0:
                check_scalar("set_hyperparams", name.split("/")[-1], value, within=_range(keys[i]))
            leaves[i] = _pinned(leaves[i], value)
    return jax.tree.unflatten(treedef, leaves)


def _matches(name: str, key: str, named: list[str]) -> bool:
    return name in (key, _short(key, named)) or ("/" not in name and key.split("/")[-1] == name)


def _range(key: str) -> Range | None:
    """The range that a rule of this library gives its own hyperparameter."""
    rule, _, name = key.rpartition("/")
    rule = re.sub(r"_\d+$", "", rule.rpartition("/")[2])
    declared = getattr(registry.get(rule), "rule", None) if rule in registry else None
    return declared.scalars.get(name) if declared else None


def _pinned(old: Hyperparameter, value: Any) -> Hyperparameter:
    pinned = jnp.full(jnp.shape(old.pinned), value is not None)
    if value is None:
        return old._replace(pinned=pinned)
    value = jnp.array(jnp.broadcast_to(jnp.asarray(value, old.value.dtype), old.value.shape))
    return old._replace(value=value, pinned=pinned)


def _states_with_paths(state: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], RuleState | WrapperState]]:
    def is_state(node: Any) -> bool:
        return isinstance(node, RuleState | WrapperState)

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_state):
        if is_state(node):
            names = [*above, *_names(path)]
            yield names, node
            if isinstance(node, WrapperState):
                yield from _states_with_paths(node.inner, (*names, "inner"))


def states_in(state: Any) -> Iterator[tuple[str, RuleState | WrapperState]]:
    """Every state of a rule or wrapper, a wrapper's own before those inside it, with the name that it lies under."""
    for path, node in _states_with_paths(state):
        yield path[-1] if path and path[-1] != "inner" else "", node


def fetched(tree: Any) -> Any:
    """A tree with what rests on the host brought where it can be calculated with."""
    return jax.tree.map(lambda x: in_device_memory(x) if rests_in_host_memory(x) else x, tree)


def get_slot(state: Any, name: str) -> Any:
    """A slot as a tree of the parameters: `get_slot(state, "mu")`, or `"scale_by_adam/mu"` where two rules have one.

    Groups of a `partition` are put together again; leaves without the slot are None. What `compress_state` keeps in
    few bits is decoded, and what `offload_state` keeps on the host is fetched.

    Raises:
      ValueError: no such slot, or several rules that have one; the message lists what there is.
    """
    rule, _, slot = name.rpartition("/")
    nodes = [(owner, node.slots) for owner, node in states_in(state) if rule in ("", owner)]
    found = [(owner, loaded(fetched(slots[slot]))) for owner, slots in nodes if slot in slots]
    owners = {owner for owner, _ in found}
    if len(owners) != 1:
        every = sorted({f"{owner}/{own}".lstrip("/") for owner, node in states_in(state) for own in node.slots})
        raise ValueError(complaint("get_slot", "name", f"say one of {every}", repr(name)))
    tree = found[0][1]
    for _, other in found[1:]:
        tree = jax.tree.map(lambda a, b: b if a is None else a, tree, other, is_leaf=none_is_leaf)
    return tree


# What guards count, which `get_measurements` reads beside what monitors measure.
_COUNTERS = ("bad_steps", "bad_in_a_row")


def get_measurements(state: Any) -> dict[str, Any]:
    """What was measured in the last update: `{"gradient_norm": …, "bad_steps": …}`.

    The readings of every `monitor` and `snapshot`, and what guards count: bad steps so far, and those since the last
    good one. Works on the state of any composition, also inside another library's or a training state, with the keys
    of `get_hyperparams`: in a group of `partition` `"<label>/gradient_norm"`; a name that stands twice
    `"<member>/gradient_norm"`. Before the first update all are 0. A learning rate is in `get_hyperparams(state)`.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx = lo.transforms.apply_if_finite(lo.transforms.measure_update(lo.optimizers.sgd(0.5)))
      >>> params = jnp.array([0.0, 0.0])
      >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
      >>> {name: float(value) for name, value in lo.get_measurements(state).items()}
      {'bad_steps': 0.0, 'bad_in_a_row': 0.0, 'gradient_norm': 5.0, 'update_norm': 2.5}
    """
    found = [
        ([*path, name], value)
        for path, node in _states_with_paths(state)
        for slots in [node.slots]
        for name, value in [*((name, slots[name]) for name in _COUNTERS if name in slots), *_readings(slots)]
    ]
    keys = _full_keys([path for path, _ in found])
    return {_short(key, keys): value for key, (_, value) in zip(keys, found, strict=True)}


def _readings(slots: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    measured = slots.get("measurements")
    yield from measured.items() if isinstance(measured, dict) else ()
