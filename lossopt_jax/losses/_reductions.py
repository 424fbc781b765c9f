"""From one value per example to one number: the only places where a batch is reduced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import along_leading_axes, as_compute, complaint
from lossopt_jax.losses._arithmetic import headroom


def total(values: Any, where: Any = None, weights: Any = None) -> jax.Array:
    """The weighted sum of the values that count.

        total(v, w) = Σ_i w_i v_i      over where

    Args:
      values: [...], any shape.
      where: bool, the shape of values or of its leading axes; False takes values out, NaN and gradient included.
      weights: the shape of values or of its leading axes, or a scalar; a value of weight 0 may be infinite or NaN.

    Returns:
      [], float32, or float64 where values or weights are; 0 with gradient 0 for nothing.

    Raises:
      ValueError: where or weights have another shape.
      TypeError: where is not bool, or weights are complex.

    Example:
      >>> total(jnp.array([1.0, 2.0, jnp.nan]), where=jnp.array([True, True, False]))
      Array(3., dtype=float32)
    """
    values, _, weights = _selected("total", values, where, weights)
    return jnp.sum(values if weights is None else _weighted(values, weights))


def mean(values: Any, where: Any = None, weights: Any = None) -> jax.Array:
    """The weighted mean of the values that count.

        mean(v, w) = Σ_i w_i v_i / Σ_i w_i      over where

    Args:
      values: [...], any shape.
      where: bool, the shape of values or of its leading axes; False takes values out, NaN and gradient included.
      weights: the shape of values or of its leading axes, or a scalar; a value of weight 0 may be infinite or NaN.

    Returns:
      [], float32, or float64 where values or weights are; 0 with gradient 0 for nothing, or weights of sum 0.

    Raises:
      ValueError: where or weights have another shape.
      TypeError: where is not bool, or weights are complex.

    Example:
      >>> mean(jnp.array([1.0, 4.0, jnp.inf]), weights=jnp.array([2.0, 1.0, 0.0]))
      Array(2., dtype=float32)

    Differs from: Keras, which divides by the number of examples whatever their weights, and multiplies by weights of 0.
    """
    values, where, weights = _selected("mean", values, where, weights)
    if weights is not None:
        mass = jnp.sum(weights)
    else:
        mass = jnp.asarray(values.size if where is None else jnp.sum(where)).astype(values.dtype)
    scale = headroom(values.size)
    scaled = values * scale
    numerator = jnp.sum(scaled if weights is None else _weighted(scaled, weights))
    empty = mass == 0
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, mass * scale))


def _selected(name: str, values: Any, where: Any, weights: Any) -> tuple[jax.Array, Any, Any]:
    """Values, mask and weights of one shape, with 0 for what is masked, before any arithmetic sees it."""
    values = as_compute(values)
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            raise TypeError(complaint(name, "where", "be boolean", f"{where.dtype}", "pass numbers as weights"))
        where = along_leading_axes(name, "where", where, values.shape)
        values = jnp.where(where, values, 0.0)
    if weights is not None:
        weights = as_compute(weights)
        if jnp.issubdtype(weights.dtype, jnp.complexfloating):
            raise TypeError(complaint(name, "weights", "be real", f"{weights.dtype}"))
        weights = along_leading_axes(name, "weights", weights, values.shape)
        weights = weights if where is None else jnp.where(where, weights, 0.0)
        dtype = np.promote_types(values.dtype, weights.dtype)
        values, weights = values.astype(dtype), weights.astype(dtype)
    return values, where, weights


def _weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
    """w v, where a value of weight 0 is only a number to the gradient of w, and 0 if it is none."""
    number = jax.lax.stop_gradient(jnp.where(jnp.isfinite(values), values, 0.0))
    return weights * jnp.where(weights == 0, number, values)
