"""Rules that estimate curvature from pairs of steps and changes of the gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Axes, Extent, Slot
from lossopt_jax.transforms._vectors import add_scaled, difference, inner, scaled


def _ring(shape: tuple[int, ...], arguments: dict[str, Any]) -> Axes:
    return (Extent(arguments["memory_size"]), *range(len(shape)))


@registry.register()
@treewise(
    needs=("params",),
    last_params=Slot(exact=True),
    last_grad=Slot(exact=True),
    diff_params=Slot(shape=_ring),
    diff_grads=Slot(shape=_ring),
    scale=Slot(per="tree", fill=1.0, exact=True),
    pairs=Slot(per="tree", dtype=jnp.int32, exact=True),
)
def scale_by_lbfgs(g, slots, t, p, *, memory_size: int = 10, scale_init_precond: bool = True):
    """Multiply by the limited-memory BFGS estimate of the inverse Hessian.

        s = p − p₋,  y = g − g₋;   kept, both divided by √⟨s,y⟩, if ⟨s,y⟩ > ε‖s‖‖y‖, ε the machine's
        newest → oldest: αᵢ = ⟨sᵢ,g⟩,  g ← g − αᵢ yᵢ
        g ← γ g,  γ = 1/⟨y,y⟩ of the newest pair, min(1, 1/‖g‖) before the first; 1 without scale_init_precond
        oldest → newest: g ← g + (αᵢ − ⟨yᵢ,g⟩) sᵢ
        u = g

    The textbook's ρ = 1/⟨s,y⟩ is divided among the two, so the estimate is positive definite whatever the pairs are
    rounded to: u is a direction of ascent and −u one of descent.

    Args:
      memory_size: M ≥ 1, pairs remembered.
      scale_init_precond: False for γ = 1.

    Needs the parameters.
    Slots: last_params, last_grad (2 × parameters), diff_params, diff_grads (2M × parameters), scale, pairs (one
      number each).  Lift: treewise.
    Differs from: optax, which drops only pairs with ⟨s,y⟩ = 0, so that negative curvature turns u downhill; equal
      where no pair is dropped.
    Source: Liu & Nocedal 1989, doi:10.1007/BF01589116; Nocedal & Wright 2006, algorithm 7.4.
    """
    dtype = t.dtype
    s, y = difference(p, slots.last_params), difference(g, slots.last_grad)
    curvature, s_norm, y_norm = inner(s, y, dtype), global_norm(s).astype(dtype), global_norm(y).astype(dtype)
    keep = (t > 1) & (curvature > jnp.finfo(dtype).eps * s_norm * y_norm) & jnp.isfinite(curvature)
    root, y_norm = (jnp.where(keep, x, jnp.ones_like(x)) for x in (jnp.sqrt(jnp.abs(curvature)), y_norm))

    place = slots.pairs % memory_size

    def remember(ring: jax.Array, new: jax.Array) -> jax.Array:
        return ring.at[place].set(jnp.where(keep, new / root.astype(new.dtype), ring[place]))

    diff_params, diff_grads = (list(map(remember, *pair)) for pair in ((slots.diff_params, s), (slots.diff_grads, y)))
    scale = jnp.where(keep, jnp.square(root / y_norm), slots.scale)
    pairs = slots.pairs + keep.astype(slots.pairs.dtype)

    oldest_first = (pairs + jnp.arange(memory_size, dtype=pairs.dtype)) % memory_size

    def down(q: list[jax.Array], i: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        alpha = inner([x[i] for x in diff_params], q, dtype)
        return add_scaled(q, -alpha, [x[i] for x in diff_grads]), alpha

    def up(q: list[jax.Array], row: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
        i, alpha = row
        beta = inner([x[i] for x in diff_grads], q, dtype)
        return add_scaled(q, alpha - beta, [x[i] for x in diff_params]), None

    u, alphas = jax.lax.scan(down, g, oldest_first, reverse=True)
    if scale_init_precond:
        norm = global_norm(g).astype(dtype)
        gamma = jnp.where(pairs > 0, scale, 1 / jnp.maximum(norm, 1))
        u = scaled(gamma, u)
    u, _ = jax.lax.scan(up, u, (oldest_first, alphas))
    return u, {
        "last_params": p,
        "last_grad": g,
        "diff_params": diff_params,
        "diff_grads": diff_grads,
        "scale": scale,
        "pairs": pairs,
    }
