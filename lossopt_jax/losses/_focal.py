"""Cross entropies that look away from what is easy, or from what is mislabelled."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, REAL, UNIT, Range, Scalar, concrete
from lossopt_jax.losses._arithmetic import event_mean, expm1, floored_log, guarded_product
from lossopt_jax.losses._crossentropy import (
    _surprise,
    sigmoid_binary_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from lossopt_jax.losses._lift import Labels, Mask, Reals, Unit, loss
from lossopt_jax.losses._softmax import softmax

_ORDER = Range("be in (0, 1]", lambda x: 0 < x <= 1)


def _power(base: jax.Array, exponent: Any) -> jax.Array:
    """base^γ for base ≥ 0: by products where γ is a known integer, 0 with slope 0 at 0 otherwise."""
    if concrete(exponent) and float(exponent).is_integer():
        return jax.lax.integer_pow(base, int(exponent))
    none = base == 0
    return jnp.where(none & (exponent > 0), 0.0, jnp.power(jnp.where(none, 1.0, base), exponent))


def _focused(weight: jax.Array, entropy: jax.Array) -> jax.Array:
    """weight · entropy, where neither 0 · ∞ nor the slope of a weight beside an infinite entropy makes a NaN."""
    return guarded_product(jnp.where(jnp.isinf(entropy), jax.lax.stop_gradient(weight), weight), entropy)


def _balance(labels: jax.Array, alpha: Any) -> jax.Array:
    return alpha * labels + (1 - alpha) * (1 - labels)


def _missed(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 − p_t, by a sum of what has no difference in it."""
    return labels * jax.nn.sigmoid(-logits) + (1 - labels) * jax.nn.sigmoid(logits)


@loss(task="binary", event=0, logits=True)
def sigmoid_focal_loss(
    logits: Reals,
    labels: Unit,
    alpha: Annotated[Scalar, UNIT] | None = None,
    gamma: Annotated[Scalar, NONNEGATIVE] = 2.0,
):
    """Cross entropy of yes-or-no outcomes that looks away from what is known already, of each element.

        sigmoid_focal_loss(z, y) = (1 − p_t)^γ CE,      p_t = y σ(z) + (1−y) σ(−z)

    CE is `sigmoid_binary_cross_entropy`; with α times α y + (1−α)(1−y).

    Args:
      logits: [...], floating, any size.
      labels: [...], same shape, in [0, 1]; bool and integer too.
      alpha: α in [0, 1], what a positive label weighs; None for no weights.
      gamma: γ ≥ 0; 0 gives the cross entropy.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced label is out of range.

    Raises:
      ValueError: shapes differ, or α, γ or a concrete label is out of range.
      TypeError: logits are not floating.

    Example:
      >>> sigmoid_focal_loss(jnp.array([0.0, 4.0]), jnp.array([1.0, 1.0]))
      Array([1.732868e-01, 5.871570e-06], dtype=float32)

    Source: Lin et al. 2017, arXiv:1708.02002.
    Differs from: optax at infinite logits (NaN there).
    """
    value = _focused(_power(_missed(logits, labels), gamma), sigmoid_binary_cross_entropy(logits, labels))
    return value if alpha is None else _balance(labels, alpha) * value


@loss("BinaryFocalCrossentropy", task="binary", event=1, logits=None)
def binary_focal_crossentropy(
    probabilities: Reals,
    targets: Unit,
    apply_class_balancing: bool = False,
    alpha: Annotated[Scalar, UNIT] = 0.25,
    gamma: Annotated[Scalar, NONNEGATIVE] = 2.0,
    from_logits: bool = False,
    label_smoothing: Annotated[Scalar, UNIT] = 0.0,
):
    """Cross entropy of yes-or-no outcomes that looks away from what is known already, averaged over the last axis.

        binary_focal_crossentropy(p, y) = 1/D Σ_d (1 − p_t)^γ CE_d,      p_t = y p + (1−y) (1−p)

    With class balancing times α y + (1−α)(1−y). CE is that of `binary_crossentropy`.

    Args:
      probabilities: [..., D], floating, in [0, 1]; logits with from_logits.
      targets: [..., D], same shape, in [0, 1]; bool and integer too.
      apply_class_balancing: whether α weighs the outcomes.
      alpha: α in [0, 1], what a positive target weighs.
      gamma: γ ≥ 0; 0 gives the cross entropy.
      from_logits: whether predictions are logits.
      label_smoothing: in [0, 1]; targets become y (1−a) + ½ a.

    Returns:
      [...], float32 for half-precision input, one value per example; NaN where a traced number is no probability.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or an option or a concrete number is out of range.
      TypeError: predictions are not floating.

    Example:
      >>> binary_focal_crossentropy(jnp.array([[0.5, 1.0]]), jnp.array([[1.0, 1.0]]))
      Array([0.0866434], dtype=float32)

    Differs from: Keras, which clips probabilities at 1e-7, those of logits too.
    """
    y = targets * (1 - label_smoothing) + 0.5 * label_smoothing
    if from_logits:
        missed, entropy = _missed(probabilities, y), sigmoid_binary_cross_entropy(probabilities, y)
    else:
        p, q = probabilities, 1 - probabilities
        missed, entropy = y * q + (1 - y) * p, y * _surprise(p, q) + (1 - y) * _surprise(q, p)
    value = _focused(_power(missed, gamma), entropy)
    return event_mean(_balance(y, alpha) * value if apply_class_balancing else value)


