"""Rules for tables of which a step touches a few rows."""

import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._averages import debias
from lossopt_jax.transforms._lift import leafwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@leafwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_lazy_adam(g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8):
    """Adam on the rows that have a gradient; the others neither move nor forget.

        in rows of the first axis with an element g ≠ 0:
        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        u = m̂ / (√v̂ + ε),      m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)
        in the others u = 0

    t counts all updates. For embeddings, whose gradients are mostly zero rows; by `partition` on them alone.

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.

    Slots: mu, nu (2 × parameters).  Lift: leafwise.
    Differs from: torch's SparseAdam, which is told the rows, so that one with a zero gradient may count as touched,
      and divides by (√v + ε)/√(1−β₂ᵗ).
    Source: Kingma & Ba 2015, arXiv:1412.6980, on rows.
    """
    touched = jnp.any(g != 0, tuple(range(1, g.ndim)), keepdims=True)
    mu = jnp.where(touched, b1 * slots.mu + (1 - b1) * g, slots.mu)
    nu = jnp.where(touched, b2 * slots.nu + (1 - b2) * g * g, slots.nu)
    update = jnp.where(touched, debias(mu, b1, t) / (sqrt(debias(nu, b2, t)) + eps), 0)
    return update, {"mu": mu, "nu": nu}
