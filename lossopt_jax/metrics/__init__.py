"""Metrics: frozen objects of pure functions over mergeable states."""

from lossopt_jax.metrics._accuracy import (
    accuracy,
    binary_accuracy,
    categorical_accuracy,
    sparse_categorical_accuracy,
)
from lossopt_jax.metrics._metric import Metric, registry
from lossopt_jax.metrics._regression import mean, mean_absolute_error, mean_squared_error, r2_score