@loss("CategoricalFocalCrossentropy", task="categorical", event=1, logits=None)
def categorical_focal_crossentropy(
    probabilities: Reals,
    targets: Unit,
    alpha: Annotated[Scalar, UNIT] = 0.25,
    gamma: Annotated[Scalar, NONNEGATIVE] = 2.0,
    from_logits: bool = False,
    label_smoothing: Annotated[Scalar, UNIT] = 0.0,
    axis: int = -1,
):
    """Cross entropy of one choice among classes that looks away from what is known already.

        categorical_focal_crossentropy(p, t) = −α Σ_j (1 − p_j)^γ t_j log p_j

    Args:
      probabilities: [..., C], floating, of sum 1 along `axis`; logits with from_logits.
      targets: [..., C], same shape, in [0, 1].
      alpha: α in [0, 1], multiplies the whole.
      gamma: γ ≥ 0.
      from_logits: whether predictions are logits.
      label_smoothing: in [0, 1]; targets become t (1−a) + a/C.
      axis: where the classes are.

    Returns:
      [...], without the class axis, float32 for half-precision input; NaN where a traced number is no probability.

    Raises:
      ValueError: shapes differ, or an option or a concrete number is out of range.
      TypeError: predictions are not floating.

    Example:
      >>> categorical_focal_crossentropy(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]]))
      Array([0.0433217], dtype=float32)

    Differs from: Keras, which divides each row by its sum and clips at 1e-7, also what it makes of logits.
    """
    t = targets * (1 - label_smoothing) + label_smoothing / targets.shape[axis]
    if from_logits:
        surprise = softmax(probabilities, axis)[0]
        missed = -expm1(-surprise)
    else:
        missed = jnp.where(probabilities > 1, 0.0, 1 - probabilities)
        surprise = _surprise(probabilities, missed)
    return alpha * jnp.sum(_focused(t * _power(missed, gamma), surprise), axis)


