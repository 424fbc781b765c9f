"""Losses of ordered classes, from a logit per threshold: z_k is the logit of P(y > k)."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax.losses._arithmetic import expm1, floored_log
from lossopt_jax.losses._crossentropy import sigmoid_binary_cross_entropy
from lossopt_jax.losses._lift import PerClass, Reals, Values, loss

Levels = Annotated[Any, Values("label", "label", more=1)]


def _passed(logits: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """Whether y > k, for each threshold k."""
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis) < jnp.expand_dims(labels, axis)


@loss("CORAL", task="ordinal", event=1, logits=True)
def coral_loss(
    logits: Reals, labels: Levels, axis: int = -1, ignore_index: int | None = None, threshold_weight: PerClass = None
):
    """Cross entropies of the thresholds between ordered classes, added up.

        coral_loss(z, y) = Σ_k λ_k (softplus(z_k) − [y > k] z_k),      σ(z_k) = P(y > k),  k = 0 … K−2

    A model with one score and a bias per threshold gives logits that fall with k once it is trained; this is the
    consistent rank logits of the paper. With logits of its own for each threshold it is the extended binary
    classification of Niu et al. The class predicted is the number of logits above 0.

    Args:
      logits: [..., K−1], floating, one per threshold; thresholds along `axis`.
      labels: [...], integer, the shape of logits without that axis, in [0, K).
      axis: where the thresholds are.
      ignore_index: the label of examples that cost 0, with gradient 0.
      threshold_weight: λ ≥ 0, [K−1], or one number; 1 if not given.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a weight or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> coral_loss(jnp.array([[3.0, 0.0], [3.0, 0.0]]), jnp.array([1, 0]))
      Array([0.7417345, 3.7417345], dtype=float32)

    Source: Cao, Mirjalili & Raschka 2020, arXiv:1901.07884, equation 4.
    """
    costs = sigmoid_binary_cross_entropy(logits, _passed(logits, labels, axis))
    if threshold_weight is not None:
        costs = costs * jax.lax.broadcast_in_dim(threshold_weight, logits.shape, (axis,))
    return jnp.sum(costs, axis)


@loss("OrdinalLogistic", task="ordinal", event=1, logits=True)
def cumulative_link_loss(logits: Reals, labels: Levels, axis: int = -1, ignore_index: int | None = None):
    """Negative log-likelihood of ordered classes: the proportional-odds model, where logits are score minus cutpoint.

        cumulative_link_loss(z, y) = −log(σ(z_{y−1}) − σ(z_y)),      z_{−1} = ∞,  z_{K−1} = −∞
          = softplus(−z_{y−1}) + softplus(z_y) − log(1 − e^(z_y − z_{y−1}))

    σ(z_k) = P(y > k), so logits fall with k: z_k = score − c_k with cutpoints c that rise. The difference of sigmoids
    is never formed: far out it would be 0. The argument of the last logarithm is at least 1e-30 (float64: 1e-300), so
    that an empty interval can be left.

    Args:
      logits: [..., K−1], floating, one per threshold, falling along `axis`.
      labels: [...], integer, the shape of logits without that axis, in [0, K).
      axis: where the thresholds are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN where the ends of the class's interval are the wrong way round, or a
      traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> cumulative_link_loss(jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([1, 2]))
      Array([0.9654886, 0.6931472], dtype=float32)

    Source: McCullagh 1980, "Regression models for ordinal data", Journal of the Royal Statistical Society B 42.
    """
    passed = _passed(logits, labels, axis)
    index = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis)
    below, above = index == jnp.expand_dims(labels - 1, axis), index == jnp.expand_dims(labels, axis)
    ends = jnp.sum(jnp.where(below | above, sigmoid_binary_cross_entropy(logits, passed), 0.0), axis)
    inner = jnp.any(below, axis) & jnp.any(above, axis)
    low, high = (jnp.sum(jnp.where(end, logits, 0.0), axis) for end in (below, above))
    width = jnp.where(inner, low - high, 1.0)
    gap = -expm1(-width) * jnp.where(width < 0, jnp.nan, 1.0).astype(width.dtype)
    return ends - jnp.where(inner, floored_log(gap), 0.0)
