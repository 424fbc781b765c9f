"""Losses of lists of scores, and losses made from a regularised maximum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, complaint
from lossopt_jax.losses._lift import Mask, Nonnegative, Reals, loss
from lossopt_jax.losses._softmax import expected_surprise


@loss("ListNet", task="categorical", event=1, logits=True)
def ranking_softmax_loss(logits: Reals, labels: Reals, where: Mask = None, weights: Nonnegative = None):
    """Cross entropy of the items of a list, by how relevant each is.

        ranking_softmax_loss(s, y) = −Σ_i w_i y_i log softmax(s)_i

    Args:
      logits: [..., L], the scores of a list's items, floating.
      labels: [..., L], same shape, how relevant each item is.
      where: [..., L], bool, same shape; False takes an item out of the list. A list all out costs 0.
      weights: [..., L], same shape, ≥ 0, w.

    Returns:
      [...], one value per list, float32 for half-precision input.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete weight is negative.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> ranking_softmax_loss(jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0]))
      Array(1.3862944, dtype=float32)

    Source: Cao et al. 2007, doi:10.1145/1273496.1273513.
    Differs from: optax, which averages the lists unless reduce_fn is None (`losses.mean` with where of the lists that
    have an item), and gives NaN with infinite logits.
    """
    if weights is not None:
        labels = labels * weights
    if where is not None:
        logits, labels = jnp.where(where, logits, -jnp.inf), jnp.where(where, labels, 0.0)
    return jnp.squeeze(expected_surprise(logits, labels, -1), -1)


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The Fenchel–Young loss of a regularised maximum.

        L(s, t) = Ω*(s) − ⟨t, s⟩,      Ω*(s) = max_p ⟨p, s⟩ − Ω(p);      0 · ∞ = 0

    Gradient: that of Ω*, a soft argmax, − t. Up to Ω(t), which does not depend on s, it is 0 where the argmax is t.

    Args:
      max_fun: Ω*, of one vector [D] to a number, such as `jax.scipy.special.logsumexp`, which gives the cross entropy
        of one-hot targets.

    Returns:
      (scores [..., D], targets [..., D], *args, **kwargs) → [...], float32 for half-precision input. What follows the
      targets is passed on to max_fun.

    Raises:
      TypeError: max_fun is no function; from the loss, where scores are not floating.
      ValueError: from the loss, where shapes differ.

    Example:
      >>> loss = make_fenchel_young_loss(jax.scipy.special.logsumexp)
      >>> loss(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0]]))
      Array([0.126928], dtype=float32)

    Source: Blondel, Martins & Niculae 2020, arXiv:1901.02324.
    Differs from: optax, which gives NaN for a score of −∞ without a target.
    """
    if not callable(max_fun):
        raise TypeError(complaint("make_fenchel_young_loss", "max_fun", "be a function of a vector", f"{max_fun!r}"))

    def fenchel_young_loss(scores: Any, targets: Any, *args: Any, **kwargs: Any) -> jax.Array:
        scores, targets = jnp.asarray(scores), jnp.asarray(targets)
        if not jnp.issubdtype(scores.dtype, jnp.floating):
            raise TypeError(complaint("fenchel_young_loss", "scores", "be floating", f"{scores.dtype}"))
        if not scores.ndim or scores.shape != targets.shape:
            must = f"have the shape of scores, {scores.shape}, with an event axis"
            raise ValueError(complaint("fenchel_young_loss", "targets", must, f"{targets.shape}"))
        scores, targets = as_compute(scores), as_compute(targets)
        dtype = jnp.promote_types(scores.dtype, targets.dtype)
        scores, targets = scores.astype(dtype), targets.astype(dtype)
        largest = jnp.vectorize(lambda s: max_fun(s, *args, **kwargs), signature="(n)->()")(scores)
        none = targets == 0
        return largest - jnp.sum(jnp.where(none, 0.0, targets * jnp.where(none, 0.0, scores)), -1)

    return fenchel_young_loss
