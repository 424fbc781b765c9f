"""Averages of the points instead of smaller steps: schedule-free training, GPA, lookahead."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, Range, Scalar, as_compute, complaint, dtype_of, map_arrays, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, WrapperState
from lossopt_jax.transforms._hyperparams import get_hyperparams
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_MIX = Range("be in (0, 1]", lambda x: 0 < x <= 1)


def _between(steps: Any, params: Any, slots: Any, beta: jax.Array, share: jax.Array) -> tuple[Any, dict[str, Any]]:
    """One step of y = β x + (1−β) z, where z steps and x averages: z ← z + s, x ← (1−c) x + c z.

    x is never formed: with x = y + (1/β₋ − 1)(y − z), where β₋ made this y, it drops out of

        u = (c β/β₋ + (β₋ − β)/β₋) (z − y) + (1 − β + β c) s

    whose terms are no larger than the steps taken, so that float32 loses nothing to the size of y.
    """
    known = slots.beta > 0  # not before the first step, where z = y
    before = jnp.where(known, slots.beta, 1)
    pull = jnp.where(known, share * (beta / before) + (before - beta) / before, 0)
    along = (1 - beta) + beta * share

    def move(s: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        return pull.astype(s.dtype) * (z - as_compute(y)) + along.astype(s.dtype) * s

    moved = map_arrays(move, steps, params, slots.z)
    return moved, {"z": map_arrays(jnp.add, slots.z, steps), "beta": jnp.copy(beta)}


def _rate_of(state: Any) -> jax.Array:
    """The one learning rate in the state of a base optimizer: what it used in this update."""
    hypers = get_hyperparams(state)
    rates = [value for key, value in hypers.items() if key.split("/")[-1] == "learning_rate"]
    if len(rates) != 1:
        remedy = "pass learning_rate, the number or schedule that the base has"
        raise ValueError(
            complaint("schedule_free", "base_optimizer", "hold one learning_rate", f"{sorted(hypers)}", remedy)
        )
    return rates[0]


def _weighed(
    rate: jax.Array,
    steps: Any,
    slots: Any,
    t: jax.Array,
    params: Any,
    b1: jax.Array,
    weight_lr_power: jax.Array,
    weight_power: jax.Array,
    warmup_steps: jax.Array,
) -> tuple[Any, dict[str, Any]]:
    """The maths of `schedule_free`, behind the base."""
    pace = jnp.minimum(1, t / jnp.maximum(warmup_steps, 1))
    max_lr = jnp.maximum(slots.max_lr, pace * rate)
    risen = jnp.where(max_lr > 0, slots.max_lr / jnp.where(max_lr > 0, max_lr, 1), 1)
    # Σw / wₜ: for equal weights the number of points, exactly, where a sum of small weights drifts in float32
    points = 1 + slots.points * ((t - 1) / t) ** weight_power * risen**weight_lr_power
    steps = map_arrays(lambda s: pace.astype(s.dtype) * s, steps)
    moved, averages = _between(steps, params, slots, b1, 1 / points)
    return moved, averages | {"points": points, "max_lr": max_lr}


_schedule_free_wrapper = wrapper(
    members=("base_optimizer",),
    needs=("params",),
    z=Slot(fill=as_compute, exact=True),
    beta=Slot(per="tree", exact=True),
    points=Slot(per="tree", exact=True),
    max_lr=Slot(per="tree", exact=True),
)


@_schedule_free_wrapper
def _schedule_free(
    run,
    updates,
    slots,
    t,
    params,
    *,
    b1: Annotated[Scalar, _MIX],
    weight_lr_power: Annotated[Scalar, NONNEGATIVE],
    weight_power: Annotated[Scalar, NONNEGATIVE],
    warmup_steps: Annotated[Scalar, NONNEGATIVE],
):
    """`schedule_free` by the rate that the base holds."""
    steps, inner = run(updates)
    rate = _rate_of(inner)
    moved, changed = _weighed(rate, steps, slots, t, params, b1, weight_lr_power, weight_power, warmup_steps)
    return moved, inner, changed


@_schedule_free_wrapper
def _schedule_free_by_rate(
    run,
    updates,
    slots,
    t,
    params,
    *,
    learning_rate: Scalar,
    b1: Annotated[Scalar, _MIX],
    weight_lr_power: Annotated[Scalar, NONNEGATIVE],
    weight_power: Annotated[Scalar, NONNEGATIVE],
    warmup_steps: Annotated[Scalar, NONNEGATIVE],
):
    """`schedule_free` by a rate of its own."""
    steps, inner = run(updates)
    moved, changed = _weighed(learning_rate, steps, slots, t, params, b1, weight_lr_power, weight_power, warmup_steps)
    return moved, inner, changed


@registry.register()
def schedule_free(
    base_optimizer: Any,
    learning_rate: Any = None,
    b1: Any = 0.9,
    weight_lr_power: Any = 2.0,
    *,
    weight_power: Any = 0.0,
    warmup_steps: Any = 0,
) -> GradientTransformation:
    """Train between an average and a fast point, so that the rate need not fall.

        a = min(1, t/n)
        z ← z + a base(g at y)
        x ← (1−c) x + c z,      c = wₜ / Σw,  wₜ = tʳ (max aη so far)ᵖ
        y ← β x + (1−β) z

    The parameters are y; evaluate, save and export x = `schedule_free_eval_params(state, params)`.

    Args:
      base_optimizer: what steps, without momentum and with its rate, such as sgd.
      learning_rate: η ≥ 0, which only weighs here. None for the one that the base holds in its state, so that setting
        it acts on both; another library's base has none, and needs the number or schedule that it was given.
      b1: β in (0, 1]; x cannot be told from y and z where it is 0.
      weight_lr_power: p ≥ 0.
      weight_power: r ≥ 0, to give later points more weight.
      warmup_steps: n ≥ 0, a linear warmup of steps and weights.

    Needs the parameters.  Slots: z (1 × parameters), beta, points (Σw / wₜ), max_lr.  Lift: wrapper.
    Errors: ValueError at the first update if no learning_rate is given and the base holds none, or several.
    Differs from: optax with a schedule, where the weights see the rate of the next step, and in warmup_steps, which
      optax's recipes begin with a rate of 0 that the weights do not see; here as the reference package.
    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    averaging = (b1, weight_lr_power, weight_power, warmup_steps)
    if learning_rate is None:
        return _schedule_free(base_optimizer, *averaging)
    return _schedule_free_by_rate(base_optimizer, learning_rate, *averaging)


