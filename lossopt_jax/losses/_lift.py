"""The lift of losses: a few lines of maths on checked float arrays become a public, registered loss.

    @loss("mse", task="regression", event=True, logits=False)
    def mean_squared_error(predictions, targets):
        return event_mean((predictions - targets) ** 2)

The maths sees predictions and targets as float32, or float64 where either is; their shapes agree, `axis` is not
negative and holds at least one class, class labels are int32 or int64. Everything else is done here, once: lists,
dtypes, options, shape errors, and the values of what is concrete.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import Registry, as_compute, check_scalar, complaint, concrete

Options = ParamSpec("Options")

registry = Registry("loss")


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """What a loss says about itself; every loss carries one as `spec`, and `compile` reads it.

    name: the canonical name.
    event: whether the last axis of a prediction (or `axis`) belongs to one example and is gone in the result.
    targets: "same" for the shape of the predictions, "integer" for class indices without the class axis.
    task: "regression", "binary", "categorical" (one weight per class) or "sparse" (class indices).
    logits: True if predictions are always logits, False if never, None if the argument `from_logits` says so.
    """

    name: str
    event: bool
    targets: Literal["same", "integer"]
    task: Literal["regression", "binary", "categorical", "sparse"]
    logits: bool | None


def loss(
    *aliases: str, task: Any, event: bool, logits: bool | None
) -> Callable[[Callable[Options, Any]], Callable[Options, jax.Array]]:
    """Decorator: check, convert and register a loss under its own name and these aliases."""

    def lift(maths: Callable[Options, Any]) -> Callable[Options, jax.Array]:
        name, signature = maths.__name__, inspect.signature(maths)
        spec = LossSpec(name, event, "integer" if task == "sparse" else "same", task, logits)
        first, second = list(signature.parameters)[:2]

        @functools.wraps(maths)
        def lifted(*args: Options.args, **kwargs: Options.kwargs) -> jax.Array:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            options = call.arguments
            given, target = options.pop(first), options.pop(second)
            predictions = _predictions(name, first, given)
            options = _options(name, first, predictions.shape, options, event)
            if not options.get("from_logits", logits is not None):
                _check_probabilities(name, first, given, options.get("axis"))
            if spec.targets == "integer":
                labels = _labels(name, first, second, predictions, target, options)
                return maths(predictions, labels, **options)
            if target is None and signature.parameters[second].default is None:
                return maths(predictions, jnp.zeros_like(predictions), **options)
            return maths(*_pair(name, first, second, predictions, target), **options)

        vars(lifted)["spec"] = spec
        return registry.register(*aliases)(lifted)

    return lift


def _values(array: Any) -> np.ndarray | None:
    """The values of an array that can be looked at here, or None."""
    return np.asarray(array) if concrete(array) and getattr(array, "is_fully_addressable", True) else None


def _predictions(name: str, argument: str, given: Any) -> jax.Array:
    array = jnp.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(complaint(name, argument, "be floating", f"{array.dtype}", "cast with .astype(jnp.float32)"))
    return as_compute(array)


def _pair(name: str, first: str, second: str, predictions: jax.Array, target: Any) -> tuple[jax.Array, jax.Array]:
    """Predictions and targets of one shape and one dtype; neither is ever cast down."""
    targets = jnp.asarray(target)
    if jnp.issubdtype(targets.dtype, jnp.complexfloating):
        raise TypeError(complaint(name, second, "be real", f"{targets.dtype}", "take .real and .imag apart"))
    if targets.shape != predictions.shape:
        remedy = (
            f"reshape {second} to {predictions.shape}" if targets.size == predictions.size else "nothing broadcasts"
        )
        must = f"have the shape of {first}, {predictions.shape}"
        raise ValueError(complaint(name, second, must, f"{targets.shape}", remedy))
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        return predictions, targets.astype(predictions.dtype)
    targets = as_compute(targets)
    dtype = np.promote_types(predictions.dtype, targets.dtype)
    return predictions.astype(dtype), targets.astype(dtype)


def _labels(
    name: str, first: str, second: str, predictions: jax.Array, target: Any, options: dict[str, Any]
) -> jax.Array:
    """Class indices, int32 or int64, of the predictions' shape without the class axis."""
    shape, axis, ignored = predictions.shape, options["axis"], options["ignore_index"]
    labels, expected, classes = jnp.asarray(target), shape[:axis] + shape[axis + 1 :], shape[axis]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        remedy = "cast with .astype(jnp.int32)"
        if labels.shape == shape:
            remedy = "use the categorical loss for one weight per class"
        raise TypeError(complaint(name, second, "be integer class indices", f"{labels.dtype}", remedy))
    if labels.shape != expected:
        must = f"have the shape of {first} {shape} without axis {axis}, {expected}"
        remedy = "nothing broadcasts"
        if labels.shape == shape:
            remedy = "take the argmax, or use the categorical loss for one weight per class"
        elif labels.size == predictions.size // classes:
            remedy = f"reshape {second} to {expected}"
        raise ValueError(complaint(name, second, must, f"{labels.shape}", remedy))
    values = _values(target)
    if values is not None:
        wrong = values[((values < 0) | (values >= classes)) & (True if ignored is None else values != ignored)]
        if wrong.size:
            must = f"be in [0, {classes})" + ("" if ignored is None else f" or ignore_index={ignored}")
            remedy = "say ignore_index to leave examples out" if ignored is None else "correct the labels"
            raise ValueError(complaint(name, second, must, int(wrong[0]), remedy))
    return labels.astype(jnp.int64 if labels.dtype.itemsize > 4 else jnp.int32)


