"""Rules that divide by a moving second moment."""

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
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_adam(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    nesterov: bool = False,
):
    """Divide the mean gradient by its root mean square.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        u = m̂ / (√(v̂ + ε₀) + ε),      m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)
        nesterov: m̂ = β₁ m/(1−β₁ᵗ⁺¹) + (1−β₁) g/(1−β₁ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root, for differentiating through the update.
      nesterov: look one step ahead (Dozat's NAdam without its momentum schedule).

    Slots: mu, nu (2 × parameters, float32 or better).  Lift: elementwise.
    Differs from: optax in half precision, where its slots are the parameters'.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Dozat 2016.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    mean = b1 * debias(mu, b1, t + 1) + (1 - b1) * debias(g, b1, t) if nesterov else debias(mu, b1, t)
    return mean / (sqrt(debias(nu, b2, t) + eps_root) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True), nu_max=Slot(nonnegative=True))
def scale_by_amsgrad(g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0):
    """Adam's direction over the largest second moment so far.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        w ← max(w, v)
        u = m̂ / (√(ŵ + ε₀) + ε),      m̂ = m/(1−β₁ᵗ),  ŵ = w/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.

    Slots: mu, nu, nu_max (3 × parameters).  Lift: elementwise.
    Differs from: optax, which takes the maximum of v̂, so that the first estimates, divided by almost nothing,
      dominate for ever; here as torch and Keras.
    Source: Reddi, Kale & Kumar 2018, arXiv:1904.09237, algorithm 2.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    nu_max = jnp.maximum(slots.nu_max, nu)
    update = debias(mu, b1, t) / (sqrt(debias(nu_max, b2, t) + eps_root) + eps)
    return update, {"mu": mu, "nu": nu, "nu_max": nu_max}
