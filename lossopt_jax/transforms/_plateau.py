"""A rate that falls when the loss no longer does, as state."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import AT_LEAST_ONE, NONNEGATIVE, UNIT, Range, Scalar
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_COUNT = Slot(per="tree", dtype=jnp.int32, exact=True)
_NUMBER = Slot(per="tree", exact=True)
_SHRINKING = Range("be in (0, 1)", lambda x: 0 < x < 1)


def _observed(
    slots: Any,
    t: jax.Array,
    value: jax.Array,
    *,
    factor: jax.Array,
    patience: jax.Array,
    rtol: jax.Array,
    atol: jax.Array,
    cooldown: jax.Array,
    accumulation_size: jax.Array,
    min_scale: jax.Array,
) -> dict[str, jax.Array]:
    """The slots after one value more."""

    def reached(count: jax.Array, bound: jax.Array) -> jax.Array:
        return count.astype(bound.dtype) >= bound

    finite = jnp.isfinite(value)
    count, known = slots.count + 1, slots.finite_count + finite.astype(jnp.int32)
    number = jnp.maximum(known, 1).astype(value.dtype)
    mean = jnp.where(finite, slots.avg_value + (value / number - slots.avg_value / number), slots.avg_value)
    full = reached(count, accumulation_size)

    best, begun = slots.best_value, jnp.isfinite(slots.best_value)
    bound = jnp.where(begun, best - rtol * jnp.abs(best) - atol, best)
    improved = (known > 0) & (mean < bound)
    cooling = slots.cooldown_count > 0
    bad = jnp.where(improved | cooling, 0, slots.plateau_count + 1)
    reduce = (bad > 0) & reached(bad, patience)
    looked = {
        "scale": jnp.maximum(jnp.where(reduce, slots.scale * factor, slots.scale), min_scale),
        "best_value": jnp.where(improved, mean, best),
        "plateau_count": jnp.where(reduce, 0, bad),
        "cooldown_count": jnp.where(
            reduce, jnp.ceil(cooldown).astype(jnp.int32), slots.cooldown_count - cooling.astype(jnp.int32)
        ),
        "count": 0,
        "finite_count": 0,
        "avg_value": 0.0,
    }
    kept = vars(slots) | {"count": count, "finite_count": known, "avg_value": mean}
    return {name: jnp.where(full, new, kept[name]) for name, new in looked.items()}


@registry.register()
@elementwise(
    needs=("value",),
    once=_observed,
    scale=Slot(per="tree", fill=1.0, exact=True),
    best_value=Slot(per="tree", fill=float("inf"), exact=True),
    plateau_count=_COUNT,
    cooldown_count=_COUNT,
    count=_COUNT,
    finite_count=_COUNT,
    avg_value=_NUMBER,
)
def reduce_on_plateau(
    g,
    slots,
    t,
    value,
    *,
    factor: Annotated[Scalar, _SHRINKING] = 0.1,
    patience: Annotated[Scalar, NONNEGATIVE] = 10,
    rtol: Annotated[Scalar, UNIT] = 1e-4,
    atol: Annotated[Scalar, NONNEGATIVE] = 0.0,
    cooldown: Annotated[Scalar, NONNEGATIVE] = 0,
    accumulation_size: Annotated[Scalar, AT_LEAST_ONE] = 1,
    min_scale: Annotated[Scalar, UNIT] = 0.0,
):
    """Reduce the rate when the loss has stopped improving.

        f̄ = mean of the last n values
        improved where f̄ < best − r |best| − a;  then best ← f̄
        p means in a row that did not:  s ← max(s b, s_min), and the next c means are not counted
        u = s g

    The scale s multiplies whatever stands beside it, a schedule too; read it by `get_slot(state, "scale")`. It begins
    at 1, and this update has the new one already. A value that is not finite is part of no mean and never the best; a
    mean of none but those counts as one that did not improve. Give −value for something that shall grow.

    Args:
      factor: b in (0, 1).
      patience: p ≥ 0; 0 is 1.
      rtol: r in [0, 1].
      atol: a ≥ 0.
      cooldown: c ≥ 0. During it the best value is still looked for.
      accumulation_size: n ≥ 1; 1 for the value of a whole epoch, more for those of batches.
      min_scale: s_min in [0, 1].

    Needs the loss: `update(…, value=loss)`.
    Slots: scale, best_value, avg_value (one number each); plateau_count, cooldown_count, count, finite_count (one int32
      each).  Lift: elementwise.

    Raises:
      TypeError: no value.

    Example:
      >>> import lossopt_jax as lo
      >>> tx = lo.chain(lo.optimizers.sgd(0.5), lo.transforms.reduce_on_plateau(0.5, patience=2))
      >>> state = tx.init(1.0)
      >>> for loss in (3.0, 2.0, 2.0, 2.0):
      ...     updates, state = tx.update(1.0, state, 1.0, value=loss)
      >>> float(lo.get_slot(state, "scale")), float(updates)
      (0.5, -0.25)

    Differs from: optax, which never reduces while values are negative, counts a mean with a NaN as one that did not
      improve, never improves with rtol = 1, and with patience 0 reduces when the loss improves; Keras, whose cooldown
      of c ≥ 1 is c − 1 here and whose first value may be NaN, with which nothing compares; torch, whose patience of p
      is p + 1 here, and which does not reduce while values are negative unless its threshold is absolute.
    """
    return slots.scale * g, {}
