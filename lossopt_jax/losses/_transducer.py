"""The transducer loss: what a sequence of labels costs over all its alignments to the frames.

A node (t, u) of the lattice has read t frames and said u labels. All paths cross each diagonal n = t + u once, so the
recursion goes from diagonal to diagonal, whose nodes are one vector, and what passes over the arcs between two of them
sums to 1: the gradient needs no logarithm of a whole path, whose last bits a long sequence would lose.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import as_compute, complaint, concrete
from lossopt_jax.losses._lift import check_labels
from lossopt_jax.losses._softmax import softmax


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(e^a + e^b), also of −∞, to every order of derivative."""
    low, high = jnp.where(a < b, a, b), jnp.where(a < b, b, a)
    nothing = low == -jnp.inf
    return jnp.where(nothing, high, high + jnp.log1p(jnp.exp(jnp.where(nothing, 0.0, low - high))))


def _log_sum(x: jax.Array) -> jax.Array:
    """log Σ e^x over the last axis, also of −∞ only, to every order of derivative."""
    highest = jax.lax.stop_gradient(_highest(x))
    total = jnp.sum(_exponential(x - highest), -1, keepdims=True)
    return jnp.where(total == 0, -jnp.inf, highest + jnp.log(jnp.where(total == 0, 1.0, total)))


def _highest(x: jax.Array) -> jax.Array:
    """The maximum over the last axis, 0 where it is −∞."""
    highest = jnp.max(x, -1, keepdims=True)
    return jnp.where(highest == -jnp.inf, 0.0, highest)


def _exponential(x: jax.Array) -> jax.Array:
    nothing = x == -jnp.inf
    return jnp.where(nothing, 0.0, jnp.exp(jnp.where(nothing, 0.0, x)))


def _right(x: jax.Array) -> jax.Array:
    """One place further along the last axis; −∞ comes in."""
    return jnp.concatenate([jnp.full_like(x[..., :1], -jnp.inf), x[..., :-1]], -1)


def _left(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], -jnp.inf)], -1)


def _same_for_all(row: float | np.ndarray, stay: jax.Array, move: jax.Array) -> jax.Array:
    """A row of numbers for each example; the choice changes none, but makes it vary over a mesh as the arcs do."""
    row = jnp.broadcast_to(jnp.asarray(row, stay.dtype), stay.shape[1:])
    return jnp.where(jnp.any(stay == move, 0), row, row)


def _forward(stay: jax.Array, move: jax.Array) -> tuple[jax.Array, jax.Array]:
    """−log of the weight of all paths, and log weights of reaching each node, relative to the best of its diagonal.

    Both arguments are [N, ..., U + 1]: log weights of the arcs from diagonal n that stay at u or move to u + 1.
    """

    def step(reached: jax.Array, arcs: Any) -> Any:
        after = _add(reached + arcs[0], _right(reached + arcs[1]))
        shift = jax.lax.stop_gradient(_highest(after))
        return after - shift, (reached, shift)

    start = _same_for_all(np.where(np.arange(stay.shape[-1]) == 0, 0.0, -np.inf), stay, move)
    last, (reached, shifts) = jax.lax.scan(step, start, (stay, move))
    value = -(jnp.sum(shifts, 0) + _log_sum(last))[..., 0]
    return jnp.where(value <= 0, 0.0, value), reached


@jax.custom_jvp
def _surprise_of_paths(stay: jax.Array, move: jax.Array) -> jax.Array:
    return _forward(stay, move)[0]


@_surprise_of_paths.defjvp
def _surprise_of_paths_jvp(primals: Any, tangents: Any) -> Any:
    """The slope of an arc is the share of the paths that pass over it."""
    stay, move = primals
    value, reached = _forward(stay, move)

    def step(ahead: jax.Array, arcs: Any) -> Any:
        staying, moving = arcs[0] + ahead, arcs[1] + _left(ahead)
        before = _add(staying, moving)
        return before - jax.lax.stop_gradient(_highest(before)), (arcs[2] + staying, arcs[2] + moving)

    end = _same_for_all(0.0, stay, move)
    _, over = jax.lax.scan(step, end, (stay, move, reached), reverse=True)
    total = _log_sum(jnp.concatenate(over, -1))
    shares = [_exponential(x - jnp.where(total == -jnp.inf, 0.0, total)) for x in over]
    along = sum(jnp.where(s == 0, 0.0, s * t) for s, t in zip(shares, tangents, strict=True))
    return value, -jnp.sum(along, (0, -1))


def _by_diagonals(arcs: jax.Array) -> jax.Array:
    """From [..., t, u] to [..., n, u] with n = t + u; −∞ where there is no frame t."""
    frames, places = arcs.shape[-2:]
    n, u = np.indices((frames + places - 1, places))
    nowhere = jnp.full_like(arcs, -jnp.inf, shape=(*arcs.shape[:-2], 1, places))
    t = np.where((n < u) | (n - u >= frames), frames, n - u)
    return jnp.concatenate([arcs, nowhere], -2)[..., t, u]


