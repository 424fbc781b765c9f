"""Steps that follow from the loss itself: how far a model of it lies above a lower bound."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import FRACTION, Scalar, complaint
from lossopt_jax.transforms._averages import bias_correction
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._vectors import averaged, combined, inner, scaled


def _steepness(gap: jax.Array, square: jax.Array, eps: jax.Array | float = 0.0) -> jax.Array:
    """gap / (‖d‖² + ε); 0 where ‖d‖² vanishes or overflows."""
    known = square >= jnp.finfo(square.dtype).tiny
    return jnp.where(known, gap / jnp.where(known, square + eps, 1), 0)


@registry.register()
@treewise(needs=("value",))
def scale_by_polyak(
    g,
    slots,
    t,
    value,
    *,
    f_min: Scalar = 0.0,
    max_learning_rate: Scalar = 1.0,
    eps: Scalar = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
):
    """The step at which the linear model of the loss would reach its minimum.

        u = g · min((f − f*) / (‖g‖² + ε), η),      ‖g‖ over all leaves;  0 where g is 0

    Args:
      f_min: f*, what the loss can reach.
      max_learning_rate: η ≥ 0, the longest step.
      eps: ε ≥ 0.
      variant: "sps+" to stay where f < f*; "sps" climbs back.

    Needs the loss: `update(…, value=loss)`.  Lift: treewise.

    Raises:
      TypeError: no value.
      ValueError: another variant.

    Differs from: optax, which stands still once ‖g‖² + ε ≤ 2.2e-16, here where ‖g‖² underflows.
    Source: Loizou et al. 2021, arXiv:2002.10542; "sps+": Garrigos, Gower & Schaipp 2023, arXiv:2307.14528.
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(complaint("scale_by_polyak", "variant", "be 'sps' or 'sps+'", repr(variant)))
    gap = value - f_min if variant == "sps" else jnp.maximum(value - f_min, 0)
    # a loss below f* has no shortest step: keep it finite
    step = jnp.clip(_steepness(gap, inner(g, g, gap.dtype), eps), jnp.finfo(gap.dtype).min, max_learning_rate)
    return scaled(step, g), {}


