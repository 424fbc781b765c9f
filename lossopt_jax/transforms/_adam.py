"""Adam and what was made of it: a mean gradient over the root of a second moment."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._averages import bias_correction, debias, debias_ahead
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


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
    mean = debias_ahead(mu, g, b1, t) if nesterov else debias(mu, b1, t)
    return mean / (sqrt(debias(nu, b2, t) + eps_root) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True), nu_max=Slot(nonnegative=True))
def scale_by_amsgrad(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
):
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
      bias_correction_mu: False for m̂ = m.
      bias_correction_nu: False for ŵ = w.

    Slots: mu, nu, nu_max (3 × parameters).  Lift: elementwise.
    Differs from: optax, which takes the maximum of v̂, so that the first estimates, divided by almost nothing,
      dominate for ever; here as torch and Keras.
    Source: Reddi, Kale & Kumar 2018, arXiv:1904.09237, algorithm 2.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    nu_max = jnp.maximum(slots.nu_max, nu)
    mean = debias(mu, b1, t) if bias_correction_mu else mu
    square = debias(nu_max, b2, t) if bias_correction_nu else nu_max
    return mean / (sqrt(square + eps_root) + eps), {"mu": mu, "nu": nu, "nu_max": nu_max}


def _momentum_at(t: Any, b1: Any, momentum_decay: Any) -> Any:
    """1 − μₜ of Dozat's schedule, μₜ = β₁ (1 − ½ 0.96^(t ψ)), without cancellation."""
    return (1 - b1) + b1 * 0.5 * 0.96 ** (t * momentum_decay)


def _fill(slots, t, *, b1, momentum_decay, **_):
    # c = 1 − μ₁⋯μₜ as a sum of positive terms
    return {"filled": slots.filled + (1 - slots.filled) * _momentum_at(t, b1, momentum_decay)}


