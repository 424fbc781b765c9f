"""Moving averages and the correction of their start."""

import jax
import jax.numpy as jnp

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


def bias_correction(decay: jax.Array, t: jax.Array) -> jax.Array:
    """1 − decayᵗ, what a moving average from zero holds after t values.

    As −expm1(t·log1p(decay − 1)): the power itself loses up to 1.5e-3 in float32. The same rounded decay must stand
    in the average, where its 1 − decay cancels.
    """
    return -jnp.expm1(t * jnp.log1p(decay - 1))


def debias(average: jax.Array, decay: jax.Array, t: jax.Array) -> jax.Array:
    """average / (1 − decayᵗ)."""
    return average / bias_correction(decay, t)


def debias_ahead(average: jax.Array, value: jax.Array, decay: jax.Array, t: jax.Array) -> jax.Array:
    """What the corrected average would be if the newest value came once more: Nesterov's look ahead."""
    return decay * debias(average, decay, t + 1) + (1 - decay) * debias(value, decay, t)


@registry.register()
@elementwise(trace=Slot())
def trace(g, slots, t, *, decay: Scalar = 0.9, nesterov: bool = False, dampening: Scalar = 0.0):
    """Momentum: a decaying sum of gradients.

        b ← g at t = 1, then (1−d) g + μ b
        u = b,  or g + μ b again with nesterov

    Args:
      decay: μ in [0, 1).
      nesterov: look one step ahead.
      dampening: d in [0, 1], how much less a later gradient counts than the first.

    Slots: trace (1 × parameters).  Lift: elementwise.
    Source: Sutskever et al. 2013, in optax's and torch's form (no 1 − μ); dampening is torch's.
    """
    total = jnp.where(t > 1, 1 - dampening, 1) * g + decay * slots.trace
    return (g + decay * total if nesterov else total), {"trace": total}


@registry.register()
@elementwise(ema=Slot())
def ema(g, slots, t, *, decay: Scalar, debias: bool = True):
    """The moving average of the gradients.

        m ← β m + (1−β) g
        u = m / (1−βᵗ),  or m without debias

    Args:
      decay: β in [0, 1).
      debias: correct the start from zero.

    Slots: ema (1 × parameters).  Lift: elementwise.
    """
    mean = decay * slots.ema + (1 - decay) * g
    return (mean / bias_correction(decay, t) if debias else mean), {"ema": mean}
