"""Connectionist temporal classification: the probability that frames spell a sequence of labels.

    a_t(n) = log P(the first n labels, then a blank),      e_t(n) = log P(the first n labels, the n-th still held)
    s(n)   = log(e^{a(n)} + e^{e(n)})
    a'(n)  = s(n) + log p(blank)
    e'(n)  = log(e^{s(n-1)} + e^{e(n)}) + log p(y_n),      with a(n-1) for s(n-1) where y_n repeats y_{n-1}

What is impossible is −∞. A sum's derivative is the shares of its terms, 0 for both where both are impossible, so that
of the recursion is the forward–backward formula, softmax − posterior: nothing in it meets ∞ − ∞, and higher derivatives
follow.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import as_compute, complaint
from lossopt_jax.losses._lift import _values
from lossopt_jax.losses._softmax import softmax


@jax.custom_jvp
def _log_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(e^a + e^b)."""
    return _log_sum_and_shares(a, b)[0]


@_log_sum.defjvp
def _log_sum_jvp(primals: Any, tangents: Any) -> Any:
    value, of_a, of_b = _log_sum_and_shares(*primals)
    return value, of_a * tangents[0] + of_b * tangents[1]


@jax.custom_jvp
def _log_sum_and_shares(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log(e^a + e^b), and of that sum the shares of e^a and of e^b."""
    impossible = (a == -jnp.inf) & (b == -jnp.inf)
    gap = jnp.where(impossible, 0.0, a - b)
    ratio = jnp.exp(-jnp.abs(gap))
    more = jnp.where(impossible, 0.0, 1 / (1 + ratio))
    less = more * ratio
    value = jnp.where(a < b, b, a) + jnp.log1p(ratio)
    return value, jnp.where(gap < 0, less, more), jnp.where(gap < 0, more, less)


@_log_sum_and_shares.defjvp
def _log_sum_and_shares_jvp(primals: Any, tangents: Any) -> Any:
    value, of_a, of_b = _log_sum_and_shares(*primals)
    shift = of_a * of_b * (tangents[0] - tangents[1])
    return (value, of_a, of_b), (of_a * tangents[0] + of_b * tangents[1], shift, -shift)


def _alphas(
    log_p: jax.Array, padded: jax.Array, repeats: jax.Array, keep: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """s after the last frame, and on request a and e after every frame; frames first, in log_p blank first."""

    def sums(a: jax.Array, e: jax.Array) -> jax.Array:
        return jnp.concatenate([a[..., :1], _log_sum(a[..., 1:], e)], -1)

    def step(carry: Any, frame: Any) -> Any:
        a, e = carry
        log_p, padded = frame
        s = sums(a, e)
        entered = jnp.where(repeats, a[..., :-1], s[..., :-1])
        carry = (
            jnp.where(padded, a, s + log_p[..., :1]),
            jnp.where(padded, e, _log_sum(entered, e) + log_p[..., 1:]),
        )
        return carry, carry if keep else None

    start = jnp.full(log_p.shape[1:], -jnp.inf, log_p.dtype)
    (a, e), every = jax.lax.scan(step, (start.at[..., 0].set(0), start[..., 1:]), (log_p, padded[..., None]))
    return sums(a, e), every


def _checked(name: str, logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, blank: Any) -> Any:
    """The arrays, with booleans for paddings, and whether an example has a bad value that could not be looked at."""
    logits, integers = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(complaint(name, "logits", "be floating", f"{logits.dtype}", "cast with .astype(jnp.float32)"))
    if logits.ndim < 2 or not logits.shape[-1]:
        raise ValueError(complaint(name, "logits", "be [..., T, K] with K ≥ 1", f"{logits.shape}"))
    batch, classes = logits.shape[:-2], logits.shape[-1]
    if isinstance(blank, bool) or not isinstance(blank, int | np.integer):
        raise TypeError(complaint(name, "blank_id", "be an int", f"{blank!r}"))
    if not 0 <= blank < classes:
        raise ValueError(complaint(name, "blank_id", f"be in [0, {classes})", int(blank)))
    if not jnp.issubdtype(integers.dtype, jnp.integer):
        raise TypeError(
            complaint(name, "labels", "be integer class indices", f"{integers.dtype}", "cast with .astype(jnp.int32)")
        )
    if not integers.ndim or integers.shape[:-1] != batch:
        must = f"be [..., N] with the leading axes {batch} of logits"
        raise ValueError(complaint(name, "labels", must, f"{integers.shape}", "nothing broadcasts"))
    padded, odd_frame = _padding(name, "logit_paddings", logit_paddings, logits.shape[:-1])
    dropped, odd_label = _padding(name, "label_paddings", label_paddings, integers.shape)

    def no_label(labels: Any, dropped: Any) -> Any:
        return ((labels < 0) | (labels >= classes) | (labels == blank)) & ~dropped

    values, paddings = _values(labels), _values(label_paddings)
    if values is not None and paddings is not None:
        wrong = values[no_label(values, paddings != 0)]
        if wrong.size:
            must = f"be in [0, {classes}) and not blank_id={blank}"
            raise ValueError(complaint(name, "labels", must, int(wrong[0]), "leave it out with label_paddings"))
    return as_compute(logits), padded, integers, dropped, odd_frame | odd_label | no_label(integers, dropped).any(-1)


def _padding(name: str, argument: str, given: Any, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Where the padding is, and whether an example has a value that is neither 0 nor 1."""
    array, values = jnp.asarray(given), _values(given)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(complaint(name, argument, "be real or boolean", f"{array.dtype}"))
    if array.shape != shape:
        raise ValueError(complaint(name, argument, f"have the shape {shape}", f"{array.shape}", "nothing broadcasts"))
    if array.dtype == bool:
        return array, jnp.zeros(shape[:-1], bool)
    if values is not None:
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(complaint(name, argument, "be 0, or 1 for padding", wrong[0]))
    return array == 1, jnp.any((array != 0) & (array != 1), -1)


def _ctc(name: str, logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, blank: int, keep: bool) -> Any:
    logits, padded, labels, dropped, wrong = _checked(name, logits, logit_paddings, labels, label_paddings, blank)
    order = jnp.argsort(dropped, axis=-1, stable=True)
    dropped = jnp.take_along_axis(dropped, order, -1)
    labels = jnp.where(dropped | wrong[..., None], blank, jnp.take_along_axis(labels, order, -1))
    repeats = jnp.concatenate([jnp.zeros_like(dropped[..., :1]), labels[..., 1:] == labels[..., :-1]], -1)
    classes = jnp.concatenate([jnp.full_like(labels, blank, shape=(*labels.shape[:-1], 1)), labels], -1)
    surprise, _ = softmax(jnp.where(padded[..., None], 0.0, logits), -1)
    log_p = -jnp.take_along_axis(surprise, classes[..., None, :], -1)
    log_p = jnp.where(jnp.pad(dropped, [(0, 0)] * (dropped.ndim - 1) + [(1, 0)])[..., None, :], -jnp.inf, log_p)
    last, every = _alphas(jnp.moveaxis(log_p, -2, 0), jnp.moveaxis(padded, -1, 0), repeats, keep)
    length = jnp.sum(~dropped, -1, keepdims=True)
    loss = -jnp.take_along_axis(last, length, -1)[..., 0]
    # rounding may take a loss of 0 below it
    loss = loss - jax.lax.stop_gradient(jnp.where(loss < 0, loss, 0.0))
    loss = loss * jnp.where(wrong, jnp.nan, 1.0).astype(loss.dtype)
    return loss, last, every


def ctc_loss(
    logits: Any,
    logit_paddings: Any,
    labels: Any,
    label_paddings: Any,
    *,
    blank_id: int = 0,
    zero_infinity: bool = False,
) -> jax.Array:
    """Connectionist temporal classification: −log of the probability that the frames spell the labels.

    −log Σ_π Π_t softmax(z_t)_{π_t} over every π that is the labels once repeats are merged and blanks are left out.

    Gradient: softmax(z_t) − the posterior of the classes at frame t; exactly 0 in padded frames, which are never read
    (NaN there does no harm), and wherever the loss is +∞. Every order and mode of derivative is right.

    Args:
      logits: [..., T, K], floating; the batch axes are any, also none.
      logit_paddings: [..., T], 1 or True for frames to leave out, wherever they stand.
      labels: [..., N], integers in [0, K) other than blank_id; what is padded may be any.
      label_paddings: [..., N], 1 or True for labels to leave out, wherever they stand.
      blank_id: the class of the blank, in [0, K).
      zero_infinity: 0 in place of +∞ where the frames cannot spell the labels, as where they are too few: one per label
        and one between equal neighbours.

    Returns:
      [...], ≥ 0: one value per sequence, in float32 or better. No labels: all frames are blank. No frames: 0 for no
      labels, else +∞. NaN, and so the gradient, where traced labels or paddings are out of range.

    Raises:
      TypeError: logits not floating, labels not integer, paddings complex, blank_id no int, zero_infinity no bool.
      ValueError: shapes that do not match, blank_id out of range, concrete labels or paddings out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from lossopt_jax import losses
      >>> logits = jnp.log(jnp.array([[0.4, 0.6], [0.5, 0.5]]))
      >>> round(float(jnp.exp(-losses.ctc_loss(logits, jnp.zeros(2), jnp.array([1]), jnp.zeros(1)))), 3)
      0.8

    Source: Graves, Fernández, Gomez and Schmidhuber 2006, "Connectionist temporal classification", ICML, eq. 6–8, 14.

    Differs from: optax and Keras, where −1e5 stands for log 0: an impossible sequence costs about 1e5 and has a
    gradient. torch takes lengths, frames first and log-probabilities, and its `mean` divides by the labels' lengths.
    """
    if not isinstance(zero_infinity, bool):
        raise TypeError(complaint("ctc_loss", "zero_infinity", "be True or False", f"{zero_infinity!r}"))
    loss, _, _ = _ctc("ctc_loss", logits, logit_paddings, labels, label_paddings, blank_id, False)
    return jnp.where(loss == jnp.inf, 0.0, loss) if zero_infinity else loss


def ctc_loss_with_forward_probs(
    logits: Any,
    logit_paddings: Any,
    labels: Any,
    label_paddings: Any,
    *,
    blank_id: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`ctc_loss`, and the logarithms of its forward probabilities after every frame.

    Gradient: of all three, right; 0 where a value is infinite.

    Args:
      logits: [..., T, K], floating.
      logit_paddings: [..., T], 1 or True for frames to leave out.
      labels: [..., N], integers in [0, K) other than blank_id.
      label_paddings: [..., N], 1 or True for labels to leave out.
      blank_id: the class of the blank, in [0, K).

    Returns:
      The loss [...]; log P of the first n labels and then a blank, [T, ..., N + 1], in the last frame with or without
      the blank; log P of the first n + 1 labels with the last of them still held, [T, ..., N]. −∞ is log 0, also
      for more labels than are not padded.

    Raises:
      TypeError: as `ctc_loss`.
      ValueError: as `ctc_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lossopt_jax import losses
      >>> logits = jnp.log(jnp.array([[0.4, 0.6], [0.5, 0.5]]))
      >>> _, blank, label = losses.ctc_loss_with_forward_probs(logits, jnp.zeros(2), jnp.array([1]), jnp.zeros(1))
      >>> blank.shape, label.shape, round(float(jnp.exp(label[1, 0])), 3)
      ((2, 2), (2, 1), 0.5)

    Source: Graves, Fernández, Gomez and Schmidhuber 2006, "Connectionist temporal classification", ICML, eq. 5–7.
    """
    name = "ctc_loss_with_forward_probs"
    loss, last, (a, e) = _ctc(name, logits, logit_paddings, labels, label_paddings, blank_id, True)
    return loss, jnp.concatenate([a[:-1], last[None]])[: len(a)], e
