"""Losses of logits that are never whole in memory: a linear layer and its loss, a chunk of tokens at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import (
    NONNEGATIVE,
    POSITIVE,
    UNIT,
    as_compute,
    check_scalar,
    complaint,
    compute_dtype,
    zeros_alike,
)
from lossopt_jax.losses._chunks import (
    by_chunks,
    check_class_labels,
    chunk_size_of,
    counted,
    logits_of,
    matrices,
    per_token,
    product,
)
from lossopt_jax.losses._crossentropy import (
    capped,
    sigmoid_binary_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from lossopt_jax.losses._divergences import kl_divergence_with_log_targets
from lossopt_jax.losses._reductions import mean
from lossopt_jax.losses._softmax import below_top, exponential

_Values = Callable[[jax.Array, Any, Any], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mean_over_tokens(
    values_of: _Values,
    size: int,
    axis_name: str | None,
    hidden: Any,
    kernel: Any,
    bias: Any,
    tokens: Any,
    constants: Any,
    weights: Any,
) -> jax.Array:
    """Σ w L(h W + b) / Σ w; where differentiated, the gradients are made in the same pass as the loss.

    With a mesh axis, along which the columns of W lie, the gradients of h are summed over it.
    """

    def step(carry: None, chunk: Any) -> tuple[None, jax.Array]:
        h, token = chunk
        return carry, values_of(logits_of(h, kernel, bias), token, constants)

    _, values = by_chunks(step, None, (hidden, tokens), size)
    return mean(values, weights=weights)


def _forward(
    values_of: _Values,
    size: int,
    axis_name: str | None,
    hidden: Any,
    kernel: Any,
    bias: Any,
    tokens: Any,
    constants: Any,
    w: Any,
) -> Any:
    wide = compute_dtype(np.promote_types(hidden.dtype, kernel.dtype))

    def step(sums: Any, chunk: Any) -> Any:
        h, token, weight = chunk
        values, back = jax.vjp(lambda z: values_of(z, token, constants), logits_of(h, kernel, bias))
        (slope,) = back(weight.astype(values.dtype))
        low = slope.astype(np.promote_types(h.dtype, kernel.dtype))
        of_kernel = sums[0] + product(h, low, (0, 0))
        of_bias = None if bias is None else sums[1] + jnp.sum(slope, 0).astype(wide)
        return (of_kernel, of_bias), (values, product(low, kernel, (1, 1)))

    zeros = jax.tree.map(lambda x: zeros_alike(x).astype(wide), (kernel, bias))
    (of_kernel, of_bias), (values, of_hidden) = by_chunks(step, zeros, (hidden, tokens, w), size)
    of_hidden = of_hidden if axis_name is None else jax.lax.psum(of_hidden, axis_name)
    loss = mean(values, weights=w)
    # empty arrays that remember dtypes
    like = [None if x is None else jnp.zeros(0, x.dtype) for x in (hidden, kernel, bias)]
    return loss, (of_hidden, of_kernel, of_bias, values, w, loss, like)


def _backward(values_of: _Values, size: int, axis_name: str | None, residuals: Any, cotangent: jax.Array) -> Any:
    *slopes, values, weights, loss, like = residuals
    mass = jnp.sum(weights)
    scale = jnp.where(mass == 0, 0.0, cotangent / jnp.where(mass == 0, 1.0, mass))
    slopes = [
        None if s is None else (s * scale.astype(s.dtype)).astype(x.dtype) for s, x in zip(slopes, like, strict=True)
    ]
    of_weights = scale * jnp.where(jnp.isfinite(values), values - loss, 0.0).astype(scale.dtype)
    return *slopes, None, None, of_weights.astype(weights.dtype)


_mean_over_tokens.defvjp(_forward, _backward)


def _check_options(name: str, label_smoothing: Any, z_loss: Any, softcap: Any) -> dict[str, Any]:
    check_scalar(name, "label_smoothing", label_smoothing, within=UNIT)
    check_scalar(name, "z_loss", z_loss, within=NONNEGATIVE)
    if softcap is not None:
        check_scalar(name, "softcap", softcap, within=POSITIVE)
    return {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}


def _split(options: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], dict[str, Any]]:
    """Options that are numbers of Python, known while tracing, and those that are arrays, constants to the gradient."""
    arrays = {k: jax.lax.stop_gradient(v) for k, v in options.items() if isinstance(v, jax.Array | np.ndarray)}
    return tuple((k, v) for k, v in options.items() if k not in arrays), arrays


def _of_labels(options: tuple[tuple[str, Any], ...], logits: jax.Array, labels: jax.Array, constants: Any) -> jax.Array:
    return softmax_cross_entropy_with_integer_labels(logits, labels, **dict(options), **constants)


def mean_linear_softmax_cross_entropy(
    hidden: Any,
    kernel: Any,
    labels: Any,
    *,
    bias: Any = None,
    weights: Any = None,
    ignore_index: int | None = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    softcap: Any = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Weighted mean of the cross entropies of a linear layer's logits, which are never whole in memory.

        mean_linear_softmax_cross_entropy(h, W, y) = Σ_i w_i L(h_i W + b, y_i) / Σ_i w_i

    L is `softmax_cross_entropy_with_integer_labels`. Tokens go by in chunks; where the loss is differentiated, each
    chunk gives its gradients at once, by three matrix products in all, and one chunk of logits is all that is held.
    Operands of matrix products stay in their dtype, sums and gradients are kept in float32 until the end.

    Args:
      hidden: [..., D], floating.
      kernel: [D, V], floating.
      labels: [...], integer, in [0, V).
      bias: [V], or None.
      weights: [...], or None for ones; a token of weight 0 is read by nothing, and its gradient is 0.
      ignore_index: the label of tokens of weight 0.
      label_smoothing, z_loss, softcap: as for that loss; constants to the gradient.
      chunk_size: tokens per chunk; None for about D.
      axis_name: the axis of a mesh, inside `jax.shard_map`, along which the columns of kernel and bias lie; hidden,
        labels and weights are the same on all its devices, and labels count through all columns.

    Returns:
      [], float32 for half-precision input, 0 with gradient 0 where no token counts; NaN where a traced label of a
      token that counts is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: hidden, kernel or bias are not floating, or labels not integer.

    Example:
      >>> h, w = jnp.ones((4, 2)), jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
      >>> mean_linear_softmax_cross_entropy(h, w, jnp.array([0, 0, 1, -1]), ignore_index=-1)
      Array(0.90621, dtype=float32)

    Differentiable once, in reverse; for forward mode and higher orders take `losses.mean` of
    `linear_softmax_cross_entropy`.

    Source: Wijmans et al. 2024, arXiv:2411.09009; Hsu et al. 2024, arXiv:2410.10989.
    """
    name = "mean_linear_softmax_cross_entropy"
    batch = jnp.shape(hidden)[:-1]
    flat, kernel, bias = matrices(name, hidden, kernel, bias)
    options = _check_options(name, label_smoothing, z_loss, softcap)
    shards = 1 if axis_name is None else jax.lax.psum(1, axis_name)
    check_class_labels(name, labels, kernel.shape[1] * shards, ignore_index)
    dtype = compute_dtype(np.promote_types(flat.dtype, kernel.dtype))
    labels, weights = counted(name, labels, batch, weights, ignore_index, dtype)
    size = chunk_size_of(name, chunk_size, *flat.shape)
    if not flat.shape[0]:
        return jnp.zeros((), dtype)
    flat = jnp.where((weights == 0)[:, None], 0.0, flat).astype(flat.dtype)
    labels = jnp.where(weights == 0, 0, labels)
    if axis_name is None:
        known, constants = _split(options)
        values_of = functools.partial(_of_labels, known)
    else:
        values_of, constants = functools.partial(_of_sharded, axis_name), jax.lax.stop_gradient(options)
    return _mean_over_tokens(values_of, size, axis_name, flat, kernel, bias, labels, constants, weights)


