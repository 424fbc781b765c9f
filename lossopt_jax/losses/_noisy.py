"""Cross entropies of classes for labels that may be wrong."""

import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, NONPOSITIVE, UNIT, Range, Scalar
from lossopt_jax.losses._arithmetic import exp_excess, expm1
from lossopt_jax.losses._crossentropy import _smooth, softmax_cross_entropy_with_integer_labels
from lossopt_jax.losses._lift import Labels, Reals, loss
from lossopt_jax.losses._softmax import below_top

_HEAVY = Range("be ≥ 1 and finite", lambda x: 1 <= x < float("inf"))


@loss("SCE", task="sparse", event=1, logits=True)
def symmetric_cross_entropy(
    logits: Reals,
    labels: Labels,
    alpha: Annotated[Scalar, NONNEGATIVE] = 0.1,
    beta: Annotated[Scalar, NONNEGATIVE] = 1.0,
    log_zero: Annotated[Scalar, NONPOSITIVE] = -4.0,
    axis: int = -1,
    ignore_index: int | None = None,
):
    """Cross entropy of the label from the prediction, and of the prediction from the label.

        symmetric_cross_entropy(z, y) = −α log p_y − β A (1 − p_y),      p = softmax(z)

    The second term is the reverse cross entropy −Σ_j p_j log t_j of a one-hot t, whose log 0 is cut at A. Its gradient
    fades where the label is unlikely, so wrong labels pull less. 1 − p_y is taken from −log p_y: exact for any logits.

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [...], integer, the shape of logits without the class axis, in [0, C).
      alpha: α ≥ 0, the weight of the cross entropy; the paper takes 0.1 for 10 classes, 6 for 100.
      beta: β ≥ 0, the weight of the reverse one; 1 for 10 classes, 0.1 for 100.
      log_zero: A ≤ 0.
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> symmetric_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([1]))
      Array([3.735881], dtype=float32)

    Source: Wang et al. 2019, arXiv:1908.06112, equations 5 to 8.
    """
    surprise = softmax_cross_entropy_with_integer_labels(logits, labels, axis)
    return alpha * surprise + beta * log_zero * expm1(-surprise)


def _per(rate: Any, scaled: jax.Array, limit: jax.Array) -> jax.Array:
    """f(rate · x) / rate, whose limit at a rate of 0 is given."""
    return jnp.where(rate == 0, limit, scaled / jnp.where(rate == 0, 1.0, rate))


def _tail(depth: jax.Array, heaviness: Any) -> jax.Array:
    """−log exp_t(−depth) = log1p(r · depth) / r, r = t − 1."""
    return _per(heaviness, jnp.log1p(heaviness * depth), depth)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def tempered_surprise(logits: jax.Array, heaviness: jax.Array, axis: int) -> jax.Array:
    """−log p of every class, where p = exp_t(z − λ) sums to 1 and exp_t(x) = (1 − r x)^(−1/r), r = t − 1 ≥ 0.

    Newton's method for m = λ − max z. Of h(m) = (Z^−r − 1) / r, Z = Σ exp_t(z − max z − m), which is concave and
    increasing, its steps only go up, from m = 0; it is linear where all logits are equal, and where r = 0.
    """
    x, r = below_top(logits, jnp.max(logits, axis, keepdims=True)), heaviness
    top = x == 0
    ties = jnp.sum(top, axis, keepdims=True, dtype=x.dtype)

    def rise(m: jax.Array) -> jax.Array:
        s, own = _tail(m - x, r), _tail(m, r)
        others = jnp.sum(jnp.where(top, 0.0, jnp.exp(-s)), axis, keepdims=True) + (ties - 1) * jnp.exp(-own)
        level = jnp.log1p(others + jnp.expm1(-own))  # log Z, with the top class, nearly 1, left out of the sum
        slope = jnp.sum(jnp.exp(-(1 + r) * (s + level)), axis, keepdims=True)
        return _per(r, -jnp.expm1(-r * level), level) / slope

    def going(state: Any) -> jax.Array:
        m, step, count = state
        return jnp.any(step > 2 * jnp.finfo(m.dtype).eps * m) & (count < 64)

    def onward(state: Any) -> Any:
        m, _, count = state
        step = rise(m)
        return m + step, step, count + 1

    m = jnp.zeros_like(ties)
    m, _, _ = jax.lax.while_loop(going, onward, (m, jnp.ones_like(m), jnp.int32(0)))
    return _tail(m - x, r)


@tempered_surprise.defjvp
def _tempered_surprise_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    """By Σ dp = 0, relative to the class that holds more than half of w, as in softmax.

    w_j = p_j^t / Σ p^t,      d(−log p_j) = p_j^r (Σ_k w_k ż_k − ż_j);      r is a constant
    """
    s, r, tangent = tempered_surprise(*primals, axis), primals[1], tangents[0]
    none = jnp.isinf(s)
    finite = jnp.where(none, 0.0, s)
    w = jnp.where(none, 0.0, jnp.exp(-(1 + r) * finite))
    w = w / jnp.sum(w, axis, keepdims=True)
    major = w > 0.5
    x = jnp.where(major, 0.0, tangent - jnp.sum(jnp.where(major, tangent, 0.0), axis, keepdims=True))
    c = jnp.sum(jnp.where(none, 0.0, w * x), axis, keepdims=True)
    return s, jnp.where(none, 0.0, jnp.exp(-r * finite) * (c - x))


