"""Tokens in chunks: what a loss of a linear layer computes and checks without its logits whole in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import as_compute, complaint, compute_dtype
from lossopt_jax.losses._lift import check_labels


def product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """A matrix product of operands as they are stored, summed in float32 or better."""
    dtype = np.promote_types(left.dtype, right.dtype)
    return jax.lax.dot_general(
        left.astype(dtype),
        right.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        preferred_element_type=compute_dtype(dtype),
    )


def logits_of(hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    logits = product(hidden, kernel, (1, 0))
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape).astype(logits.dtype)


def by_chunks(step: Callable[[Any, Any], Any], carry: Any, tokens: Any, size: int) -> tuple[Any, Any]:
    """`lax.scan` over chunks of the leading axis; what is left over is a shorter chunk, so nothing is padded."""
    count = jax.tree.leaves(tokens)[0].shape[0]
    whole = count // size
    outputs = []
    if whole:
        chunks = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), tokens)
        carry, out = jax.lax.scan(step, carry, chunks)
        outputs.append(jax.tree.map(lambda x: x.reshape(whole * size, *x.shape[2:]), out))
    if whole * size < count:
        carry, out = step(carry, jax.tree.map(lambda x: x[whole * size :], tokens))
        outputs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def matrices(
    name: str, hidden: Any, kernel: Any, bias: Any, called: tuple[str, str] = ("kernel", "bias")
) -> tuple[jax.Array, ...]:
    """Hidden states as [T, D], a kernel [D, V] and a bias [V], checked, by what the caller's arguments are called."""
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    bias = None if bias is None else jnp.asarray(bias)
    for argument, array in zip(("hidden", *called), (hidden, kernel, bias), strict=True):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                complaint(name, argument, "be floating", f"{array.dtype}", "cast with .astype(jnp.float32)")
            )
    if not hidden.ndim:
        raise ValueError(complaint(name, "hidden", "be [..., D]", "a scalar"))
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1] or not kernel.shape[1]:
        must = f"be [D, V] with D = {hidden.shape[-1]}, the last axis of hidden {hidden.shape}, and V ≥ 1"
        raise ValueError(complaint(name, called[0], must, f"{kernel.shape}"))
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(
            complaint(name, called[1], f"have the shape {kernel.shape[1:]} of the logits", f"{bias.shape}")
        )
    return hidden.reshape(-1, hidden.shape[-1]), kernel, bias


def per_token(name: str, argument: str, array: Any, batch: tuple[int, ...]) -> jax.Array:
    """One number per token, [T], checked."""
    array = jnp.asarray(array)
    if array.shape != batch:
        must = f"have the shape of hidden without its last axis, {batch}"
        raise ValueError(complaint(name, argument, must, f"{array.shape}", "nothing broadcasts"))
    return array.reshape(-1)


def chunk_size_of(name: str, size: int | None, tokens: int, features: int) -> int:
    """As many tokens as make the logits about as large as the kernel, whose gradient is kept anyway."""
    if size is None:
        return max(1, min(tokens, min(max(features, 128), 1024)))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(complaint(name, "chunk_size", "be an integer ≥ 1 or None", f"{size!r}"))
    return max(1, min(size, tokens))


def counted(name: str, labels: Any, batch: tuple[int, ...], weights: Any, ignored: Any, dtype: Any) -> Any:
    """Labels and weights of the tokens, [T]: a weight of 0 for those that are ignored."""
    labels = per_token(name, "labels", labels, batch)
    if weights is not None:
        weights = as_compute(per_token(name, "weights", weights, batch))
    weights = jnp.ones(labels.shape, dtype) if weights is None else weights
    return labels, weights if ignored is None else jnp.where(labels == ignored, 0.0, weights)


def check_class_labels(name: str, labels: Any, classes: int, ignored: int | None) -> None:
    """Refuse labels that are not integer, and concrete ones that are no class."""
    if ignored is not None and (isinstance(ignored, bool) or not isinstance(ignored, int | np.integer)):
        raise TypeError(complaint(name, "ignore_index", "be an int or None", f"{ignored!r}"))
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            complaint(name, "labels", "be integer class indices", f"{dtype}", "cast with .astype(jnp.int32)")
        )
    check_labels(name, "labels", labels, classes, ignored)
