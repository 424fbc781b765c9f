"""Adaptive softmax: frequent classes in a head, rare ones in clusters of lower rank behind it.

log p_y = log softmax(h H + b)_y,      y < S
log p_y = log softmax(h H + b)_{S+i} + log softmax(h D_i U_i)_{y − E_i},      y in cluster i, E_i ≤ y < E_{i+1}
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import POSITIVE, Scalar, as_compute, check_scalar, complaint, compute_dtype
from lossopt_jax.losses._chunks import by_chunks, check_class_labels, chunk_size_of, counted, logits_of, matrices
from lossopt_jax.losses._crossentropy import softmax_cross_entropy_with_integer_labels


class _Model(NamedTuple):
    """The arrays of one call, checked; `edges` is where the clusters begin, and the number of classes."""

    hidden: jax.Array
    params: Any
    edges: tuple[int, ...]

    @staticmethod
    def of(name: str, hidden: Any, head: Any, tails: Any, head_bias: Any) -> "_Model":
        flat, head, bias = matrices(name, hidden, head, head_bias, ("head", "head_bias"))
        checked, sizes = [], []
        for i, tail in enumerate(tails):
            if not isinstance(tail, tuple | list) or len(tail) != 2:
                raise TypeError(complaint(name, f"tails[{i}]", "be a pair ([D, R], [R, N])", f"{type(tail).__name__}"))
            down, up = (jnp.asarray(x) for x in tail)
            if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (down, up)):
                raise TypeError(complaint(name, f"tails[{i}]", "be floating", f"{down.dtype} and {up.dtype}"))
            fits = down.ndim == up.ndim == 2 and down.shape[0] == flat.shape[1] and down.shape[1] == up.shape[0]
            if not fits or not up.shape[1]:
                must = f"be of shapes [D, R] and [R, N] with D = {flat.shape[1]} and N ≥ 1"
                raise ValueError(complaint(name, f"tails[{i}]", must, f"{down.shape} and {up.shape}"))
            checked.append((down, up))
            sizes.append(up.shape[1])
        short = head.shape[1] - len(checked)
        if short < 1:
            must = f"have a column per frequent class, at least one, and one per cluster, {len(checked)}"
            raise ValueError(complaint(name, "head", must, f"{head.shape}"))
        return _Model(flat, (head, bias, checked), tuple(itertools.accumulate(sizes, initial=short)))


def adaptive_softmax_loss(
    hidden: Any,
    labels: Any,
    head: Any,
    tails: Any,
    *,
    head_bias: Any = None,
    ignore_index: int | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Negative log-likelihood of many classes, of which most are rare: a token costs its own cluster only.

        adaptive_softmax_loss(h, y) = −log softmax(h H + b)_y,      y < S
          = −log softmax(h H + b)_{S+i} − log softmax(h D_i U_i)_{y − E_i},      y in cluster i

    Tokens are sorted by class and taken in chunks, and a chunk computes the clusters that are in it. Gradients compute
    its logits again, so that neither the logits of all tokens nor those of all classes are in memory. Under `vmap`
    every chunk computes every cluster.

    Args:
      hidden: [..., D], floating.
      labels: [...], integer, in [0, C); classes in the order of their frequency.
      head: H, [D, S + n]: the S most frequent classes, then one column per cluster.
      tails: n pairs (D_i [D, R_i], U_i [R_i, N_i]); C = S + Σ N_i.
      head_bias: [S + n], or None.
      ignore_index: the label of tokens that cost 0, with gradient 0, and that nothing reads.
      chunk_size: tokens per chunk; None for about D.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: an array is not floating, or labels not integer.

    Example:
      >>> head, tails = jnp.zeros((2, 3)), [(jnp.zeros((2, 1)), jnp.zeros((1, 4)))]
      >>> adaptive_softmax_loss(jnp.ones((2, 2)), jnp.array([0, 5]), head, tails)
      Array([1.0986123, 2.4849067], dtype=float32)

    Source: Grave et al. 2017, arXiv:1609.04309.
    Differs from: torch's `AdaptiveLogSoftmaxWithLoss` in sign (its output is the log-likelihood), and in the layout of
    matrices, which are transposed there.
    """
    name, batch = "adaptive_softmax_loss", jnp.shape(hidden)[:-1]
    flat, params, edges = _Model.of(name, hidden, head, tails, head_bias)
    check_class_labels(name, labels, edges[-1], ignore_index)
    dtype = compute_dtype(functools.reduce(np.promote_types, [x.dtype for x in jax.tree.leaves((flat, params))]))
    labels, weights = counted(name, labels, batch, None, ignore_index, dtype)
    if not flat.shape[0]:
        return jnp.zeros(batch, dtype)
    out, valid = weights == 0, (labels >= 0) & (labels < edges[-1])
    flat = jnp.where(out[:, None], 0.0, flat).astype(flat.dtype)
    labels = jnp.where(valid & ~out, labels, 0)
    order = jnp.argsort(labels)
    # wide outside and narrow inside, so that the chunks' gradients are summed in float32
    low, wide = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), params), jax.tree.map(as_compute, params)

    @jax.checkpoint
    def values(h: jax.Array, y: jax.Array, wide: Any) -> jax.Array:
        narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), wide, low)
        return _surprises(h, y, narrow, edges, dtype)

    def step(carry: None, chunk: Any) -> tuple[None, jax.Array]:
        return carry, values(*chunk, wide)

    size = chunk_size_of(name, chunk_size, *flat.shape)
    _, costs = by_chunks(step, None, (flat[order], labels[order]), size)
    costs = jnp.zeros_like(costs).at[order].set(costs, unique_indices=True)
    costs = costs * jnp.where(valid | out, 1.0, jnp.nan).astype(dtype)
    return jnp.where(out, 0.0, costs).reshape(batch)


