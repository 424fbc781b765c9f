"""Cross entropies: of two outcomes or of classes, from logits or from probabilities, dense labels or integer."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    NONNEGATIVE,
    POSITIVE,
    UNIT,
    Scalar,
    as_compute,
    axes_of,
    check_scalar,
    complaint,
    concrete,
)
from lossopt_jax.losses._arithmetic import event_mean, guarded_product
from lossopt_jax.losses._lift import Labels, Mask, PerClass, Reals, loss
from lossopt_jax.losses._softmax import expected_surprise, surprise_of_label


def _smooth(weights: jax.Array, amount: Any, outcomes: Any, where: Any = None) -> jax.Array:
    """y (1 − α) + α / K, where the excluded of the K classes get nothing."""
    if concrete(amount) and amount == 0:
        return weights
    share = amount / outcomes
    return weights * (1 - amount) + (share if where is None else jnp.where(where, share, 0.0))


@jax.custom_jvp
def _surprise(p: jax.Array, complement: jax.Array) -> jax.Array:
    """−log p, finite at 0, exact near 1 where the complement 1 − p is; NaN where p is no probability."""
    p = _floored(p)
    value = jnp.where(complement < 0.5, -jnp.log1p(-complement), -jnp.log(p))
    return jnp.where(jnp.isnan(p), jnp.nan, value)


@_surprise.defjvp
def _surprise_jvp(primals: Any, tangents: Any) -> Any:
    # The complement only lends its bits: p carries the whole derivative.
    return _surprise(*primals), -tangents[0] / _floored(primals[0])


def _floored(p: jax.Array) -> jax.Array:
    floor = 1e-300 if p.dtype == jnp.float64 else 1e-30
    # The slack is for rows of softmax, rounded; BCE checks p and 1 − p, so it has none.
    return jnp.where((p >= 0) & (p <= 1 + 1e-3), jnp.where(p < floor, floor, p), jnp.nan)


def _negative_log(p: jax.Array) -> jax.Array:
    return _surprise(p, jnp.where(p > 1, 0.0, 1 - p))


@loss("BCEWithLogitsLoss", task="binary", event=0, logits=True)
def sigmoid_binary_cross_entropy(
    logits: Reals, labels: Reals, label_smoothing: Scalar = 0.0, pos_weight: PerClass = None
):
    """Cross entropy of independent yes-or-no outcomes, from logits, of each element.

        L(z, y) = −y log σ(z) − (1−y) log σ(−z) = |z| w + log1p(e^−|z|),      w = y if z < 0, else 1−y

    Gradient: σ(z) − y, without forming 1 − σ. At z = ±∞ the limit: 0 on the label's side, ∞ on the other.

    Args:
      logits: [...], floating, any size.
      labels: [...], same shape, in [0, 1]; bool and integer too.
      label_smoothing: α in [0, 1]; labels become y (1−α) + ½ α.
      pos_weight: ≥ 0, [C] along the last axis or one number; the term of y is multiplied by it.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or α or a weight is out of range.
      TypeError: logits are not floating.

    Example:
      >>> sigmoid_binary_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1.0, 0.0]))
      Array([  0.6931472, 100.       ], dtype=float32)

    Differs from: optax at z = ±∞ (NaN there), and in half precision, computed there in that precision.
    """
    y = _smooth(labels, label_smoothing, 2)
    size = jnp.where(logits < 0, -logits, logits)
    tail = jnp.log1p(jnp.exp(-size))
    if pos_weight is None:
        return guarded_product(jnp.where(logits < 0, y, 1 - y), size) + tail
    y, rest = y * jnp.broadcast_to(pos_weight, y.shape), 1 - y
    return guarded_product(jnp.where(logits < 0, y, rest), size) + (y + rest) * tail


@loss("bce", "binary_cross_entropy", "BCELoss", task="binary", event=1, logits=None)
def binary_crossentropy(probabilities: Reals, targets: Reals, from_logits: bool = False, label_smoothing: Scalar = 0.0):
    """Cross entropy of yes-or-no outcomes, averaged over the last axis.

        binary_crossentropy(p, y) = 1/D Σ_d −y_d log p_d − (1−y_d) log(1−p_d)

    Gradient: −y/p + (1−y)/(1−p), over D. In it and in the logarithms p and 1−p are at least 1e-30 (float64: 1e-300),
    so that p = 0 costs 69 and can be left, and p = y costs exactly 0. A float16 gradient overflows where 1/p does:
    prefer logits wherever the last layer is known.

    Args:
      probabilities: [..., D], floating, in [0, 1]; logits with from_logits.
      targets: [..., D], same shape, in [0, 1]; bool and integer too.
      from_logits: whether predictions are logits; see `sigmoid_binary_cross_entropy`.
      label_smoothing: α in [0, 1]; targets become y (1−α) + ½ α.

    Returns:
      [...], float32 for half-precision input, one value per example; NaN where a traced probability is none.

    Raises:
      ValueError: shapes differ, predictions are a scalar, α is out of range, or a concrete probability is.
      TypeError: predictions are not floating.

    Example:
      >>> binary_crossentropy(jnp.array([[0.5], [1.0]]), jnp.array([[1.0], [1.0]]))
      Array([0.6931472, 0.       ], dtype=float32)

    Differs from: Keras, which clips at 1e-7 and loses the gradient there; torch `BCELoss`, which clamps log p at −100
    and averages over the batch as well.
    """
    if from_logits:
        return event_mean(sigmoid_binary_cross_entropy(probabilities, targets, label_smoothing))
    p, q, y = probabilities, 1 - probabilities, _smooth(targets, label_smoothing, 2)
    return event_mean(y * _surprise(p, q) + (1 - y) * _surprise(q, p))


@loss("safe_softmax_cross_entropy", task="categorical", event=1, logits=True)
def softmax_cross_entropy(
    logits: Reals,
    labels: Reals,
    axis: int = -1,
    where: Mask = None,
    label_smoothing: Scalar = 0.0,
    class_weight: PerClass = None,
    z_loss: Annotated[Scalar, NONNEGATIVE] = 0.0,
    softcap: Annotated[Scalar, POSITIVE] | None = None,
):
    """Cross entropy of one choice among classes, from logits and one weight per class.

        L(z, t) = −Σ_j t_j log softmax(z)_j,      0 · ∞ = 0

    Gradient: p Σ_j t_j − t with respect to z, −log p with respect to t (0 where p = 0). A class of logit −∞ is no
    choice: free without weight, ∞ with weight.

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [..., C], same shape, ≥ 0; they need not sum to 1.
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class and its label out. A row all out costs 0.
      label_smoothing: α in [0, 1]; labels become t (1−α) + α/K over the K classes that are in.
      class_weight: [C], ≥ 0; multiplies the (smoothed) weight of each class.
      z_loss: ζ ≥ 0; adds ζ log² Σ e^z, which keeps logits from drifting.
      softcap: c > 0; logits become c tanh(z/c) first. None leaves them.

    Returns:
      [...], without the class axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, there is no class, or an option is out of range.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> softmax_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0]]))
      Array([0.126928], dtype=float32)

    Differs from: optax and torch with infinite logits (NaN there), and where a class is certain (0 there).
    """
    outcomes = logits.shape[axis] if where is None else _count(where, axis, logits.dtype)
    labels, logits = _smooth(labels, label_smoothing, outcomes, where), capped(logits, softcap)
    if class_weight is not None:
        labels = labels * _along(class_weight, labels, axis)
    if where is not None:
        logits, labels = jnp.where(where, logits, -jnp.inf), jnp.where(where, labels, 0.0)
    return jnp.squeeze(expected_surprise(logits, labels, axis) + _drift(logits, axis, z_loss), axis)


def capped(logits: jax.Array, softcap: Any) -> jax.Array:
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _along(per_class: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    """One number per class, spread over an array with the classes along an axis."""
    return jnp.broadcast_to(jnp.reshape(per_class, [-1 if a == axis else 1 for a in range(like.ndim)]), like.shape)


def _drift(logits: jax.Array, axis: int, z_loss: Any) -> Any:
    """ζ log² Σ e^z; 0 where there is no class."""
    if concrete(z_loss) and z_loss == 0:
        return 0.0
    some = jnp.any(logits > -jnp.inf, axis, keepdims=True)
    level = jax.nn.logsumexp(jnp.where(some, logits, 0.0), axis, keepdims=True)
    return jnp.where(some, z_loss * jnp.square(level), 0.0)


def _count(where: jax.Array, axis: int, dtype: Any) -> jax.Array:
    return jnp.maximum(jnp.sum(where, axis, keepdims=True), 1).astype(dtype)


@loss("CrossEntropyLoss", task="sparse", event=1, logits=True)
def softmax_cross_entropy_with_integer_labels(
    logits: Reals,
    labels: Labels,
    axis: int = -1,
    where: Mask = None,
    label_smoothing: Scalar = 0.0,
    ignore_index: int | None = None,
    class_weight: PerClass = None,
    z_loss: Annotated[Scalar, NONNEGATIVE] = 0.0,
    softcap: Annotated[Scalar, POSITIVE] | None = None,
):
    """Cross entropy of one choice among classes, from logits and the index of the class.

        L(z, y) = −log softmax(z)_y = (max z − z_y) + log1p(Σ_{j ≠ top} e^{z_j − max z})

    Gradient: p_j for j ≠ y, −Σ_{j ≠ y} p_j at y. Both keep their relative precision however sure the model is, and
    whatever is added to all logits. A logit of −∞ is no choice; +∞ at the label costs 0, elsewhere ∞.

    Args:
      logits: [..., C], floating; classes along `axis`.
      labels: [...], integer, the shape of logits without the class axis, in [0, C).
      axis: where the classes are.
      where: [..., C], bool, the shape of logits; False takes a class out. A label that is out costs ∞, a row all
        out 0.
      label_smoothing: α in [0, 1]; labels become y (1−α) + α/K over the K classes that are in.
      ignore_index: the label of examples that cost 0, with gradient 0, whatever their logits.
      class_weight: [C], ≥ 0; multiplies the (smoothed) weight of each class. For torch's mean, `losses.mean` with
        weights of class_weight[labels].
      z_loss: ζ ≥ 0; adds ζ log² Σ e^z, which keeps logits from drifting.
      softcap: c > 0; logits become c tanh(z/c) first. None leaves them.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, predictions are a scalar, there is no class, an option or a concrete label is out
        of range.
      TypeError: logits are not floating, labels not integer, or where is not bool.

    Example:
      >>> softmax_cross_entropy_with_integer_labels(jnp.array([[2.0, 0.0], [20.0, 0.0]]), jnp.array([1, 0]))
      Array([2.126928e+00, 2.0611537e-09], dtype=float32)

    Differs from: optax, which takes −1 for the last class and rounds a sure prediction to 0; torch, whose
    `CrossEntropyLoss` averages over the batch and has ignore_index −100 by default.
    """
    labels, logits = jnp.expand_dims(labels, axis), capped(logits, softcap)
    if where is not None:
        some = jnp.any(where, axis, keepdims=True)
        logits = jnp.where(some, jnp.where(where, logits, -jnp.inf), 0.0)
    value = surprise_of_label(logits, labels, axis)
    if class_weight is not None:
        value = guarded_product(jnp.take(class_weight, labels), value)
    if not concrete(label_smoothing) or label_smoothing != 0:
        even = jnp.ones_like(logits) if where is None else where.astype(logits.dtype)
        even = even / jnp.maximum(jnp.sum(even, axis, keepdims=True), 1)
        even = even if class_weight is None else even * _along(class_weight, even, axis)
        spread = expected_surprise(logits, even, axis)
        value = guarded_product(1 - label_smoothing, value) + guarded_product(label_smoothing, spread)
    value = value + _drift(logits, axis, z_loss)
    return jnp.squeeze(value if where is None else jnp.where(some, value, 0.0), axis)


@loss("cce", task="categorical", event=1, logits=None)
def categorical_crossentropy(
    probabilities: Reals, targets: Reals, from_logits: bool = False, label_smoothing: Scalar = 0.0, axis: int = -1
):
    """Cross entropy of one choice among classes, from probabilities and one weight per class.

        categorical_crossentropy(p, t) = −Σ_j t_j log p_j

    Gradient: −t/p. In it and in the logarithm p is at least 1e-30 (float64: 1e-300). Probabilities are taken as they
    are, never normalised.

    Args:
      probabilities: [..., C], floating, in [0, 1] and of sum 1 along `axis`; logits with from_logits.
      targets: [..., C], same shape, ≥ 0.
      from_logits: whether predictions are logits; see `softmax_cross_entropy`.
      label_smoothing: α in [0, 1]; targets become t (1−α) + α/C.
      axis: where the classes are.

    Returns:
      [...], without the class axis, float32 for half-precision input; NaN where a traced probability is none.

    Raises:
      ValueError: shapes differ, α is out of range, or concrete probabilities are, or their sum is neither 1 nor 0 by
        more than 1e-3 (or the rounding of their dtype).
      TypeError: predictions are not floating.

    Example:
      >>> categorical_crossentropy(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]]))
      Array([0.6931472], dtype=float32)

    Differs from: Keras, which divides each row by its sum, clips at 1e-7, and smooths by the last axis whatever `axis`.
    """
    weights = _smooth(targets, label_smoothing, targets.shape[axis])
    if from_logits:
        return jnp.squeeze(expected_surprise(probabilities, weights, axis), axis)
    return jnp.sum(guarded_product(weights, _negative_log(probabilities)), axis)


@loss("scce", task="sparse", event=1, logits=None)
def sparse_categorical_crossentropy(
    probabilities: Reals, labels: Labels, from_logits: bool = False, axis: int = -1, ignore_index: int | None = None
):
    """Cross entropy of one choice among classes, from probabilities and the index of the class.

        sparse_categorical_crossentropy(p, y) = −log p_y

    Gradient: −1/p_y at y. In it and in the logarithm p is at least 1e-30 (float64: 1e-300).

    Args:
      probabilities: [..., C], floating, in [0, 1] and of sum 1 along `axis`; logits with from_logits.
      labels: [...], integer, the shape of predictions without the class axis, in [0, C).
      from_logits: whether predictions are logits; see `softmax_cross_entropy_with_integer_labels`.
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0, whatever their predictions.

    Returns:
      [...], float32 for half-precision input; NaN where a traced probability is none or a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range, or concrete probabilities are, or their sum
        is neither 1 nor 0 by more than 1e-3 (or the rounding of their dtype).
      TypeError: predictions are not floating, or labels not integer.

    Example:
      >>> sparse_categorical_crossentropy(jnp.array([[0.5, 0.5]]), jnp.array([1]))
      Array([0.6931472], dtype=float32)

    Differs from: Keras, which divides each row by its sum, clips at 1e-7, and gives 0 for a label that is no class.
    """
    labels = jnp.expand_dims(labels, axis)
    if from_logits:
        surprise = surprise_of_label(probabilities, labels, axis)
    else:
        # Every class must be a probability, or logits would pass for one.
        surprise = jnp.take_along_axis(_negative_log(probabilities), labels, axis)
        surprise = surprise + 0.0 * jnp.sum(_negative_log(probabilities), axis, keepdims=True)
    return jnp.squeeze(surprise, axis)


@loss("NLLLoss", task="sparse", event=1, logits=True)
def nll_loss(
    log_probabilities: Reals,
    labels: Labels,
    axis: int = -1,
    ignore_index: int | None = None,
    class_weight: PerClass = None,
):
    """Negative log-likelihood of the class that is the label, from logarithms of probabilities.

        nll_loss(log p, y) = −w_y log p_y

    Gradient: −w_y at y.

    Args:
      log_probabilities: [..., C], as `jax.nn.log_softmax` returns; taken as they are.
      labels: [...], integer, the shape of predictions without the class axis, in [0, C).
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0, whatever their predictions.
      class_weight: [C], ≥ 0, w.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a weight or a concrete label is out of range.
      TypeError: predictions are not floating, or labels not integer.

    Example:
      >>> nll_loss(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([1]))
      Array([0.6931472], dtype=float32)

    Differs from: torch, which averages over the weights, and has ignore_index −100 by default.
    """
    labels = jnp.expand_dims(labels, axis)
    surprise = -jnp.take_along_axis(log_probabilities, labels, axis)
    if class_weight is not None:
        surprise = guarded_product(jnp.take(class_weight, labels), surprise)
    return jnp.squeeze(surprise, axis)


def smooth_labels(labels: Any, alpha: Any, axis: int = -1, where: Any = None) -> jax.Array:
    """Weights per class, moved towards being even.

        smooth_labels(t, α) = (1 − α) t + α/K

    over the K classes that are in; 0 for those that are out.

    Args:
      labels: [..., C], floating, one weight per class.
      alpha: α in [0, 1].
      axis: where the classes are.
      where: [..., C], bool, same shape; False takes a class out.

    Returns:
      [..., C], float32 for half-precision input.

    Raises:
      ValueError: α is out of range, or where has another shape.
      TypeError: labels are not floating, or where is not bool.

    Example:
      >>> smooth_labels(jnp.array([1.0, 0.0, 0.0]), 0.1, where=jnp.array([True, True, False]))
      Array([0.95, 0.05, 0.  ], dtype=float32)

    Source: Szegedy et al. 2016, arXiv:1512.00567.
    Differs from: optax, which gives classes that are out α/K too.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(complaint("smooth_labels", "labels", "be floating", f"{labels.dtype}", "one-hot encode them"))
    labels = as_compute(labels)
    check_scalar("smooth_labels", "alpha", alpha, within=UNIT)
    (axis,) = axes_of("smooth_labels", axis, labels.ndim)
    if where is None:
        return _smooth(labels, jnp.asarray(alpha, labels.dtype), labels.shape[axis])
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(complaint("smooth_labels", "where", "be boolean", f"{where.dtype}"))
    if where.shape != labels.shape:
        raise ValueError(
            complaint("smooth_labels", "where", f"have the shape of labels, {labels.shape}", f"{where.shape}")
        )
    kept = jnp.where(where, labels, 0.0)
    return _smooth(kept, jnp.asarray(alpha, labels.dtype), _count(where, axis, labels.dtype), where)
