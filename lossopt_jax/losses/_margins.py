"""Losses of scores that ask for a margin and for no more."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from lossopt_jax._core import Range, Scalar, complaint, concrete
from lossopt_jax.losses._arithmetic import event_mean
from lossopt_jax.losses._crossentropy import sigmoid_binary_cross_entropy
from lossopt_jax.losses._lift import Labels, PerClass, Reals, Values, loss

Encoding = Literal["signed", "binary"]
Listed = Annotated[Any, Values("label", "same")]

_OUTCOMES = {"signed": (-1, 1), "binary": (0, 1)}
_ONE_OR_TWO = Range("be 1 or 2", lambda x: x in (1, 2))


def signed_targets(name: str, targets: jax.Array, encoding: str) -> jax.Array:
    """±1 from targets; what is neither outcome raises, or becomes NaN where it is traced."""
    if encoding not in _OUTCOMES:
        raise ValueError(complaint(name, "encoding", f"be among {sorted(_OUTCOMES)}", repr(encoding)))
    low, high = _OUTCOMES[encoding]
    signs = jnp.where(targets == high, 1.0, jnp.where(targets == low, -1.0, jnp.nan)).astype(targets.dtype)
    if concrete(signs) and bool(jnp.any(jnp.isnan(signs))):
        other = "binary" if encoding == "signed" else "signed"
        got = float(targets[jnp.isnan(signs)][0])
        raise ValueError(complaint(name, "targets", f"be {low} or {high}", got, f"or say encoding={other!r}"))
    return signs


def positive_part(x: jax.Array) -> jax.Array:
    """max(x, 0), with slope 0 at 0; NaN stays NaN."""
    return jnp.where(x <= 0, 0.0, x)


@loss("Hinge", task="binary", event=0, logits=True)
def hinge_loss(predictor_outputs: Reals, targets: Reals, encoding: Encoding = "signed"):
    """How much a score lacks of the margin 1 on the side of its target, of each element.

        hinge_loss(z, s) = max(0, 1 − s z)

    Gradient: −s inside the margin, 0 from it on.

    Args:
      predictor_outputs: [...], scores, floating.
      targets: [...], same shape, each one of two numbers.
      encoding: which two: "signed" for −1 and 1, "binary" for 0 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: predictions are not floating.

    Example:
      >>> hinge_loss(jnp.array([0.5, 2.0]), jnp.array([-1, 1]))
      Array([1.5, 0. ], dtype=float32)

    Source: Cortes & Vapnik 1995, doi:10.1007/BF00994018.
    Differs from: optax, which takes any number for a target; Keras, which takes 0 for −1 if no target of the batch is
    −1, and averages the last axis.
    """
    return positive_part(1 - signed_targets("hinge_loss", targets, encoding) * predictor_outputs)


@loss("SquaredHinge", "squared_hinge_loss", task="binary", event=0, logits=True)
def squared_hinge(predictor_outputs: Reals, targets: Reals, encoding: Encoding = "signed"):
    """Square of what a score lacks of the margin 1 on the side of its target, of each element.

        squared_hinge(z, s) = max(0, 1 − s z)²

    Args:
      predictor_outputs: [...], scores, floating.
      targets: [...], same shape, each one of two numbers.
      encoding: which two: "signed" for −1 and 1, "binary" for 0 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: predictions are not floating.

    Example:
      >>> squared_hinge(jnp.array([0.5, 2.0]), jnp.array([-1, 1]))
      Array([2.25, 0.  ], dtype=float32)

    Differs from: Keras as `hinge_loss`.
    """
    return jnp.square(positive_part(1 - signed_targets("squared_hinge", targets, encoding) * predictor_outputs))


@loss(task="binary", event=0, logits=True)
def perceptron_loss(predictor_outputs: Reals, targets: Reals, encoding: Encoding = "signed"):
    """How far a score is on the wrong side, of each element.

        perceptron_loss(z, s) = max(0, −s z)

    Gradient: −s on the wrong side, 0 at 0 and on the right one.

    Args:
      predictor_outputs: [...], scores, floating.
      targets: [...], same shape, each one of two numbers.
      encoding: which two: "signed" for −1 and 1, "binary" for 0 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: predictions are not floating.

    Example:
      >>> perceptron_loss(jnp.array([0.5, 2.0]), jnp.array([-1, 1]))
      Array([0.5, 0. ], dtype=float32)

    Source: Rosenblatt 1958, doi:10.1037/h0042519.
    """
    return positive_part(-signed_targets("perceptron_loss", targets, encoding) * predictor_outputs)


@loss("SoftMarginLoss", task="binary", event=0, logits=True)
def soft_margin_loss(predictor_outputs: Reals, targets: Reals, encoding: Encoding = "signed"):
    """Logistic loss of each element: `sigmoid_binary_cross_entropy` of targets ±1.

        soft_margin_loss(z, s) = log(1 + e^(−s z))

    Args:
      predictor_outputs: [...], scores, floating, any size.
      targets: [...], same shape, each one of two numbers.
      encoding: which two: "signed" for −1 and 1, "binary" for 0 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: predictions are not floating.

    Example:
      >>> soft_margin_loss(jnp.array([0.0, 100.0]), jnp.array([-1, -1]))
      Array([  0.6931472, 100.       ], dtype=float32)

    Differs from: torch, which overflows from |z| = 89 and averages over everything.
    """
    signs = signed_targets("soft_margin_loss", targets, encoding)
    return sigmoid_binary_cross_entropy(signs * predictor_outputs, jnp.ones_like(signs))


@loss(task="binary", event=0, logits=True)
def sparsemax_loss(logits: Reals, labels: Reals, encoding: Encoding = "binary"):
    """Loss of a probability that may be exactly 0 or 1, of each element.

        sparsemax_loss(z, y) = 0 if s z ≥ 1, −s z if s z ≤ −1, else ¼ (1 − s z)²,      s = 2 y − 1

    Args:
      logits: [...], floating, any size.
      labels: [...], same shape, each one of two numbers.
      encoding: which two: "binary" for 0 and 1, "signed" for −1 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced label is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete label that is neither.
      TypeError: logits are not floating.

    Example:
      >>> sparsemax_loss(jnp.array([0.0, 3.0]), jnp.array([1, 0]))
      Array([0.25, 3.  ], dtype=float32)

    Source: Blondel, Martins & Niculae 2020, arXiv:1901.02324, section 4.4.
    Differs from: optax, which takes any label that is not 0 for 1.
    """
    lack = -signed_targets("sparsemax_loss", labels, encoding) * logits
    between = jnp.where(jnp.abs(lack) < 1, lack, 0.0)
    return jnp.where(lack >= 1, lack, jnp.where(lack <= -1, 0.0, 0.25 * jnp.square(1 + between) + 0.0 * lack))


@loss("HingeEmbeddingLoss", task="binary", event=0, logits=False)
def hinge_embedding_loss(distances: Reals, targets: Reals, margin: Scalar = 1.0, encoding: Encoding = "signed"):
    """The distance of a pair that belongs together, what one that does not lacks of the margin; of each element.

        hinge_embedding_loss(d, s) = d if s = 1, max(0, m − d) if s = −1

    Args:
      distances: [...], floating.
      targets: [...], same shape, each one of two numbers.
      margin: m, the distance that is enough.
      encoding: which two: "signed" for −1 and 1, "binary" for 0 and 1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: predictions are not floating.

    Example:
      >>> hinge_embedding_loss(jnp.array([0.5, 0.25]), jnp.array([1, -1]))
      Array([0.5 , 0.75], dtype=float32)
    """
    signs = signed_targets("hinge_embedding_loss", targets, encoding)
    return jnp.where(signs < 0, positive_part(margin - distances), signs * distances)


def _largest(x: jax.Array, axis: int) -> jax.Array:
    """The maximum, NaN where an element is, which XLA:CPU may lose."""
    return jnp.where(jnp.any(jnp.isnan(x), axis), jnp.nan, jnp.max(x, axis))


@loss("CategoricalHinge", task="categorical", event=1, logits=True)
def categorical_hinge(scores: Reals, targets: Reals):
    """What the score of the target lacks of the margin 1 to the highest other one, scores and targets per class.

        categorical_hinge(z, t) = max(0, 1 + max_j (1 − t_j) z_j − Σ_j t_j z_j)

    Args:
      scores: [..., C], floating.
      targets: [..., C], same shape, one-hot.

    Returns:
      [...], float32 for half-precision input.

    Raises:
      ValueError: shapes differ, or predictions are a scalar.
      TypeError: predictions are not floating.

    Example:
      >>> categorical_hinge(jnp.array([[2.0, 1.5]]), jnp.array([[1.0, 0.0]]))
      Array([0.5], dtype=float32)

    Differs from: `multiclass_hinge_loss`, in that the label's own score counts as 0 among the others.
    """
    return positive_part(1 + _largest((1 - targets) * scores, -1) - jnp.sum(targets * scores, -1))


def _lead(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By how much each score is above that of the label, and where the label is."""
    labels = labels[..., None]
    is_label = jax.lax.broadcasted_iota(labels.dtype, scores.shape, scores.ndim - 1) == labels
    return scores - jnp.take_along_axis(scores, labels, -1), is_label


