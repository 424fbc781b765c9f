"""Divergences between distributions over classes, from logarithms of probabilities."""

import functools
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lossopt_jax._core import Range, Scalar
from lossopt_jax.losses._arithmetic import exp_excess, floored_log
from lossopt_jax.losses._lift import Mask, Nonnegative, Reals, Unit, loss

_ORDER = Range("be > 0 and not 1", lambda x: x > 0 and x != 1)


def _select(where: Any, *arrays: jax.Array) -> list[jax.Array]:
    """Arrays with 0 for what is masked: before the arithmetic, so that it reaches neither value nor gradient."""
    return [x if where is None else jnp.where(where, x, 0.0) for x in arrays]


def _total(where: Any, terms: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(*_select(where, terms), axis)


def _times(t: jax.Array, value: jax.Array) -> jax.Array:
    """t x, where a t of 0 takes x out, whatever it is."""
    return jnp.where(t == 0, 0.0, t * jnp.where(t == 0, 0.0, value))


@jax.custom_jvp
def _divergence(log_p: jax.Array, t: jax.Array) -> jax.Array:
    """t (log t − log p), with 0 for it and its derivatives where t = 0; one select, which XLA fuses with the rest."""
    return jnp.where(t == 0, 0.0, t * (jnp.log(jnp.where(t == 0, 1.0, t)) - log_p))


@functools.partial(_divergence.defjvp, symbolic_zeros=True)
def _divergence_jvp(primals: Any, tangents: Any) -> Any:
    (log_p, t), (along_p, along_t) = primals, tangents
    total = jnp.zeros_like(t) if isinstance(along_p, SymbolicZero) else -t * along_p
    if not isinstance(along_t, SymbolicZero):
        slope = 1 + jnp.log(jnp.where(t == 0, 1.0, t)) - jnp.where(t == 0, 0.0, log_p)
        total = total + jnp.where(t == 0, 0.0, slope) * along_t
    return _divergence(log_p, t), total


@jax.custom_jvp
def _relative_entropy(p: jax.Array, t: jax.Array) -> jax.Array:
    """Σ t log(t/p) over the last axis; where p and t are near by x = (p − t)/t: Σ (t − p) + Σ t (x − log1p x).

    Differences of what is near are exact, and so is nearly their sum, which would swallow the second.
    """
    near = jnp.abs(p - t) < 0.5 * t
    step = jnp.where(near, t - p, 0.0)
    x = -step / jnp.where(near, t, 1.0)
    y = x / (2 + x)  # log1p x = 2 artanh y, and x − 2 y = x y
    series = jnp.zeros_like(y)
    for n in range(33 if y.dtype == jnp.float64 else 17, 1, -2):
        series = series * y * y + 1 / n
    far = t * (jnp.log(jnp.where(t == 0, 1.0, t)) - floored_log(p))
    excess = jnp.where(near, t * (x * y - 2 * y * y * y * series), jnp.where(t == 0, 0.0, far))
    return jnp.sum(step, -1) + jnp.sum(excess, -1)


@_relative_entropy.defjvp
def _relative_entropy_jvp(primals: Any, tangents: Any) -> Any:
    (p, t), (along_p, along_t) = primals, tangents
    log_p, slope = jax.jvp(floored_log, (p,), (along_p,))
    along = jnp.where(t == 0, 0.0, 1 + jnp.log(jnp.where(t == 0, 1.0, t)) - log_p)
    return _relative_entropy(p, t), jnp.sum(along * along_t - t * slope, -1)


@loss("KLDivLoss", task="categorical", event=1, logits=True)
def kl_divergence(log_predictions: Reals, targets: Nonnegative, axis: int = -1, where: Mask = None):
    """Kullback–Leibler divergence of predictions from targets.

        kl_divergence(log p, t) = Σ_j t_j (log t_j − log p_j),      0 · ∞ = 0

    Gradient: −t with respect to log p; 1 + log t − log p with respect to t, 0 where t = 0.

    Logarithms are rounded before they come here, which counts where p and t are near: `kullback_leibler_divergence`
    of probabilities and `distillation_loss` of logits keep those digits.

    Args:
      log_predictions: [..., C], logarithms of probabilities, as `jax.nn.log_softmax` returns; −∞ where t = 0 is free.
      targets: [..., C], same shape, probabilities, ≥ 0.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input; NaN where a traced target is negative.

    Raises:
      ValueError: shapes differ, predictions are a scalar, there is no class, or a concrete target is negative.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0]))
      Array(0.6931472, dtype=float32)

    Source: Kullback & Leibler 1951, doi:10.1214/aoms/1177729694.
    Differs from: optax with infinite logarithms, and in the gradient where t = 0 (NaN there); Keras, whose form takes
    probabilities: `lossopt_jax.keras.losses.kl_divergence`; torch averages over all elements by default.
    """
    log_p, t = _select(where, log_predictions, targets)
    return _total(where, _divergence(log_p, t), axis)


@loss(task="categorical", event=1, logits=True)
def kl_divergence_with_log_targets(log_predictions: Reals, log_targets: Reals, axis: int = -1, where: Mask = None):
    """Kullback–Leibler divergence of predictions from targets, both as logarithms.

        kl_divergence_with_log_targets(log p, log t) = Σ_j t_j (log t_j − log p_j),      0 · ∞ = 0

    Args:
      log_predictions: [..., C], logarithms of probabilities; −∞ where t = 0 is free.
      log_targets: [..., C], same shape, logarithms of probabilities; −∞ too.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or there is no class.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> kl_divergence_with_log_targets(half, jnp.array([0.0, -jnp.inf]))
      Array(0.6931472, dtype=float32)

    Differs from: optax with infinite logarithms (NaN there).
    """
    log_p, log_t = _select(where, log_predictions, log_targets)
    none = log_t == -jnp.inf
    log_t = jnp.where(none, 0.0, log_t)
    t = jnp.where(none, 0.0, jnp.exp(log_t))
    return _total(where, _times(t, log_t - jnp.where(none, 0.0, log_p)), axis)


@loss("convex_kl_divergence", task="categorical", event=1, logits=True)
def generalized_kl_divergence(log_predictions: Reals, targets: Nonnegative, axis: int = -1, where: Mask = None):
    """Kullback–Leibler divergence of measures that need not sum to 1.

        generalized_kl_divergence(log p, t) = Σ_j t_j (log t_j − log p_j) + p_j − t_j = Σ_j t_j (e^d − 1 − d)_j,
        d = log p − log t

    Never negative, and as precise as d is where p and t are near.

    Gradient: p − t with respect to log p.

    Args:
      log_predictions: [..., C], logarithms of masses; −∞ where t = 0 is free.
      targets: [..., C], same shape, masses, ≥ 0.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input; NaN where a traced target is negative.

    Raises:
      ValueError: shapes differ, predictions are a scalar, there is no class, or a concrete target is negative.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> generalized_kl_divergence(jnp.log(jnp.array([0.5, 0.25])), jnp.array([0.5, 0.0]))
      Array(0.25, dtype=float32)

    Differs from: optax, with infinite logarithms (NaN there); `convex_kl_divergence` is its older name.
    """
    log_p, t = _select(where, log_predictions, targets)
    none = t == 0
    d = jnp.where(none, 0.0, log_p) - jnp.log(jnp.where(none, 1.0, t))
    free = jnp.where(none, jnp.exp(jnp.where(none, log_p, 0.0)), 0.0)
    # where t vanishes beside p, t e^d would be 0 · ∞
    far = d > 16
    excess = jnp.where(far, jnp.exp(jnp.where(far, log_p, 0.0)) - t * (1 + d), t * exp_excess(jnp.where(far, 0.0, d)))
    return _total(where, jnp.where(none, free, excess), axis)


@loss(task="categorical", event=1, logits=False)
def kullback_leibler_divergence(predictions: Unit, targets: Unit):
    """Kullback–Leibler divergence of predictions from targets, both probabilities along the last axis.

        kullback_leibler_divergence(p, t) = Σ_j t_j (log t_j − log p_j)

    In the logarithm and in the gradient −t/p a prediction is at least 1e-30 (float64: 1e-300). The divergence of what
    is near keeps its digits, which logarithms of probabilities have lost before `kl_divergence` sees them.

    Args:
      predictions: [..., C], in [0, 1].
      targets: [..., C], same shape, in [0, 1].

    Returns:
      [...], float32 for half-precision input; NaN where a traced number is no probability.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete number is no probability.
      TypeError: predictions are not floating.

    Example:
      >>> kullback_leibler_divergence(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))
      Array(0.6931472, dtype=float32)

    Differs from: Keras `kl_divergence`, which takes both for at least 1e-7, so that a target of 0 costs something.
    """
    return _relative_entropy(predictions, targets)


@loss(task="categorical", event=1, logits=True)
def jensen_shannon_divergence(log_predictions: Reals, log_targets: Reals, axis: int = -1, where: Mask = None):
    """Jensen–Shannon divergence: the mean of both divergences from the mean distribution; symmetric, at most log 2.

        jensen_shannon_divergence(log p, log t) = ½ Σ_j t_j log(t_j/m_j) + p_j log(p_j/m_j),      m = ½ (p + t)

    Where p and t are near, by √(p t) (h sinh h − cosh h log cosh h), h = ½ log(p/t), which does not cancel.

    Args:
      log_predictions: [..., C], logarithms of probabilities; −∞ too.
      log_targets: [..., C], same shape, logarithms of probabilities; −∞ too.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or there is no class.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> jensen_shannon_divergence(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]))
      Array(0.6931472, dtype=float32)

    Source: Lin 1991, doi:10.1109/18.61115.
    """
    log_p, log_t = _select(where, log_predictions, log_targets)
    one = (log_p == -jnp.inf) | (log_t == -jnp.inf)  # at most one of them has mass here
    lonely = jnp.where(one, math.log(2) * 0.5 * (jnp.exp(log_p) + jnp.exp(log_t)), 0.0)
    x, y = (jnp.where(one, 0.0, v) for v in (log_p, log_t))
    h = 0.5 * (x - y)
    near = jnp.abs(h) < 1
    small, large = jnp.where(near, h, 0.0), jnp.where(near, 0.0, 2 * h)
    log_cosh = jnp.log1p(2 * jnp.square(jnp.sinh(0.5 * small)))
    close = jnp.exp(0.5 * (x + y)) * (small * jnp.sinh(small) - jnp.cosh(small) * log_cosh)
    shares = (math.log(2) - jax.nn.softplus(s * large) for s in (1, -1))
    apart = 0.5 * sum(jnp.exp(v) * share for v, share in zip((y, x), shares, strict=True))
    return _total(where, jnp.where(one, lonely, jnp.where(near, close, apart)), axis)


def log_sum(where: Any, exponents: jax.Array, axis: int) -> jax.Array:
    """log Σ e^x, −∞ where nothing is left, with gradient 0 there."""
    exponents = exponents if where is None else jnp.where(where, exponents, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(exponents, axis, keepdims=True))
    highest = jnp.where(jnp.isinf(highest), 0.0, highest)
    total = jnp.sum(jnp.exp(exponents - highest), axis)
    some = total != 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + jnp.squeeze(highest, axis), -jnp.inf)