def _gap(d: jax.Array, q: jax.Array) -> jax.Array:
    """∫₀^d e^(q v) (e^v − 1) dv = (e^((1+q) d) − 1) / (1 + q) − (e^(q d) − 1) / q ≥ 0, for q ≥ 0."""
    near = jnp.abs(d) < 1
    x, far = jnp.where(near, d, 0.0), jnp.where(near, 1.0, d)
    close = exp_excess((1 + q) * x) / (1 + q) - _per(q, exp_excess(q * x), jnp.zeros_like(x))
    return jnp.where(near, close, jnp.expm1((1 + q) * far) / (1 + q) - _per(q, jnp.expm1(q * far), far))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _divergence(logits: jax.Array, t: jax.Array, q: jax.Array, r: jax.Array, axis: int) -> jax.Array:
    """Σ_j t_j^(1+q) gap(log p_j − log t_j): the Bregman divergence of t from p, with q = 1 − t₁ and r = t₂ − 1."""
    s = tempered_surprise(logits, r, axis)
    none = t < 1e-15  # such smoothing is below all that matters, and t e^d would be 0 · ∞
    some = jnp.where(none, 1.0, t)
    d = jnp.where(none, 0.0, -s - jnp.log(some))
    return jnp.sum(jnp.where(none, jnp.exp(-(1 + q) * s) / (1 + q), some ** (1 + q) * _gap(d, q)), axis)


@_divergence.defjvp
def _divergence_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    """In differences from the likeliest class, so that what all classes share cancels exactly.

    ∂/∂z_k = w_k (b_k − Σ_j w_j b_j),      w_j = p_j^(1+r) / S,  b_j = S p_j^(q−1) (p_j − t_j)
    """
    logits, t, q, r = primals
    s = tempered_surprise(logits, r, axis)
    surplus = jnp.where(t > 0.5, expm1(-s) + (1 - t), jnp.exp(-s) - t)
    w = jnp.exp(-(1 + r) * s)
    whole = jnp.sum(w, axis, keepdims=True)
    w = w / whole
    far = (1 - q) * s > 60
    b = whole * jnp.exp(jnp.where(far, 0.0, (1 - q) * s)) * surplus
    top = jax.nn.one_hot(jnp.argmin(s, axis), s.shape[axis], dtype=jnp.bool_, axis=axis)
    b_top = jnp.sum(jnp.where(top, b, 0.0), axis, keepdims=True)
    vanishing = jnp.exp(-(q + r) * jnp.where(jnp.isinf(s), 0.0, s)) * surplus - w * b_top  # b is not finite there
    apart = jnp.where(top, 0.0, jnp.where(far, jnp.where(jnp.isinf(s), 0.0, vanishing), w * (b - b_top)))
    slope = apart - w * jnp.sum(apart, axis, keepdims=True)
    return _divergence(*primals, axis), jnp.sum(slope * tangents[0], axis)


@loss("BiTempered", task="sparse", event=1, logits=True)
def bi_tempered_loss(
    logits: Reals,
    labels: Labels,
    t1: Annotated[Scalar, UNIT] = 0.8,
    t2: Annotated[Scalar, _HEAVY] = 1.2,
    label_smoothing: Scalar = 0.0,
    axis: int = -1,
    ignore_index: int | None = None,
):
    """Cross entropy with a bounded logarithm and a softmax of heavy tails.

        bi_tempered_loss(z, y) = Σ_j t_j (log_t₁ t_j − log_t₁ p_j) − (t_j^(2−t₁) − p_j^(2−t₁)) / (2 − t₁)
        p_j = exp_t₂(z_j − λ),  Σ p = 1;      log_t x = (x^(1−t) − 1) / (1 − t),  exp_t its inverse

    t₁ < 1 bounds the loss, by 1/(1−t₁), so that an outlier far away does not count more and more; t₂ > 1 lets the
    probability of other classes fall like a power, which helps with labels wrong near the boundary. t₁ = t₂ = 1 is the
    softmax cross entropy. λ is found to the last bits by Newton's method, and its derivatives follow from Σ p = 1. No
    term is negative or cancels. The temperatures and the
    smoothing are constants to the gradient.

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [...], integer, the shape of logits without the class axis, in [0, C).
      t1: t₁ in [0, 1].
      t2: t₂ ≥ 1.
      label_smoothing: α in [0, 1]; the one-hot t becomes t (1−α) + α/C.
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> bi_tempered_loss(jnp.array([[2.0, 0.0]]), jnp.array([1]), t1=1.0, t2=1.0)
      Array([2.126928], dtype=float32)

    Source: Amid et al. 2019, arXiv:1906.03361.
    Differs from: the authors' code in label smoothing, which there takes α away from the label and gives all of it to
    the other classes, and in λ, for which it makes 5 steps of an iteration.
    """
    q, r = (jax.lax.stop_gradient(jnp.asarray(t, logits.dtype)) for t in (1 - t1, t2 - 1))
    hot = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis) == jnp.expand_dims(labels, axis)
    t = _smooth(hot.astype(logits.dtype), label_smoothing, logits.shape[axis])
    return _divergence(logits, jax.lax.stop_gradient(t), q, r, axis)
