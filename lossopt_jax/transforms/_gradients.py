"""Gradients changed before a rule sees them: noise, optimism, variance reduction."""

import jax.numpy as jnp

from lossopt_jax._core import Scalar, random_normal
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import elementwise, leafwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@leafwise(needs=("key",))
def add_noise(g, slots, t, seed, *, eta: Scalar, gamma: Scalar):
    """Add Gaussian noise that fades: u = g + N(0, η / t^γ).

    The noise is a hash of seed, step, the leaf's path and the element's index: the same under any sharding, in any
    group, and after a resume.

    Args:
      eta: η ≥ 0, the variance at t = 1.
      gamma: γ.
      seed: an integer in [0, 2³²).

    Slots: seed (one uint32).  Lift: leafwise.
    Source: Neelakantan et al. 2015, arXiv:1511.06807.
    """
    return g + jnp.sqrt(eta / t**gamma) * random_normal(seed, g.shape, g.dtype), {}


@registry.register()
@elementwise(before=Slot(exact=True))
def scale_by_optimistic_gradient(g, slots, t, *, alpha: Scalar = 1.0, beta: Scalar = 1.0):
    """Expect the next gradient to change as the last one did.

        u = (α+β) g − β g₋,      g₋ = g at t = 1

    Args:
      alpha: α.
      beta: β, the strength of optimism.

    Slots: before (1 × parameters).  Lift: elementwise.
    Source: Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511.
    """
    before = jnp.where(t > 1, slots.before, g)
    return (alpha + beta) * g - beta * before, {"before": g}


@elementwise(before=Slot(exact=True))
def _scale_by_optimistic_rate(g, slots, t, *, learning_rate: Scalar, optimism: float | None = None):
    """−η g − o (g − g₋), o = η if None: the form in which the optimism is a rate of its own."""
    before = jnp.where(t > 1, slots.before, g)
    weight = learning_rate if optimism is None else optimism
    return -learning_rate * g - weight * (g - before), {"before": g}


@registry.register()
@leafwise(before=Slot(exact=True))
def correct_by_previous_gradient(g, slots, t, *, b1: Scalar = 0.95, gamma: Scalar = 0.025, max_norm: Scalar = 1.0):
    """Reduce a gradient's variance by its difference from the one before, as MARS does.

        c = g + γ β₁/(1−β₁) (g − g₋),      g₋ = 0 at t = 1
        u = c / max(1, ‖c‖/n),  ‖c‖ of the array

    Args:
      b1: β₁ in [0, 1), that of the rule behind.
      gamma: γ ≥ 0, how much of the correction to take.
      max_norm: n > 0.

    Slots: before (1 × parameters).  Lift: leafwise.
    Source: Yuan et al. 2024, arXiv:2411.10438, algorithm 2 with the gradient of the step before, and its authors'
      code.
    """
    corrected = g + gamma * b1 / (1 - b1) * (g - slots.before)
    return corrected / jnp.maximum(1, global_norm(corrected) / max_norm), {"before": g}