@loss(task="categorical", event=1, logits=True)
def renyi_divergence(
    log_predictions: Reals,
    log_targets: Reals,
    alpha: Annotated[Scalar, _ORDER] = 0.5,
    axis: int = -1,
    where: Mask = None,
):
    """Rényi divergence of order α of predictions from targets.

        renyi_divergence(log p, log t) = log Σ_j t_j^α p_j^(1−α) / (α − 1)

    Its limit for α → 1 is `kl_divergence_with_log_targets`; α = ½ is twice the `bhattacharyya_distance`.

    Args:
      log_predictions: [..., C], logarithms of probabilities; −∞ too.
      log_targets: [..., C], same shape, logarithms of probabilities; −∞ too.
      alpha: α > 0, not 1.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input; ∞ where no class has both, or for α > 1 where
      one has t but no p.

    Raises:
      ValueError: shapes differ, predictions are a scalar, there is no class, or α is out of range.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> renyi_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf]), alpha=2.0)
      Array(0.6931472, dtype=float32)

    Source: van Erven & Harremoës 2014, arXiv:1206.2459.
    """
    log_p, log_t = _select(where, log_predictions, log_targets)
    none = log_t == -jnp.inf
    exponents = alpha * jnp.where(none, 0.0, log_t) + (1 - alpha) * jnp.where(none, 0.0, log_p)
    value = log_sum(where, jnp.where(none, -jnp.inf, exponents), axis) / (alpha - 1)
    return _unless_all_out(where, value, axis)