@loss("softmax_focal_loss", task="sparse", event=1, logits=True)
def softmax_focal_loss_with_integer_labels(
    logits: Reals,
    labels: Labels,
    gamma: Annotated[Scalar, NONNEGATIVE] = 2.0,
    axis: int = -1,
    ignore_index: int | None = None,
):
    """Cross entropy of one choice among classes that looks away from what is known already, from logits.

        softmax_focal_loss_with_integer_labels(z, y) = −(1 − p_y)^γ log p_y,      p = softmax(z)

    Exact for any finite logits: 1 − p_y is taken from −log p_y.

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [...], integer, the shape of logits without the class axis, in [0, C).
      gamma: γ ≥ 0; 0 gives the cross entropy.
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or γ or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> softmax_focal_loss_with_integer_labels(jnp.array([[2.0, 0.0]]), jnp.array([1]))
      Array([1.6500783], dtype=float32)

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    surprise = softmax_cross_entropy_with_integer_labels(logits, labels, axis)
    return _focused(_power(-expm1(-surprise), gamma), surprise)


@loss(task="categorical", event=1, logits=True)
def poly_loss_cross_entropy(
    logits: Reals, labels: Reals, epsilon: Annotated[Scalar, REAL] = 2.0, axis: int = -1, where: Mask = None
):
    """Cross entropy with another coefficient of the first term of its expansion in 1 − p.

        poly_loss_cross_entropy(z, t) = Σ_j t_j (−log p_j + ε (1 − p_j)),      p = softmax(z)

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [..., C], same shape, ≥ 0.
      epsilon: ε, 2 for images, −1 for detection in the paper.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out. A row all out costs 0.

    Returns:
      [...], without the class axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or there is no class.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> poly_loss_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0]]))
      Array([0.3653338], dtype=float32)

    Source: Leng et al. 2022, arXiv:2204.12511.
    Differs from: optax with infinite logits (NaN there).
    """
    if where is not None:
        logits, labels = jnp.where(where, logits, -jnp.inf), jnp.where(where, labels, 0.0)
    surprise = softmax(logits, axis)[0]
    return jnp.sum(guarded_product(labels, surprise) - epsilon * labels * expm1(-surprise), axis)


@loss("ASL", task="binary", event=0, logits=True)
def asymmetric_loss(
    logits: Reals,
    labels: Unit,
    gamma_positive: Annotated[Scalar, NONNEGATIVE] = 1.0,
    gamma_negative: Annotated[Scalar, NONNEGATIVE] = 4.0,
    margin: Annotated[Scalar, UNIT] = 0.05,
):
    """Focal loss for many labels per example, most of them negative, of each element.

        asymmetric_loss(z, y) = −y (1−p)^γ₊ log p − (1−y) p_m^γ₋ log(1 − p_m),      p = σ(z),  p_m = max(p − m, 0)

    A negative label that is known better than the margin costs nothing.

    Args:
      logits: [...], floating, any size.
      labels: [...], same shape, in [0, 1]; bool and integer too.
      gamma_positive: γ₊ ≥ 0, how much known positives are looked away from.
      gamma_negative: γ₋ ≥ 0, the same of negatives.
      margin: m in [0, 1], the probability below which a negative is free.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced label is out of range.

    Raises:
      ValueError: shapes differ, or an option or a concrete label is out of range.
      TypeError: logits are not floating.

    Example:
      >>> asymmetric_loss(jnp.array([0.0, -4.0]), jnp.array([1.0, 0.0]))
      Array([0.3465736, 0.       ], dtype=float32)

    Source: Ridnik et al. 2021, arXiv:2009.14119.
    """
    p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    positive = guarded_product(labels * _power(q, gamma_positive), jax.nn.softplus(-logits))
    over = jnp.where(p <= margin, 0.0, p - margin)
    certain = over == 1  # where m = 0 and p rounds to 1
    apart = jnp.where(certain, jax.nn.softplus(logits), -jnp.log1p(-jnp.where(certain, 0.0, over)))
    return positive + guarded_product((1 - labels) * _power(over, gamma_negative), apart)


@loss("CategoricalGeneralizedCrossEntropy", "generalized_cross_entropy", task="sparse", event=1, logits=False)
def categorical_generalized_cross_entropy(
    probabilities: Unit,
    labels: Labels,
    q: Annotated[Scalar, _ORDER] = 0.5,
    axis: int = -1,
    ignore_index: int | None = None,
):
    """Between cross entropy and mean absolute error, for labels that may be wrong.

        categorical_generalized_cross_entropy(p, y) = (1 − p_y^q) / q

    q → 0 is −log p_y, q = 1 is 1 − p_y. Gradient: −p_y^(q−1) at y, where p_y is at least 1e-30 (float64: 1e-300).

    Args:
      probabilities: [..., C], floating, in [0, 1], taken as they are.
      labels: [...], integer, the shape of predictions without the class axis, in [0, C).
      q: in (0, 1].
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN where a traced number is no probability or a traced label no class.

    Raises:
      ValueError: shapes do not fit, or q or a concrete number or label is out of range.
      TypeError: predictions are not floating, or labels not integer.

    Example:
      >>> categorical_generalized_cross_entropy(jnp.array([[0.25, 0.75]]), jnp.array([0]))
      Array([1.], dtype=float32)

    Source: Zhang & Sabuncu 2018, arXiv:1805.07836.
    Differs from: Keras at p_y = 0, where its gradient is −∞ and NaN.
    """
    p = jnp.squeeze(jnp.take_along_axis(probabilities, jnp.expand_dims(labels, axis), axis), axis)
    return -expm1(q * floored_log(p)) / q
