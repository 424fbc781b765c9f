"""Losses of lists of scores, and losses made from a regularised maximum."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import POSITIVE, Scalar, as_compute, complaint
from lossopt_jax.losses._arithmetic import expm1, guarded_product
from lossopt_jax.losses._lift import Mask, Nonnegative, Reals, Values, loss
from lossopt_jax.losses._softmax import below_top, expected_surprise, exponential

Grades = Annotated[Any, Values(low=0, high=100)]


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


def _pooled(one: Any, two: Any) -> tuple[jax.Array, jax.Array]:
    """Two sums e^m (1 + r) added: r gathers what is not the largest term, so that neither cancels nor overflows."""
    (m, r), (n, s) = one, two
    highest, first = jnp.maximum(m, n), m >= n
    rest, other = jnp.where(first, r, s), jnp.where(first, s, r)
    return highest, rest + exponential(jnp.minimum(m, n), highest) * (1 + other)


def _followed(one: Any, two: Any) -> tuple[jax.Array, jax.Array]:
    """x → a x + b after x → c x + d, for a scan from the end."""
    (c, d), (a, b) = one, two
    return a * c, a * d + b


def _next(x: jax.Array, last: float) -> jax.Array:
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], last)], -1)


@jax.custom_jvp
def _choices(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """−log p, p and 1 − p of each item among itself and those behind it: p_k = e^{s_k} / Σ_{j ≥ k} e^{s_j}."""
    highest, rest = jax.lax.associative_scan(
        _pooled, (scores, jnp.zeros_like(scores)), reverse=True, axis=scores.ndim - 1
    )
    behind = exponential(_next(highest, -jnp.inf), highest) * (1 + _next(rest, 0.0))
    behind = jnp.where(jnp.arange(scores.shape[-1]) == scores.shape[-1] - 1, 0.0, behind)
    share = 1 / (1 + rest)
    return jnp.log1p(rest) - below_top(scores, highest), exponential(scores, highest) * share, behind * share


@_choices.defjvp
def _choices_jvp(primals: Any, tangents: Any) -> Any:
    """Along ṡ, with its mean over the items from k on: d(−log p_k) = (1 − p_k) (c_{k+1} − ṡ_k).

    c_k = p_k ṡ_k + (1 − p_k) c_{k+1},      dp_k = −p_k d(−log p_k)
    """
    surprise, p, q = _choices(*primals)
    axis = p.ndim - 1
    _, means = jax.lax.associative_scan(_followed, (q, p * tangents[0]), reverse=True, axis=axis)
    lead = q * (tangents[0] - _next(means, 0.0))
    return (surprise, p, q), (-lead, p * lead, -p * lead)


@loss("ListMLE", task="categorical", event=1, logits=True)
def list_mle_loss(logits: Reals, labels: Reals, where: Mask = None, weights: Nonnegative = None):
    """Negative log-likelihood of the order of a list by relevance, when items are drawn one after the other.

        list_mle_loss(s, y) = Σ_k w_k (log Σ_{j ≥ k} e^{s_j} − s_k),      items in falling order of y

    Items of the same relevance count as ordered by their position. Gradient: Σ_{k ≤ i} w_k p_ki − w_i with p_ki the
    chance of i among those from k on; labels have none.

    Args:
      logits: [..., L], the scores of a list's items, floating.
      labels: [..., L], same shape, how relevant each item is.
      where: [..., L], bool, same shape; False takes an item out of the list. A list all out costs 0.
      weights: [..., L], same shape, ≥ 0, w, of each item's draw.

    Returns:
      [...], one value per list, float32 for half-precision input; ∞ where a score of −∞ stands before a finite one.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete weight is negative.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> list_mle_loss(jnp.array([0.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 0.0]))
      Array(1.7917595, dtype=float32)

    Source: Xia et al. 2008, doi:10.1145/1390156.1390306.
    """
    if where is not None:
        logits, labels = jnp.where(where, logits, -jnp.inf), jnp.where(where, labels, -jnp.inf)
    order = jnp.argsort(-labels, -1)
    surprise = _choices(jnp.take_along_axis(logits, order, -1))[0]
    counted = jnp.ones_like(logits) if weights is None else weights
    counted = counted if where is None else jnp.where(where, counted, 0.0)
    return jnp.sum(guarded_product(jnp.take_along_axis(counted, order, -1), surprise), -1)


def _gains(labels: jax.Array, where: Any, weights: Any) -> jax.Array:
    gains = expm1(math.log(2) * labels)
    gains = gains if weights is None else gains * weights
    return gains if where is None else jnp.where(where, gains, 0.0)


def _discounts(size: int, dtype: Any) -> jax.Array:
    return 1 / jnp.log2(jnp.arange(2, size + 2).astype(dtype))


def _leads(scores: jax.Array) -> jax.Array:
    """s_i − s_j [..., i, j], 0 between equal infinities."""
    one, two = jnp.broadcast_arrays(scores[..., :, None], scores[..., None, :])
    return jnp.where((one == two) & jnp.isinf(one), 0.0, one - two)


def _pairs(where: jax.Array) -> jax.Array:
    return where[..., :, None] & where[..., None, :]


@jax.custom_jvp
def _discount_lost(place: jax.Array, rank: jax.Array, shift: jax.Array) -> jax.Array:
    """1 / log₂(1 + place) − 1 / log₂(1 + rank), of rank = place + shift; the shift carries the whole derivative."""
    near = jnp.abs(shift) < 0.5 * place
    ratio = jnp.where(near, jnp.log1p(shift / (1 + place)), jnp.log((1 + rank) / (1 + place)))
    return math.log(2) * ratio / (jnp.log1p(place) * jnp.log1p(rank))


@_discount_lost.defjvp
def _discount_lost_jvp(primals: Any, tangents: Any) -> Any:
    place, rank, shift = primals
    # the next derivative too is all the shift's
    moved = jax.lax.stop_gradient(rank) + (shift - jax.lax.stop_gradient(shift))
    slope = math.log(2) / ((1 + moved) * jnp.square(jnp.log1p(moved)))
    return _discount_lost(place, rank, shift), slope * tangents[2]


@loss("ApproxNDCG", task="categorical", event=1, logits=True)
def approx_ndcg_loss(
    logits: Reals,
    labels: Grades,
    where: Mask = None,
    weights: Nonnegative = None,
    *,
    temperature: Annotated[Scalar, POSITIVE] = 0.1,
):
    """1 − NDCG of a list, with ranks smoothed by sigmoids, in [0, 1).

        approx_ndcg_loss(s, y) = 1 − Σ_i G_i / log₂(1 + r_i) / Σ_i G_i / log₂(1 + π_i)
        r_i = 1 + Σ_{j ≠ i} σ((s_j − s_i) / T),      G_i = w_i (2^{y_i} − 1),      π the ranks by falling G

    Computed from what each smooth rank is off the ideal one, so a list that is nearly in order keeps its precision.
    A list without a relevant item costs 0, with gradient 0. Time and memory grow with L².

    Args:
      logits: [..., L], the scores of a list's items, floating.
      labels: [..., L], same shape, how relevant each item is, in [0, 100].
      where: [..., L], bool, same shape; False takes an item out of the list. A list all out costs 0.
      weights: [..., L], same shape, ≥ 0, w.
      temperature: T > 0, 1/α of the paper; the smaller, the nearer to NDCG and the flatter.

    Returns:
      [...], one value per list, float32 for half-precision input; NaN where a traced label is out of range. Equal
      infinite scores tie.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete label or weight or T is out of range.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> approx_ndcg_loss(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]))
      Array(0.36907023, dtype=float32)

    Source: Qin, Liu & Li 2010, doi:10.1007/s10791-009-9124-x.
    Differs from: rax, whose `approx_t12n(ndcg_metric)` is −ApproxNDCG at T = 1.
    """
    gains = _gains(labels, where, weights)
    kept = jnp.ones(logits.shape, bool) if where is None else where
    logits = jnp.where(kept, logits, 0.0)
    # by score among equal gains, where any order is ideal
    order = jnp.lexsort((-jax.lax.stop_gradient(logits), -jax.lax.stop_gradient(gains), ~kept), axis=-1)
    logits, gains, kept = (jnp.take_along_axis(x, order, -1) for x in (logits, gains, kept))
    places = jnp.arange(logits.shape[-1])
    side = jnp.where(_pairs(kept), jnp.sign(places[None, :] - places[:, None]), 0).astype(logits.dtype)
    leads = _leads(logits) / temperature
    behind = jax.nn.sigmoid(-leads)
    rank = 1 + jnp.sum(jnp.where(side == 0, 0.0, behind), -1)
    shift = jnp.sum(side * jnp.where(side > 0, behind, jax.nn.sigmoid(leads)), -1)
    place = jnp.broadcast_to((places + 1).astype(logits.dtype), rank.shape)
    ideal = jnp.sum(gains * jnp.broadcast_to(_discounts(places.size, gains.dtype), gains.shape), -1)
    none = ideal == 0
    lost = jnp.sum(gains * _discount_lost(place, rank, shift), -1)
    return jnp.where(none, 0.0, lost / jnp.where(none, 1.0, ideal))


@loss("LambdaRank", "LambdaLoss", task="categorical", event=1, logits=True)
def lambda_rank_loss(
    logits: Reals,
    labels: Grades,
    where: Mask = None,
    weights: Nonnegative = None,
    *,
    temperature: Annotated[Scalar, POSITIVE] = 1.0,
):
    """Logistic loss of each pair of a list, weighted by what NDCG would change if the two changed places.

        lambda_rank_loss(s, y) = Σ_{y_i > y_j} |ΔNDCG_ij| log(1 + e^{−(s_i − s_j) / T})
        ΔNDCG_ij = (G_i − G_j) (1 / log₂(1 + r_i) − 1 / log₂(1 + r_j)) / max DCG,      G_i = w_i (2^{y_i} − 1)

    r are the ranks by falling score, equal scores by position. ΔNDCG is a constant to the gradient, which is that of
    LambdaRank; so labels and weights have none. A list without a relevant item costs 0. Time and memory grow with L².

    Args:
      logits: [..., L], the scores of a list's items, floating.
      labels: [..., L], same shape, how relevant each item is, in [0, 100].
      where: [..., L], bool, same shape; False takes an item out of the list. A list all out costs 0.
      weights: [..., L], same shape, ≥ 0, w.
      temperature: T > 0, 1/σ of the paper.

    Returns:
      [...], one value per list, float32 for half-precision input; NaN where a traced label is out of range. Equal
      infinite scores tie.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete label or weight or T is out of range.
      TypeError: logits are not floating, or where is not bool.

    Example:
      >>> lambda_rank_loss(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]))
      Array(0.25582, dtype=float32)

    Source: Burges 2010, MSR-TR-2010-82; Wang et al. 2018, doi:10.1145/3269206.3271784, with log₂ for log.
    """
    gains = jax.lax.stop_gradient(_gains(labels, where, weights))
    kept = jnp.ones(logits.shape, bool) if where is None else where
    logits = jnp.where(kept, logits, 0.0)
    falling = jnp.lexsort((-jax.lax.stop_gradient(logits), ~kept), axis=-1)
    ideal = jnp.sum(
        -jnp.sort(-gains, -1) * jnp.broadcast_to(_discounts(logits.shape[-1], gains.dtype), gains.shape), -1
    )
    none = ideal == 0
    rank = (1 + jnp.argsort(falling, -1)).astype(gains.dtype)
    one, two = jnp.broadcast_arrays(rank[..., :, None], rank[..., None, :])
    swaps = jnp.abs(_leads(gains) * _discount_lost(one, two, two - one))
    ahead = (labels[..., :, None] > labels[..., None, :]) & _pairs(kept)
    lost = guarded_product(jnp.where(ahead, swaps, 0.0), jax.nn.softplus(-_leads(logits) / temperature))
    return jnp.where(none, 0.0, jnp.sum(lost, (-2, -1)) / jnp.where(none, 1.0, ideal))


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
