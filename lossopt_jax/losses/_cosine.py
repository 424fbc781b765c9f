"""Angles and distances between vectors, whatever their length."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Scalar, concrete
from lossopt_jax.losses._arithmetic import absolute
from lossopt_jax.losses._lift import Mask, Reals, loss


def unit_vectors(vectors: jax.Array, axis: int, epsilon: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """v / max(‖v‖, ε) without overflow, 0 for 0 with derivative 0, and whether that has length 1."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis, keepdims=True))
    some = largest > 0
    # a divisor whose reciprocal is no denormal, which is flushed
    most = 2.0 ** (jnp.finfo(vectors.dtype).maxexp - 2)
    size = jnp.where(largest > most, most, jnp.where(some, largest, 1.0))
    scaled = jnp.where(some, vectors / size, 0.0)
    squares = jnp.sum(scaled * scaled, axis, keepdims=True)
    length = jnp.sqrt(jnp.where(some, squares, 1.0))
    least = epsilon / size
    return scaled / jnp.where(length < least, least, length), some & ~(length < least)


def _pair(where: Any, x: jax.Array, y: jax.Array, axis: int, epsilon: Any) -> Any:
    if where is not None:
        x, y = jnp.where(where, x, 0.0), jnp.where(where, y, 0.0)
    return *unit_vectors(x, axis, epsilon), *unit_vectors(y, axis, epsilon)


@loss("CosineSimilarity", task="embedding", event=1, logits=False)
def cosine_similarity(
    predictions: Reals,
    targets: Reals,
    epsilon: Annotated[Scalar, NONNEGATIVE] = 0.0,
    axis: int = -1,
    where: Mask = None,
):
    """Cosine of the angle between two vectors, in [−1, 1]: 1 for the same direction. A similarity, no loss.

        cosine_similarity(a, b) = ⟨a, b⟩ / (max(‖a‖, ε) max(‖b‖, ε))

    Gradient: (b̂ − c â) / ‖a‖. A zero vector has similarity 0, with gradient 0.

    Args:
      predictions: [..., D], floating, of any length.
      targets: [..., D], same shape.
      epsilon: ε ≥ 0, what a length counts as at least.
      axis: where the elements of a vector are.
      where: [..., D], bool, same shape; False takes an element out. A row all out gives 0.

    Returns:
      [...], without that axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or ε is negative.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> cosine_similarity(jnp.array([1e-30, 2e-30]), jnp.array([2e30, 1e30]))
      Array(0.8, dtype=float32)

    Differs from: optax, which overflows for lengths below 1e-19 and above 1e19, and compares ε² with ‖a‖²; Keras
    returns the negative: `lossopt_jax.keras.losses.cosine_similarity`.
    """
    a, _, b, _ = _pair(where, predictions, targets, axis, epsilon)
    return jnp.sum(a * b, axis)


@loss(task="embedding", event=1, logits=False)
def cosine_distance(
    predictions: Reals,
    targets: Reals,
    epsilon: Annotated[Scalar, NONNEGATIVE] = 0.0,
    axis: int = -1,
    where: Mask = None,
):
    """One minus the cosine of the angle between two vectors, in [0, 2].

        cosine_distance(a, b) = 1 − ⟨â, b̂⟩ = ½ ‖â − b̂‖²

    The second form where both have length 1: it keeps small angles. A zero vector is at distance 1 from all.

    Args:
      predictions: [..., D], floating, of any length.
      targets: [..., D], same shape.
      epsilon: ε ≥ 0, what a length counts as at least.
      axis: where the elements of a vector are.
      where: [..., D], bool, same shape; False takes an element out. A row all out gives 1.

    Returns:
      [...], without that axis, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or ε is negative.
      TypeError: predictions are not floating, or where is not bool.

    Example:
      >>> cosine_distance(jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0]))
      Array(0., dtype=float32)

    Differs from: optax as `cosine_similarity`, and for nearly parallel vectors (7 % off at 1e-7).
    """
    a, full_a, b, full_b = _pair(where, predictions, targets, axis, epsilon)
    full = jnp.squeeze(full_a & full_b, axis)
    return jnp.where(full, 0.5 * jnp.sum(jnp.square(a - b), axis), 1 - jnp.sum(a * b, axis))


@loss("PairwiseDistance", task="embedding", event=1, logits=False)
def pairwise_distance(
    predictions: Reals,
    targets: Reals,
    p: Annotated[Scalar, POSITIVE] = 2.0,
    eps: Annotated[Scalar, NONNEGATIVE] = 1e-6,
):
    """p-norm of the difference of two vectors.

        pairwise_distance(a, b) = (Σ_d |a_d − b_d + ε|^p)^(1/p);      max_d |a_d − b_d + ε| for p = ∞

    Gradient: 0 where the difference is 0. Finite wherever the result is.

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.
      p: > 0; ∞ where it is known while tracing.
      eps: ε ≥ 0, added to each difference.

    Returns:
      [...], float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, p is not positive, or ε is negative.
      TypeError: predictions are not floating.

    Example:
      >>> pairwise_distance(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0]), eps=0.0)
      Array(5., dtype=float32)

    Differs from: torch, which overflows where squares do.
    """
    return vector_norm(predictions - targets + eps, p, -1)


def vector_norm(x: jax.Array, p: Any, axis: int) -> jax.Array:
    """‖x‖_p along an axis, scaled by the largest element; its gradient is 0 at 0."""
    size = absolute(x)
    if concrete(p) and p == math.inf:
        return jnp.max(size, axis)
    largest = jax.lax.stop_gradient(jnp.max(size, axis, keepdims=True, initial=0.0))
    some = largest > 0
    # a divisor whose reciprocal is no denormal, which is flushed
    shrink = jnp.where(largest > 1, 0.25, 1.0).astype(x.dtype)
    ratio = size * shrink / jnp.where(some, largest * shrink, 1.0)
    none = ratio == 0
    powers = jnp.where(none, 0.0, jnp.power(jnp.where(none, 1.0, ratio), p))
    total = jnp.sum(powers, axis, keepdims=True)
    length = jnp.where(some, jnp.power(jnp.where(some, total, 1.0), 1 / p), total)
    return jnp.squeeze(largest * length, axis)
