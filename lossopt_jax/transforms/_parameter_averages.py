"""Averages of the parameters that training goes through, kept beside it: moving, equal-weight, and by hand."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    COUNT,
    NONNEGATIVE,
    REAL,
    UNIT,
    Scalar,
    as_compute,
    as_default_float,
    check_scalar,
    complaint,
    dtype_of,
    first_difference,
    is_trainable,
    leaf_paths,
    none_is_leaf,
)
from lossopt_jax.transforms._hyperparams import fetched, states_in
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._precision import nearest
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_COUNT = Slot(per="tree", dtype=jnp.int32, exact=True)
_SLOTS = {"average": Slot(fill=as_compute, exact=True), "points": _COUNT, "since": _COUNT}


def _paired(where: str, function: Callable[[Any, Any], Any], new: Any, old: Any, names: tuple[str, str]) -> Any:
    """function(new, old) for each pair of leaves of one shape; None where the new one is."""
    if jax.tree.structure(new, is_leaf=none_is_leaf) != jax.tree.structure(old, is_leaf=none_is_leaf):
        raise ValueError(complaint(where, names[1], f"have the tree of {names[0]}", first_difference(new, old)))
    paths = iter(leaf_paths(new))

    def checked(a: Any, b: Any) -> Any:
        path = next(paths)
        if a is not None and (b is None or jnp.shape(a) != jnp.shape(b)):
            got = "None" if b is None else jnp.shape(b)
            raise ValueError(complaint(where, f"{names[1]} at {path!r}", f"have shape {jnp.shape(a)}", got))
        return None if a is None else function(a, b)

    return jax.tree.map(checked, new, old, is_leaf=none_is_leaf)


def incremental_update(new_tensors: Any, old_tensors: Any, step_size: Any) -> Any:
    """Move a tree part of the way towards another: old + s (new − old).

    Computed in float32 or better; every leaf keeps the old one's dtype, and is a new array. A leaf of integers is a
    copy of the new one.

    Args:
      new_tensors: the tree to move to; None leaves give None.
      old_tensors: the tree to move from, of the same shapes.
      step_size: s in [0, 1], a number or a 0-d array.

    Raises:
      ValueError: trees or shapes differ, or a step out of range.

    Differs from: optax, whose result has the promoted dtype and, in half precision, four roundings.

    Example:
      >>> import lossopt_jax as lo
      >>> lo.transforms.incremental_update({"w": 1.0}, {"w": 0.0}, 0.25)
      {'w': Array(0.25, dtype=float32)}
    """
    check_scalar("incremental_update", "step_size", step_size, within=UNIT)

    def moved(new: Any, old: Any) -> jax.Array:
        if not (is_trainable(new) and is_trainable(old)):
            return jnp.array(new, dtype_of(old), copy=True)
        dtype = jnp.result_type(as_compute(old))
        start = as_compute(old)
        return (start + jnp.asarray(step_size, dtype) * (jnp.asarray(new, dtype) - start)).astype(dtype_of(old))

    return _paired("incremental_update", moved, new_tensors, old_tensors, ("new_tensors", "old_tensors"))


def periodic_update(new_tensors: Any, old_tensors: Any, steps: Any, update_period: Any) -> Any:
    """Take a copy of a tree every k steps: new where k divides the step, else old.

    Every leaf keeps the old one's dtype, and is a new array.

    Args:
      new_tensors: the tree to copy; None leaves give None.
      old_tensors: the last copy, of the same shapes.
      steps: how many steps have been made, a number or a 0-d array.
      update_period: k ≥ 1.

    Raises:
      ValueError: trees or shapes differ, or a period below 1.
    """
    check_scalar("periodic_update", "steps", steps, within=REAL)
    check_scalar("periodic_update", "update_period", update_period, within=COUNT)
    count = jnp.asarray(steps)
    due = count % jnp.asarray(update_period, count.dtype) == 0

    def chosen(new: Any, old: Any) -> jax.Array:
        return jnp.where(due, jnp.asarray(new).astype(dtype_of(old)), jnp.asarray(old))

    return _paired("periodic_update", chosen, new_tensors, old_tensors, ("new_tensors", "old_tensors"))


def _counted(slots: Any, start: int, every: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether this update makes a point of the average, and the counters after it."""
    since = slots.since + 1
    due = since == jnp.where(slots.points > 0, every, start + every)
    return due, {"points": slots.points + due.astype(jnp.int32), "since": jnp.where(due, 0, since)}


def _averaged(slots: Any, params: Any, updates: Any, due: jax.Array, share: jax.Array) -> Any:
    """a + share (w − a) with the parameters w as they will be stored; w itself up to the first point."""

    def moved(a: jax.Array | None, p: Any, u: jax.Array | None) -> jax.Array | None:
        if a is None or p is None:
            return a
        w = as_compute(p) if u is None else nearest(as_compute(p) + u, dtype_of(p))
        return jnp.where(slots.points > 0, jnp.where(due, a + share.astype(a.dtype) * (w - a), a), w)

    return jax.tree.map(moved, slots.average, params, updates, is_leaf=none_is_leaf)


