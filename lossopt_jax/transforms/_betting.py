"""Rules that bet on the next gradient with what the gradients so far have won: COCOB, and Mechanic around any other."""

import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, POSITIVE, Scalar, as_compute, map_arrays
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._distance import ratio
from lossopt_jax.transforms._lift import elementwise, wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Axes, Extent, Slot


@registry.register()
@elementwise(
    needs=("params",),
    x0=Slot(fill=as_compute, exact=True),
    scale=Slot(nonnegative=True, exact=True),
    grad_sum=Slot(exact=True),
    abs_sum=Slot(nonnegative=True, exact=True),
    reward=Slot(nonnegative=True, exact=True),
)
def scale_by_cocob(g, slots, t, p, *, alpha: Annotated[Scalar, POSITIVE] = 100.0, eps: Scalar = 1e-8):
    """Continuous coin betting: every element stakes a part of what it has won.

        L ← max(L, |g|),      L = ε at first
        G ← G + |g|
        R ← max(R − g (w − w₀), 0)
        θ ← θ − g
        w ← w₀ + θ / max(G + L, α L) · (L + R) / L

    Only ratios of gradients count: a constant factor on all of them changes nothing but the weight of ε.

    Args:
      alpha: α > 0; the first step is 1/α.
      eps: ε ≥ 0, the least L.

    Needs the parameters; w₀ are those that init saw. The update is complete.
    Slots: x0, scale, grad_sum, abs_sum, reward (5 × parameters).  Lift: elementwise.
    Source: Orabona & Tommasi 2017, arXiv:1705.07795, algorithm 2.
    """
    scale = jnp.maximum(jnp.maximum(slots.scale, eps), jnp.abs(g))
    abs_sum = slots.abs_sum + jnp.abs(g)
    reward = jnp.maximum(slots.reward - g * (p - slots.x0), 0)
    grad_sum = slots.grad_sum - g
    known = scale > 0
    unit = jnp.where(known, scale, 1)
    # (L + R)/L, and no product of two gradients, which could leave the range
    stake = grad_sum / jnp.maximum(abs_sum + unit, alpha * unit) * (1 + reward / unit)
    update = (slots.x0 - p) + jnp.where(known, stake, 0)
    return update, {"scale": scale, "grad_sum": grad_sum, "abs_sum": abs_sum, "reward": reward}


def _per_beta(shape: tuple[int, ...], arguments: dict[str, Any]) -> Axes:
    return (Extent(arguments["num_betas"]),)


def _inner(left: Any, right: Any, dtype: Any) -> jax.Array:
    """The real inner product of two trees, complex leaves being pairs."""
    products = map_arrays(lambda x, y: jnp.sum(jnp.real(jnp.conj(x) * y)).astype(dtype), left, right)
    return functools.reduce(jnp.add, jax.tree.leaves(products), jnp.zeros((), dtype))


@registry.register()
@wrapper(
    members=("base_optimizer",),
    needs=("params",),
    x0=Slot(fill=as_compute, exact=True),
    r=Slot(_per_beta, per="tree", exact=True),
    m=Slot(_per_beta, per="tree", nonnegative=True, exact=True),
    v=Slot(_per_beta, per="tree", nonnegative=True, exact=True),
    s=Slot(_per_beta, fill="s_init", per="tree", nonnegative=True, exact=True),
)
def mechanize(
    run,
    updates,
    slots,
    t,
    params,
    *,
    weight_decay: Scalar = 1e-2,
    eps: Scalar = 1e-8,
    s_init: Annotated[Scalar, POSITIVE] = 1e-6,
    num_betas: Annotated[int, COUNT] = 6,
):
    """Mechanic: learn by betting how much of another optimizer's updates to take.

        Δ = (w₀ − w) / (Σs + ε)
        h = ⟨g + λ Σs ‖g‖ / (‖w‖ + ε) w, Δ⟩
        for each βᵢ = 1 − 10⁻ⁱ, i = 1 … n:
            r ← β r + min(max(h, −m), m) s
            m ← max(β m, |h| + ε)
            v ← √(β² v² + h²)
            s ← (s₀ m/n + max(r, 0)) / (v + ε)
        w ← w₀ − Σs (Δ − base(g))

    Inner product, norms and sum over whatever is trained. Give the base a rate of 1, times a schedule if wanted.
    The first steps are s₀ times the base's, which half precision rounds away: use `master_weights` there.

    Args:
      base_optimizer: what steps; not one that normalises its updates by the parameters, such as lamb.
      weight_decay: λ ≥ 0, which keeps s from growing; no decay of the parameters.
      eps: ε ≥ 0.
      s_init: s₀ > 0.
      num_betas: n ≥ 1.

    Needs the parameters; w₀ are those that init saw.  Slots: x0 (1 × parameters), r, m, v, s (n numbers each).
      Σs, the factor learned, is the sum of `get_slot(state, "s")`.  Lift: wrapper.
    Differs from: optax, which keeps the numbers and w₀ in the parameters' lowest precision, and takes w₀ at the first
      update instead of at init.
    Source: Cutkosky, Defazio & Mehta 2023, arXiv:2306.00144, algorithm 1, in the form of its authors' code, whose bound
      on h is not in the paper.
    """
    dtype = slots.s.dtype
    steps, state = run(updates)
    gap = map_arrays(lambda g, p, x0: x0 - as_compute(p), updates, params, slots.x0)
    trained = map_arrays(lambda g, p: as_compute(p), updates, params)
    total = jnp.sum(slots.s)

    decay = weight_decay * total * ratio(global_norm(updates).astype(dtype), global_norm(trained).astype(dtype) + eps)
    h = ratio(_inner(updates, gap, dtype) + decay * _inner(trained, gap, dtype), total + eps)

    beta = 1 - jnp.asarray(0.1, dtype) ** jnp.arange(1, num_betas + 1, dtype=dtype)
    r = beta * slots.r + jnp.clip(h, -slots.m, slots.m) * slots.s
    m = jnp.maximum(beta * slots.m, jnp.abs(h) + eps)
    v = jnp.hypot(beta * slots.v, h)
    s = jnp.where(v + eps > 0, ratio(s_init / num_betas * m + jnp.maximum(r, 0), v + eps), slots.s)

    after = jnp.sum(s)
    shrink = 1 - ratio(after, total + eps)

    def move(step: jax.Array, gap: jax.Array) -> jax.Array:
        # w₀ − Σs⁺ ((w₀ − w)/(Σs + ε) − u) − w
        return shrink.astype(gap.dtype) * gap + after.astype(step.dtype) * step

    return map_arrays(move, steps, gap), state, {"r": r, "m": m, "v": v, "s": s}
