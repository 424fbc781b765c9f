"""A metric: what to observe of predictions and targets, and the accumulator that reads it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import Registry, complaint
from lossopt_jax.metrics._accumulators import Mean, weights_of

registry = Registry("metric")

_MEAN = Mean()


@dataclasses.dataclass(frozen=True, repr=False)
class Metric:
    """Pure functions over a mergeable state: `init`, `update`, `merge`, `compute`.

    Attributes:
      name: the key in a history.
      observe: (prediction, target, **options) → one value per example (or a pair of arrays, for moments).
      accumulator: what to do with the values.
      options: arguments of `observe`; `from_logits` None means that `compile` may say.
      tasks: the kinds of loss it fits, or None for any.
    """

    name: str
    observe: Callable[..., Any]
    accumulator: Any = _MEAN
    options: tuple[tuple[str, Any], ...] = ()
    tasks: frozenset[str] | None = None

    def init(self) -> Any:
        """The state of nothing seen."""
        return self.accumulator.init()

    def update(self, state: Any, prediction: Any, target: Any = None, where: Any = None, weights: Any = None) -> Any:
        """The state after one more batch.

        Args:
          state: from `init`, `update` or `merge`.
          prediction: [N, ...].
          target: [N, ...].
          where: bool, the shape of the values observed or of their leading axes: [N] always fits. What is masked, and
            what has weight 0, is never looked at.
          weights: numbers ≥ 0 of such a shape.

        Raises:
          ValueError: shapes that do not fit each other.
          TypeError: predictions that are not floating, labels that are not integer, a mask that is not bool.
        """
        observed = self.observe(prediction, target, **dict(self.options))
        shape = (observed if isinstance(observed, jax.Array) else observed[0][:, 0]).shape
        return self.accumulator.update(state, observed, weights_of(self.name, shape, where, weights))

    def merge(self, one: Any, other: Any) -> Any:
        """The state of everything that either has seen; associative and commutative up to rounding."""
        return self.accumulator.merge(one, other)

    def compute(self, state: Any) -> jax.Array:
        """The figure, []; NaN where nothing was seen."""
        return self.accumulator.compute(state)

    def __call__(self, prediction: Any, target: Any = None, where: Any = None, weights: Any = None) -> jax.Array:
        """The figure of one batch."""
        return self.compute(self.update(self.init(), prediction, target, where, weights))

    def resolve(self, task: str | None = None, from_logits: bool | None = None) -> "Metric":
        """The same metric for a loss of that kind, whose predictions are logits or not.

        Raises:
          ValueError: it does not fit the loss.
        """
        if task is not None and self.tasks is not None and task not in self.tasks:
            fitting = " or ".join(sorted(self.tasks))
            raise ValueError(complaint(self.name, "the loss", f"be {fitting}", f"a {task} one", suggestion(task)))
        options = dict(self.options)
        if options.get("from_logits", False) is None and from_logits is not None:
            options["from_logits"] = from_logits
        return dataclasses.replace(self, options=tuple(options.items()))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        watched = self.observe.__name__.lstrip("_")
        return f"{self.name}({options})" if watched == self.name else f"{self.name} as {watched}({options})"


def suggestion(task: str) -> str:
    """What a message says to do for a loss of that kind."""
    return {
        "regression": "name 'mean_absolute_error' or 'r2_score', or for classes 'binary_accuracy'",
        "binary": "name 'binary_accuracy'",
        "categorical": "name 'categorical_accuracy'",
        "sparse": "name 'sparse_categorical_accuracy'",
    }.get(task, "leave metrics out: the loss itself is watched")


def floating(name: str, prediction: Any) -> jax.Array:
    """Predictions as an array, refused where they are no probabilities, logits or estimates."""
    prediction = jnp.asarray(prediction)
    if not jnp.issubdtype(prediction.dtype, jnp.floating):
        raise TypeError(complaint(name, "prediction", "be floating", prediction.dtype, "pass what the model returns"))
    return prediction


def alike(name: str, prediction: Any, target: Any) -> tuple[jax.Array, jax.Array]:
    """Predictions and targets of one shape; nothing broadcasts."""
    prediction, target = floating(name, prediction), jnp.asarray(target)
    if prediction.shape != target.shape:
        remedy = f"reshape target to {prediction.shape}" if prediction.size == target.size else "nothing broadcasts"
        must = f"have the shape of prediction, {prediction.shape}"
        raise ValueError(complaint(name, "target", must, target.shape, remedy))
    if not prediction.ndim:
        raise ValueError(complaint(name, "prediction", "have an axis of examples", "a scalar", "reshape to (1,)"))
    return prediction, target


def per_example(values: jax.Array) -> jax.Array:
    """The mean over the last axis, except of one value per example."""
    return values if values.ndim == 1 else jnp.mean(values, axis=-1)
