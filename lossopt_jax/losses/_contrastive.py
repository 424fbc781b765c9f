"""Losses of a batch of embeddings, in which every other one is an example or a counterexample."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import POSITIVE, Scalar, as_compute, check_scalar, complaint
from lossopt_jax.losses._cosine import unit_vectors
from lossopt_jax.losses._divergences import log_sum
from lossopt_jax.losses._softmax import surprise_of_label


def _rows(name: str, argument: str, given: Any) -> jax.Array:
    """Embeddings [..., N, D], checked."""
    rows = jnp.asarray(given)
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise TypeError(complaint(name, argument, "be floating", f"{rows.dtype}", "cast with .astype(jnp.float32)"))
    if rows.ndim < 2:
        raise ValueError(complaint(name, argument, "be [..., N, D]", f"shape {rows.shape}"))
    return as_compute(rows)


def _cosines(name: str, one: jax.Array, two: jax.Array, temperature: Any) -> jax.Array:
    """Cosines of each of one with each of two, over the temperature."""
    check_scalar(name, "temperature", temperature, within=POSITIVE)
    (one, _), (two, _) = unit_vectors(one, -1), unit_vectors(two, -1)
    cosines = jnp.einsum("...id,...jd->...ij", one, two, precision="highest")
    return cosines / jnp.asarray(temperature, cosines.dtype)


def _labels(name: str, argument: str, given: Any, rows: jax.Array) -> jax.Array:
    labels = jnp.asarray(given)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(complaint(name, argument, "be integer", f"{labels.dtype}", "cast with .astype(jnp.int32)"))
    if labels.shape != rows.shape[:-1]:
        must = f"have the shape of embeddings {rows.shape} without the last axis"
        raise ValueError(complaint(name, argument, must, f"{labels.shape}"))
    return labels


def _compared(
    name: str, embeddings: Any, labels: Any, temperature: Any, references: Any = None, reference_labels: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosines over the temperature [..., N, M], which pairs have one label, and which are an embedding with itself."""
    embeddings = _rows(name, "embeddings", embeddings)
    labels = _labels(name, "labels", labels, embeddings)
    if (references is None) != (reference_labels is None):
        raise ValueError(complaint(name, "references and reference_labels", "come together", "one without the other"))
    others, named = embeddings, labels
    if references is not None:
        others = _rows(name, "references", references)
        named = _labels(name, "reference_labels", reference_labels, others)
        if (*others.shape[:-2], others.shape[-1]) != (*embeddings.shape[:-2], embeddings.shape[-1]):
            must = f"be [..., M, D] for embeddings of shape {embeddings.shape}"
            raise ValueError(complaint(name, "references", must, f"shape {others.shape}"))
        dtype = jnp.promote_types(embeddings.dtype, others.dtype)
        embeddings, others = embeddings.astype(dtype), others.astype(dtype)
    scores = _cosines(name, embeddings, others, temperature)
    same = labels[..., :, None] == named[..., None, :]
    itself = jnp.broadcast_to(jnp.eye(*same.shape[-2:], dtype=bool), same.shape)
    return scores, same, itself