def _highest_lead(scores: jax.Array, labels: jax.Array, margin: float) -> jax.Array:
    lead, is_label = _lead(scores, labels)
    return positive_part(_largest(jnp.where(is_label, -jnp.inf, lead + margin), -1))


@loss(task="sparse", event=1, logits=True)
def multiclass_hinge_loss(scores: Reals, labels: Labels):
    """What the label's score lacks of the margin 1 to the highest other one.

        multiclass_hinge_loss(z, y) = max(0, 1 + max_{j ≠ y} z_j − z_y)

    Gradient: 1 at the highest other (shared among equals), −1 at y; 0 from the margin on.

    Args:
      scores: [..., C], floating.
      labels: [...], integer, in [0, C).

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: scores are not floating, or labels not integer.

    Example:
      >>> multiclass_hinge_loss(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]))
      Array([0.5], dtype=float32)

    Source: Crammer & Singer 2001, JMLR 2.
    """
    return _highest_lead(scores, labels, 1.0)


@loss(task="sparse", event=1, logits=True)
def multiclass_perceptron_loss(scores: Reals, labels: Labels):
    """By how much the highest score is above the label's.

        multiclass_perceptron_loss(z, y) = max_j z_j − z_y

    Args:
      scores: [..., C], floating.
      labels: [...], integer, in [0, C).

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: scores are not floating, or labels not integer.

    Example:
      >>> multiclass_perceptron_loss(jnp.array([[2.0, 3.5, 0.0]]), jnp.array([0]))
      Array([1.5], dtype=float32)

    Source: Collins 2002, doi:10.3115/1118693.1118694.
    """
    return _highest_lead(scores, labels, 0.0)


