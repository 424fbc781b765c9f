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


@registry.register()
@elementwise(trace=Slot())
def trace(g, slots, t, *, decay: Scalar = 0.9, nesterov: bool = False):
    """Momentum: a decaying sum of gradients.

        b ← g + μ b
        u = b,  or g + μ b again with nesterov

    Args:
      decay: μ in [0, 1).
      nesterov: look one step ahead.

    Slots: trace (1 × parameters).  Lift: elementwise.
    Source: Sutskever et al. 2013, in optax's and torch's form (no 1 − μ, no dampening).
    """
    total = g + decay * slots.trace
    return (g + decay * total if nesterov else total), {"trace": total}
