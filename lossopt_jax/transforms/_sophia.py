"""A momentum divided by an estimate of the curvature."""

from typing import Annotated

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, NONNEGATIVE, POSITIVE, Scalar
from lossopt_jax.transforms._averages import debias
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._second_order import hutchinson
from lossopt_jax.transforms._vectors import averaged


@registry.register()
@treewise(needs=("params", "value_fn", "key"), mu=Slot(), nu=Slot())
def scale_by_sophia(
    g,
    slots,
    t,
    p,
    value_fn,
    seeds,
    *,
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    eps: Annotated[Scalar, POSITIVE] = 1e-8,
    gamma: Annotated[Scalar, NONNEGATIVE] = 0.01,
    clip_threshold: Annotated[Scalar, POSITIVE] = 1.0,
    update_interval: Annotated[int, COUNT] = 10,
):
    """Divide the mean gradient by the diagonal of the Hessian, within bounds.

        m ← β₁ m + (1−β₁) g
        u = clip(m̂ / max(γ h, ε), ±ρ),      m̂ = m/(1−β₁ᵗ),  h before this step's estimate
        t = 1, 1+k, 1+2k, …:  h ← β₂ h + (1−β₂) z ∇⟨∇L, z⟩,  z = ±1 at random

    The estimate is Hutchinson's: right in the mean, and exactly where the Hessian is diagonal. It costs about two more
    gradients every k steps. The signs are a hash of seed, step, the leaf's path and the element's index. Where `u` is
    at its bound the rule is a sign descent: γ is well chosen if 10 to 50 % of the elements are within.

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1), per estimate.
      eps: ε > 0.
      gamma: γ ≥ 0.
      clip_threshold: ρ > 0; math.inf for no bound.
      update_interval: k ≥ 1.
      seed: an integer in [0, 2³²).

    Needs the parameters, and the loss as a function of them that averages over devices where there are several by
    name: `update(…, value_fn=lambda params: loss)`.  Slots: mu, nu (2 × parameters), seed.  Lift: treewise.

    Raises:
      TypeError: no value_fn.

    Differs from: the paper, which divides by the newest h and has no 1−β₁ᵗ; optax takes obj_fn= for value_fn=, and
      another estimate of the diagonal if told.
    Source: Liu et al. 2023, arXiv:2305.14342, algorithms 1 and 3, in optax's form.
    """
    if not g:
        return [], {}

    def bounded(m: jax.Array, h: jax.Array) -> jax.Array:
        decay, time, floor, share, bound = (s.astype(m.dtype) for s in (b1, t, eps, gamma, clip_threshold))
        return jnp.clip(debias(m, decay, time) / jnp.maximum(share * h, floor), -bound, bound)

    def estimated() -> list[jax.Array]:
        return averaged(b2, slots.nu, hutchinson(value_fn, p, seeds))

    mu = averaged(b1, slots.mu, g)
    nu = jax.lax.cond((t - 1) % update_interval == 0, estimated, lambda: slots.nu)
    return [bounded(m, h) for m, h in zip(mu, slots.nu, strict=True)], {"mu": mu, "nu": nu}