def _model_step(
    slots: Any,
    t: jax.Array,
    g: list[jax.Array],
    p: list[jax.Array],
    value: jax.Array,
    mu: list[jax.Array],
    square: jax.Array,
    *,
    beta: jax.Array,
    weight: jax.Array | float,
    rate: jax.Array,
    shrink: jax.Array,
    lowest: jax.Array,
    adapt: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Where the averaged linear model of a decayed loss meets its bound: (τ, the slots that make the model).

        f̄ ← β f̄ + (1−β) f
        γ ← β γ + (1−β) ⟨g,w⟩
        room = s (f̄ − γ) + ⟨m,w⟩
        f* ← max(room / 2sρ, f₀) if room < sρf*
        τ = min(η/ρ, (room − sρf*)₊ / ‖m‖²)
        f* ← max((f̄ − γ + ⟨m,w⟩ − ½ τ‖m‖²)/ρ, f₀)

    with s = 1 + ηλ, and f* = f₀ throughout unless adapt.
    """
    mean_value = beta * slots.mean_value + (1 - beta) * value
    mean_dot = beta * slots.mean_dot + (1 - beta) * inner(g, p, value.dtype)
    offset, dot, unit = mean_value - mean_dot, inner(mu, p, value.dtype), shrink * weight
    room, bound = shrink * offset + dot, lowest
    if adapt:
        estimate = jnp.where(t > 1, slots.lower_bound, lowest)
        bound = jnp.where(room < unit * estimate, jnp.maximum(room / (2 * unit), lowest), estimate)
    step = jnp.minimum(rate / weight, _steepness(jnp.maximum(room - unit * bound, 0), square))
    if adapt:
        square = jnp.minimum(square, jnp.finfo(square.dtype).max)  # 0 · ∞
        bound = jnp.maximum((offset + dot - step * square / 2) / weight, lowest)
    return step, {"mean_value": mean_value, "mean_dot": mean_dot, "lower_bound": bound}


def _proximal(p: list[jax.Array], direction: list[jax.Array], step: jax.Array, decay: jax.Array) -> list[jax.Array]:
    """(w − τ d)/(1+δ) − w."""
    return combined(-step / (1 + decay), direction, -decay / (1 + decay), p)


@registry.register()
@treewise(
    needs=("params", "value"),
    mu=Slot(),
    mean_value=Slot(per="tree", exact=True),
    mean_dot=Slot(per="tree", exact=True),
    lower_bound=Slot(per="tree", exact=True),
)
def scale_by_momo(
    g,
    slots,
    t,
    p,
    value,
    *,
    learning_rate: Scalar = 1.0,
    beta: Annotated[Scalar, FRACTION] = 0.9,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
):
    """Momentum whose step follows from a running model of the loss.

        m ← β m + (1−β) g
        f̄ ← β f̄ + (1−β) f
        γ ← β γ + (1−β) ⟨g,w⟩,      β = 0 at t = 1
        τ = min(η, ((1+ηλ)(f̄ − f* − γ) + ⟨m,w⟩)₊ / ‖m‖²),      sums over all leaves
        w ← (w − τ m) / (1 + ηλ)

    Args:
      learning_rate: η ≥ 0, the longest step.
      beta: β in [0, 1).
      lower_bound: f*, below which the loss does not fall.
      weight_decay: λ ≥ 0.
      adapt_lower_bound: estimate f* on the way, from lower_bound upwards.

    Needs the parameters and the loss: `update(…, value=loss)`. The update is complete: no rate belongs behind it.
    Slots: mu (1 × parameters), mean_value, mean_dot, lower_bound (one each).  Lift: treewise.

    Raises:
      TypeError: no value.

    Differs from: optax with weight_decay, which subtracts τ m from the decayed point, τ m / (1 + ηλ) here and in the
      authors' package; and once ‖m‖² ≤ 2.2e-16, where optax stands still.
    Source: Schaipp et al. 2024, arXiv:2305.07583.
    """
    beta = jnp.where(t > 1, beta, 0)
    mu = averaged(beta, slots.mu, g)
    step, model = _model_step(
        slots,
        t,
        g,
        p,
        value,
        mu,
        inner(mu, mu, value.dtype),
        beta=beta,
        weight=1.0,
        rate=learning_rate,
        shrink=1 + learning_rate * weight_decay,
        lowest=lower_bound,
        adapt=adapt_lower_bound,
    )
    return _proximal(p, mu, step, learning_rate * weight_decay), {"mu": mu, **model}


@registry.register()
@treewise(
    needs=("params", "value"),
    mu=Slot(),
    nu=Slot(nonnegative=True),
    mean_value=Slot(per="tree", exact=True),
    mean_dot=Slot(per="tree", exact=True),
    lower_bound=Slot(per="tree", exact=True),
)
def scale_by_momo_adam(
    g,
    slots,
    t,
    p,
    value,
    *,
    learning_rate: Scalar = 0.01,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
):
    """Adam whose step follows from a running model of the loss.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        D = √(v/(1−β₂ᵗ)) + ε
        f̄ ← β₁ f̄ + (1−β₁) f
        γ ← β₁ γ + (1−β₁) ⟨g,w⟩,      ρ = 1 − β₁ᵗ
        τ = min(η/ρ, ((1+ηλ)(f̄ − ρ f* − γ) + ⟨m,w⟩)₊ / Σ m²/D),      sums over all leaves
        w ← (w − τ m/D) / (1 + ηλ)

    Args:
      learning_rate: η ≥ 0, the longest step, as in Adam.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      lower_bound: f*, below which the loss does not fall.
      weight_decay: λ ≥ 0.
      adapt_lower_bound: estimate f* on the way, from lower_bound upwards.

    Needs the parameters and the loss: `update(…, value=loss)`. The update is complete: no rate belongs behind it.
    Slots: mu, nu (2 × parameters), mean_value, mean_dot, lower_bound (one each).  Lift: treewise.

    Raises:
      TypeError: no value.

    Differs from: optax, as `scale_by_momo`.
    Source: Schaipp et al. 2024, arXiv:2305.07583.
    """
    rho, rho2 = bias_correction(b1, t), bias_correction(b2, t)
    mu, nu = averaged(b1, slots.mu, g), averaged(b2, slots.nu, [x * x for x in g])
    scales = [sqrt(v / rho2.astype(v.dtype)) + eps.astype(v.dtype) for v in nu]
    direction = [m / jnp.where(d > 0, d, 1) for m, d in zip(mu, scales, strict=True)]
    step, model = _model_step(
        slots,
        t,
        g,
        p,
        value,
        mu,
        inner(mu, direction, value.dtype),
        beta=b1,
        weight=rho,
        rate=learning_rate,
        shrink=1 + learning_rate * weight_decay,
        lowest=lower_bound,
        adapt=adapt_lower_bound,
    )
    return _proximal(p, direction, step, learning_rate * weight_decay), {"mu": mu, "nu": nu, **model}