def _sparsemax(x: jax.Array) -> jax.Array:
    """The probabilities nearest to x, along the last axis."""
    ordered = -jnp.sort(-x, axis=-1)
    excess = jnp.cumsum(ordered, axis=-1) - 1
    count = jax.lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1) + 1
    inside = jnp.sum(ordered * count > excess, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(excess, inside - 1, -1) / inside.astype(x.dtype)
    return positive_part(x - threshold)


@jax.custom_jvp
def _sparsemax_gap(lead: jax.Array, is_label: jax.Array) -> jax.Array:
    """max_p ⟨p, x⟩ − ½ ‖p‖² + ½ over probabilities, with x_y = 0."""
    p = _sparsemax(lead)
    own = jnp.sum(jnp.where(is_label, p, 0.0), -1)
    others = jnp.where(is_label, 0.0, p)
    return jnp.sum(others * (lead - 0.5 * others), -1) + 0.5 * (1 - own) * (1 + own)


@_sparsemax_gap.defjvp
def _sparsemax_gap_jvp(primals: Any, tangents: Any) -> Any:
    return _sparsemax_gap(*primals), jnp.sum(_sparsemax(primals[0]) * tangents[0], -1)


@loss(task="sparse", event=1, logits=True)
def multiclass_sparsemax_loss(scores: Reals, labels: Labels):
    """Loss of sparsemax, whose probabilities may be exactly 0: nothing once the label leads by 1.

        multiclass_sparsemax_loss(z, y) = max_p (⟨p, z⟩ − ½ ‖p‖²) + ½ − z_y,      p ≥ 0, Σ p = 1

    Gradient: sparsemax(z) − e_y.

    Args:
      scores: [..., C], floating.
      labels: [...], integer, in [0, C).

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: scores are not floating, or labels not integer.

    Example:
      >>> multiclass_sparsemax_loss(jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.array([0, 0]))
      Array([0.25, 0.  ], dtype=float32)

    Source: Martins & Astudillo 2016, arXiv:1602.02068.
    """
    return _sparsemax_gap(*_lead(scores, labels))


@loss("MultiMarginLoss", task="sparse", event=1, logits=True)
def multi_margin_loss(
    scores: Reals,
    labels: Labels,
    p: Annotated[Scalar, _ONE_OR_TWO] = 1,
    margin: Scalar = 1.0,
    class_weight: PerClass = None,
):
    """What the label's score lacks of the margin to each other one, averaged over the classes.

        multi_margin_loss(z, y) = w_y/C Σ_{j ≠ y} max(0, m − z_y + z_j)^p

    Args:
      scores: [..., C], floating.
      labels: [...], integer, in [0, C).
      p: 1 or 2.
      margin: m.
      class_weight: [C], ≥ 0, w.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: scores are not floating, or labels not integer.

    Example:
      >>> multi_margin_loss(jnp.array([[2.0, 1.5, 3.0, 0.0]]), jnp.array([0]))
      Array([0.625], dtype=float32)

    Differs from: torch, which averages over the batch as well.
    """
    lead, is_label = _lead(scores, labels)
    lack = jnp.where(is_label, 0.0, positive_part(lead + margin))
    value = event_mean(jnp.where(p == 2, lack * lack, lack))
    return value if class_weight is None else jnp.take(class_weight, labels) * value


@loss("MultiLabelMarginLoss", task="sparse", event=1, logits=True)
def multilabel_margin_loss(scores: Reals, labels: Listed):
    """What the scores of several labels lack of the margin 1 to all others, averaged over the classes.

        multilabel_margin_loss(z, Y) = 1/C Σ_{y in Y} Σ_{j not in Y} max(0, 1 − z_y + z_j)

    Args:
      scores: [..., C], floating.
      labels: [..., C], integer: the labels, in [0, C), then −1, after which nothing is read.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes differ, or a concrete label is out of range.
      TypeError: scores are not floating, or labels not integer.

    Example:
      >>> multilabel_margin_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]]))
      Array([0.85], dtype=float32)

    Differs from: torch, which averages over the batch as well.
    """
    listed = jnp.cumsum(labels == -1, axis=-1) == 0
    classes = jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, scores.shape[-1]), labels.ndim)
    chosen = jnp.any((labels[..., None] == classes) & listed[..., None], -2)
    lack = positive_part(1 - scores[..., :, None] + scores[..., None, :])
    pairs = chosen[..., :, None] & ~chosen[..., None, :]
    return event_mean(jnp.sum(jnp.where(pairs, lack, 0.0), -2))


@loss("MultiLabelSoftMarginLoss", task="binary", event=1, logits=True)
def multilabel_soft_margin_loss(logits: Reals, targets: Reals, class_weight: PerClass = None):
    """Cross entropy of independent yes-or-no outcomes, averaged over the classes.

        multilabel_soft_margin_loss(z, y) = 1/C Σ_j w_j (−y_j log σ(z_j) − (1 − y_j) log σ(−z_j))

    Args:
      logits: [..., C], floating, any size.
      targets: [..., C], same shape, in [0, 1]; bool and integer too.
      class_weight: [C], ≥ 0, w.

    Returns:
      [...], float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a weight is negative.
      TypeError: logits are not floating.

    Example:
      >>> multilabel_soft_margin_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), class_weight=jnp.array([1.0, 3.0]))
      Array([1.3862944], dtype=float32)

    Differs from: torch, which averages over the batch as well.
    """
    values = sigmoid_binary_cross_entropy(logits, targets)
    return event_mean(values if class_weight is None else values * jnp.broadcast_to(class_weight, values.shape))