@registry.register("generalized_primal_averaging")
@wrapper(
    members=("base_optimizer",),
    needs=("params",),
    z=Slot(fill=as_compute, exact=True),
    beta=Slot(per="tree", exact=True),
)
def gpa(run, updates, slots, t, params, *, mu_y: Annotated[Scalar, _MIX] = 0.7, mu_x: Scalar = 0.9967):
    """Generalised primal averaging: lookahead and schedule-free training with two constants.

        z ← z + base(g at y)
        x ← μₓ x + (1−μₓ) z
        y ← μᵧ x + (1−μᵧ) z

    The parameters are y; evaluate, save and export x = `gpa_eval_params(state, params)`.

    Args:
      base_optimizer: what steps, such as adamw.
      mu_y: μᵧ in (0, 1]; x cannot be told from y and z where it is 0.
      mu_x: μₓ in [0, 1).

    Needs the parameters.  Slots: z (1 × parameters), beta.  Lift: wrapper.
    Source: Defazio et al. 2025, arXiv:2512.17131, algorithm 1.
    """
    steps, inner = run(updates)
    moved, averages = _between(steps, params, slots, mu_y, 1 - mu_x)
    return moved, inner, averages


def _averages(state: Any) -> Iterator[dict[str, Any]]:
    """The slots of every average of points in a state."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, WrapperState)):
        if isinstance(node, WrapperState):
            if {"z", "beta"} <= node.slots.keys():
                yield node.slots
            yield from _averages(node.inner)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=none_is_leaf)


def _eval_params(where: str, state: Any, params: Any) -> Any:
    found = list(_averages(state))
    owners = [sum(z is not None for z in zs) for zs in zip(*(_leaves(slots["z"]) for slots in found), strict=True)]
    if not found or max(owners, default=1) > 1:
        name = where.removesuffix("_eval_params")
        raise ValueError(complaint(where, "state", f"hold one {name} for a parameter", len(found) or "none"))

    def average(y: jax.Array, z: jax.Array, beta: jax.Array) -> jax.Array:
        wide, inverse = as_compute(y), 1 / jnp.where(beta > 0, beta, 1)
        return (wide + (inverse - 1).astype(z.dtype) * (wide - z)).astype(dtype_of(y))

    for slots in found:
        params = map_arrays(lambda y, z, beta=slots["beta"]: average(y, z, beta), params, slots["z"])
    return params


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The average x of `schedule_free`, at which to evaluate, in the parameters' dtype.

        x = y + (1/β − 1) (y − z)

    Args:
      state: any state that holds a schedule_free, or one in each group.
      params: the parameters y that are being trained; those that no schedule_free trains are returned as they are.

    Raises:
      ValueError: no schedule_free in the state, or one inside another.
    """
    return _eval_params("schedule_free_eval_params", state, params)


