"""Names → objects: everything that `compile` checks before anything is traced."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax import losses, metrics, optimizers
from lossopt_jax._core import complaint, standard_promotion
from lossopt_jax.transforms import GradientTransformation
from lossopt_jax.transforms._base import as_transformation

_TARGET_FIRST = ("y_true", "target", "targets", "label", "labels", "true", "y")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as a program uses it: predictions first, one value per example, nothing left to decide."""

    name: str
    function: Callable[..., Any]
    task: str | None
    event: bool
    logits: bool | None

    @property
    def logits_hint(self) -> str:
        """What to try where a loss of probabilities is not finite."""
        return ", from_logits=True if the model returns logits" if self.logits is False else ""

    def __call__(self, prediction: Any, target: Any) -> jax.Array:
        """One value (or row of values) per example: [N, ...]."""
        if self.event and isinstance(prediction, jax.Array) and prediction.ndim == 1 and jnp.ndim(target) == 1:
            prediction, target = prediction[:, None], jnp.asarray(target)[:, None]
        with standard_promotion():
            values = jnp.asarray(self.function(prediction, target))
        size = jax.tree.leaves(target)[0].shape[0]
        if values.ndim == 0 or values.shape[0] != size:
            remedy = "do not reduce over the batch; the program takes the mean"
            raise ValueError(
                complaint(self.name, "loss", f"give one value per example, [{size}, ...]", values.shape, remedy)
            )
        return values


def resolve_loss(loss: Any, from_logits: bool | None) -> Objective:
    """A name, a loss of this library, of its Keras room, or a user's function, as an Objective."""
    if loss is None:
        raise ValueError(
            complaint("compile", "loss", "be given", "None", "name one, such as loss='mean_squared_error'")
        )
    if isinstance(loss, list | tuple | dict):
        remedy = "pass one loss, or a function that adds several"
        raise ValueError(complaint("compile", "loss", "be a single loss", f"{loss!r}", remedy))
    arguments: dict[str, Any] = {}
    if isinstance(loss, str):
        name, positional, arguments = losses.registry.parse(loss)
        if positional:
            raise ValueError(complaint("compile", "loss", "take its arguments by name", repr(loss)))
        loss = losses.registry[name]
    if not callable(loss):
        raise TypeError(complaint("compile", "loss", "be a name or a function", f"{loss!r}"))
    bare = loss
    while isinstance(bare, functools.partial) and not bare.args:
        arguments = {**bare.keywords, **arguments}
        bare = bare.func
    bare = getattr(bare, "prediction_first", bare)
    spec = getattr(bare, "spec", None)
    name = getattr(bare, "__name__", type(bare).__name__)
    if not isinstance(spec, losses.LossSpec):
        _check_order(name, bare)
        return Objective(name, functools.partial(bare, **arguments), None, False, from_logits)
    return _configured(spec, bare, arguments, from_logits)


def _check_order(name: str, function: Callable[..., Any]) -> None:
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):
        return
    if first in _TARGET_FIRST:
        remedy = "wrap it: lossopt_jax.keras.loss(fn)"
        raise ValueError(complaint("compile", f"loss {name!r}", "take the prediction first", repr(first), remedy))


def _configured(spec: Any, function: Callable[..., Any], arguments: dict[str, Any], logits: bool | None) -> Objective:
    accepted = inspect.signature(function).parameters
    for argument in arguments:
        if argument not in list(accepted)[2:]:
            known = ", ".join(list(accepted)[2:]) or "none"
            raise ValueError(complaint("compile", f"arguments of loss {spec.name!r}", f"be among {known}", argument))
    if spec.logits is None:
        chosen = arguments.get("from_logits", logits)
        if logits is not None and chosen != logits:
            got = f"from_logits={logits} in compile, {chosen} in the loss"
            raise ValueError(complaint("compile", "from_logits", "be said once", got))
        arguments = {**arguments, "from_logits": bool(chosen)}
        spec_logits = bool(chosen)
    else:
        spec_logits = spec.logits
        if logits is not None and spec.task != "regression" and logits != spec.logits:
            remedy = f"drop from_logits={logits}, or choose the crossentropy that takes probabilities"
            raise ValueError(complaint("compile", f"loss {spec.name!r}", "take logits", "probabilities", remedy))
    bound = functools.partial(function, **arguments) if arguments else function
    return Objective(spec.name, bound, spec.task, spec.event, None if spec.task == "regression" else spec_logits)


def resolve_optimizer(optimizer: Any) -> GradientTransformation:
    """A name with or without arguments, a recipe, or a transform of any library."""
    if isinstance(optimizer, str):
        return optimizers.registry.build(optimizer)
    for name, recipe in optimizers.registry.items():
        if optimizer is recipe:
            return optimizers.registry.build(name)
    return as_transformation("compile", optimizer)


def resolve_metrics(names: Any, objective: Objective) -> dict[str, metrics.Metric]:
    """Metrics by history key, each fitted to the loss: the kind of accuracy, logits or probabilities."""
    wanted: Sequence[Any] = [names] if isinstance(names, str) or not isinstance(names, Sequence) else names
    resolved: dict[str, metrics.Metric] = {}
    for item in wanted:
        metric = _one_metric(item).resolve(task=objective.task, from_logits=objective.logits)
        taken = [key for key in ("loss", *resolved) if key == metric.name or key.startswith(f"{metric.name}_")]
        resolved[f"{metric.name}_{len(taken) + 1}" if taken else metric.name] = metric
    return resolved


def _one_metric(item: Any) -> metrics.Metric:
    if isinstance(item, str):
        item = metrics.registry.build(item)
    item = getattr(item, "metric", item)
    if callable(item) and not isinstance(item, metrics.Metric) and item in list(metrics.registry.values()):
        item = item()
    if not isinstance(item, metrics.Metric):
        remedy = "name one, such as 'accuracy', or pass lo.metrics.accuracy()"
        raise TypeError(complaint("compile", "metrics", "be names or metrics", f"{item!r}", remedy))
    return item