@registry.register()
@wrapper(needs=("params",), log_kept=Slot(per="tree", exact=True), **_SLOTS)
def ema_params(
    run,
    updates,
    slots,
    t,
    params,
    *,
    decay: Scalar,
    debias: bool = True,
    every: Annotated[int, COUNT] = 1,
    start: Annotated[int, NONNEGATIVE] = 0,
    overwrite_period: Annotated[int | None, COUNT] = None,
):
    """Keep a moving average of the parameters, and train them as ever.

        w = p + inner(g; p), as stored
        a ← a + c (w − a),      c = (1−β) / (1−βⁿ) at point n,  or 1−β from the second point on without debias

    Evaluate, save and export a = `averaged_params(state, params)`; up to the first point it is w. A schedule for β is
    one of updates, and βⁿ the product of its values at the points.

    Args:
      inner: what trains; behind it, only what does not change an update.
      decay: β in [0, 1).
      debias: weigh the points by βⁿ⁻ⁱ alone; else the first one counts like all that might have been before it.
      every: k ≥ 1; every k-th update makes a point.
      start: s ≥ 0; updates before the first k are counted.
      overwrite_period: None, or n ≥ 1: at every n-th point the parameters go to the average and go on from there.

    Needs the parameters.  Slots: average (1 × parameters, float32 or better); points, since (updates since the last
      point), log_kept (log βⁿ) (one number each).  Lift: wrapper.
    Differs from: optax, where `ema` averages updates, and `incremental_update` is called by hand; Keras (`use_ema`) and
      torch (`AveragedModel` with `get_ema_multi_avg_fn`), which are `debias=False`; all average in the parameters'
      dtype.
    """
    steps, inner = run(updates)
    due, counts = _counted(slots, start, every)
    log_kept = jnp.where(due, slots.log_kept + jnp.log1p(decay - 1), slots.log_kept)
    share = (1 - decay) / (-jnp.expm1(log_kept)) if debias else 1 - decay
    average = _averaged(slots, params, steps, due, share)
    if overwrite_period is not None:
        back = due & (counts["points"] % overwrite_period == 0)
        steps = jax.tree.map(
            lambda u, a, p: None if u is None else jnp.where(back, a - as_compute(p), u),
            steps,
            average,
            params,
            is_leaf=none_is_leaf,
        )
    return steps, inner, {"average": average, "log_kept": log_kept, **counts}


@registry.register("stochastic_weight_averaging")
@wrapper(needs=("params",), **_SLOTS)
def swa(
    run,
    updates,
    slots,
    t,
    params,
    *,
    start: Annotated[int, NONNEGATIVE] = 0,
    every: Annotated[int, COUNT] = 1,
):
    """Stochastic weight averaging: keep the mean of the parameters at every k-th update from some update on.

        w = p + inner(g; p), as stored
        a ← a + (w − a) / n,      at point n: update s + n k

    Evaluate, save and export a = `averaged_params(state, params)`; up to the first point it is w.

    Args:
      inner: what trains, with a high or cyclic rate; behind it, only what does not change an update.
      start: s ≥ 0.
      every: k ≥ 1; the length of a cycle, so that a point is its end.

    Needs the parameters.  Slots: average (1 × parameters, float32 or better); points, since (updates since the last
      point) (one int32 each).  Lift: wrapper.
    Differs from: torch's `AveragedModel`, called by hand, which averages in the parameters' dtype. As there, statistics
      of batches must be taken anew at a.
    Source: Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """
    steps, inner = run(updates)
    due, counts = _counted(slots, start, every)
    average = _averaged(slots, params, steps, due, 1 / as_default_float(jnp.maximum(counts["points"], 1)))
    return steps, inner, {"average": average, **counts}


def averaged_params(state: Any, params: Any) -> Any:
    """The average that `ema_params` or `swa` keeps, at which to evaluate: in the parameters' dtype.

    Args:
      state: any state that holds one of them, or one in each group.
      params: the parameters that are being trained; those that have no average are returned as they are.

    Raises:
      ValueError: none in the state, one inside another, or parameters of another tree.
    """
    found = [node.slots["average"] for _, node in states_in(state) if {"average", "points"} <= set(node.slots)]
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
    found = fetched(found)
    for average in found:
        if jax.tree.structure(average, is_leaf=none_is_leaf) != treedef:
            gap = first_difference(average, params)
            raise ValueError(complaint("averaged_params", "params", "have the tree of the state", gap))
    of_leaves = [[a for a in of_one if a is not None] for of_one in zip(*map(_leaves, found), strict=True)]
    if not found or max(map(len, of_leaves), default=0) > 1:
        got = len(found) or "none"
        raise ValueError(complaint("averaged_params", "state", "hold one ema_params or swa for a parameter", got))
    return treedef.unflatten([a[0].astype(dtype_of(p)) if a else p for a, p in zip(of_leaves, leaves, strict=True)])


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=none_is_leaf)
