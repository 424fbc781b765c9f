"""Losses of pairs and triplets: what belongs together is near, what does not is a margin away."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Scalar, concrete
from lossopt_jax.losses._cosine import cosine_distance, cosine_similarity, pairwise_distance, vector_norm
from lossopt_jax.losses._lift import Reals, Values, loss
from lossopt_jax.losses._margins import positive_part, signed_targets

Each = Annotated[Any, Values(shape="label")]


def _triplet(
    distance: Callable[..., Any], anchors: Any, positives: Any, negatives: Any, margin: Any, swap: bool
) -> Any:
    to_negative = distance(anchors, negatives)
    if swap:
        between = distance(positives, negatives)
        to_negative = jnp.where(between < to_negative, between, to_negative)
    return positive_part(distance(anchors, positives) - to_negative + margin)


@loss("TripletMarginLoss", task="embedding", event=1, logits=False)
def triplet_margin_loss(
    anchors: Reals,
    positives: Reals,
    negatives: Reals,
    axis: int = -1,
    norm_degree: Annotated[Scalar, POSITIVE] = 2,
    margin: Scalar = 1.0,
    eps: Annotated[Scalar, NONNEGATIVE] = 1e-6,
    swap: bool = False,
):
    """What the negative lacks of being farther than the positive by the margin.

        triplet_margin_loss(a, p, n) = max(0, ‖a − p‖ − ‖a − n‖ + m),      ‖d‖ = (Σ_d |d|^q + ε)^(1/q)

    Gradient: that of the norms inside the margin, 0 from it on, and 0 where two vectors are equal.

    Args:
      anchors: [..., D], floating, of any size.
      positives: [..., D], same shape: what belongs to the anchors.
      negatives: [..., D], same shape: what does not.
      axis: where the elements of a vector are.
      norm_degree: q > 0; ∞ where it is known while tracing, then the largest |d|, without ε.
      margin: m.
      eps: ε ≥ 0, added to the sum of powers.
      swap: whether ‖p − n‖ takes the place of ‖a − n‖ where it is less.

    Returns:
      [...], without that axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, anchors are a scalar, or an option is out of range.
      TypeError: anchors are not floating, or swap is not bool.

    Example:
      >>> triplet_margin_loss(jnp.array([0.0, 0.0]), jnp.array([5.0, 0.0]), jnp.array([0.0, 1.0]), eps=0.0)
      Array(5., dtype=float32)

    Source: Balntas et al. 2016, doi:10.5244/C.30.119.
    Differs from: optax, which adds up powers without their absolute values and overflows where squares do; torch, which
    adds ε to each difference, and averages over the batch.
    """

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        differences = x - y
        if not (concrete(norm_degree) and norm_degree == math.inf):  # one more element, whose power is ε
            shape = [1 if a == axis else n for a, n in enumerate(x.shape)]
            least = jnp.broadcast_to(jnp.power(eps, 1 / norm_degree), shape)
            differences = jnp.concatenate([differences, least.astype(x.dtype)], axis)
        return vector_norm(differences, norm_degree, axis)

    return _triplet(distance, anchors, positives, negatives, margin, swap)


@loss("TripletMarginWithDistanceLoss", task="embedding", event=1, logits=False)
def triplet_margin_with_distance_loss(
    anchors: Reals,
    positives: Reals,
    negatives: Reals,
    distance_function: Callable[..., Any] = pairwise_distance,
    margin: Scalar = 1.0,
    swap: bool = False,
):
    """`triplet_margin_loss` with any distance.

        triplet_margin_with_distance_loss(a, p, n) = max(0, d(a, p) − d(a, n) + m)

    Args:
      anchors: [..., D], floating.
      positives: [..., D], same shape: what belongs to the anchors.
      negatives: [..., D], same shape: what does not.
      distance_function: d, of two arrays [..., D] to [...].
      margin: m.
      swap: whether d(p, n) takes the place of d(a, n) where it is less.

    Returns:
      [...], float32 for half-precision input.

    Raises:
      ValueError: shapes differ, or anchors are a scalar.
      TypeError: anchors are not floating, or swap is not bool.

    Example:
      >>> a, p, n = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0])
      >>> triplet_margin_with_distance_loss(a, p, n, distance_function=cosine_distance, margin=1.5)
      Array(0.5, dtype=float32)

    Differs from: torch, which averages over the batch.
    """
    return _triplet(distance_function, anchors, positives, negatives, margin, swap)


@loss("MarginRankingLoss", task="embedding", event=0, logits=False)
def margin_ranking_loss(input1: Reals, input2: Reals, targets: Reals, margin: Scalar = 0.0):
    """What one score lacks of being above (below, for target −1) the other by the margin, of each pair.

        margin_ranking_loss(x, y, s) = max(0, m − s (x − y))

    Gradient: ∓s inside the margin, 0 from it on.

    Args:
      input1: [...], scores x, floating.
      input2: [...], same shape: scores y.
      targets: [...], same shape: 1 where x ranks higher, −1 where y does.
      margin: m.

    Returns:
      [...], float32 for half-precision input, one value per pair; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, or a concrete target is neither.
      TypeError: scores are not floating.

    Example:
      >>> margin_ranking_loss(jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5]), jnp.array([1, -1]))
      Array([0. , 0.5], dtype=float32)

    Differs from: torch, which takes any number for a target, and averages over the batch.
    """
    return positive_part(margin - signed_targets("margin_ranking_loss", targets, "signed") * (input1 - input2))


@loss("CosineEmbeddingLoss", task="embedding", event=1, logits=False)
def cosine_embedding_loss(input1: Reals, input2: Reals, targets: Each, margin: Scalar = 0.0):
    """Cosine distance of a pair that belongs together, what the cosine of one that does not is above the margin.

        cosine_embedding_loss(x, y, s) = 1 − cos(x, y) if s = 1, max(0, cos(x, y) − m) if s = −1

    Gradient: that of the cosine; 0 for a zero vector, and up to the margin.

    Args:
      input1: [..., D], floating, of any length.
      input2: [..., D], same shape.
      targets: [...], 1 where the two belong together, −1 where not.
      margin: m.

    Returns:
      [...], float32 for half-precision input; NaN where a traced target is neither.

    Raises:
      ValueError: shapes do not fit, or a concrete target is neither.
      TypeError: vectors are not floating.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
      >>> cosine_embedding_loss(x, 1e30 * x, jnp.array([1, -1]))
      Array([0., 1.], dtype=float32)

    Differs from: torch, which adds 1e-12 to squared lengths, and averages over the batch.
    """
    signs = signed_targets("cosine_embedding_loss", targets, "signed")
    apart = positive_part(cosine_similarity(input1, input2) - margin)
    return jnp.where(signs < 0, apart, signs * cosine_distance(input1, input2))