def _of_sharded(axis_name: str, logits: jax.Array, labels: jax.Array, options: Any) -> jax.Array:
    """`_of_labels` of logits whose classes lie along a mesh axis."""
    constants = [jnp.asarray(options[k], logits.dtype) for k in ("label_smoothing", "z_loss")]
    return _over_shards(axis_name, capped(logits, options["softcap"]), labels, *constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_shards(
    axis_name: str, logits: jax.Array, labels: jax.Array, smoothing: jax.Array, z_loss: jax.Array
) -> jax.Array:
    return _over_shards_forward(axis_name, logits, labels, smoothing, z_loss)[0]


def _over_shards_forward(
    axis_name: str, logits: jax.Array, labels: jax.Array, smoothing: jax.Array, z_loss: jax.Array
) -> Any:
    """As `_with_slope_of_label`, with maxima and sums over all shards; the slope is that of the own ones."""
    total = functools.partial(jax.lax.psum, axis_name=axis_name)
    own_labels = labels[:, None] - jax.lax.axis_index(axis_name).astype(labels.dtype) * logits.shape[1]
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1) == own_labels
    highest = jax.lax.pmax(jnp.max(logits, 1, keepdims=True), axis_name)
    others = jnp.where(is_label, 0.0, exponential(logits, highest))
    sums = [others, jnp.where(is_label, logits, 0.0), logits, is_label.astype(logits.dtype)]
    rest, own, all_logits, found = (total(jnp.sum(x, 1, keepdims=True)) for x in sums)
    top = exponential(own, highest)
    whole, d = rest + top, below_top(own, highest)
    value = jnp.where(d == 0, jnp.log1p(rest), jnp.log(whole) - d)
    level, classes = jnp.log(whole) + highest, total(logits.shape[1])
    value = (1 - smoothing) * value + smoothing * (level - all_logits / classes) + z_loss * jnp.square(level)
    share = (smoothing + 2 * z_loss * level) / whole
    slope = jnp.where(is_label, -rest, others) * ((1 - smoothing) / whole)
    slope = slope + jnp.where(is_label, top, others) * share - smoothing / classes
    unknown = jnp.where(found == 1, 1.0, jnp.nan).astype(value.dtype)
    return (value * unknown)[:, 0], slope * unknown


