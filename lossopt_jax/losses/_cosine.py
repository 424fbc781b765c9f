"""Angles and distances between vectors, whatever their length."""

import functools
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Scalar, concrete
from lossopt_jax.losses._arithmetic import absolute, over_batches
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


def _scale(vectors: jax.Array, axis: int) -> jax.Array:
    """A power of two near 1 / max|v|: squares of what it multiplies neither overflow nor vanish."""
    kind = jnp.finfo(vectors.dtype)
    largest = jnp.max(jnp.abs(vectors), axis, keepdims=True)
    bounded = jnp.clip(jnp.where(largest > 0, largest, 1.0), 2.0**kind.minexp, 2.0 ** (kind.maxexp - 4))
    return 1 / jax.lax.reduce_precision(bounded, kind.nexp, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _products(a: jax.Array, b: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Powers of two s and r for each pair of vectors, and ‖s a‖², ‖r b‖², ⟨s a, r b⟩; that axis kept.

    Both are 1 unless a square of some vector leaves the range of numbers: finding them costs more than all the rest.
    """
    axis = axis % a.ndim - a.ndim

    def sums(*pairs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(x * y, axis, keepdims=True) for x, y in pairs)

    def whole(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        def scaled() -> tuple[jax.Array, ...]:
            s, r = jax.lax.optimization_barrier((_scale(a, axis), _scale(b, axis)))
            # each product by powers of its own, or XLA writes the scaled vectors down
            halves = sums((a * s, a * (s / 2)), (b * r, b * (r / 2)), (a * (s / 4), b * (r / 4)))
            return s, r, 2 * halves[0], 2 * halves[1], 16 * halves[2]

        squares_a, squares_b, dot = sums((a, a), (b, b), (a, b))
        one, safe = jnp.ones_like(dot), 2.0 ** (jnp.finfo(a.dtype).maxexp // 2)
        usual = [jnp.all((square > 1 / safe) & (square < safe)) for square in (squares_a, squares_b)]
        return jax.lax.cond(usual[0] & usual[1], lambda: (one, one, squares_a, squares_b, dot), scaled)

    return over_batches(whole)(a, b)


@_products.defjvp
def _products_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    s, r, squares_a, squares_b, dot = _products(*primals, axis)
    (a, b), (x, y) = ((one * s, two * r) for one, two in (primals, tangents))
    pairs = (2 * a * x, 2 * b * y, a * y + x * b)
    slopes = (jnp.sum(pair, axis, keepdims=True) for pair in pairs)
    return (s, r, squares_a, squares_b, dot), (jnp.zeros_like(s), jnp.zeros_like(r), *slopes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _cosine(a: jax.Array, b: jax.Array, epsilon: Any, axis: int) -> jax.Array:
    """⟨a, b⟩ / (max(‖a‖, ε) max(‖b‖, ε)), that axis kept; 0 for a zero vector."""
    dot, one, two = _measured(a, b, epsilon, axis)
    return dot / (one.length * two.length)


class _Length(NamedTuple):
    """max(‖s v‖, s ε), 1 for a zero vector; the power of two s; whether ‖v‖ ≥ ε; and whether v is no zero vector."""

    length: jax.Array
    scale: jax.Array
    full: jax.Array
    some: jax.Array

    @staticmethod
    def of(squares: jax.Array, scale: jax.Array, epsilon: Any) -> "_Length":
        some = squares > 0
        length, least = jnp.sqrt(jnp.where(some, squares, 1.0)), epsilon * scale
        short = length < least
        return _Length(jnp.where(short, least, length), scale, ~short, some)


def _measured(a: jax.Array, b: jax.Array, epsilon: Any, axis: int) -> tuple[jax.Array, _Length, _Length]:
    s, r, squares_a, squares_b, dot = _products(a, b, axis)
    return dot, _Length.of(squares_a, s, epsilon), _Length.of(squares_b, r, epsilon)


@functools.partial(_cosine.defjvp, symbolic_zeros=True)
def _cosine_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    """(b̂ − c â) ȧ / ‖a‖ and the same with a and b exchanged; without c â where ε stands for ‖a‖, 0 where a = 0."""
    a, b, epsilon = primals
    value = _cosine(a, b, epsilon, axis)
    _, of_a, of_b = _measured(a, b, epsilon, axis)
    total = jnp.zeros_like(value)
    for (x, own), (y, other), tangent in (((a, of_a), (b, of_b), tangents[0]), ((b, of_b), (a, of_a), tangents[1])):
        if isinstance(tangent, SymbolicZero):
            continue
        towards = jnp.where(own.some, other.scale / (own.length * other.length), 0.0)
        along = jnp.where(own.full & own.some, own.scale * value / jnp.square(own.length), 0.0)
        # The barrier changes no value: without it XLA computes a row's numbers once per element.
        towards, along, scale = jax.lax.optimization_barrier((towards, along, own.scale))
        total = total + jnp.sum((y * towards - x * along) * scale * tangent, axis, keepdims=True)
    if not isinstance(tangents[2], SymbolicZero):
        short = sum((~own.full & own.some).astype(value.dtype) for own in (of_a, of_b))
        total = total - value * short * tangents[2] / jnp.where(epsilon > 0, epsilon, 1.0)
    return value, total


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
    if where is not None:
        predictions, targets = jnp.where(where, predictions, 0.0), jnp.where(where, targets, 0.0)
    return jnp.squeeze(_cosine(predictions, targets, epsilon, axis), axis)


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