def _padding(name: str, argument: str, given: Any, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
    """Paddings as bool, and where traced ones do not lie at the end."""
    array = jnp.asarray(given)
    if array.shape != shape:
        raise ValueError(complaint(name, argument, f"have the shape {shape}", f"{array.shape}", "nothing broadcasts"))
    numbers = np.asarray(given) if concrete(given) else array
    padded = numbers if numbers.dtype == bool else numbers != 0
    wrong = (padded & (numbers != padded.astype(numbers.dtype))).any(-1) | (padded[..., :-1] & ~padded[..., 1:]).any(-1)
    if not concrete(given):
        return padded, wrong
    if wrong.any():
        raise ValueError(complaint(name, argument, "be 0 and then 1", numbers[wrong][0], "pad at the end"))
    return jnp.asarray(padded), None


def _checked(
    name: str, logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, blank_id: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Logits, where they are padding, labels that can be looked up, where they are padding, and which are wrong."""
    logits, array = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        remedy = "cast with .astype(jnp.float32)"
        raise TypeError(complaint(name, "logits", "be floating", f"{logits.dtype}", remedy))
    if logits.ndim < 3 or not logits.shape[-2] or not logits.shape[-1]:
        raise ValueError(complaint(name, "logits", "be [..., T, U + 1, K] with K ≥ 1", f"{logits.shape}"))
    if not jnp.issubdtype(array.dtype, jnp.integer):
        remedy = "cast with .astype(jnp.int32)"
        raise TypeError(complaint(name, "labels", "be integer class indices", f"{array.dtype}", remedy))
    *batch, frames, places, classes = logits.shape
    if array.shape != (*batch, places - 1):
        must = f"have the shape {(*batch, places - 1)} of logits {logits.shape}"
        raise ValueError(complaint(name, "labels", must, f"{array.shape}", "nothing broadcasts"))
    if isinstance(blank_id, bool) or not isinstance(blank_id, int | np.integer):
        raise TypeError(complaint(name, "blank_id", "be an int", f"{blank_id!r}"))
    if not 0 <= blank_id < classes:
        raise ValueError(complaint(name, "blank_id", f"be in [0, {classes})", blank_id))
    silent, late = _padding(name, "logit_paddings", logit_paddings, (*batch, frames))
    unsaid, later = _padding(name, "label_paddings", label_paddings, array.shape)
    if concrete(labels) and concrete(label_paddings):
        said = np.asarray(labels)[~np.asarray(label_paddings).astype(bool)]
        check_labels(name, "labels", said, classes, None)
        if (said == blank_id).any():
            raise ValueError(complaint(name, "labels", "not be the blank", blank_id, "pad with label_paddings"))
    array = array.astype(jnp.int64 if array.dtype.itemsize > 4 else jnp.int32)
    valid = (array >= 0) & (array < classes) & (array != blank_id)
    wrong = jnp.any(~valid & ~unsaid, -1)
    for one in (late, later):
        wrong = wrong if one is None else wrong | one
    return as_compute(logits), silent, jnp.where(valid, array, 0), unsaid, wrong


def transducer_loss(
    logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, *, blank_id: int = 0
) -> jax.Array:
    """Transducer (RNN-T) loss: −log of the probability of the labels, over all alignments to the frames.

        α(t, u) = α(t − 1, u) p(blank | t − 1, u) + α(t, u − 1) p(y_u | t, u − 1),      α(0, 0) = 1
        transducer_loss = −log (α(T − 1, U) p(blank | T − 1, U)),      p = softmax(logits)

    A frame may say any number of labels, then a blank passes on to the next. A label is never the blank.

    Gradient: by the share of the paths that pass over each arc, (shares of the node) · p_k − share of the arc of k; 0
    for padding, which is never read, and where no path is possible.

    Args:
      logits: [..., T, U + 1, K], floating: the joint network's output for frame t after u labels.
      logit_paddings: [..., T], 1 or True for frames that are padding, at the end only.
      labels: [..., U], integer, in [0, K) and not `blank_id`; padding may be anything.
      label_paddings: [..., U], 1 or True for labels that are padding, at the end only.
      blank_id: the class of the blank.

    Returns:
      [...], ≥ 0, float32 for half-precision input; ∞ where no path is possible, as of labels without frames; NaN
      where a traced label or padding is not allowed.

    Raises:
      ValueError: shapes do not fit, or a concrete label, padding or `blank_id` is not allowed.
      TypeError: logits are not floating, or labels or `blank_id` not integer.

    Example:
      >>> logits = jnp.zeros((1, 2, 2, 3))
      >>> transducer_loss(logits, jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))
      Array([2.6026897], dtype=float32)

    Source: Graves 2012, arXiv:1211.3711, equations 12 to 17.

    Differs from: torchaudio's `rnnt_loss`, which takes lengths, takes the last class for the blank, and averages.
    """
    name = "transducer_loss"
    logits, silent, labels, unsaid, wrong = _checked(name, logits, logit_paddings, labels, label_paddings, blank_id)
    frames, said = (jnp.sum(~padded, -1)[..., None, None] for padded in (silent, unsaid))
    nodes = logits.shape[:-1]
    t, u = (jax.lax.broadcasted_iota(frames.dtype, nodes, len(nodes) - back) for back in (2, 1))
    inside = (t < frames) & (u <= said)
    surprise = softmax(jnp.where(inside[..., None], logits, 0.0), -1)[0]
    following = jnp.concatenate([labels, jnp.zeros_like(labels, shape=(*labels.shape[:-1], 1))], -1)
    following = jnp.broadcast_to(following[..., None, :], nodes)[..., None]
    of_label = jnp.take_along_axis(surprise, following, -1)[..., 0]
    stay = _by_diagonals(jnp.where(inside & ((t < frames - 1) | (u == said)), -surprise[..., blank_id], -jnp.inf))
    move = _by_diagonals(jnp.where(inside & (u < said), -of_label, -jnp.inf))
    # where a path is over, it waits for those of longer examples
    n, u = (jax.lax.broadcasted_iota(frames.dtype, stay.shape, stay.ndim - back) for back in (2, 1))
    stay = jnp.where((u == said) & (n - u >= frames), 0.0, stay)
    value = _surprise_of_paths(jnp.moveaxis(stay, -2, 0), jnp.moveaxis(move, -2, 0))
    return value * jnp.where(wrong, jnp.nan, 1.0).astype(value.dtype)