def _options(name: str, first: str, shape: tuple[int, ...], options: dict[str, Any], event: bool) -> dict[str, Any]:
    """The options, checked: one name means one thing in every loss."""
    options = dict(options)
    if event and not shape:
        raise ValueError(complaint(name, first, "have an event axis", "a scalar", "reshape to (1,)"))
    if "axis" in options:
        axis = options["axis"]
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(complaint(name, "axis", "be an int", f"{axis!r}"))
        if not -len(shape) <= axis < len(shape):
            raise ValueError(complaint(name, "axis", f"be an axis of {first}, {shape}", int(axis)))
        options["axis"] = axis = int(axis) % len(shape)
        if not shape[axis]:
            raise ValueError(complaint(name, first, "have at least one class", f"{shape} with axis {axis}"))
    if "label_smoothing" in options:
        check_scalar(name, "label_smoothing", options["label_smoothing"])
    if not isinstance(options.get("from_logits", False), bool | np.bool_):
        raise TypeError(complaint(name, "from_logits", "be True or False", f"{options['from_logits']!r}"))
    ignored = options.get("ignore_index")
    if isinstance(ignored, bool) or not isinstance(ignored, int | np.integer | None):
        raise TypeError(complaint(name, "ignore_index", "be an int or None", f"{ignored!r}"))
    if options.get("where") is not None:
        options["where"] = mask = jnp.asarray(options["where"])
        if mask.dtype != jnp.bool_:
            raise TypeError(complaint(name, "where", "be boolean", f"{mask.dtype}", "compare, as in weights > 0"))
        if mask.shape != shape:
            remedy = "it masks classes; mask examples with losses.mean(…, where=…)"
            raise ValueError(complaint(name, "where", f"have the shape of {first}, {shape}", f"{mask.shape}", remedy))
    return options


def _check_probabilities(name: str, argument: str, given: Any, axis: int | None) -> None:
    """Refuse concrete predictions that no sigmoid or softmax returns; a row of zeros may be padding."""
    values = _values(given)
    if values is None:
        return
    values, rounding = values.astype(np.float64), float(jnp.finfo(jnp.asarray(given).dtype).eps)
    remedy = "pass from_logits=True if they are logits"
    slack = 0.0 if axis is None else max(1e-3, rounding)
    wrong = values[(values < 0) | (values > 1 + slack)]
    if wrong.size:
        raise ValueError(complaint(name, argument, "be in [0, 1]", float(wrong[0]), remedy))
    if axis is not None:
        sums = values.sum(axis)
        wrong = sums[(np.abs(sums - 1) > slack) & (sums != 0)]
        if wrong.size:
            must = f"sum to 1 along axis {axis}"
            raise ValueError(complaint(name, argument, must, float(wrong[0]), f"normalise them, or {remedy}"))