def _over_shards_backward(axis_name: str, slope: jax.Array, cotangent: jax.Array) -> Any:
    return slope * cotangent[:, None], None, None, None


_over_shards.defvjp(_over_shards_forward, _over_shards_backward)


def linear_softmax_cross_entropy(
    hidden: Any,
    kernel: Any,
    labels: Any,
    *,
    bias: Any = None,
    ignore_index: int | None = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    softcap: Any = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Cross entropy of each token from a linear layer's logits, which are never whole in memory.

        linear_softmax_cross_entropy(h, W, y)_i = L(h_i W + b, y_i)

    L is `softmax_cross_entropy_with_integer_labels`. Tokens go by in chunks, whose logits are made again for the
    gradient. Any order and mode of differentiation; `mean_linear_softmax_cross_entropy` is faster where the mean is
    all that is asked for.

    Args:
      hidden: [..., D], floating.
      kernel: [D, V], floating.
      labels: [...], integer, in [0, V).
      bias: [V], or None.
      ignore_index: the label of tokens that cost 0, with gradient 0, whatever their hidden state.
      label_smoothing, z_loss, softcap: as for that loss.
      chunk_size: tokens per chunk; None for about D.

    Returns:
      [...], float32 for half-precision input; NaN where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: hidden, kernel or bias are not floating, or labels not integer.

    Example:
      >>> linear_softmax_cross_entropy(jnp.ones((2, 1)), jnp.array([[2.0, 0.0]]), jnp.array([1, 0]))
      Array([2.126928, 0.126928], dtype=float32)
    """
    name = "linear_softmax_cross_entropy"
    batch = jnp.shape(hidden)[:-1]
    flat, kernel, bias = matrices(name, hidden, kernel, bias)
    options = _check_options(name, label_smoothing, z_loss, softcap)
    check_class_labels(name, labels, kernel.shape[1], ignore_index)
    dtype = compute_dtype(np.promote_types(flat.dtype, kernel.dtype))
    labels, weights = counted(name, labels, batch, None, ignore_index, dtype)
    if not flat.shape[0]:
        return jnp.zeros(batch, dtype)
    flat = jnp.where((weights == 0)[:, None], 0.0, flat).astype(flat.dtype)
    # wide outside and narrow inside, so that the chunks' gradients are summed in float32
    low, wide = kernel.dtype, kernel.astype(compute_dtype(kernel.dtype))

    @jax.checkpoint
    def values(h: jax.Array, y: jax.Array, wide: jax.Array, bias: Any) -> jax.Array:
        logits = logits_of(h, wide.astype(low), bias)
        return softmax_cross_entropy_with_integer_labels(logits, y, ignore_index=ignore_index, **options)

    def step(carry: None, chunk: Any) -> tuple[None, jax.Array]:
        return carry, values(*chunk, wide, bias)

    return by_chunks(step, None, (flat, labels), chunk_size_of(name, chunk_size, *flat.shape))[1].reshape(batch)


def clip_loss(
    image_embeddings: Any, text_embeddings: Any, *, logit_scale: Any, chunk_size: int | None = None
) -> jax.Array:
    """Contrastive loss of N matching pairs among all N² (CLIP), the similarities never whole in memory.

        clip_loss(u, v) = ½ (CE(s u vᵀ, 1…N) + CE(s v uᵀ, 1…N)),      means over the rows

    Args:
      image_embeddings: [N, D], floating, usually of length 1.
      text_embeddings: [N, D], the matching ones in the same order.
      logit_scale: s > 0, the inverse temperature; differentiable. The paper learns log s and keeps s ≤ 100.
      chunk_size: rows per chunk; None for about D.

    Returns:
      [], float32 for half-precision input; 0 for N = 0.

    Raises:
      ValueError: shapes differ or are not [N, D], or s is not positive.
      TypeError: embeddings are not floating.

    Example:
      >>> clip_loss(jnp.eye(2), jnp.eye(2), logit_scale=2.0)
      Array(0.126928, dtype=float32)

    Source: Radford et al. 2021, arXiv:2103.00020; the objective is InfoNCE, arXiv:1807.03748, both ways.
    """
    u, v = _embeddings("clip_loss", image_embeddings, text_embeddings)
    check_scalar("clip_loss", "logit_scale", logit_scale, within=POSITIVE)
    rows = jnp.arange(u.shape[0])
    if not u.shape[0]:
        return jnp.zeros((), compute_dtype(u.dtype))

    def one_way(a: jax.Array, b: jax.Array) -> jax.Array:
        scaled = (a * jnp.asarray(logit_scale, compute_dtype(a.dtype))).astype(a.dtype)
        return mean_linear_softmax_cross_entropy(scaled, b.T, rows, chunk_size=chunk_size)

    return 0.5 * (one_way(u, v) + one_way(v, u))


def _embeddings(name: str, images: Any, texts: Any) -> tuple[jax.Array, jax.Array]:
    u, v = jnp.asarray(images), jnp.asarray(texts)
    for argument, array in (("image_embeddings", u), ("text_embeddings", v)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(complaint(name, argument, "be floating", f"{array.dtype}"))
    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(complaint(name, "text_embeddings", f"be [N, D] as image_embeddings, {u.shape}", f"{v.shape}"))
    return u, v


def _pairs(logits: jax.Array, rows: jax.Array, constants: Any) -> jax.Array:
    return jnp.sum(sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(rows, logits.shape[1], dtype=logits.dtype)), 1)


def siglip_loss(
    image_embeddings: Any, text_embeddings: Any, *, logit_scale: Any, logit_bias: Any, chunk_size: int | None = None
) -> jax.Array:
    """Contrastive loss of N matching pairs among all N², each pair a yes-or-no outcome (SigLIP).

        siglip_loss(u, v) = −1/N Σ_ij log σ(±(s u_i · v_j + b)),      + where i = j

    The similarities are never whole in memory.

    Args:
      image_embeddings: [N, D], floating, usually of length 1.
      text_embeddings: [N, D], the matching ones in the same order.
      logit_scale: s > 0, the inverse temperature; differentiable. The paper begins with 10.
      logit_bias: b, differentiable. The paper begins with −10.
      chunk_size: rows per chunk; None for about D.

    Returns:
      [], float32 for half-precision input; 0 for N = 0.

    Raises:
      ValueError: shapes differ or are not [N, D], or s is not positive.
      TypeError: embeddings are not floating.

    Example:
      >>> siglip_loss(jnp.eye(2), jnp.eye(2), logit_scale=10.0, logit_bias=-10.0)
      Array(0.6931926, dtype=float32)

    Source: Zhai et al. 2023, arXiv:2303.15343.
    """
    u, v = _embeddings("siglip_loss", image_embeddings, text_embeddings)
    check_scalar("siglip_loss", "logit_scale", logit_scale, within=POSITIVE)
    check_scalar("siglip_loss", "logit_bias", logit_bias)
    dtype = compute_dtype(u.dtype)
    if not u.shape[0]:
        return jnp.zeros((), dtype)
    scaled = (u * jnp.asarray(logit_scale, dtype)).astype(u.dtype)
    bias = jnp.broadcast_to(jnp.asarray(logit_bias, dtype), u.shape[:1])
    size, rows = chunk_size_of("siglip_loss", chunk_size, *u.shape), jnp.arange(u.shape[0])
    return _mean_over_tokens(_pairs, size, None, scaled, v.T, bias, rows, None, jnp.ones(u.shape[0], dtype))


def _from_teacher(logits: jax.Array, teacher: jax.Array, constants: Any) -> jax.Array:
    kernel, temperature = constants
    temperature = jnp.asarray(temperature, logits.dtype)
    student, taught = (jax.nn.log_softmax(z / temperature) for z in (logits, logits_of(teacher, kernel, None)))
    return temperature * temperature * kl_divergence_with_log_targets(student, taught.astype(student.dtype))


def mean_linear_distillation(
    hidden: Any,
    kernel: Any,
    teacher_hidden: Any,
    teacher_kernel: Any,
    *,
    bias: Any = None,
    weights: Any = None,
    temperature: Any = 1.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Weighted mean of divergences of a linear layer's probabilities from a teacher's, no logits whole in memory.

        mean_linear_distillation = Σ_i w_i T² KL(softmax(ĥ_i Ŵ / T) ‖ softmax((h_i W + b) / T)) / Σ_i w_i

    Chunks as in `mean_linear_softmax_cross_entropy`; the teacher and the temperature are constants to the gradient. T²
    keeps the size of gradients when T changes.

    Args:
      hidden: [..., D], floating.
      kernel: [D, V], floating.
      teacher_hidden: [..., E], floating, ĥ.
      teacher_kernel: [E, V], floating, Ŵ.
      bias: [V], or None.
      weights: [...], or None for ones; a token of weight 0 is read by nothing.
      temperature: T > 0.
      chunk_size: tokens per chunk; None for about D.

    Returns:
      [], float32 for half-precision input, 0 with gradient 0 where no token counts.

    Raises:
      ValueError: shapes do not fit, or T is not positive.
      TypeError: an array is not floating.

    Example:
      >>> mean_linear_distillation(jnp.eye(2), jnp.eye(2), jnp.eye(2), jnp.eye(2), temperature=2.0)
      Array(0., dtype=float32)

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
    """
    name = "mean_linear_distillation"
    batch = jnp.shape(hidden)[:-1]
    flat, kernel, bias = matrices(name, hidden, kernel, bias)
    teacher, teacher_kernel, _ = matrices(name, teacher_hidden, teacher_kernel, None)
    if jnp.shape(teacher_hidden)[:-1] != batch or teacher_kernel.shape[1] != kernel.shape[1]:
        got = f"{jnp.shape(teacher_hidden)} and {teacher_kernel.shape}"
        must = f"be of the tokens {batch} and of V = {kernel.shape[1]} classes"
        raise ValueError(complaint(name, "teacher_hidden and teacher_kernel", must, got))
    check_scalar(name, "temperature", temperature, within=POSITIVE)
    dtype = compute_dtype(np.promote_types(flat.dtype, kernel.dtype))
    weights = jnp.ones(batch, dtype) if weights is None else as_compute(per_token(name, "weights", weights, batch))
    weights = weights.reshape(-1)
    if not flat.shape[0]:
        return jnp.zeros((), dtype)
    out = (weights == 0)[:, None]
    flat, teacher = (jnp.where(out, 0.0, x).astype(x.dtype) for x in (flat, teacher))
    constants = jax.lax.stop_gradient((teacher_kernel, jnp.asarray(temperature, dtype)))
    size = chunk_size_of(name, chunk_size, *flat.shape)
    teacher = jax.lax.stop_gradient(teacher)
    return _mean_over_tokens(_from_teacher, size, None, flat, kernel, bias, teacher, constants, weights)
