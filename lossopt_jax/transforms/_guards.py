"""Bad steps that leave no trace: neither parameters nor anything inside the guard sees them."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, NONNEGATIVE, POSITIVE, Scalar
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_COUNT = Slot(per="tree", dtype=jnp.int32, exact=True)
BAD_STEPS = {"bad_steps": _COUNT, "bad_in_a_row": _COUNT}


def counted(good: jax.Array, slots: Any) -> dict[str, jax.Array]:
    """How many steps were bad, and how many at the end of those."""
    bad = (~good).astype(jnp.int32)
    return {"bad_steps": slots.bad_steps + bad, "bad_in_a_row": (slots.bad_in_a_row + 1) * bad}


@registry.register()
@wrapper(flags=("global_statistic", "passes_on"), **BAD_STEPS)
def apply_if_finite(
    run,
    updates,
    slots,
    t,
    *,
    max_consecutive_errors: Annotated[int | None, NONNEGATIVE] = None,
    per_group: bool = False,
):
    """Skip a step whose gradient is not finite.

    No update then, and the inner state, its step counter included, stays as it was. The test is that of the global
    norm. `get_slot(state, "bad_steps")` counts such gradients, `"bad_in_a_row"` those since the last good one.

    Args:
      inner: all that must not see such a gradient: the whole optimizer, and not a part of a chain.
      max_consecutive_errors: None to skip for ever; n ≥ 0 to let the gradient through after n skipped steps in a row.
      per_group: say True to guard a group of `partition` or `masked` by itself; refused there otherwise.

    Slots: bad_steps, bad_in_a_row (one int32 each).  Lift: wrapper.
    Differs from: optax, which wants an n.
    """
    good = jnp.isfinite(global_norm(updates))
    counts = counted(good, slots)
    if max_consecutive_errors is not None:
        good |= counts["bad_in_a_row"] > max_consecutive_errors
    return *run(updates, ok=good), counts


@registry.register()
@wrapper(flags=("global_statistic", "passes_on"), **BAD_STEPS)
def skip_large_updates(run, updates, slots, t, *, max_norm: Annotated[Scalar, POSITIVE], per_group: bool = False):
    """Skip a step whose gradient is longer than a bound, or not finite.

        skip where ¬(‖g‖ ≤ c),      ‖g‖ over all leaves

    Args:
      inner: all that must not see such a gradient.
      max_norm: c > 0.
      per_group: as `apply_if_finite`.

    Slots: bad_steps, bad_in_a_row (one int32 each).  Lift: wrapper.
    Differs from: optax, whose function of this name is a predicate for MultiSteps, on the squared norm.
    """
    norm = global_norm(updates)
    good = norm <= max_norm.astype(norm.dtype)
    return *run(updates, ok=good), counted(good, slots)


@registry.register()
@wrapper(
    flags=("global_statistic", "passes_on"),
    scale=Slot(per="tree", fill="initial_scale", exact=True),
    good_steps=_COUNT,
    **BAD_STEPS,
)
def dynamic_loss_scale(
    run,
    updates,
    slots,
    t,
    *,
    initial_scale: Annotated[float, POSITIVE] = 2.0**15,
    growth_interval: Annotated[int, COUNT] = 2000,
    growth_factor: Annotated[Scalar, POSITIVE] = 2.0,
    backoff_factor: Annotated[Scalar, POSITIVE] = 0.5,
    min_scale: Annotated[Scalar, POSITIVE] = 1.0,
    max_scale: Annotated[Scalar, POSITIVE] = 2.0**24,
    per_group: bool = False,
):
    """Take gradients of a scaled loss, for float16, and find the scale.

        g ← g / S
        not finite: skip the step, S ← max(S b, S_min)
        n steps finite since S last changed: S ← min(S a, S_max)

    Multiply the loss by `get_slot(state, "scale")` before differentiating it. The division is exact while S is a power
    of 2. A `value` or `grad` for the inner transform must be unscaled. A scale that stays needs no more than
    `chain(scale(1 / S), optimizer)`.

    Args:
      inner: all that must not see a scaled gradient.
      initial_scale: S at first, > 0.
      growth_interval: n ≥ 1.
      growth_factor: a > 0.
      backoff_factor: b > 0.
      min_scale: S_min > 0.
      max_scale: S_max > 0.
      per_group: as `apply_if_finite`.

    Slots: scale (one number); good_steps, bad_steps, bad_in_a_row (one int32 each).  Lift: wrapper.
    Differs from: Keras, without bounds; torch, which begins at 2¹⁶.
    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """
    good = jnp.isfinite(global_norm(updates))
    counts = counted(good, slots)
    steps = jnp.where(good, slots.good_steps + 1, 0)
    grow = steps >= growth_interval
    grown = jnp.where(grow, jnp.minimum(slots.scale * growth_factor, max_scale), slots.scale)
    scale = jnp.where(good, grown, jnp.maximum(slots.scale * backoff_factor, min_scale))
    kept = {"scale": scale, "good_steps": jnp.where(grow, 0, steps)}
    return *run(updates, ok=good, factor=1 / slots.scale), {**counts, **kept}
