"""The losses with Keras's argument order: (y_true, y_pred), one value per example."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax import losses as _losses
from lossopt_jax._core import axes_of, complaint
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


def _regions(y_pred: Any, axis: Any) -> tuple[jax.Array, tuple[int, ...]]:
    """[N, ...] with one region per row, and the shape of the result: what is left of the axes."""
    y_pred = jnp.asarray(y_pred)
    axes = range(y_pred.ndim) if axis is None else axes_of("keras.losses", axis, y_pred.ndim)
    kept = tuple(a for a in range(y_pred.ndim) if a not in axes)
    shape = tuple(y_pred.shape[a] for a in kept)
    return jnp.transpose(y_pred, (*kept, *axes)).reshape(math.prod(shape), -1), shape


def _tversky(y_pred: Any, y_true: Any, alpha: Any = 0.5, beta: Any = 0.5, axis: Any = None) -> jax.Array:
    """How little a region of probabilities and the true one overlap; α weights what is missed, β what is too much."""
    if jnp.shape(y_pred) != jnp.shape(y_true):
        must = f"have the shape of y_pred, {jnp.shape(y_pred)}"
        raise ValueError(complaint("tversky", "y_true", must, f"{jnp.shape(y_true)}", "nothing broadcasts"))
    (p, shape), (t, _) = _regions(y_pred, axis), _regions(y_true, axis)
    values = _losses.tversky_loss(p, t, alpha=beta, beta=alpha, smooth=0.0, apply_sigmoid=False)
    return values.reshape(shape)


def _dice(y_pred: Any, y_true: Any, axis: Any = None) -> jax.Array:
    """How little a region of probabilities and the true one overlap: of the whole batch, or over these axes."""
    return _tversky(y_pred, y_true, axis=axis)


def _circle(
    y_pred: Any,
    y_true: Any,
    ref_labels: Any = None,
    ref_embeddings: Any = None,
    remove_diagonal: bool = True,
    gamma: Any = 80.0,
    margin: Any = 0.4,
) -> jax.Array:
    """Each pair of embeddings pulls the harder, the farther it is from where it should be."""
    if (ref_labels is None) != (ref_embeddings is None):  # Keras takes the batch's own for the one that is missing
        ref_labels = y_true if ref_labels is None else ref_labels
        ref_embeddings = y_pred if ref_embeddings is None else ref_embeddings
    return _losses.circle_loss(
        y_pred,
        y_true,
        gamma=gamma,
        margin=margin,
        references=ref_embeddings,
        reference_labels=ref_labels,
        remove_diagonal=remove_diagonal,
    )


_tversky.__name__, _dice.__name__, _circle.__name__ = "tversky_loss", "dice_loss", "circle_loss"
tversky, dice, circle = target_first(_tversky), target_first(_dice), target_first(_circle)
