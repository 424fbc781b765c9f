"""Rules that name the next point themselves; nothing belongs behind them."""

from typing import Annotated

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import NONNEGATIVE, NONPOSITIVE, POSITIVE, Scalar, as_compute
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@elementwise(needs=("params",), s=Slot(exact=True), nu=Slot(nonnegative=True), x0=Slot(fill=as_compute, exact=True))
def scale_by_madgrad(g, slots, t, p, *, learning_rate: Scalar, momentum: Scalar = 0.9, eps: Scalar = 1e-6):
    """Dual averaging from the starting point, divided by a cube root.

        λ = (η + ε) √t
        s ← s + λ g
        v ← v + λ g²
        u = (1−μ) (x₀ − w − s / (∛v + ε))

    Args:
      learning_rate: η ≥ 0.
      momentum: μ in [0, 1).
      eps: ε > 0.

    Needs the parameters. The update is complete.  Slots: s, nu, x0 (3 × parameters).  Lift: elementwise.
    Source: Defazio & Jelassi 2021, arXiv:2101.11075, algorithm 1.
    """
    weight = (learning_rate + eps) * sqrt(t)
    s = slots.s + weight * g
    nu = slots.nu + weight * g * g
    return (1 - momentum) * (slots.x0 - p - s / (jnp.cbrt(nu) + eps)), {"s": s, "nu": nu}


@registry.register()
@elementwise(needs=("params",), nu=Slot(fill="initial_accumulator_value", nonnegative=True), z=Slot(exact=True))
def scale_by_ftrl(
    g,
    slots,
    t,
    p,
    *,
    learning_rate: Scalar,
    learning_rate_power: Annotated[Scalar, NONPOSITIVE] = -0.5,
    initial_accumulator_value: Annotated[float, POSITIVE] = 0.1,
    l1_regularization_strength: Annotated[Scalar, NONNEGATIVE] = 0.0,
    l2_regularization_strength: Annotated[Scalar, NONNEGATIVE] = 0.0,
    l2_shrinkage_regularization_strength: Annotated[Scalar, NONNEGATIVE] = 0.0,
    beta: Annotated[Scalar, NONNEGATIVE] = 0.0,
):
    """Follow the regularised leader, per coordinate.

        n ← n₋ + g²
        z ← z + (g + 2 s w) − (n^(−p) − n₋^(−p)) w / η
        w ← (clip(z, ±l₁) − z) / ((n^(−p) + β)/η + 2 l₂)

    Args:
      learning_rate: η > 0; nothing moves while it is 0.
      learning_rate_power: p ≤ 0.
      initial_accumulator_value: n before the first step, > 0.
      l1_regularization_strength: l₁ ≥ 0, which makes weights exactly 0.
      l2_regularization_strength: l₂ ≥ 0.
      l2_shrinkage_regularization_strength: s ≥ 0, l₂ on the gradient alone.
      beta: β ≥ 0.

    Needs the parameters. The update is complete; the first one leaves the starting point, which the method does not
    know, for the one that z names.  Slots: nu, z (2 × parameters).  Lift: elementwise.
    Source: McMahan et al. 2013, "Ad click prediction", algorithm 1, in Keras's form.
    """
    moving = learning_rate > 0
    rate = jnp.where(moving, learning_rate, 1)
    nu = slots.nu + g * g
    scale_before = slots.nu**-learning_rate_power
    growth = scale_before * jnp.expm1(-learning_rate_power * jnp.log1p(g * g / slots.nu))  # without cancellation
    scale = scale_before + growth
    z = slots.z + g + 2 * l2_shrinkage_regularization_strength * p - growth / rate * p
    bounded = jnp.clip(z, -l1_regularization_strength, l1_regularization_strength)
    target = (bounded - z) / ((scale + beta) / rate + 2 * l2_regularization_strength)
    return jnp.where(moving, target - p, 0), {"nu": jnp.where(moving, nu, slots.nu), "z": jnp.where(moving, z, slots.z)}


@registry.register()
@elementwise(needs=("params",), average=Slot(fill=as_compute, exact=True))
def scale_by_asgd(
    g,
    slots,
    t,
    p,
    *,
    learning_rate: Scalar,
    lambd: Annotated[Scalar, NONNEGATIVE] = 1e-4,
    alpha: Annotated[Scalar, NONNEGATIVE] = 0.75,
    t0: Annotated[Scalar, NONNEGATIVE] = 1e6,
):
    """Gradient descent with a falling rate, and the running mean of its points.

        ηₜ = η / (1 + λ η (t−1))^α
        w ← w (1 − λ ηₜ) − ηₜ g
        a ← a + (w − a) / max(1, t − 1 − t₀)

    Args:
      learning_rate: η ≥ 0.
      lambd: λ ≥ 0, decay.
      alpha: α ≥ 0.
      t0: t₀ ≥ 0, when averaging begins; until then a = w.

    Needs the parameters. The update is complete.
    Slots: average (1 × parameters; read it by `get_slot(state, "average")`).  Lift: elementwise.
    Source: Polyak & Juditsky 1992, in torch's form.
    """
    rate = learning_rate / (1 + lambd * learning_rate * (t - 1)) ** alpha
    update = -rate * (lambd * p + g)
    average = slots.average + (p + update - slots.average) / jnp.maximum(1, t - 1 - t0)
    return update, {"average": average}
