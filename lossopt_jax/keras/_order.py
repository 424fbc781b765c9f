"""Argument order: Keras puts the target first, this library the prediction."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from lossopt_jax._core import complaint


def target_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of this library as (y_true, y_pred, …); `compile` finds the original in `prediction_first`."""
    _, _, *options = inspect.signature(function).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("y_true", kind), inspect.Parameter("y_pred", kind), *options]

    @functools.wraps(function)
    def swapped(y_true: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return function(y_pred, y_true, *args, **kwargs)

    swapped.__signature__ = inspect.Signature(parameters)
    swapped.__module__ = "lossopt_jax.keras.losses"
    swapped.__doc__ = (
        f"{(function.__doc__ or '').splitlines()[0]}\n\nAs `lossopt_jax.losses.{function.__name__}`, y_true first.\n"
    )
    swapped.prediction_first = function
    del swapped.__wrapped__
    return swapped


def loss(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare that a function of one's own takes (y_true, y_pred), so that `lo.compile` calls it that way.

    Args:
      function: (y_true, y_pred) → one value per example.

    Raises:
      TypeError: no function.

    Example:
      >>> import lossopt_jax as lo, jax.numpy as jnp
      >>> from lossopt_jax.keras import loss
      >>> @loss
      ... def quartic(y_true, y_pred):
      ...     return jnp.sum((y_true - y_pred) ** 4, axis=-1)
      >>> program = lo.compile(lambda p, x: x * p, optimizer="sgd", loss=quartic)
    """
    if not callable(function):
        raise TypeError(complaint("keras.loss", "the argument", "be a function (y_true, y_pred)", f"{function!r}"))

    @functools.wraps(function)
    def kept(y_true: Any, y_pred: Any) -> Any:
        return function(y_true, y_pred)

    @functools.wraps(function)
    def prediction_first(prediction: Any, target: Any) -> Any:
        return function(target, prediction)

    del prediction_first.__wrapped__
    kept.prediction_first = prediction_first
    return kept
