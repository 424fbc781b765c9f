"""Averages of the points instead of smaller steps: schedule-free training, GPA, lookahead.

Schedule-free training and GPA take their gradients at y, between a fast point z that steps and its average x:

    z ← z + s
    x ← (1−c) x + c z
    y = β x + (1−β) z

The parameters are y, and the only memory is e = z − x₋, how far the fast point is ahead of the average before that
moves. So nothing is ever divided by β, no small difference of large numbers is formed, and an update is made of
terms as small as steps:

    e ← (1−c₋) e + s
    u = (1−β₋) s + (βc + β₋ − β) e,      c₋, β₋ of the step before

while x = y − (1−β)(1−c) e and z = y + β (1−c) e are as good as the parameters themselves. Elementwise, and e can be
updated in place before y.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, UNIT, Scalar, as_compute, complaint, dtype_of, map_arrays, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, RuleState
from lossopt_jax.transforms._chain import chain
from lossopt_jax.transforms._hyperparams import fetched
from lossopt_jax.transforms._lift import elementwise, wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_ONE = Slot(per="tree", exact=True)
_SLOTS = {"ahead": Slot(exact=True)} | dict.fromkeys(("beta", "beta_before", "kept", "kept_before"), _ONE)


def _mixed(slots: Any, t: jax.Array, beta: jax.Array, kept: jax.Array) -> dict[str, jax.Array]:
    """β and 1−c of this step and of the one before; copies, since they may be hyperparameters of the same state."""
    now = {"beta": jnp.copy(beta), "kept": jnp.copy(kept)}
    return now | {"beta_before": jnp.where(t > 1, slots.beta, beta), "kept_before": slots.kept}


def _between(s: jax.Array, slots: Any, share: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """u and e of the head of this file, for a step s and c = share."""
    ahead = slots.kept_before * slots.ahead + s
    pull = slots.beta * share + (slots.beta_before - slots.beta)
    return (1 - slots.beta_before) * s + pull * ahead, {"ahead": ahead}


def _pace(t: jax.Array, warmup_steps: jax.Array) -> jax.Array:
    return jnp.minimum(1, t / jnp.maximum(warmup_steps, 1))


def _weigh(slots, t, *, learning_rate, b1, weight_lr_power, weight_power, warmup_steps, **_):
    max_lr = jnp.maximum(slots.max_lr, _pace(t, warmup_steps) * learning_rate)
    risen = jnp.where(max_lr > 0, slots.max_lr / jnp.where(max_lr > 0, max_lr, 1), 1)
    # Σw / wₜ: for equal weights the number of points, exactly, where a sum of small weights drifts in float32
    points = 1 + slots.points * ((t - 1) / t) ** weight_power * risen**weight_lr_power
    return {"points": points, "max_lr": max_lr, **_mixed(slots, t, b1, (points - 1) / points)}


@registry.register()
@elementwise(once=_weigh, points=_ONE, max_lr=_ONE, **_SLOTS)
def scale_by_schedule_free(
    g,
    slots,
    t,
    *,
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    weight_lr_power: Annotated[Scalar, NONNEGATIVE] = 2.0,
    weight_power: Annotated[Scalar, NONNEGATIVE] = 0.0,
    warmup_steps: Annotated[Scalar, NONNEGATIVE] = 0.0,
    has_rate: bool = False,
):
    """Multiply by −η, and train between an average and a fast point, so that the rate need not fall.

        ηₜ = η min(1, t/n)
        z ← z − ηₜ g
        x ← (1−c) x + c z,      c = wₜ / Σw,  wₜ = tʳ (max ηₜ so far)ᵖ
        y ← β x + (1−β) z

    The parameters are y; evaluate, save and export x = `schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: η ≥ 0, for steps and weights alike.
      b1: β in [0, 1).
      weight_lr_power: p ≥ 0.
      weight_power: r ≥ 0, to give later points more weight.
      warmup_steps: n ≥ 0, a linear warmup.
      has_rate: what stands in front has multiplied by −η already, which only weighs here (see `schedule_free`).

    The update is complete: nothing belongs behind it.
    Slots: ahead (z − x₋, 1 × parameters); beta, kept and those before, points (Σw / wₜ), max_lr (one number each).
    Lift: elementwise.
    Differs from: optax, which keeps z and recovers x by a division by β: lost at β = 0, and after 20,000 float32 steps
      50 times as far from the mean of the points.
    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1; warmup as in the reference package.
    """
    rate = _pace(t, warmup_steps) * (1 if has_rate else -learning_rate)
    return _between(rate * g, slots, 1 / slots.points)


@registry.register()
def schedule_free(
    base_optimizer: Any, learning_rate: Any, b1: Any = 0.9, weight_lr_power: Any = 2.0
) -> GradientTransformation:
    """Train between an average and the fast point of an optimizer, so that the rate need not fall.

    base_optimizer → scale_by_schedule_free(has_rate=True)

    With a rule without a rate in front, `scale_by_schedule_free` alone does the same with one learning rate instead
    of two that must agree; setting the bare name "learning_rate" sets both.

    Args:
      base_optimizer: what steps, without momentum and with its rate, such as sgd; another library's too.
      learning_rate: η ≥ 0, the number or schedule that the base has.
      b1: β in [0, 1).
      weight_lr_power: p ≥ 0; a point counts as the largest rate so far to the power of p.

    Differs from: optax with a schedule, where the weights see the rate of the next step.
    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    return chain(base_optimizer, scale_by_schedule_free(learning_rate, b1, weight_lr_power, has_rate=True))


def _remix(slots, t, *, mu_y, mu_x):
    return _mixed(slots, t, mu_y, mu_x)


@registry.register("generalized_primal_averaging")
@elementwise(once=_remix, **_SLOTS)
def gpa(g, slots, t, *, mu_y: Annotated[Scalar, UNIT] = 0.7, mu_x: Scalar = 0.9967):
    """Generalised primal averaging: lookahead and schedule-free training with two constants.

        z ← z + g,      g the step of an optimizer such as adamw in front
        x ← μₓ x + (1−μₓ) z
        y ← μᵧ x + (1−μᵧ) z

    The parameters are y; evaluate, save and export x = `gpa_eval_params(state, params)`.

    Args:
      mu_y: μᵧ in [0, 1].
      mu_x: μₓ in [0, 1).

    Nothing belongs behind it.
    Slots: ahead (z − x₋, 1 × parameters); beta, kept and those before (one number each).  Lift: elementwise.
    Source: Defazio et al. 2025, arXiv:2512.17131, algorithm 1.
    """
    return _between(g, slots, 1 - mu_x)


def _eval_params(where: str, state: Any, params: Any) -> Any:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, RuleState))
    rules = [node.slots for node in nodes if isinstance(node, RuleState) and "ahead" in node.slots]
    leaves = [jax.tree.leaves(slots["ahead"], is_leaf=none_is_leaf) for slots in rules]
    if not rules or any(sum(e is not None for e in of_one) > 1 for of_one in zip(*leaves, strict=True)):
        name = where.removesuffix("_eval_params")
        raise ValueError(complaint(where, "state", f"hold one {name} for a parameter", len(rules) or "none"))

    for slots in rules:
        behind = (1 - slots["beta"]) * slots["kept"]
        params = map_arrays(
            lambda y, e, behind=behind: (as_compute(y) - behind.astype(e.dtype) * e).astype(dtype_of(y)),
            params,
            fetched(slots["ahead"]),
        )
    return params


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The average x of schedule-free training, at which to evaluate: in the parameters' dtype.

    Args:
      state: any state that holds a scale_by_schedule_free, or one in each group.
      params: the parameters y that are being trained; those that it does not train are returned as they are.

    Raises:
      ValueError: none in the state, or one behind another.
    """
    return _eval_params("schedule_free_eval_params", state, params)


def gpa_eval_params(state: Any, params: Any) -> Any:
    """The average x of `gpa`, at which to evaluate: in the parameters' dtype.

    Args:
      state: any state that holds a gpa, or one in each group.
      params: the parameters y that are being trained; those that it does not train are returned as they are.

    Raises:
      ValueError: none in the state, or one behind another.
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