def ntxent(embeddings: Any, labels: Any, temperature: Scalar = 0.07) -> jax.Array:
    """Cross entropy of each positive pair among the pairs of different labels, averaged over positive pairs.

        ntxent(x, y) = mean_{i ≠ j, y_i = y_j} −log(e^{s_ij} / (e^{s_ij} + Σ_{k: y_k ≠ y_i} e^{s_ik})),
        s = cos(x_i, x_j) / τ

    Gradient: 0 if there is no positive pair, and for a zero vector.

    Args:
      embeddings: [..., N, D], floating, of any length.
      labels: [..., N], integer; equal ones make a positive pair.
      temperature: τ > 0.

    Returns:
      [...], one value per batch of N, float32 for half-precision input; 0 if there is no positive pair.

    Raises:
      ValueError: shapes do not fit, or τ is not positive.
      TypeError: embeddings are not floating, or labels not integer.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
      >>> ntxent(x, jnp.array([0, 0, 1, 1]), temperature=1.0)
      Array(0.5514447, dtype=float32)

    Source: Chen et al. 2020, arXiv:2002.05709.
    Differs from: optax, which gives NaN without a positive pair.
    """
    scores, same, itself = _compared("ntxent", embeddings, labels, temperature)
    others = jax.nn.logsumexp(jnp.where(same, -jnp.inf, scores), -1, keepdims=True)
    some = ~jnp.all(same, -1, keepdims=True)
    costs = jnp.where(some, jax.nn.softplus(jnp.where(some, others, 0.0) - scores), 0.0 * scores)
    pairs = same & ~itself
    count = jnp.maximum(jnp.sum(pairs, (-2, -1)), 1).astype(costs.dtype)
    return jnp.sum(jnp.where(pairs, costs, 0.0), (-2, -1)) / count


def supervised_contrastive_loss(embeddings: Any, labels: Any, temperature: Scalar = 0.1) -> jax.Array:
    """Cross entropy of each embedding's positives among all others, of each embedding.

        L_i = mean_{j ≠ i, y_j = y_i} (log Σ_{k ≠ i} e^{s_ik} − s_ij),      s = cos(x_i, x_j) / τ

    Args:
      embeddings: [..., N, D], floating, of any length.
      labels: [..., N], integer; equal ones make a positive pair.
      temperature: τ > 0.

    Returns:
      [..., N], float32 for half-precision input; 0, with gradient 0, for an embedding without a positive.

    Raises:
      ValueError: shapes do not fit, or τ is not positive.
      TypeError: embeddings are not floating, or labels not integer.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
      >>> supervised_contrastive_loss(x, jnp.array([0, 0, 1]), temperature=1.0)
      Array([0.3132617, 0.3132617, 0.       ], dtype=float32)

    Source: Khosla et al. 2020, arXiv:2004.11362, equation 2.
    """
    scores, same, itself = _compared("supervised_contrastive_loss", embeddings, labels, temperature)
    pairs = same & ~itself
    some = jnp.any(pairs, -1, keepdims=True)
    level = jax.nn.logsumexp(jnp.where(itself & some, -jnp.inf, scores), -1, keepdims=True)
    count = jnp.maximum(jnp.sum(pairs, -1), 1).astype(scores.dtype)
    return jnp.sum(jnp.where(pairs, level - scores, 0.0), -1) / count


def info_nce(queries: Any, keys: Any, negatives: Any = None, temperature: Scalar = 0.07) -> jax.Array:
    """Cross entropy of each query's own key among all keys, and among negatives that all queries share.

        info_nce(q, k, n)_i = −log(e^{cos(q_i, k_i) / τ} / (Σ_j e^{cos(q_i, k_j) / τ} + Σ_m e^{cos(q_i, n_m) / τ}))

    Gradient: 0 for a zero vector. It flows into keys and negatives too; MoCo's have `jax.lax.stop_gradient`.

    Args:
      queries: [..., N, D], floating, of any length.
      keys: [..., N, D], same shape; the key of each query stands in the same row.
      negatives: [..., M, D] with the same leading axes, or None.
      temperature: τ > 0.

    Returns:
      [..., N], one value per query, float32 for half-precision input; 0 where there is no other key and no negative.

    Raises:
      ValueError: shapes do not fit, or τ is not positive.
      TypeError: queries, keys or negatives are not floating.

    Example:
      >>> info_nce(jnp.eye(2), jnp.eye(2), temperature=0.5)
      Array([0.126928, 0.126928], dtype=float32)

    Source: van den Oord, Li & Vinyals 2018, arXiv:1807.03748, with cosines; He et al. 2020, arXiv:1911.05722.
    `clip_loss` is the same both ways, the similarities never whole in memory.
    """
    queries, keys = _rows("info_nce", "queries", queries), _rows("info_nce", "keys", keys)
    if keys.shape != queries.shape:
        raise ValueError(complaint("info_nce", "keys", f"have the shape of queries, {queries.shape}", f"{keys.shape}"))
    others = [keys]
    if negatives is not None:
        negatives = _rows("info_nce", "negatives", negatives)
        if (*negatives.shape[:-2], negatives.shape[-1]) != (*keys.shape[:-2], keys.shape[-1]):
            must = f"be [..., M, D] with the leading axes and the D of queries, {queries.shape}"
            raise ValueError(complaint("info_nce", "negatives", must, f"{negatives.shape}"))
        others.append(negatives)
    dtype = functools.reduce(jnp.promote_types, [x.dtype for x in (queries, *others)])
    every = jnp.concatenate([x.astype(dtype) for x in others], -2)
    scores = _cosines("info_nce", queries.astype(dtype), every, temperature)
    if not scores.size:
        return jnp.zeros(scores.shape[:-1], dtype)
    own = jnp.broadcast_to(jnp.arange(scores.shape[-2])[:, None], (*scores.shape[:-1], 1))
    return jnp.squeeze(surprise_of_label(scores, own, scores.ndim - 1), -1)