@registry.register()
@elementwise(once=_fill, mu=Slot(), nu=Slot(nonnegative=True), filled=Slot(per="tree", exact=True))
def scale_by_nadam(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    momentum_decay: Scalar = 0.004,
):
    """Adam with Nesterov's momentum on Dozat's schedule.

        μₜ = β₁ (1 − ½ 0.96^(t ψ))
        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        u = (μₜ₊₁ m / (1 − μ₁⋯μₜ₊₁) + (1−μₜ) g / (1 − μ₁⋯μₜ)) / (√(v̂ + ε₀) + ε),      v̂ = v/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      momentum_decay: ψ ≥ 0; 0.004 as torch and Keras 2, 1 as Keras 3. Without schedule: `scale_by_adam(nesterov=True)`.

    Slots: mu, nu (2 × parameters), filled (1 − μ₁⋯μₜ).  Lift: elementwise.
    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    now, ahead = _momentum_at(t, b1, momentum_decay), _momentum_at(t + 1, b1, momentum_decay)
    mean = (1 - ahead) * mu / (slots.filled + (1 - slots.filled) * ahead) + now * g / slots.filled
    return mean / (sqrt(debias(nu, b2, t) + eps_root) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_adamax(g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8):
    """Divide the mean gradient by the largest recent one.

        m ← β₁ m + (1−β₁) g
        v ← max(β₂ v, |g| + ε)
        u = m̂ / v,      m̂ = m/(1−β₁ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0, inside the maximum.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Differs from: Keras, which adds ε to the maximum.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = jnp.maximum(b2 * slots.nu, jnp.abs(g) + eps)
    return debias(mu, b1, t) / nu, {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_radam(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    nesterov: bool = False,
):
    """Adam that does not divide until it has seen enough to know the variance.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        ρ∞ = 2/(1−β₂) − 1,      ρ = ρ∞ − 2t β₂ᵗ/(1−β₂ᵗ)
        r² = (ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ)
        u = r m̂ / (√(v̂ + ε₀) + ε) if ρ ≥ threshold, else m̂

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      threshold: of ρ, the length of the average; above 4.
      nesterov: look one step ahead, as `scale_by_adam`.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Differs from: torch, which divides by (√v + ε)/√(1−β₂ᵗ).
    Source: Liu et al. 2020, arXiv:1908.03265, algorithm 2.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    mean = debias_ahead(mu, g, b1, t) if nesterov else debias(mu, b1, t)
    filled, longest = bias_correction(b2, t), 2 / (1 - b2) - 1
    length = longest - 2 * t * (1 - filled) / filled
    square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    rectified = sqrt(jnp.maximum(square, 0)) * mean / (sqrt(debias(nu, b2, t) + eps_root) + eps)
    return jnp.where(length >= threshold, rectified, mean), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_belief(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    nesterov: bool = False,
):
    """Divide the mean gradient by its distance from the gradients.

        m ← β₁ m + (1−β₁) g
        s ← β₂ s + (1−β₂) (g − m)² + ε₀
        u = m̂ / (√ŝ + ε),      m̂ = m/(1−β₁ᵗ),  ŝ = s/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      eps_root: ε₀ ≥ 0; stays in s.
      nesterov: look one step ahead, as `scale_by_adam`.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Zhuang et al. 2020, arXiv:2010.07468, algorithm 2.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * jnp.square(g - mu) + eps_root
    mean = debias_ahead(mu, g, b1, t) if nesterov else debias(mu, b1, t)
    return mean / (sqrt(debias(nu, b2, t)) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_acprop(
    g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16
):
    """Divide the gradient by the spread of the gradients before it.

        u = g at t = 1, then g / (√ŝ + ε),      ŝ = s/(1−β₂ᵗ⁻¹)
        s ← β₂ s + (1−β₂) (g − m)² + ε₀
        m ← β₁ m + (1−β₁) g

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      eps_root: ε₀ ≥ 0; stays in s.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Zhuang et al. 2021, arXiv:2110.05454, algorithm 2.
    """
    nu = b2 * slots.nu + (1 - b2) * jnp.square(g - slots.mu) + eps_root
    spread = jnp.where(t > 1, debias(slots.nu, b2, jnp.maximum(t - 1, 1)), 1)
    return g / (sqrt(spread) + eps), {"mu": b1 * slots.mu + (1 - b1) * g, "nu": nu}


@registry.register()
@elementwise(mu=Slot(fill="initial_accumulator_value"), nu=Slot(fill="initial_accumulator_value", nonnegative=True))
def scale_by_yogi(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: float = 1e-6,
):
    """Adam whose second moment moves by at most the size of a square.

        m ← β₁ m + (1−β₁) g
        v ← v − (1−β₂) sign(v − g²) g²
        u = m̂ / (√(v̂ + ε₀) + ε),      m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      initial_accumulator_value: m and v before the first step, ≥ 0; so the first steps move without a gradient.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Zaheer et al. 2018, NeurIPS 31; the initial m is optax's.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = slots.nu - (1 - b2) * jnp.sign(slots.nu - g * g) * g * g
    return debias(mu, b1, t) / (sqrt(debias(nu, b2, t) + eps_root) + eps), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), delta=Slot(), nu=Slot(nonnegative=True), before=Slot(exact=True))
def scale_by_adan(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
):
    """Adam with Nesterov's momentum from differences of gradients.

        δ = g − g₋,  0 at t = 1
        m ← β₁ m + (1−β₁) g
        d ← β₂ d + (1−β₂) δ
        n ← β₃ n + (1−β₃) (g + β₂ δ)²
        u = (m̂ + β₂ d̂) / (√(n̂ + ε₀) + ε),      m̂ = m/(1−β₁ᵗ), and so on

    Args:
      b1: β₁ in [0, 1); 1 − β₁ of the paper.
      b2: β₂ in [0, 1).
      b3: β₃ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.

    Slots: mu, delta, nu, before (4 × parameters).  Lift: elementwise.
    Differs from: optax, which has 1 − β₂ where the paper and its authors' code have β₂ in front of δ and d̂.
    Source: Xie et al. 2022, arXiv:2208.06677, algorithm 1.
    """
    change = jnp.where(t > 1, g - slots.before, 0)
    mu = b1 * slots.mu + (1 - b1) * g
    delta = b2 * slots.delta + (1 - b2) * change
    nu = b3 * slots.nu + (1 - b3) * jnp.square(g + b2 * change)
    mean = debias(mu, b1, t) + b2 * debias(delta, b2, t)
    update = mean / (sqrt(debias(nu, b3, t) + eps_root) + eps)
    return update, {"mu": mu, "delta": delta, "nu": nu, "before": g}


def fourth_root(step: Any) -> Any:
    """step^¼, how far ADOPT lets a normalised gradient go."""
    return step**0.25


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_adopt(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Any], Any] = fourth_root,
):
    """Adam that normalises before it averages, by a second moment that has not seen the gradient.

        t = 1:  v ← g²,  u = 0
        t > 1:  c = g / max(√v, ε), clipped to ±clip_value_fn(t−1)
                m ← β₁ m + (1−β₁) c
                v ← β₂ v + (1−β₂) g²
                u = m,  or β₁ m + (1−β₁) c with nesterov

    The first gradient moves nothing.

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0.
      nesterov: look one step ahead.
      use_clipping: the paper's second version.
      clip_value_fn: updates made (a float array) → bound.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2.
    """
    normal = g / jnp.maximum(sqrt(slots.nu), eps)
    if use_clipping:
        bound = clip_value_fn(t - 1)
        normal = jnp.clip(normal, -bound, bound)
    mu = jnp.where(t > 1, b1 * slots.mu + (1 - b1) * normal, slots.mu)
    nu = jnp.where(t > 1, b2 * slots.nu + (1 - b2) * g * g, g * g)
    ahead = jnp.where(t > 1, b1 * mu + (1 - b1) * normal, mu)
    return (ahead if nesterov else mu), {"mu": mu, "nu": nu}


@registry.register()
@elementwise(m1=Slot(), m2=Slot(), nu=Slot(nonnegative=True))
def scale_by_ademamix(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    alpha: Scalar = 6.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
):
    """Adam with a second, much longer mean.

        m₁ ← β₁ m₁ + (1−β₁) g
        m₂ ← β₃ m₂ + (1−β₃) g
        v ← β₂ v + (1−β₂) g²
        u = (m̂₁ + α m₂) / (√(v̂ + ε₀) + ε),      m̂₁ = m₁/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      b3: β₃ in [0, 1), often a schedule.
      alpha: α, the weight of the long mean, often a schedule.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.

    Slots: m1, m2, nu (3 × parameters).  Lift: elementwise.
    Source: Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137, algorithm 1.
    """
    m1 = b1 * slots.m1 + (1 - b1) * g
    m2 = b3 * slots.m2 + (1 - b3) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    update = (debias(m1, b1, t) + alpha * m2) / (sqrt(debias(nu, b2, t) + eps_root) + eps)
    return update, {"m1": m1, "m2": m2, "nu": nu}


@registry.register()
@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_simplified_ademamix(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: Scalar = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
):
    """Adam on a decaying sum with the newest gradient weighed apart.

        m ← β₁ m + g
        v ← β₂ v + (1−β₂) g²
        u = (α g + m) / (√(v̂ + ε₀) + ε),      v̂ = v/(1−β₂ᵗ)

    The sum is 1/(1−β₁) times a mean, so the rate is that much smaller than Adam's.

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      alpha: α, a number, an array or a schedule.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.

    Slots: mu, nu (2 × parameters).  Lift: elementwise.
    Source: Morwani, Vyas, Zhang & Kakade 2025, arXiv:2502.02431.
    """
    mu = b1 * slots.mu + g
    nu = b2 * slots.nu + (1 - b2) * g * g
    return (alpha * g + mu) / (sqrt(debias(nu, b2, t) + eps_root) + eps), {"mu": mu, "nu": nu}
