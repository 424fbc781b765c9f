"""Gradients taken where the loss is worse: sharpness-aware minimisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    as_compute,
    as_default_float,
    complaint,
    dtype_of,
    map_arrays,
    standard_promotion,
)
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._layerwise import normalize_by_update_norm
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
def normalize(per_group: bool = False) -> GradientTransformation:
    """Divide the whole tree by its norm: u = g / ‖g‖, and 0 where that is 0.

    Args:
      per_group: say True to take the norm of a group inside `partition` or `masked`; refused there otherwise.

    Lift: treewise.
    Differs from: optax, where zero gradients give NaN.
    """
    return normalize_by_update_norm(per_group=per_group)


def _placed(trained: Any, params: Any) -> Any:
    """The parameters, with other values for those that are trained."""
    return map_arrays(lambda _, x: x, params, trained)


def _gradient_at(value_fn: Callable[[Any], Any], point: Any, params: Any) -> Any:
    """The gradient by the trained leaves, of which `point` has the values and None elsewhere."""

    def value_of(point: Any) -> jax.Array:
        stored = map_arrays(lambda x, p: x.astype(dtype_of(p)), point, params)
        with standard_promotion():
            return as_default_float(value_fn(_placed(stored, params)))

    return map_arrays(jnp.conj, jax.grad(value_of)(point))  # conj: jax.grad gives a complex one's conjugate


@wrapper(
    members=("optimizer", "adv_optimizer"),
    needs=("params",),
    cache=Slot(exact=True),
    since=Slot(per="tree", dtype=jnp.int32, exact=True),
)
def _sam(run, updates, slots, t, params, *, sync_period: int, reset_state: bool):
    """A climb, or a step from where the climb began."""
    first, last = slots.since == 0, slots.since == sync_period - 1
    start = map_arrays(lambda c, p: jnp.where(first, as_compute(p), c), slots.cache, params)

    def climb() -> Any:
        steps, adv_state = run.adv_optimizer(updates)
        return map_arrays(jnp.negative, steps), {"optimizer": run.optimizer.state, "adv_optimizer": adv_state}

    def step() -> Any:
        steps, state = run.optimizer(updates, _placed(start, params))
        moved = map_arrays(lambda u, s, p: s - as_compute(p) + u, steps, start, params)
        adv_state = run.adv_optimizer.restarted() if reset_state else run.adv_optimizer.state
        return moved, {"optimizer": state, "adv_optimizer": adv_state}

    moved, inner = jax.lax.cond(last, step, climb)
    return moved, inner, {"cache": start, "since": jnp.where(last, 0, slots.since + 1)}


@wrapper(members=("optimizer", "adv_optimizer"), needs=("params", "value_fn"))
def _opaque_sam(
    run, updates, slots, t, params, value_fn, *, sync_period: int, reset_state: bool, batch_axis_name: str | None
):
    """All climbs and the step in one call."""
    gradient, adv_state = updates, run.adv_optimizer.state
    point = map_arrays(lambda _, p: as_compute(p), updates, params)
    for _ in range(sync_period - 1):
        steps, adv_state = run.adv_optimizer(gradient, _placed(point, params), adv_state)
        point = map_arrays(jnp.subtract, point, steps)
        gradient = _gradient_at(value_fn, point, params)
        if batch_axis_name is not None:
            gradient = jax.lax.pmean(gradient, batch_axis_name)
    steps, state = run.optimizer(gradient)
    adv_state = run.adv_optimizer.restarted() if reset_state else adv_state
    return steps, {"optimizer": state, "adv_optimizer": adv_state}, {}


@registry.register()
def sam(
    optimizer: Any,
    adv_optimizer: Any,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
) -> GradientTransformation:
    """SAM: step with the gradient of a point nearby where the loss is worse.

        k−1 times:  w ← w − adv(∇L(w))      uphill
        w ← w₀ + opt(∇L(w); w₀)             from w₀, where the climb began

    Transparent (the default): every call of `update` is one of those lines, with the gradient at the parameters that
    the last call led to; k calls on one batch make a step, and only after the k-th are the parameters to be evaluated.
    Opaque: every call is a whole step; the gradients of the climb are those of `value_fn`, with this call's batch.

    In half precision a climb is soon smaller than half a unit, and lost. `master_weights` around the opaque form gives
    float32 parameters to `value_fn`.

    Args:
      optimizer: what steps.
      adv_optimizer: what climbs, written as if to descend: chain(normalize(), sgd(ρ)) for the paper's, ρ = 0.05.
      sync_period: k ≥ 1.
      reset_state: start the climber's memory anew at every step.
      opaque_mode: True for the form of one call.
      batch_axis_name: in the opaque form, the axis of a pmap or shard_map over which to average gradients.

    Raises:
      ValueError: an axis name in the transparent form, whose caller averages the gradients.
      TypeError: no parameters, or no value_fn in the opaque form: `update(…, value_fn=lambda params: loss)`.

    Needs the parameters.
    Slots: transparent: cache (1 × parameters; the point w₀), since; opaque: none.  Lift: wrapper.
    Differs from: optax, where zero gradients give NaN for good (it selects by products), where k = 1 in the
      transparent form steps from the point before, and whose grad_fn(params, i) is `value_fn(params)` here.
    Source: Foret et al. 2021, arXiv:2010.01412, algorithm 1.
    """
    if opaque_mode:
        return _opaque_sam(optimizer, adv_optimizer, sync_period, reset_state, batch_axis_name)
    if batch_axis_name is not None:
        remedy = "average the gradients before update, or say opaque_mode=True"
        raise ValueError(complaint("sam", "batch_axis_name", "be None", repr(batch_axis_name), remedy))
    return _sam(optimizer, adv_optimizer, sync_period, reset_state)
