"""Means, and distances between numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, complaint
from lossopt_jax.metrics._accumulators import Determination
from lossopt_jax.metrics._metric import Metric, alike, per_example, registry

_SAME_SHAPE = frozenset({"regression", "binary", "categorical"})


def _mean(values: Any, target: Any) -> jax.Array:
    return as_compute(values)


def _mean_squared_error(prediction: Any, target: Any) -> jax.Array:
    error = _error("mean_squared_error", prediction, target)
    return per_example(error * error)


def _mean_absolute_error(prediction: Any, target: Any) -> jax.Array:
    return per_example(jnp.abs(_error("mean_absolute_error", prediction, target)))


def _error(name: str, prediction: Any, target: Any) -> jax.Array:
    prediction, target = alike(name, prediction, target)
    return as_compute(prediction) - target.astype(as_compute(prediction).dtype)


def _r2_score(prediction: Any, target: Any) -> tuple[jax.Array, jax.Array]:
    prediction, target = alike("r2_score", prediction, target)
    shape = (prediction.shape[0], math.prod(prediction.shape[1:]))
    return as_compute(prediction).reshape(shape), as_compute(target).reshape(shape)


@registry.register()
def mean() -> Metric:
    """Weighted mean of whatever is passed: Σ w v / Σ w.

    `update(state, values)`, values [N, ...]; no target.

    State: mean (two compensated sums; merge = addition, so psum of a state merges).  Nothing seen: NaN.

    Example:
      >>> mean()(jnp.array([1.0, 2.0, 6.0]))
      Array(3., dtype=float32)
    """
    return Metric("mean", _mean)


@registry.register("mse")
def mean_squared_error() -> Metric:
    """Squared difference, averaged over the last axis of each example: Σ w e² / Σ w,  e = p − y.

    Prediction and target: [N] or [N, ..., K], same shape.

    State: mean.  Nothing seen: NaN.

    Example:
      >>> mean_squared_error()(jnp.array([1.0, 3.0]), jnp.zeros(2))
      Array(5., dtype=float32)
    """
    return Metric("mean_squared_error", _mean_squared_error, tasks=_SAME_SHAPE)


@registry.register("mae")
def mean_absolute_error() -> Metric:
    """Absolute difference, averaged over the last axis of each example: Σ w |e| / Σ w,  e = p − y.

    Prediction and target: [N] or [N, ..., K], same shape.

    State: mean.  Nothing seen: NaN.

    Example:
      >>> mean_absolute_error()(jnp.array([1.0, -3.0]), jnp.zeros(2))
      Array(2., dtype=float32)
    """
    return Metric("mean_absolute_error", _mean_absolute_error, tasks=_SAME_SHAPE)


@registry.register("r2")
def r2_score(outputs: int = 1) -> Metric:
    """Coefficient of determination, averaged over outputs.

        R² = 1 − Σ w (y − p)² / Σ w (y − ȳ)²

    A constant target gives 1 for perfect predictions and 0 for others.

    Prediction and target: [N] or [N, K], same shape.

    Args:
      outputs: K, the numbers per example.

    State: moments, merged by Chan's formula (not by psum).  Nothing seen: NaN.

    Example:
      >>> r2_score()(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 4.0]))
      Array(0.78571427, dtype=float32)

    Differs from: Keras for a constant target (NaN there where perfect).
    Source: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """
    if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
        raise ValueError(complaint("r2_score", "outputs", "be an int ≥ 1", f"{outputs!r}"))
    return Metric("r2_score", _r2_score, Determination(outputs), tasks=frozenset({"regression"}))
