"""Averages of the points instead of smaller steps: schedule-free training, GPA, lookahead."""

from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import Scalar, as_compute, complaint, concrete, dtype_of, map_arrays
from lossopt_jax.transforms._hyperparams import get_hyperparams, get_slot
from lossopt_jax.transforms._lift import Member, wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


def _between(
    run: Member, updates: Any, params: Any, z: Any, beta: jax.Array, share: jax.Array
) -> tuple[Any, Any, dict[str, Any]]:
    """One step of y = β x + (1−β) z, where z steps and x averages: z ← z + u, x ← (1−c) x + c z."""
    steps, inner = run(updates)
    after = map_arrays(jnp.add, z, steps)

    def move(step: jax.Array, y: jax.Array, before: jax.Array, now: jax.Array) -> jax.Array:
        y, b, c = as_compute(y), beta.astype(step.dtype), share.astype(step.dtype)
        return (1 - c) * (y - (1 - b) * before) + (b * c + 1 - b) * now - y

    return map_arrays(move, steps, params, z, after), inner, {"z": after}


@registry.register()
@wrapper(
    members=("base_optimizer",),
    needs=("params",),
    z=Slot(fill=as_compute, exact=True),
    weight_sum=Slot(per="tree", exact=True),
    max_lr=Slot(per="tree", exact=True),
)
def schedule_free(
    run,
    updates,
    slots,
    t,
    params,
    *,
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
    weight_power: Scalar = 0.0,
):
    """Train between an average and a fast point, so that the rate need not fall.

        z ← z + base(g at y)
        x ← (1−c) x + c z,      c = wₜ / Σw,  wₜ = tʳ (max η so far)ᵖ
        y ← β x + (1−β) z

    The parameters are y; evaluate, save and export x = `schedule_free_eval_params(state, params)`.

    Args:
      base_optimizer: what steps, without momentum and with its rate, such as sgd.
      learning_rate: η ≥ 0, the same number or schedule as the base's; here it only weighs.
      b1: β in [0, 1); evaluation divides by it.
      weight_lr_power: p.
      weight_power: r, to give later points more weight.

    Needs the parameters.  Slots: z (1 × parameters), weight_sum, max_lr.  Lift: wrapper.
    Differs from: optax with a schedule, where the weights see the rate of the next step; here as the reference
      package, whose warmup of n is the rate η min(1, t/n) for base and weights alike.
    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    max_lr = jnp.maximum(slots.max_lr, learning_rate)
    weight = t**weight_power * max_lr**weight_lr_power
    total = slots.weight_sum + weight
    share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
    moved, inner, changed = _between(run, updates, params, slots.z, b1, share)
    return moved, inner, changed | {"weight_sum": total, "max_lr": max_lr}


@registry.register("generalized_primal_averaging")
@wrapper(members=("base_optimizer",), needs=("params",), z=Slot(fill=as_compute, exact=True))
def gpa(run, updates, slots, t, params, *, mu_y: Scalar = 0.7, mu_x: Scalar = 0.9967):
    """Generalised primal averaging: lookahead and schedule-free training with two constants.

        z ← z + base(g at y)
        x ← μₓ x + (1−μₓ) z
        y ← μᵧ x + (1−μᵧ) z

    The parameters are y; evaluate, save and export x = `gpa_eval_params(state, params)`.

    Args:
      base_optimizer: what steps, such as adamw.
      mu_y: μᵧ in [0, 1); evaluation divides by it.
      mu_x: μₓ in [0, 1).

    Needs the parameters.  Slots: z (1 × parameters).  Lift: wrapper.
    Source: Defazio et al. 2025, arXiv:2512.17131, algorithm 1.
    """
    return _between(run, updates, params, slots.z, mu_y, 1 - mu_x)


def _averaged(where: str, state: Any, params: Any, beta: str) -> Any:
    name = where.removesuffix("_eval_params")
    hypers = get_hyperparams(state)
    found = [value for key, value in hypers.items() if key in (beta, f"{name}/{beta}")]
    if len(found) != 1:
        raise ValueError(complaint(where, "state", f"hold one {name}", f"hyperparameters {sorted(hypers)}"))
    (b,) = found
    if concrete(b) and float(b) == 0:
        raise ValueError(complaint(where, beta, "be above 0", 0.0, "x is lost where β is 0"))

    def average(y: jax.Array, z: jax.Array) -> jax.Array:
        wide, scale = as_compute(y), b.astype(z.dtype)
        return ((wide - (1 - scale) * z) / scale).astype(dtype_of(y))

    return map_arrays(average, params, get_slot(state, "z"))


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The average x of `schedule_free`, at which to evaluate: (y − (1−β) z) / β, in the parameters' dtype.

    Args:
      state: any state that holds one schedule_free.
      params: the parameters y that are being trained.

    Raises:
      ValueError: no schedule_free in the state, or several; or β = 0.
    """
    return _averaged("schedule_free_eval_params", state, params, "b1")


def gpa_eval_params(state: Any, params: Any) -> Any:
    """The average x of `gpa`, at which to evaluate: (y − (1−μᵧ) z) / μᵧ, in the parameters' dtype.

    Args:
      state: any state that holds one gpa.
      params: the parameters y that are being trained.

    Raises:
      ValueError: no gpa in the state, or several; or μᵧ = 0.
    """
    return _averaged("gpa_eval_params", state, params, "mu_y")


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

    Args:
      fast_optimizer: what steps.
      sync_period: k ≥ 1.
      slow_step_size: α in [0, 1].
      reset_state: start the fast optimizer's memory anew at every return.

    Needs the parameters.  Slots: slow (1 × parameters), since.  Lift: wrapper.
    Differs from: optax, which keeps the slow parameters in a pair that takes the parameters' place; here the
      parameters stay what they are and the slow ones are `get_slot(state, "slow")`.
    Source: Zhang, Lucas, Hinton & Ba 2019, arXiv:1907.08610.
    """
    steps, inner = run(updates)
    back = slots.since == sync_period - 1

    def between(step: jax.Array, p: jax.Array, slow: jax.Array) -> jax.Array:
        return slow + slow_step_size.astype(slow.dtype) * (as_compute(p) + step - slow)

    meeting = map_arrays(between, steps, params, slots.slow)
    moved = map_arrays(lambda u, p, m: jnp.where(back, m - as_compute(p), u), steps, params, meeting)
    slow = map_arrays(lambda s, m: jnp.where(back, m, s), slots.slow, meeting)
    if reset_state:
        inner = jax.tree.map(lambda fresh, now: jnp.where(back, fresh, now), run.restarted(), inner)
    return moved, inner, {"slow": slow, "since": jnp.where(back, 0, slots.since + 1)}