def _surprises(hidden: jax.Array, labels: jax.Array, params: Any, edges: tuple[int, ...], dtype: Any) -> jax.Array:
    """−log p of the labels of one chunk, without the clusters of which it has no label."""
    head, bias, tails = params
    cluster = jnp.zeros_like(labels)
    for edge in edges[:-1]:
        cluster += (labels >= edge).astype(labels.dtype)
    in_head = jnp.where(cluster == 0, labels, edges[0] - 1 + cluster)
    total = softmax_cross_entropy_with_integer_labels(logits_of(hidden, head, bias), in_head).astype(dtype)
    for i, tail in enumerate(tails):
        inside = cluster == i + 1
        cost = functools.partial(_of_cluster, hidden, jnp.where(inside, labels - edges[i], 0), tail, dtype)
        inner = jax.lax.cond(jnp.any(inside), cost, functools.partial(jnp.zeros, labels.shape, dtype))
        total += jnp.where(inside, inner, 0.0)
    return total


def _of_cluster(hidden: jax.Array, labels: jax.Array, tail: Any, dtype: Any) -> jax.Array:
    logits = logits_of(logits_of(hidden, tail[0], None).astype(hidden.dtype), tail[1], None)
    return softmax_cross_entropy_with_integer_labels(logits, labels).astype(dtype)


def adaptive_log_softmax(hidden: Any, head: Any, tails: Any, *, head_bias: Any = None) -> jax.Array:
    """Logarithms of the probabilities of all classes of an adaptive softmax.

    Args:
      hidden: [..., D], floating.
      head: [D, S + n], as for `adaptive_softmax_loss`.
      tails: n pairs ([D, R_i], [R_i, N_i]).
      head_bias: [S + n], or None.

    Returns:
      [..., C], float32 for half-precision input; exp of it sums to 1.

    Raises:
      ValueError: shapes do not fit.
      TypeError: an array is not floating.

    Example:
      >>> adaptive_log_softmax(jnp.ones(2), jnp.zeros((2, 2)), [(jnp.zeros((2, 1)), jnp.zeros((1, 2)))])
      Array([-0.6931472, -1.3862944, -1.3862944], dtype=float32)

    Source: Grave et al. 2017, arXiv:1609.04309.
    """
    batch = jnp.shape(hidden)[:-1]
    flat, (head, bias, tails), edges = _Model.of("adaptive_log_softmax", hidden, head, tails, head_bias)
    first = jax.nn.log_softmax(logits_of(flat, head, bias))
    parts = [first[:, : edges[0]]]
    for i, (down, up) in enumerate(tails):
        inner = jax.nn.log_softmax(logits_of(logits_of(flat, down, None).astype(flat.dtype), up, None))
        parts.append(first[:, edges[0] + i, None] + inner)
    return jnp.concatenate(parts, -1).reshape(*batch, edges[-1])


def adaptive_softmax_init(
    key: Any,
    features: int,
    cutoffs: Any,
    *,
    div_value: Scalar = 4.0,
    head_bias: bool = False,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Parameters of an adaptive softmax, as keywords of `adaptive_softmax_loss` and `adaptive_log_softmax`.

    Cluster i has rank R_i = max(1, ⌊D / v^{i+1}⌋). Each matrix is uniform within ± 1 / √fan-in, as torch's layers are.

    Args:
      key: a key of jax.random.
      features: D ≥ 1.
      cutoffs: where the clusters begin, rising, and last the number of classes C: [2000, 10000, 50000] has 2000
        frequent classes and two clusters.
      div_value: v ≥ 1.
      head_bias: whether the head has a bias.
      dtype: of the arrays.

    Returns:
      {"head": [D, S + n], "tails": [([D, R_i], [R_i, N_i]), …]}, and "head_bias" [S + n] on request.

    Raises:
      ValueError: cutoffs do not rise from 1, or a number is out of range.

    Example:
      >>> params = adaptive_softmax_init(jax.random.key(0), 8, [10, 50, 100])
      >>> [up.shape for _, up in params["tails"]]
      [(2, 40), (1, 50)]

    Source: Grave et al. 2017, arXiv:1609.04309.
    """
    name, edges = "adaptive_softmax_init", [int(c) for c in cutoffs]
    if not edges or edges[0] < 1 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(complaint(name, "cutoffs", "rise from 1 or more to the number of classes", f"{cutoffs!r}"))
    check_scalar(name, "features", features, within=POSITIVE)
    check_scalar(name, "div_value", div_value, within=POSITIVE)
    keys = iter(jax.random.split(key, 2 * len(edges)))

    def uniform(*shape: int, fan_in: int) -> jax.Array:
        return jax.random.uniform(next(keys), shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    tails = []
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        rank = max(1, int(features // div_value ** (i + 1)))
        tails.append((uniform(features, rank, fan_in=features), uniform(rank, high - low, fan_in=rank)))
    width = edges[0] + len(tails)
    params: dict[str, Any] = {"head": uniform(features, width, fan_in=features), "tails": tails}
    if head_bias:
        params["head_bias"] = uniform(width, fan_in=features)
    return params