def _unless_all_out(where: Any, value: jax.Array, axis: int) -> jax.Array:
    return value if where is None else jnp.where(jnp.any(where, axis), value, 0.0)


@loss(task="categorical", event=1, logits=True)
def bhattacharyya_distance(log_predictions: Reals, log_targets: Reals, axis: int = -1, where: Mask = None):
    """Bhattacharyya distance between two distributions: by how much they overlap.

        bhattacharyya_distance(log p, log t) = −log Σ_j √(p_j t_j)

    Args:
      log_predictions: [..., C], logarithms of probabilities; −∞ too.
      log_targets: [..., C], same shape, logarithms of probabilities; −∞ too.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input; ∞ where no class has both.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or there is no class.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> bhattacharyya_distance(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf]))
      Array(0.3465736, dtype=float32)

    Source: Bhattacharyya 1946, Sankhyā 7.
    """
    log_p, log_t = _select(where, log_predictions, log_targets)
    none = (log_p == -jnp.inf) | (log_t == -jnp.inf)
    both = 0.5 * jnp.where(none, 0.0, log_p) + 0.5 * jnp.where(none, 0.0, log_t)
    value = -log_sum(where, jnp.where(none, -jnp.inf, both), axis)
    return _unless_all_out(where, value, axis)


@loss(task="categorical", event=1, logits=True)
def hellinger_distance(log_predictions: Reals, log_targets: Reals, axis: int = -1, where: Mask = None):
    """Hellinger distance between two distributions, in [0, 1] where they sum to 1.

        hellinger_distance(log p, log t) = √(½ Σ_j (√p_j − √t_j)²)

    Gradient: 0 where they are equal.

    Args:
      log_predictions: [..., C], logarithms of probabilities; −∞ too.
      log_targets: [..., C], same shape, logarithms of probabilities; −∞ too.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or there is no class.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> hellinger_distance(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]))
      Array(1., dtype=float32)

    Source: Hellinger 1909, doi:10.1515/crll.1909.136.210.
    """
    log_p, log_t = _select(where, log_predictions, log_targets)
    lower, upper = jnp.minimum(log_p, log_t), jnp.maximum(log_p, log_t)
    none = upper == -jnp.inf
    gap = jnp.where(none, 0.0, lower) - jnp.where(none, 0.0, upper)
    steps = jnp.exp(0.5 * upper) * -jnp.expm1(0.5 * jnp.where(none, 0.0, gap))
    square = 0.5 * _total(where, steps * steps, axis)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), square)
