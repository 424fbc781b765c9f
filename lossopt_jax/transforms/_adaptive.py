"""Rules that divide by a second moment."""

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._averages import debias
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@elementwise(nu=Slot(fill="initial_scale", nonnegative=True))
def scale_by_rms(
    g,
    slots,
    t,
    *,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
):
    """Divide the gradient by its root mean square.

        v ← ρ v + (1−ρ) g²
        u = g / √(v + ε),  or g / (√v + ε) without eps_in_sqrt;  v̂ = v / (1−ρᵗ) for v with bias_correction

    Args:
      decay: ρ in [0, 1).
      eps: ε ≥ 0.
      initial_scale: v before the first step, ≥ 0.
      eps_in_sqrt: True as optax and Keras 3, False as torch and Keras 2.
      bias_correction: divide v by 1 − ρᵗ.

    Slots: nu (1 × parameters).  Lift: elementwise.
    Source: Tieleman & Hinton 2012, lecture 6.5.
    """
    nu = decay * slots.nu + (1 - decay) * g * g
    scale = debias(nu, decay, t) if bias_correction else nu
    return g / (sqrt(scale + eps) if eps_in_sqrt else sqrt(scale) + eps), {"nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(fill="initial_scale", nonnegative=True))
def scale_by_stddev(
    g,
    slots,
    t,
    *,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
):
    """Divide the gradient by its standard deviation.

        m ← ρ m + (1−ρ) g
        v ← ρ v + (1−ρ) g²
        s = max(v − m², 0),  each first divided by 1−ρᵗ with bias_correction
        u = g / √(s + ε),  or g / (√s + ε) without eps_in_sqrt

    The maximum matters: rounding makes the variance of a constant gradient negative.

    Args:
      decay: ρ in [0, 1).
      eps: ε ≥ 0.
      initial_scale: v before the first step, ≥ 0.
      eps_in_sqrt: True as optax and Keras 3, False as torch and Keras 2.
      bias_correction: divide m and v by 1 − ρᵗ.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Graves 2013, arXiv:1308.0850, equations 38–45.
    """
    mu = decay * slots.mu + (1 - decay) * g
    nu = decay * slots.nu + (1 - decay) * g * g
    mean, square = (debias(mu, decay, t), debias(nu, decay, t)) if bias_correction else (mu, nu)
    variance = jnp.maximum(square - mean * mean, 0)
    return g / (sqrt(variance + eps) if eps_in_sqrt else sqrt(variance) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(nu=Slot(fill="initial_accumulator_value", nonnegative=True))
def scale_by_rss(g, slots, t, *, initial_accumulator_value: float = 0.1, eps: Scalar = 1e-7, eps_in_sqrt: bool = True):
    """Divide the gradient by the root of the sum of all squares so far.

        v ← v + g²
        u = g / √(v + ε),  or g / (√v + ε) without eps_in_sqrt;  0 where v = 0

    Args:
      initial_accumulator_value: v before the first step, ≥ 0.
      eps: ε ≥ 0.
      eps_in_sqrt: True as optax and Keras 3, False as torch and Keras 2 (which start at v = 0).

    Slots: nu (1 × parameters).  Lift: elementwise.
    Source: Duchi, Hazan & Singer 2011, JMLR 12.
    """
    nu = slots.nu + g * g
    seen = jnp.where(nu > 0, nu, 1)
    return jnp.where(nu > 0, g / (sqrt(seen + eps) if eps_in_sqrt else sqrt(seen) + eps), 0), {"nu": nu}


@registry.register()
@elementwise(e_g=Slot(nonnegative=True), e_x=Slot(nonnegative=True))
def scale_by_adadelta(g, slots, t, *, rho: Scalar = 0.9, eps: Scalar = 1e-6):
    """Steps of the size of earlier steps, so that no rate is needed.

        E ← ρ E + (1−ρ) g²
        u = g √(D + ε) / √(E + ε)
        D ← ρ D + (1−ρ) u²

    Args:
      rho: ρ in [0, 1).
      eps: ε > 0; the size of the first steps grows with its root.

    Slots: e_g, e_x (2 × parameters).  Lift: elementwise.
    Source: Zeiler 2012, arXiv:1212.5701.
    """
    e_g = rho * slots.e_g + (1 - rho) * g * g
    update = sqrt(slots.e_x + eps) / sqrt(e_g + eps) * g
    return update, {"e_g": e_g, "e_x": rho * slots.e_x + (1 - rho) * update * update}
