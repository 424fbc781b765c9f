"""Softmax and its negative logarithm, both to the last bits, to every order of derivative.

    d_j  = z_j − max z,      r = Σ_{j ≠ top} e^{d_j}
    −log p_j = log1p(r) − d_j,      p_j = e^{d_j} / (1 + r)

No term cancels: both are within 4 ulp, the −log p of a class that is sure included. One +∞ takes everything, several
share it, and so do all classes of a row of −∞.

The barriers change no value. They keep XLA from computing a row's logarithm once per class, and on CPU from fusing two
reductions into one loop that it does not vectorise (5 to 10 times slower).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lossopt_jax.losses._arithmetic import over_batches


def below_top(logits: jax.Array, highest: jax.Array) -> jax.Array:
    return jnp.where(logits == highest, 0.0, logits - highest)


def exponential(logits: jax.Array, highest: jax.Array) -> jax.Array:
    """e^d, with what rounding took from d (Knuth's TwoSum): left out, it is wrong by |d| · ½ ulp."""
    d = below_top(logits, highest)
    back = d - logits
    lost = (logits - (d - back)) - (highest + back)
    # a factor: the correction of a tiny e alone would be a denormal, which is flushed
    return jnp.exp(d) * (1 + jnp.where(jnp.isnan(lost), 0.0, lost))


def _exponentials(logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """max z, e^d with −1 for the top classes, and r, with one top class left out and those that tie with it in."""
    highest = jnp.max(logits, axis, keepdims=True)
    signed = jnp.where(logits == highest, -1.0, exponential(logits, highest))
    highest, signed = jax.lax.optimization_barrier((highest, signed))
    rest = 0.5 * jnp.sum(jnp.abs(signed) + signed, axis, keepdims=True)
    tops = jnp.round(rest - jnp.sum(signed, axis, keepdims=True))
    return highest, signed, rest + jnp.maximum(tops - 1, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """−log p and p of every class."""
    highest, signed, r = _exponentials(logits, axis)
    tail, share = jax.lax.optimization_barrier((jnp.log1p(r), 1 / (1 + r)))
    return tail - below_top(logits, highest), jnp.abs(signed) * share


@softmax.defjvp
def _softmax_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    """Derivatives relative to the class that holds more than half, if one does.

        x_j = ż_j − ż_major,      x_major = 0,      c = Σ p_j x_j
        d(−log p_j) = c − x_j,      dp_j = p_j (x_j − c)

    Softmax does not see a common shift, so any reference is right; this one never forms p − 1. Its transpose gives the
    major class −Σ_{j ≠ major} of the other gradients.
    """
    (logits,), (tangent,) = primals, tangents
    surprise, p = softmax(logits, axis)
    major = p > 0.5
    x = jnp.where(major, 0.0, tangent - jnp.sum(jnp.where(major, tangent, 0.0), axis, keepdims=True))
    c = jnp.sum(jnp.where(p == 0, 0.0, p * x), axis, keepdims=True)
    return (surprise, p), (c - x, jnp.where(p == 0, 0.0, p * (x - c)))


def _along(slope: jax.Array, tangent: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(jnp.where(slope == 0, 0.0, slope * tangent), axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def surprise_of_label(logits: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """−log p of one class per row; the class axis of labels is 1 and stays. The labels must be in range."""
    return _with_slope_of_label(logits, labels, axis)[0]


@surprise_of_label.defjvp
def _surprise_of_label_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    value, slope = _with_slope_of_label(*primals, axis)
    return value, _along(slope, tangents[0], axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _with_slope_of_label(logits: jax.Array, labels: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """−log p_y and its gradient, p − 1 at y and p elsewhere, from sums that leave y out instead of the top class.

        R = Σ_{j ≠ y} e^{d_j},      S = R + e^{d_y}
        −log p_y = log1p(R) if y is a top class, else log S − d_y;      −R / S at y, e^{d_j} / S elsewhere

    One exponential per class serves both, and nothing cancels: where y is not at the top, the result is ≥ log 2.
    """
    highest = jnp.max(logits, axis, keepdims=True)
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis) == labels
    others, highest = jax.lax.optimization_barrier((jnp.where(is_label, 0.0, exponential(logits, highest)), highest))
    rest, own = jnp.sum(others, axis, keepdims=True), jnp.take_along_axis(logits, labels, axis)
    whole, d = rest + exponential(own, highest), below_top(own, highest)
    value = jnp.where(d == 0, jnp.log1p(rest), jnp.log(whole) - d)
    rest, share = jax.lax.optimization_barrier((rest, 1 / whole))
    return value, jnp.where(is_label, -rest, others) * share


@_with_slope_of_label.defjvp
def _with_slope_of_label_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (logits, labels), tangent = primals, tangents[0]
    value, slope = _with_slope_of_label(logits, labels, axis)
    (_, along_p) = jax.jvp(lambda z: softmax(z, axis), (logits,), (tangent,))[1]
    return (value, slope), (_along(slope, tangent, axis), along_p)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def expected_surprise(logits: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Σ_j t_j (−log p_j) of one weight per class, where 0 · ∞ = 0; the class axis stays, with 1."""
    return _with_slope(logits, weights, axis)[0]


@functools.partial(expected_surprise.defjvp, symbolic_zeros=True)
def _expected_surprise_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (logits, weights), (along_z, along_t) = primals, tangents
    value, slope = _with_slope(logits, weights, axis)
    total = jnp.zeros_like(value)
    if not isinstance(along_z, SymbolicZero):
        total = _along(slope, along_z, axis)
    if not isinstance(along_t, SymbolicZero):
        surprise = softmax(logits, axis)[0]
        surprise = jnp.where((weights == 0) & jnp.isinf(surprise), 0.0, surprise)
        total = total + jnp.sum(surprise * along_t, axis, keepdims=True)
    return value, total


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _with_slope(logits: jax.Array, weights: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Σ t_j (−log p_j) and its gradient p_j T − t_j, with T = Σ t, where neither cancels for a class that is sure.

    log1p(r) T + Σ t_j (−d_j);      (T − t_j − t_j r) / (1 + r) at the top, e^{d_j} T / (1 + r) − t_j elsewhere
    """
    highest, signed, r = _exponentials(logits, axis)
    depth = _depth(logits, weights, highest, axis)
    mass = jnp.sum(weights, axis, keepdims=True)
    value = jnp.log1p(r) * mass + depth
    r, share, mass = jax.lax.optimization_barrier((r, 1 / (1 + r), mass))
    top = (mass - weights - weights * r) * share
    return value, jnp.where(signed < 0, top, signed * (mass * share) - weights)


def _depth(logits: jax.Array, weights: jax.Array, highest: jax.Array, axis: int) -> jax.Array:
    """Σ t_j (−d_j), where 0 · ∞ = 0. Only infinite logits need a select per class, for which XLA writes an array."""
    axis = axis % logits.ndim - logits.ndim

    def whole(logits: jax.Array, weights: jax.Array, highest: jax.Array) -> jax.Array:
        plain = jnp.sum(weights * (highest - logits), axis, keepdims=True)

        def guarded() -> jax.Array:
            below = below_top(logits, highest)
            return jnp.sum(jnp.where(weights == 0, 0.0, -weights * below), axis, keepdims=True)

        return jax.lax.cond(jnp.any(jnp.isnan(plain)), guarded, lambda: plain)

    return over_batches(whole)(logits, weights, highest)


@_with_slope.defjvp
def _with_slope_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    def plainly(logits: jax.Array, weights: jax.Array) -> jax.Array:
        return softmax(logits, axis)[1] * jnp.sum(weights, axis, keepdims=True) - weights

    value, slope = _with_slope(*primals, axis)
    along = jax.jvp(lambda z, t: expected_surprise(z, t, axis), primals, tangents)[1]
    return (value, slope), (along, jax.jvp(plainly, primals, tangents)[1])
