"""The metrics as Keras's functions: (y_true, y_pred) → one value per example; `compile` finds the metric itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lossopt_jax import metrics as _metrics


def _target_first(factory: Callable[..., _metrics.Metric]) -> Callable[..., jax.Array]:
    metric = factory()

    def observed(y_true: Any, y_pred: Any, **options: Any) -> jax.Array:
        own = factory(**options)
        return own.observe(y_pred, y_true, **dict(own.options))

    functools.update_wrapper(observed, factory, assigned=("__name__", "__qualname__"), updated=())
    observed.__doc__ = f"One value per example, y_true first. As `lossopt_jax.metrics.{factory.__name__}`.\n"
    observed.metric = metric
    del observed.__wrapped__
    return observed


binary_accuracy = _target_first(_metrics.binary_accuracy)
categorical_accuracy = _target_first(_metrics.categorical_accuracy)
mean_absolute_error = mae = MAE = _target_first(_metrics.mean_absolute_error)
mean_squared_error = mse = MSE = _target_first(_metrics.mean_squared_error)
sparse_categorical_accuracy = _target_first(_metrics.sparse_categorical_accuracy)
