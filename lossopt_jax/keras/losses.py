"""The losses with Keras's argument order: (y_true, y_pred), one value per example."""

from lossopt_jax import losses as _losses
from lossopt_jax.keras._order import target_first

binary_crossentropy = target_first(_losses.binary_crossentropy)
categorical_crossentropy = target_first(_losses.categorical_crossentropy)
mean_absolute_error = mae = MAE = target_first(_losses.mean_absolute_error)
mean_squared_error = mse = MSE = target_first(_losses.mean_squared_error)
sparse_categorical_crossentropy = target_first(_losses.sparse_categorical_crossentropy)
