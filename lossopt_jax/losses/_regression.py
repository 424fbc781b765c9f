"""Distances between numbers."""

import jax
import jax.numpy as jnp

from lossopt_jax.losses._arithmetic import event_mean
from lossopt_jax.losses._lift import Reals, loss


@loss(task="regression", event=0, logits=False)
def squared_error(predictions: Reals, targets: Reals = None):
    """Squared difference of each element.

        squared_error(p, y) = e²,      e = p − y

    Gradient: 2 e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> squared_error(jnp.array([1.0, 3.0]), jnp.zeros(2))
      Array([1., 9.], dtype=float32)

    Differs from: Keras and torch `mse`, which average: see `mean_squared_error`.
    """
    error = predictions - targets
    return error * error


@loss(task="regression", event=0, logits=False)
def l2_loss(predictions: Reals, targets: Reals = None):
    """Half the squared difference of each element.

        l2_loss(p, y) = ½ e²,      e = p − y

    Gradient: e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> l2_loss(jnp.array([1.0, 3.0]), jnp.zeros(2))
      Array([0.5, 4.5], dtype=float32)

    Differs from: optax `l2_loss`, which overflows where e² does, and in float16 from e = 256.
    """
    error = predictions - targets
    return 0.5 * error * error


def _absolute(error: jax.Array) -> jax.Array:
    # |e| as a product has the derivative sign(e), which is 0 at 0; that of jnp.abs is 1 there.
    return error * jax.lax.stop_gradient(jnp.sign(error))


@loss(task="regression", event=0, logits=False)
def absolute_error(predictions: Reals, targets: Reals):
    """Absolute difference of each element.

        absolute_error(p, y) = |e|,      e = p − y

    Gradient: sign e, and 0 at an exact hit.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> absolute_error(jnp.array([-1.0, 3.0]), jnp.zeros(2))
      Array([1., 3.], dtype=float32)

    Differs from: Keras and torch `mae`, which average: see `mean_absolute_error`.
    """
    return _absolute(predictions - targets)


@loss("mse", "MSELoss", task="regression", event=1, logits=False)
def mean_squared_error(predictions: Reals, targets: Reals):
    """Squared difference, averaged over the last axis.

        mean_squared_error(p, y) = 1/D Σ_d (p_d − y_d)²

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.

    Returns:
      [...], float32 for half-precision input, one value per example; 0 for D = 0.

    Raises:
      ValueError: shapes differ, or predictions are a scalar.
      TypeError: predictions are not floating.

    Example:
      >>> mean_squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
      Array([5.], dtype=float32)

    Differs from: torch `MSELoss`, which averages over the batch as well; Keras squeezes (N, 1) against (N,), here an
    error.
    """
    error = predictions - targets
    return event_mean(error * error)


@loss("mae", "l1", "L1Loss", task="regression", event=1, logits=False)
def mean_absolute_error(predictions: Reals, targets: Reals):
    """Absolute difference, averaged over the last axis.

        mean_absolute_error(p, y) = 1/D Σ_d |p_d − y_d|

    Gradient: sign e / D, and 0 at an exact hit.

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.

    Returns:
      [...], float32 for half-precision input, one value per example; 0 for D = 0.

    Raises:
      ValueError: shapes differ, or predictions are a scalar.
      TypeError: predictions are not floating.

    Example:
      >>> mean_absolute_error(jnp.array([[-1.0, 3.0]]), jnp.zeros((1, 2)))
      Array([2.], dtype=float32)

    Differs from: Keras on JAX, whose gradient at an exact hit is 1; torch `L1Loss` averages over the batch as well.
    """
    return event_mean(_absolute(predictions - targets))
