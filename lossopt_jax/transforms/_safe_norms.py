"""Norms of arrays with a least value, whose gradients are never NaN."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, axes_of
from lossopt_jax.transforms._clipping import length, length_of_units, powers_of_two


def safe_norm(
    x: jax.Array,
    min_norm: Any,
    ord: Any = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """A norm of an array, but at least some value: max(‖x‖, c), whose gradient is 0 where that value counts.

    Taken in float32 (float64 where the array is), and finite wherever it fits.

    Args:
      x: [...], floating, complex or integer.
      min_norm: c, a scalar.
      ord: the order, as for `jnp.linalg.norm`; None for the Euclidean norm of all elements concerned.
      axis: of vectors one axis, of matrices two; None for all elements, or those of a vector or matrix if `ord` is
        given.
      keepdims: keep these axes, with length 1.

    Returns:
      float32 or float64, without these axes.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> jax.grad(lo.transforms.safe_norm)(jnp.zeros(2), 1e-6)
      Array([0., 0.], dtype=float32)

    Differs from: optax, whose squares overflow and vanish.
    """
    x = as_compute(x)
    axes = tuple(range(x.ndim)) if axis is None else axes_of("safe_norm", axis, x.ndim)
    scale = powers_of_two(x, axes)
    least = jnp.asarray(min_norm).astype(scale.dtype)

    def norm_of(x: jax.Array) -> jax.Array:
        if ord is None or ord == "fro" or (ord == 2 and len(axes) == 1):
            return length_of_units(x, axes)
        if ord == 0:  # a count
            return jnp.linalg.norm(x, ord, axis, keepdims=True)
        found = jnp.linalg.norm(scale.astype(x.dtype) * x, ord, axis, keepdims=True) * (1 / scale)
        # XLA:CPU's maximum may lose a NaN
        return jnp.where(jnp.any(jnp.isnan(x), axes, keepdims=True), jnp.nan, found)

    small = norm_of(jax.lax.stop_gradient(x)) <= least
    # of ones where the least value counts: the norm's own gradient may be NaN at 0
    norm = jnp.where(small, least, norm_of(jnp.where(small, jnp.ones_like(x), x)))
    return norm if keepdims else jnp.squeeze(norm, axes)


def safe_root_mean_squares(x: jax.Array, min_rms: Any) -> jax.Array:
    """The root mean square of an array, but at least some value: max(‖x‖ / √size, c), with gradient 0 where c counts.

    Taken in float32 (float64 where the array is), and finite wherever it fits. Without elements 0, or c.

    Args:
      x: [...], floating, complex or integer.
      min_rms: c, a scalar.

    Differs from: optax, whose squares overflow and vanish.
    """
    rms = length([x]) / math.sqrt(max(jnp.size(x), 1))
    return jnp.where(rms <= min_rms, jnp.asarray(min_rms).astype(rms.dtype), rms)
