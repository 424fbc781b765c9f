"""Several small batches for one step."""

from typing import Annotated

import jax
import jax.numpy as jnp

from lossopt_jax._core import AT_LEAST_ONE, NONNEGATIVE, Scalar, check_scalar, map_arrays, none_is_leaf
from lossopt_jax.transforms._lift import elementwise, wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register("gradient_accumulation")
@wrapper(
    flags=("passes_on",),
    accumulated=Slot(),
    weight=Slot(per="tree", exact=True),
    mini_step=Slot(per="tree", dtype=jnp.int32, exact=True),
)
def multi_steps(run, updates, slots, t, *, every_k: Annotated[Scalar, AT_LEAST_ONE], use_grad_mean: bool = True):
    """Average the gradients of k mini-batches, then take one step.

        W ← W + w,   ḡ ← ḡ + (w / W) (g − ḡ)            (ḡ ← g at the first)
        at every k-th mini-batch: inner(ḡ), W ← 0;   else no update

    The weight w of a mini-batch is what `update(…, weight=…)` is given, such as its number of unmasked examples, else
    1. The inner transform is not run in between, and its schedules and bias corrections count steps. `value`, `grad`
    and the like reach it as they are given at the k-th mini-batch. A bad mini-batch is dropped by a guard around:
    `apply_if_finite(multi_steps(…))`. `get_slot(state, "mini_step")` is 0 after a step.

    Args:
      inner: the optimizer.
      every_k: k ≥ 1; a schedule of it sees the number of mini-batches.
      use_grad_mean: False for the sum Σ w g instead of the mean.

    Slots: accumulated (1 × parameters), weight (one number), mini_step (one int32).  Lift: wrapper.
    Differs from: optax's MultiSteps, whose schedule of k sees the number of steps and whose mini-batches weigh the
    same; Keras, whose schedules count mini-batches.
    """
    given = run.extra.get("weight", 1.0)
    check_scalar("multi_steps", "weight", given, within=NONNEGATIVE)
    w = jnp.asarray(given).astype(slots.weight.dtype)
    weight, mini_step = slots.weight + w, slots.mini_step + 1
    last = mini_step.astype(every_k.dtype) >= every_k
    part = w / jnp.where(weight > 0, weight, 1.0) if use_grad_mean else w

    def accumulate(g, a):
        if g is None:
            return a
        more = a + part.astype(g.dtype) * (g - a if use_grad_mean else g)
        first = g if use_grad_mean else part.astype(g.dtype) * g
        return jnp.where(w > 0, jnp.where(slots.weight > 0, more, first), a)

    accumulated = jax.tree.map(accumulate, updates, slots.accumulated, is_leaf=none_is_leaf)
    trained = map_arrays(lambda _, a: a, updates, accumulated)
    step = last & (weight > 0)
    updates, inner = jax.lax.cond(step, lambda: run(trained), lambda: run.skipped(updates))
    kept = {"weight": jnp.where(last, 0.0, weight), "mini_step": jnp.where(last, 0, mini_step)}
    return updates, inner, {"accumulated": accumulated, **kept}


def _counted(slots, t, *, k):
    after = slots.mini_step + 1
    return {"mini_step": jnp.where(after.astype(k.dtype) >= k, 0, after)}


@registry.register()
@elementwise(once=_counted, accumulated=Slot(), mini_step=Slot(per="tree", dtype=jnp.int32, exact=True))
def apply_every(g, slots, t, *, k: Annotated[Scalar, AT_LEAST_ONE] = 1):
    """Add up k updates and emit their sum, with zeros in between.

        a ← a + g
        at every k-th update: u = a, a ← 0;   else u = 0

    A member of a chain and not around one: whatever stands before it runs in every step, at the same parameters until
    the sum is emitted, and whatever stands behind it sees the zeros too. `chain(adam(0.1), apply_every(k))` moves by
    the sum of k of Adam's steps; `multi_steps(adam(0.1), k)` lets Adam take one step with the mean of k gradients, and
    is what a larger batch means.

    Args:
      k: k ≥ 1; a schedule of it sees the number of updates.

    Slots: accumulated (1 × parameters), mini_step (one int32, 0 after a sum was emitted).  Lift: elementwise.
    Differs from: optax, where one NaN or infinity makes every later update NaN.
    """
    total = slots.accumulated + g
    emit = slots.mini_step == 0
    return jnp.where(emit, total, 0), {"accumulated": jnp.where(emit, 0, total)}
