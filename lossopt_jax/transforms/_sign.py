"""Rules that keep a gradient's sign and choose the size of the step themselves."""

from typing import Annotated, Literal

import jax.numpy as jnp

from lossopt_jax._core import FRACTION, POSITIVE, Scalar, complaint
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@elementwise()
def scale_by_sign(g, slots, t):
    """Keep the sign: u = sign(g), 0 at 0. Real and imaginary part of a complex leaf apart.

    Lift: elementwise.
    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """
    return jnp.sign(g), {}


@registry.register()
@elementwise(mu=Slot())
def scale_by_lion(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: Scalar = 1.0,
):
    """The sign of one moving average while another is kept.

        c = β₁ m + (1−β₁) g
        m ← β₂ m + (1−β₂) g
        u = sign(c);  smooth: tanh(s c);  refined: c where |c| < 1, else sign(c)

    Args:
      b1: β₁ in [0, 1), how much of m counts in the step.
      b2: β₂ in [0, 1), how long m remembers.
      mode: "hard", "smooth" or "refined".
      smooth_beta: s, of "smooth" alone.

    Raises:
      ValueError: another mode.

    Slots: mu (1 × parameters).  Lift: elementwise.
    Source: Chen et al. 2023, arXiv:2302.06675; the softer modes are optax's.
    """
    mixed = b1 * slots.mu + (1 - b1) * g
    kept = {"mu": b2 * slots.mu + (1 - b2) * g}
    if mode == "hard":
        return jnp.sign(mixed), kept
    if mode == "smooth":
        return jnp.tanh(smooth_beta * mixed), kept
    if mode == "refined":
        return jnp.clip(mixed, -1, 1), kept
    raise ValueError(complaint("scale_by_lion", "mode", "be 'hard', 'smooth' or 'refined'", repr(mode)))


@registry.register()
@elementwise(before=Slot(exact=True), factor=Slot(fill=1.0, nonnegative=True, exact=True))
def scale_by_rprop(
    g,
    slots,
    t,
    *,
    learning_rate: Scalar,
    eta_minus: Annotated[Scalar, FRACTION] = 0.5,
    eta_plus: Annotated[Scalar, POSITIVE] = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
):
    """Steps that grow while the sign stays and shrink where it changes, whatever the gradient's size.

        s = clip(s · (η⁺ if g g₋ > 0, η⁻ if g g₋ < 0, else 1), least, most),      s = η at first
        g ← 0 where g g₋ < 0
        u = s sign(g);  g₋ ← g

    Kept is s/η, so that a rate that changes scales every step.

    Args:
      learning_rate: η ≥ 0, the first step of every element.
      eta_minus: η⁻ in (0, 1).
      eta_plus: η⁺ > 1.
      min_step_size: the least step, > 0.
      max_step_size: the largest step, > 0.

    Slots: before, factor (2 × parameters).  Lift: elementwise.
    Differs from: optax, which emits the step before (the first is 0, an alternating gradient never moves); here as
      torch.
    Source: Riedmiller & Braun 1993, with the weight backtracking left out (Rprop⁻ that forgets: iRprop⁻).
    """
    agreement = jnp.sign(g) * jnp.sign(slots.before)
    growth = jnp.where(agreement > 0, eta_plus, jnp.where(agreement < 0, eta_minus, 1))
    step = jnp.clip(learning_rate * slots.factor * growth, min_step_size, max_step_size)
    factor = jnp.where(learning_rate > 0, step / jnp.where(learning_rate > 0, learning_rate, 1), slots.factor)
    kept = jnp.where(agreement < 0, 0, g)
    return jnp.where(learning_rate > 0, step, 0) * jnp.sign(kept), {"before": kept, "factor": factor}
