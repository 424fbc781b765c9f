"""Softmax over cosines with a margin: what face recognition trains with."""

from typing import Annotated

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Range, Scalar
from lossopt_jax.losses._lift import Labels, Reals, loss
from lossopt_jax.losses._softmax import surprise_of_label

_ANGLE = Range("be an angle in [0, π)", lambda x: 0 <= x < 3.1415927)


def _with_margin(cosines: jax.Array, labels: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
    labels = labels[..., None]
    is_label = jax.lax.broadcasted_iota(labels.dtype, cosines.shape, cosines.ndim - 1) == labels
    logits = scale * jnp.where(is_label, target, cosines)
    return jnp.squeeze(surprise_of_label(logits, labels, logits.ndim - 1), -1)


@loss("CosFace", task="sparse", event=1, logits=True)
def cosface_loss(
    cosines: Reals,
    labels: Labels,
    margin: Annotated[Scalar, NONNEGATIVE] = 0.35,
    scale: Annotated[Scalar, POSITIVE] = 64.0,
):
    """Cross entropy of scaled cosines, the label's less a margin.

        cosface_loss(c, y) = −log softmax(s (c − m e_y))_y

    Args:
      cosines: [..., C], cosines of the angles between an embedding and each class's weights, floating.
      labels: [...], integer, in [0, C).
      margin: m ≥ 0.
      scale: s > 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: cosines are not floating, or labels not integer.

    Example:
      >>> cosface_loss(jnp.array([[0.5, 0.0]]), jnp.array([0]), margin=0.5, scale=2.0)
      Array([0.6931472], dtype=float32)

    Source: Wang et al. 2018, arXiv:1801.09414.
    """
    return _with_margin(cosines, labels, cosines - margin, scale)


@loss("ArcFace", task="sparse", event=1, logits=True)
def arcface_loss(
    cosines: Reals,
    labels: Labels,
    margin: Annotated[Scalar, _ANGLE] = 0.5,
    scale: Annotated[Scalar, POSITIVE] = 64.0,
):
    """Cross entropy of scaled cosines, the label's angle wider by a margin.

        arcface_loss(c, y) = −log softmax(s c')_y,      c'_y = cos(θ + m) = c cos m − √(1 − c²) sin m,  θ = arccos c_y

    Past θ = π − m, where the cosine would rise again, c'_y goes on as a straight line, c − m sin m, below it. No
    arccos is formed, and at c = ±1 the gradient is that of the line: finite.

    Args:
      cosines: [..., C], cosines of the angles between an embedding and each class's weights, floating, in [−1, 1];
        what rounding puts beyond counts as ±1.
      labels: [...], integer, in [0, C).
      margin: m in [0, π), radians.
      scale: s > 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: cosines are not floating, or labels not integer.

    Example:
      >>> arcface_loss(jnp.array([[1.0, 0.5]]), jnp.array([0]), margin=jnp.pi / 3, scale=2.0)
      Array([0.693147], dtype=float32)

    Source: Deng et al. 2019, arXiv:1801.07698.
    """
    inside = jnp.abs(cosines) < 1
    c = jnp.where(inside, cosines, 0.0)
    sine = jnp.where(inside, jnp.sqrt((1 - c) * (1 + c)), 0.0)
    wider = cosines * jnp.cos(margin) - sine * jnp.sin(margin)
    past = cosines <= -jnp.cos(margin)
    return _with_margin(cosines, labels, jnp.where(past, cosines - margin * jnp.sin(margin), wider), scale)