def gpa_eval_params(state: Any, params: Any) -> Any:
    """The average x of `gpa`, at which to evaluate, in the parameters' dtype.

        x = y + (1/μᵧ − 1) (y − z)

    Args:
      state: any state that holds a gpa, or one in each group.
      params: the parameters y that are being trained; those that no gpa trains are returned as they are.

    Raises:
      ValueError: no gpa in the state, or one inside another.
    """
    return _eval_params("gpa_eval_params", state, params)


@registry.register()
@wrapper(
    members=("fast_optimizer",),
    needs=("params",),
    slow=Slot(fill=as_compute, exact=True),
    since=Slot(per="tree", dtype=jnp.int32, exact=True),
)
def lookahead(run, updates, slots, t, params, *, sync_period: int, slow_step_size: Scalar, reset_state: bool = False):
    """Every k steps, go back part of the way to where the last k began.

        w ← w + fast(g)
        every k steps:  s ← s + α (w − s);  w ← s

    The parameters are w; evaluate at s = `get_slot(state, "slow")`.

    Args:
      fast_optimizer: what steps.
      sync_period: k ≥ 1.
      slow_step_size: α in [0, 1].
      reset_state: start the fast optimizer's memory anew at every return, at the point returned to. Its count of
        updates starts anew too, and with it a schedule.

    Needs the parameters.  Slots: slow (1 × parameters), since (updates since the last return).  Lift: wrapper.
    Differs from: optax, which keeps the slow parameters in a pair that takes the parameters' place, and which starts
      a memory of parameters (such as madgrad's) anew at the point before the return.
    Source: Zhang, Lucas, Hinton & Ba 2019, arXiv:1907.08610.
    """
    steps, inner = run(updates)
    back = slots.since == sync_period - 1

    def between(s: jax.Array, p: jax.Array, slow: jax.Array) -> jax.Array:
        return slow + slow_step_size.astype(slow.dtype) * (as_compute(p) + s - slow)

    meeting = map_arrays(between, steps, params, slots.slow)
    moved = map_arrays(lambda s, p, m: jnp.where(back, m - as_compute(p), s), steps, params, meeting)
    slow = map_arrays(lambda s, m: jnp.where(back, m, s), slots.slow, meeting)
    if reset_state:
        start = map_arrays(lambda p, m: m.astype(dtype_of(p)), params, meeting)
        anew = dataclasses.replace(run, params=start).restarted()
        inner = jax.tree.map(lambda fresh, now: jnp.where(back, fresh, now), anew, inner)
    return moved, inner, {"slow": slow, "since": jnp.where(back, 0, slots.since + 1)}