def circle_loss(
    embeddings: Any,
    labels: Any,
    *,
    gamma: Scalar = 80.0,
    margin: Scalar = 0.4,
    references: Any = None,
    reference_labels: Any = None,
    remove_diagonal: bool = True,
) -> jax.Array:
    """Each pair pulls the harder, the farther it is from where it should be; one value per embedding.

        circle_loss(x, y)_i = log(1 + Σ_{p: y_p = y_i, p ≠ i} e^{γ (δ² − m²)} ·
            Σ_{n: y_n ≠ y_i} e^{γ [1 + m − δ]₊ (1 − m − δ)}),      δ = 1 − cos(x_i, ·)

    Gradient: 0 where an embedding has no positive or no negative, and for a zero vector.

    Args:
      embeddings: [..., N, D], floating, of any length.
      labels: [..., N], integer; equal ones make a positive pair.
      gamma: γ > 0.
      margin: m.
      references: [..., M, D], what embeddings are compared with; None for each other.
      reference_labels: [..., M], integer; with references only.
      remove_diagonal: whether the i-th embedding and the i-th reference make no positive pair, being the same.

    Returns:
      [..., N], float32 for half-precision input.

    Raises:
      ValueError: shapes do not fit, or γ is not positive.
      TypeError: embeddings are not floating, labels not integer, or remove_diagonal is not bool.

    Example:
      >>> circle_loss(jnp.eye(2)[jnp.array([0, 0, 1])], jnp.array([0, 0, 1]), gamma=1.0, margin=0.0)
      Array([0.6931472, 0.6931472, 0.       ], dtype=float32)

    Source: Sun et al. 2020, arXiv:2002.10857.
    Differs from: Keras, which takes embeddings of length 1 as they are.
    """
    check_scalar("circle_loss", "margin", margin)
    if not isinstance(remove_diagonal, bool):
        raise TypeError(complaint("circle_loss", "remove_diagonal", "be True or False", f"{remove_diagonal!r}"))
    cosines, same, itself = _compared("circle_loss", embeddings, labels, 1.0, references, reference_labels)
    check_scalar("circle_loss", "gamma", gamma, within=POSITIVE)
    gamma, margin = (jnp.asarray(x, cosines.dtype) for x in (gamma, margin))
    gap = jnp.where(cosines > 1, 0.0, 1 - cosines)
    pull = gamma * (gap - margin) * (gap + margin)
    push = gamma * jnp.where(gap > 1 + margin, 0.0, 1 + margin - gap) * (1 - margin - gap)
    total = log_sum(same & ~(itself & remove_diagonal), pull, -1) + log_sum(~same, push, -1)
    none = total == -jnp.inf
    return jnp.where(none, 0.0, jax.nn.softplus(jnp.where(none, 0.0, total)))
