"""Steps along a sphere: an array turns and keeps its norm."""

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import leafwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@leafwise(needs=("params",), radius=Slot("leaf", nonnegative=True, exact=True))
def hyperball(g, slots, t, p, *, learning_rate: Scalar):
    """Turn an array and keep its norm, in place of weight decay.

        R = ‖w‖ at t = 1
        q = w − η R g/‖g‖
        u = R q/‖q‖ − w,      0 where R, ‖g‖ or ‖q‖ is 0

    The rate is the length of a step on the unit sphere, whatever the sizes of w and g: it carries over between widths
    and depths. For matrices whose scale another parameter sets, such as the gain of a normalisation. 0 stays 0.

    Args:
      learning_rate: η ≥ 0.

    Needs the parameters. The update is complete: no rate belongs behind it.
    Slots: radius (one number per array).  Lift: leafwise.
    Source: Wen et al. 2025, "From weight decay to hyperball optimization".
    """
    norm, size = (global_norm(x).astype(x.dtype) for x in (p, g))
    radius = jnp.where(t > 1, slots.radius, norm)
    known = (radius > 0) & (size > 0)
    unit = jnp.where(known, radius, 1)
    direction = g / jnp.where(known, size, 1)
    # ‖q‖ = R √(1 + excess), and R/‖q‖ − 1 without cancellation
    along, grown = jnp.sum(p / unit * direction), norm / unit
    excess = (grown - 1) * (grown + 1) + learning_rate * (learning_rate - 2 * along)
    length = sqrt(jnp.maximum(1 + excess, 0))
    moved = excess / (1 + length) * p + learning_rate * radius * direction
    known &= length > 0
    return jnp.where(known, -moved / jnp.where(known, length, 1), 0), {"radius": radius}
