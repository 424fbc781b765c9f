"""Bounds on gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import Scalar, as_compute, is_complex, is_trainable
from lossopt_jax.transforms._lift import elementwise, treewise
from lossopt_jax.transforms._registry import registry

# Σ g² may be trusted in this range: above, squares overflow; below, the squares lost to underflow may matter.
_SMALLEST, _LARGEST = 1e-20, 1e38


def global_norm(updates: Any) -> jax.Array:
    """The Euclidean norm of all elements of a tree, as if it were one vector.

        ‖g‖ = √ Σ |g|²

    Taken in float32 (float64 where a leaf is), rescaled by the largest element where squares would overflow or
    vanish, so the result is finite and accurate wherever it fits. No leaves: 0. A NaN or an infinity stays one.

    Args:
      updates: a tree of floating or complex arrays; None and other leaves do not count.

    Returns:
      [], float32 or float64.

    Differs from: optax, which squares in the leaf's dtype (1000 bfloat16 leaves of four ones give 32 for 63.2).
    """
    leaves = [as_compute(leaf) for leaf in jax.tree.leaves(updates) if is_trainable(leaf)]
    parts = [part for x in leaves for part in ((jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,))]
    parts = [part.ravel() for part in parts if part.size]
    if not parts:
        return jnp.zeros((), jnp.float32)
    dtype = functools.reduce(jnp.promote_types, [part.dtype for part in parts])

    def total_of(terms: list[jax.Array]) -> jax.Array:
        return functools.reduce(jnp.add, [term.astype(dtype) for term in terms])

    def rescaled() -> jax.Array:
        largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(part)).astype(dtype) for part in parts])
        usable = jnp.isfinite(largest) & (largest > 0)
        factor = jnp.where(usable, largest, jnp.ones((), dtype))
        # a sum of squares here, not vdot: it fuses with the division, so nothing is materialised
        scaled = total_of([jnp.sum(jnp.square(part / factor.astype(part.dtype))) for part in parts])
        return jnp.where(usable, factor * jnp.sqrt(scaled), largest)

    total = total_of([jnp.vdot(part, part) for part in parts])
    return jax.lax.cond((total > _SMALLEST) & (total < _LARGEST), lambda: jnp.sqrt(total), rescaled)


@registry.register()
@elementwise()
def clip(g, slots, t, *, max_delta: Scalar):
    """Limit every element: u = min(max(g, −c), c). NaN stays NaN.

    Args:
      max_delta: c ≥ 0.

    Lift: elementwise.
    """
    return jnp.clip(g, -max_delta, max_delta), {}


@registry.register()
@treewise(flags=("global_statistic",))
def clip_by_global_norm(g, slots, t, *, max_norm: Scalar, per_group: bool = False):
    """Scale the whole tree down to a norm.

        u = g · min(1, c / ‖g‖),      ‖g‖ over all leaves

    One float32 factor, multiplied where the gradient is used: exactly 1 where the norm is within c, and where it is
    not finite, since then no factor helps (a guard such as the train step's must skip the step). c = 0 gives zeros.

    Args:
      max_norm: c ≥ 0.
      per_group: say True to clip by the norm of a group inside `partition` or `masked`; refused there otherwise.

    Lift: treewise.
    Differs from: optax in half precision and for huge, tiny and infinite gradients (see `global_norm`); torch adds
      1e-6 to the norm.
    Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """
    norm = global_norm(g).astype(max_norm.dtype)
    shrink = jnp.isfinite(norm) & (norm > max_norm)
    factor = jnp.where(shrink, max_norm / jnp.where(shrink, norm, jnp.ones_like(norm)), jnp.ones_like(norm))
    return [x * factor.astype(x.dtype) for x in g], {}
