"""Shares of right answers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import check_scalar, complaint
from lossopt_jax.metrics._metric import Metric, alike, floating, per_example, registry, suggestion


def _binary_accuracy(prediction: Any, target: Any, threshold: Any, from_logits: bool | None) -> jax.Array:
    prediction, target = alike("binary_accuracy", prediction, target)
    if threshold is None:
        threshold = 0.0 if from_logits else 0.5
    said = prediction > jnp.asarray(threshold, prediction.dtype)
    hit = (said == (target.astype(jnp.float32) > 0.5)) & ~jnp.isnan(prediction)
    return per_example(hit.astype(jnp.float32))


def _categorical_accuracy(prediction: Any, target: Any) -> jax.Array:
    prediction, target = alike("categorical_accuracy", prediction, target)
    if prediction.ndim < 2:
        got = f"shape {prediction.shape}"
        raise ValueError(complaint("categorical_accuracy", "prediction", "have a class axis", got, "reshape to (N, C)"))
    return _top_class_is(prediction, jnp.argmax(target, axis=-1))


def _sparse_categorical_accuracy(prediction: Any, target: Any) -> jax.Array:
    name = "sparse_categorical_accuracy"
    prediction, labels = floating(name, prediction), jnp.asarray(target)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(complaint(name, "target", "be integer class indices", labels.dtype, "cast to int32"))
    if labels.shape == (*prediction.shape[:-1], 1) and prediction.ndim > 1:
        labels = labels[..., 0]
    if prediction.ndim < 2 or labels.shape != prediction.shape[:-1]:
        must = f"have the shape of prediction, {prediction.shape}, without its last axis"
        raise ValueError(complaint(name, "target", must, labels.shape))
    return _top_class_is(prediction, labels)


def _top_class_is(prediction: jax.Array, label: jax.Array) -> jax.Array:
    hit = jnp.argmax(prediction, axis=-1).astype(label.dtype) == label
    return (hit & ~jnp.any(jnp.isnan(prediction), axis=-1)).astype(jnp.float32)


def _accuracy(prediction: Any, target: Any, threshold: Any, from_logits: bool | None) -> jax.Array:
    """Without a loss to say which accuracy is meant, the shapes must."""
    prediction, target = floating("accuracy", prediction), jnp.asarray(target)
    classes = prediction.shape[-1] if prediction.ndim else 0
    if prediction.shape == target.shape and (prediction.ndim == 1 or classes == 1):
        return _binary_accuracy(prediction, target, threshold, from_logits)
    if prediction.shape == target.shape:
        remedy = "name 'binary_accuracy' for independent labels, 'categorical_accuracy' for one choice among classes"
        got = f"shapes {prediction.shape} and {target.shape}"
        raise ValueError(complaint("accuracy", "shapes", "say which accuracy is meant", got, remedy))
    if jnp.issubdtype(target.dtype, jnp.integer) and target.shape in (
        prediction.shape[:-1],
        (*prediction.shape[:-1], 1),
    ):
        return _sparse_categorical_accuracy(prediction, target)
    got = f"{prediction.shape} and {target.shape}"
    raise ValueError(complaint("accuracy", "prediction and target", "have equal or class-index shapes", got))


@dataclasses.dataclass(frozen=True, repr=False)
class _Accuracy(Metric):
    """The accuracy that fits the loss, under the name it was asked for by."""

    def resolve(self, task: str | None = None, from_logits: bool | None = None) -> Metric:
        options = dict(self.options)
        if task is None:
            return super().resolve(None, from_logits)
        if task == "binary":
            found = binary_accuracy(**options)
        elif options["threshold"] is not None and task != "regression":
            remedy = "drop threshold: the class with the largest value is taken"
            raise ValueError(complaint("accuracy", "threshold", f"be None for a {task} loss", "one", remedy))
        else:
            found = {"categorical": categorical_accuracy, "sparse": sparse_categorical_accuracy}.get(task)
            if found is None:
                raise ValueError(
                    complaint("accuracy", "the loss", "be one of classes", f"a {task} one", suggestion(task))
                )
            found = found()
        return dataclasses.replace(found.resolve(task, from_logits), name=self.name)


@registry.register("acc")
def accuracy(threshold: Any = None, from_logits: bool | None = None) -> Metric:
    """Share of right answers, of the kind that fits the loss.

    In `compile` a binary loss makes it `binary_accuracy`, one over classes `categorical_accuracy` or, with class
    indices, `sparse_categorical_accuracy`; alone it goes by shapes: (N,) or (N, 1) twice is binary, integer (N,) for
    (N, C) is sparse, and (N, C) twice is an error, since it may mean either.

    Args:
      threshold: see `binary_accuracy`.
      from_logits: see `binary_accuracy`.

    Raises:
      ValueError: shapes or a loss that do not say which accuracy is meant; the message says what to name.

    Example:
      >>> accuracy()(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
      Array(0.5, dtype=float32)

    Differs from: Keras, which goes by shapes alone and takes (N,) for one example of N classes.
    """
    _check_threshold("accuracy", threshold)
    return _Accuracy("accuracy", _accuracy, options=(("threshold", threshold), ("from_logits", from_logits)))


@registry.register()
def binary_accuracy(threshold: Any = None, from_logits: bool | None = None) -> Metric:
    """Share of right yes-or-no answers, averaged over the last axis of each example.

        accuracy = Σ w · [(p > threshold) = (y > ½)] / Σ w

    Prediction and target: [N] or [N, ..., K], same shape. NaN is never right.

    Args:
      threshold: None for ½, or 0 for logits.
      from_logits: whether predictions are logits; None lets `compile` say.

    State: mean (two compensated sums; merge = addition, so psum of a state merges).  Nothing seen: NaN.

    Example:
      >>> binary_accuracy()(jnp.array([0.2, 0.7, 0.6]), jnp.array([0, 1, 0]))
      Array(0.6666667, dtype=float32)

    Differs from: Keras, whose threshold is ½ for logits too.
    """
    _check_threshold("binary_accuracy", threshold)
    options = (("threshold", threshold), ("from_logits", from_logits))
    return Metric("binary_accuracy", _binary_accuracy, options=options, tasks=frozenset({"binary", "regression"}))


@registry.register()
def categorical_accuracy() -> Metric:
    """Share of examples whose top class is the target's.

        accuracy = Σ w · [argmax p = argmax y] / Σ w

    Prediction and target: [N, ..., C], same shape. The first of equal classes counts; a NaN is never right.

    State: mean.  Nothing seen: NaN.

    Example:
      >>> categorical_accuracy()(jnp.array([[0.1, 0.9]]), jnp.array([[0, 1]]))
      Array(1., dtype=float32)
    """
    return Metric("categorical_accuracy", _categorical_accuracy, tasks=frozenset({"categorical", "regression"}))


@registry.register()
def sparse_categorical_accuracy() -> Metric:
    """Share of examples whose top class is the label.

        accuracy = Σ w · [argmax p = y] / Σ w

    Prediction [N, ..., C]; target [N, ...] or [N, ..., 1], integer. The first of equal classes counts; a NaN is never
    right.

    State: mean.  Nothing seen: NaN.

    Example:
      >>> sparse_categorical_accuracy()(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
      Array(0.5, dtype=float32)
    """
    return Metric("sparse_categorical_accuracy", _sparse_categorical_accuracy, tasks=frozenset({"sparse"}))


def _check_threshold(where: str, threshold: Any) -> None:
    if threshold is not None:
        check_scalar(where, "threshold", threshold)
