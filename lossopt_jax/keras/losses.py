"""The losses with Keras's argument order: (y_true, y_pred), one value per example."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax import losses as _losses
from lossopt_jax.keras._order import target_first


def _changed(name: str, function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A loss under Keras's name, whose values are changed into Keras's; its first line says how."""

    @functools.wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(function(*args, **kwargs))

    changed.__name__ = name
    changed.spec = dataclasses.replace(function.spec, name=name, event=1)
    return changed


def _averaged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of each element, averaged over the last axis."""
    return target_first(_changed(name, function, lambda values: jnp.mean(values, axis=-1)))


binary_crossentropy = target_first(_losses.binary_crossentropy)
binary_focal_crossentropy = target_first(_losses.binary_focal_crossentropy)
categorical_crossentropy = target_first(_losses.categorical_crossentropy)
categorical_focal_crossentropy = target_first(_losses.categorical_focal_crossentropy)
categorical_generalized_cross_entropy = target_first(_losses.categorical_generalized_cross_entropy)
categorical_hinge = target_first(_losses.categorical_hinge)
cosine_similarity = target_first(_changed("cosine_similarity", _losses.cosine_similarity, lambda values: -values))
hinge = _averaged("hinge", _losses.hinge_loss)
huber = _averaged("huber", _losses.huber_loss)
kl_divergence = kld = KLD = target_first(_losses.kullback_leibler_divergence)
log_cosh = _averaged("log_cosh", _losses.log_cosh)
mean_absolute_error = mae = MAE = target_first(_losses.mean_absolute_error)
mean_absolute_percentage_error = mape = MAPE = target_first(_losses.mean_absolute_percentage_error)
mean_squared_error = mse = MSE = target_first(_losses.mean_squared_error)
mean_squared_logarithmic_error = msle = MSLE = target_first(_losses.mean_squared_logarithmic_error)
poisson = target_first(_losses.poisson)
sparse_categorical_crossentropy = target_first(_losses.sparse_categorical_crossentropy)
squared_hinge = _averaged("squared_hinge", _losses.squared_hinge)


def _ctc(y_pred: Any, y_true: Any) -> jax.Array:
    """CTC of logits [B, T, K] and integers [B, N], where 0 is the blank and pads the labels; every frame counts."""
    y_pred, y_true = jnp.asarray(y_pred), jnp.asarray(y_true)
    return _losses.ctc_loss(y_pred, jnp.zeros(y_pred.shape[:-1], bool), y_true, y_true == 0)


_ctc.__name__ = "ctc_loss"
ctc = target_first(_ctc)
