"""Steps along a sphere: an array turns and keeps its norm."""

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import leafwise
from lossopt_jax.transforms._registry import registry


@registry.register()
@leafwise(needs=("params",))
def hyperball(g, slots, t, p, *, learning_rate: Scalar):
    """Turn an array towards an update and keep its norm, in place of weight decay.

        q = w − η ‖w‖ g/‖g‖
        u = ‖w‖ q/‖q‖ − w,      0 where ‖w‖ or ‖g‖ is 0

    The rate is the length of a step on the unit sphere, whatever the sizes of w and g: it carries over between widths
    and depths. For matrices whose scale another parameter sets, such as the gain of a normalisation. 0 stays 0.

    Args:
      learning_rate: η ≥ 0.

    Needs the parameters. The update is complete: no rate belongs behind it.  Lift: leafwise.
    Source: Wen et al. 2025, "Hyperball optimization", whose ‖w₀‖ is ‖w‖ here, the same but for rounding.
    """
    norm, size = (global_norm(x).astype(x.dtype) for x in (p, g))
    moving = (norm > 0) & (size > 0)
    eta = jnp.where(moving, learning_rate, 0)
    direction = g / jnp.where(moving, size, 1)
    cosine = jnp.sum(p / jnp.where(moving, norm, 1) * direction)
    # ‖q‖/‖w‖ = √(1 + excess), and 1/length − 1 without cancellation
    excess = eta * (eta - 2 * cosine)
    length = sqrt(jnp.maximum(1 + excess, 0))
    shrink = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return -shrink * (excess / (1 + length) * p + eta * norm * direction), {}
