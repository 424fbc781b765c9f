"""Softmax and its negative logarithm, both to the last bits, to every order of derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Negative log-probabilities and probabilities along an axis.

        d_j  = z_j − max z,      r = Σ_{j ≠ top} e^{d_j}
        −log p_j = log1p(r) − d_j,      p_j = e^{d_j} / (1 + r)

    No term cancels: both are within 4 ulp, the −log p of a confident class included. One +∞ takes everything, several
    share it, and so do all classes of a row of −∞.
    """
    highest = jnp.max(logits, axis, keepdims=True)
    is_top = logits == highest
    d = jnp.where(is_top, 0.0, logits - highest)
    # What rounding took from d (Knuth's TwoSum): left out, e^d is wrong by |d| · ½ ulp.
    back = d - logits
    lost = (logits - (d - back)) - (highest + back)
    e = jnp.exp(d)
    e = e + e * jnp.where(jnp.isnan(lost), 0.0, lost)
    ties = jnp.sum(is_top, axis, keepdims=True).astype(d.dtype) - 1
    rest = jnp.sum(jnp.where(is_top, 0.0, e), axis, keepdims=True) + ties
    return jnp.log1p(rest) - d, e / (1 + rest)


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
