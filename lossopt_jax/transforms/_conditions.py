"""A transform that runs in some steps only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import accepts_keyword, complaint, dtype_of, is_array_like, standard_promotion
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry


def _decided(
    where: str, condition: Callable[..., Any], step: jax.Array, extra: dict[str, Any], told: bool
) -> jax.Array:
    """Whether to run, as the caller's function says."""
    known = {name: given for name, given in extra.items() if accepts_keyword(condition, name)} if told else {}
    with standard_promotion():
        decision = condition(step, **known)
    if not (isinstance(decision, bool) or is_array_like(decision)):
        raise TypeError(complaint(where, "what should_transform_fn returns", "be a bool", f"{decision!r}"))
    decision = jnp.asarray(decision)
    if decision.shape != () or not (decision.dtype == bool or jnp.issubdtype(decision.dtype, jnp.integer)):
        got = f"{dtype_of(decision)}{list(decision.shape)}"
        raise TypeError(complaint(where, "what should_transform_fn returns", "be one bool", got, "compare it"))
    return decision.astype(bool)


@registry.register()
@wrapper(needs=("step",))
def conditionally_transform(
    run, updates, slots, t, step, *, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
):
    """Run a transform where a condition holds, else let the updates pass **unchanged**.

        inner(g) where c(step),  else g

    Where it does not hold nothing inside is computed or remembered: the inner state, its step counter included, stays
    as it was. As in `masked`, what passes a whole optimizer is a raw gradient: `conditionally_mask` gives zeros.

    Args:
      inner: the transform.
      should_transform_fn: (step, **extra) → one bool or integer; `step` (int32) counts all updates before this one.
      forward_extra_args: True to hand it those of `update`'s extra arguments that it takes, such as `value`, and any
        keyword of its own.

    Raises:
      TypeError: the condition is no callable or returns no single bool.

    Example:
      >>> import lossopt_jax as lo
      >>> tx = lo.transforms.conditionally_transform(lo.transforms.scale(0.5), lambda step: step % 2 == 0)
      >>> state = tx.init(0.0)
      >>> for _ in range(2):
      ...     update, state = tx.update(1.0, state)
      ...     print(update)
      0.5
      1.0

    Lift: wrapper.
    """
    ok = _decided("conditionally_transform", should_transform_fn, step, run.extra, forward_extra_args)
    return *jax.lax.cond(ok, lambda: run(updates), lambda: (updates, run.state)), {}


@registry.register()
@wrapper(needs=("step",), flags=("passes_on",))
def conditionally_mask(
    run, updates, slots, t, step, *, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
):
    """Run a transform where a condition holds, else emit no update.

        inner(g) where c(step),  else 0

    Where it does not hold nothing inside is computed or remembered: the inner state, its step counter included, stays
    as it was, and a gradient that is not finite leaves no trace.

    Args:
      inner: the transform.
      should_transform_fn: (step, **extra) → one bool, as in `conditionally_transform`.
      forward_extra_args: as in `conditionally_transform`.

    Raises:
      TypeError: the condition is no callable or returns no single bool.

    Lift: wrapper.
    """
    ok = _decided("conditionally_mask", should_transform_fn, step, run.extra, forward_extra_args)
    return *jax.lax.cond(ok, lambda: run(updates), lambda: run.skipped(updates)), {}
