"""Bounds on gradients."""

import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    CPU_FUSES_SUMS,
    POSITIVE,
    Scalar,
    as_compute,
    is_complex,
    is_trainable,
    sums,
    widest_float,
)
from lossopt_jax.transforms._lift import elementwise, leafwise, treewise
from lossopt_jax.transforms._registry import registry


def _range(dtype: Any) -> tuple[float, float, int]:
    """Where a sum of squares may be trusted, and the power of 2 that moves the rest into the middle of the range.

    Above, squares overflow; below, those lost to underflow may matter.
    """
    most = jnp.finfo(dtype).maxexp
    return 2.0 ** -(most // 2), 2.0 ** (most - 2), most * 5 // 8


def _norm_at_once(*parts: jax.Array) -> jax.Array:
    """√ Σ x² from three sums in one pass: of squares, and of lowered and of raised ones for where those are no use."""
    dtype = parts[0].dtype
    least, most, shift = _range(dtype)
    # XLA would square constants by themselves, which overflows: (cx)² → c²x². The bound, whose square is infinite,
    # changes no sum but keeps the two together where x is a constant too.
    down, up = jax.lax.optimization_barrier((jnp.asarray(2.0**-shift, dtype), jnp.asarray(2.0**shift, dtype)))
    bound = 2.0 ** (jnp.finfo(dtype).maxexp * 3 // 4)

    def squared(x: jax.Array) -> jax.Array:
        return jnp.square(jnp.clip(x, -bound, bound))

    of_each = [sums(jnp.square(x), squared(down * x), squared(up * x)) for x in parts]
    total, lowered, raised = (functools.reduce(jnp.add, terms) for terms in zip(*of_each, strict=True))
    small, large = total < least, ~(total < most)
    root = jnp.sqrt(jnp.where(small, raised, jnp.where(large, lowered, total)))
    return root * jnp.where(small, down, jnp.where(large, up, jnp.ones_like(up)))


def _norm_by_need(*parts: jax.Array) -> jax.Array:
    """The same from one sum, and all three where it is no use: on a CPU each sum is a pass over memory."""
    least, most, _ = _range(parts[0].dtype)
    # a contraction over all axes: one call of the matrix library, where a sum of many small leaves is many kernels
    total = functools.reduce(jnp.add, [jnp.tensordot(x, x, axes=x.ndim, precision="highest") for x in parts])
    return jax.lax.cond((total > least) & (total < most), lambda *_: jnp.sqrt(total), _norm_at_once, *parts)


@jax.custom_jvp
@jax.jit
def _norm(*parts: jax.Array) -> jax.Array:
    cpu = _norm_by_need if CPU_FUSES_SUMS else _norm_at_once
    return jax.lax.platform_dependent(*parts, cpu=cpu, default=_norm_at_once)


@_norm.defjvp
def _norm_jvp(parts: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    norm = _norm(*parts)
    divisor = jnp.where(norm > 0, norm, jnp.ones_like(norm))
    slope = [jnp.sum(x / divisor * dx) for x, dx in zip(parts, tangents, strict=True)]
    return norm, functools.reduce(jnp.add, slope)


def global_norm(updates: Any) -> jax.Array:
    """The Euclidean norm of all elements of a tree, as if it were one vector.

        ‖g‖ = √ Σ |g|²

    Taken in float32 (float64 where a leaf is), from lowered or raised elements where their squares would overflow or
    vanish, so the result is finite and accurate wherever it fits. No leaves: 0. A NaN or an infinity stays one. The
    gradient is g/‖g‖, and 0 at 0.

    Args:
      updates: a tree of floating or complex arrays; None and other leaves do not count.

    Returns:
      [], float32 or float64.

    Differs from: optax, which squares in the leaf's dtype (1000 bfloat16 leaves of four ones give 32 for 63.2).
    Source: Blue 1978, doi:10.1145/355769.355771, for the three sums.
    """
    leaves = [as_compute(leaf) for leaf in jax.tree.leaves(updates) if is_trainable(leaf)]
    parts = [part for x in leaves for part in ((jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,)) if part.size]
    dtype = widest_float(part.dtype for part in parts)
    return _norm(*(part.astype(dtype) for part in parts)) if parts else jnp.zeros((), dtype)


def root_mean_square(x: jax.Array) -> jax.Array:
    """‖x‖ / √size of one array, 0 without elements."""
    return global_norm(x) / max(x.size, 1) ** 0.5


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
@leafwise()
def clip_by_block_rms(g, slots, t, *, threshold: Annotated[Scalar, POSITIVE]):
    """Limit the root mean square of every array: u = g / max(1, rms(g)/d).

    Args:
      threshold: d > 0.

    Lift: leafwise.
    Source: Shazeer & Stern 2018, arXiv:1804.04235, section 6.
    """
    return g / jnp.maximum(1, root_mean_square(g) / threshold), {}


def _shrinking(gradients, t, *, max_norm, per_group):
    norm = global_norm(gradients).astype(max_norm.dtype)
    shrink = jnp.isfinite(norm) & (norm > max_norm)
    return jnp.where(shrink, max_norm / jnp.where(shrink, norm, jnp.ones_like(norm)), jnp.ones_like(norm))


@registry.register()
@treewise(measure=_shrinking, flags=("global_statistic",))
def clip_by_global_norm(g, slots, t, factor, *, max_norm: Scalar, per_group: bool = False):
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
    return factor * g, {}
