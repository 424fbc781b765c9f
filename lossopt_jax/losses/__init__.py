"""Losses: predictions and targets → one value per example or element; `mean` and `total` reduce a batch.

Predictions come first. Nothing broadcasts between predictions and targets, half precision is computed and returned in
float32, and every loss is in `registry` by its name and aliases, with what it is in `.spec`.
"""

from lossopt_jax.losses._crossentropy import (
    binary_crossentropy,
    categorical_crossentropy,
    sigmoid_binary_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    sparse_categorical_crossentropy,
)
from lossopt_jax.losses._lift import LossSpec, registry
from lossopt_jax.losses._reductions import mean, total
from lossopt_jax.losses._regression import (
    absolute_error,
    l2_loss,
    mean_absolute_error,
    mean_squared_error,
    squared_error,
)
