"""The lift of losses: a few lines of maths on checked float arrays become a public, registered loss.

    @loss("Huber", task="regression", event=0, logits=False)
    def huber_loss(predictions: Reals, targets: Reals = None, *, delta: Annotated[Scalar, POSITIVE] = 1.0):
        size = jnp.abs(predictions - targets)
        return jnp.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))

The annotations say what each argument is. The maths sees float arrays as float32, or float64 where one of them is; of
one shape, or without the class axis, or one number per class; class labels as int32 or int64 that can be looked up;
scalars in the same dtype; `axis` not negative and with at least one class. Everything else is done here, once: lists,
dtypes, options, shape errors, and values: a concrete one out of range raises, a traced one makes its example NaN, in
value and gradient.
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import (
    Range,
    Registry,
    Scalar,
    as_compute,
    bound_arguments,
    check_scalar,
    complaint,
    concrete,
)

Options = ParamSpec("Options")

registry = Registry("loss")


@dataclasses.dataclass(frozen=True)
class Values:
    """What an array argument is; an annotation of the maths.

    kind: "float"; "label" for class indices: integers, of the first argument's shape without the class axis; "mask"
      for bool.
    shape: "same" as the first argument, "label" for its shape without the class axis, "class" for one per class, or
      one for all. Labels of the same shape are a list of classes, which −1 ends.
    low, high: the interval its values must be in; `open` leaves out low itself.
    more: how many more classes there are than entries along the class axis: 1 if those are the thresholds between them.
    """

    kind: Literal["float", "label", "mask"] = "float"
    shape: Literal["same", "label", "class"] = "same"
    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    more: int = 0

    @property
    def words(self) -> str:
        """The interval as a message says it."""
        if self.high < math.inf:
            return f"be in {'(' if self.open else '['}{self.low:g}, {self.high:.3g}]"
        return f"be {'>' if self.open else '≥'} {self.low:g}"

    def holds(self, values: Any) -> Any:
        """Where values are in the interval, NaN among them: that speaks for itself."""
        below = values <= self.low if self.open else values < self.low
        return ~(below & (self.low > -math.inf)) & ~(values > self.high)

    def broken(self, values: jax.Array, axes: tuple[int, ...], where: Any = None) -> jax.Array:
        """Whether one of the values along these axes is out of the interval; by extremes: those are fast."""
        values, some = jax.lax.stop_gradient(values), True if where is None else where
        least = jnp.min(values, axes, initial=math.inf, where=some) if self.low > -math.inf else math.inf
        most = jnp.max(values, axes, initial=-math.inf, where=some) if self.high < math.inf else -math.inf
        return (least <= self.low if self.open else least < self.low) | (most > self.high)


Reals: TypeAlias = Annotated[Any, Values()]
Positive: TypeAlias = Annotated[Any, Values(low=0, open=True)]
Nonnegative: TypeAlias = Annotated[Any, Values(low=0)]
Unit: TypeAlias = Annotated[Any, Values(low=0, high=1)]
Labels: TypeAlias = Annotated[Any, Values("label", "label")]
Mask: TypeAlias = Annotated[Any, Values("mask")]
PerClass: TypeAlias = Annotated[Any, Values(shape="class", low=0)]


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """What a loss says about itself; every loss carries one as `spec`, and `compile` reads it.

    name: the canonical name.
    event: how many axes of a prediction belong to one example and are gone in the result: the last ones, or `axis`.
    targets: "same" for the shape of the predictions, "integer" for class indices without the class axis.
    task: "regression", "binary", "categorical" (one weight per class), "sparse" (class indices), "ordinal" (indices of
      ordered classes, predictions per threshold), or "embedding".
    logits: True if predictions are always logits, False if never, None if the argument `from_logits` says so.
    arrays: what each array argument is.
    """

    name: str
    event: int
    targets: Literal["same", "integer"]
    task: Literal["regression", "binary", "categorical", "sparse", "ordinal", "embedding"]
    logits: bool | None
    arrays: dict[str, Values] = dataclasses.field(hash=False)


def loss(
    *aliases: str, task: Any, event: int, logits: bool | None
) -> Callable[[Callable[Options, Any]], Callable[Options, jax.Array]]:
    """Decorator: check, convert and register a loss under its own name and these aliases."""

    def lift(maths: Callable[Options, Any]) -> Callable[Options, jax.Array]:
        name, signature = maths.__name__, inspect.signature(maths)
        hints = {a: _Hint.of(hint) for a, hint in typing.get_type_hints(maths, include_extras=True).items()}
        arrays = {a: hint.note for a, hint in hints.items() if isinstance(hint.note, Values)}
        first, second = list(signature.parameters)[:2]
        targets = "integer" if second in arrays and arrays[second].kind == "label" else "same"
        spec = LossSpec(name, event, targets, task, logits, arrays)

        @functools.wraps(maths)
        def lifted(*args: Options.args, **kwargs: Options.kwargs) -> jax.Array:
            given = bound_arguments(name, signature, args, kwargs)
            predictions = _floats(name, first, given[first])
            if given[second] is None:
                given[second] = jnp.zeros_like(predictions)
            options = _options(name, first, predictions.shape, {a: given[a] for a in hints if a not in arrays}, event)
            checks = _Checks(spec, first, predictions, options)
            values = {a: checks.array(a, given[a]) for a in arrays if given[a] is not None}
            floats = {a: v for a, v in values.items() if arrays[a].kind == "float"}
            dtype = functools.reduce(np.promote_types, [v.dtype for v in floats.values()])
            values |= {a: v.astype(dtype) for a, v in floats.items()}
            options = {a: _option(name, a, v, hints[a], dtype) for a, v in options.items()}
            if not options.get("from_logits", logits is not None):
                _check_probabilities(name, first, given[first], options.get("axis"))
            return checks.judged(maths, {**dict.fromkeys(arrays), **values, **options})

        shown = [p.replace(annotation=hints[a].shown) for a, p in signature.parameters.items()]
        vars(lifted).update(spec=spec, __signature__=signature.replace(parameters=shown))
        return registry.register(*aliases)(lifted)

    return lift


class _Hint(NamedTuple):
    """An annotation taken apart: what is noted on it, whether it is a scalar, and what `help` shows."""

    note: Values | Range | None
    scalar: bool
    shown: Any

    @staticmethod
    def of(hint: Any) -> "_Hint":
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        inner = kinds[0] if len(kinds) == 1 and typing.get_origin(hint) is not Annotated else hint
        note = inner.__metadata__[0] if typing.get_origin(inner) is Annotated else None
        shown = inner.__origin__ if note is not None else hint
        return _Hint(note, set(typing.get_args(Scalar)) <= set(typing.get_args(shown)), shown)


def _option(name: str, argument: str, value: Any, hint: _Hint, dtype: Any) -> Any:
    """A flag, checked; a number in the dtype of the arithmetic, so that a constant and an array give the same bits."""
    if hint.shown is bool and not isinstance(value, bool | np.bool_):
        raise TypeError(complaint(name, argument, "be True or False", f"{value!r}"))
    if not hint.scalar or value is None:
        return value
    check_scalar(name, argument, value, within=hint.note)
    return jax.lax.convert_element_type(value, dtype) if isinstance(value, jax.Array) else np.dtype(dtype).type(value)


def _values(array: Any) -> np.ndarray | None:
    """The values of an array that can be looked at here, or None."""
    return np.asarray(array) if concrete(array) and getattr(array, "is_fully_addressable", True) else None


def _floats(name: str, argument: str, given: Any) -> jax.Array:
    array = jnp.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(complaint(name, argument, "be floating", f"{array.dtype}", "cast with .astype(jnp.float32)"))
    return as_compute(array)


def check_labels(name: str, argument: str, given: Any, classes: int, ignored: int | None, least: int = 0) -> None:
    """Refuse concrete labels that are no class, nor the ignored one."""
    values = _values(given)
    if values is None:
        return
    values = values.astype(np.int64)
    wrong = values[((values < least) | (values >= classes)) & (True if ignored is None else values != ignored)]
    if wrong.size:
        must = f"be in [{least}, {classes})" + ("" if ignored is None else f" or ignore_index={ignored}")
        remedy = "say ignore_index to leave examples out" if ignored is None else "correct the labels"
        raise ValueError(complaint(name, argument, must, int(wrong[0]), remedy))


def check_values(name: str, argument: str, given: Any, expects: Values, where: Any = None) -> bool:
    """Refuse concrete values out of their interval; False if they are traced, and so to be looked at in the program."""
    if expects.low == -math.inf and expects.high == math.inf:
        return True
    values, kept = _values(given), True if where is None else _values(where)
    if values is None or kept is None:
        return False
    wrong = values[~expects.holds(values) & kept]
    if wrong.size:
        raise ValueError(complaint(name, argument, expects.words, float(wrong.flat[0])))
    return True


class _Checks:
    """The arrays of one call: each is checked, and what is wrong with traced values is kept for the result."""

    def __init__(self, spec: LossSpec, first: str, predictions: jax.Array, options: dict[str, Any]) -> None:
        self.name, self.first, self.spec, self.options = spec.name, first, spec, options
        self.shape = predictions.shape
        axis, rank = options.get("axis"), predictions.ndim
        self.events = tuple(range(rank - spec.event, rank)) if axis is None else (axis,)
        self.axis = rank - 1 if axis is None else axis
        self.traced: list[tuple[Values, jax.Array]] = []
        self.wrong: list[jax.Array] = []
        self.unknown: jax.Array | None = None
        self.ignored: jax.Array | None = None

    def array(self, argument: str, given: Any) -> jax.Array:
        """An array argument as the maths sees it."""
        expects = self.spec.arrays[argument]
        if argument == self.first:
            array = as_compute(given)
        elif expects.kind == "label":
            return self._labels(argument, given)
        elif expects.kind == "mask":
            return self._mask(argument, jnp.asarray(given))
        else:
            array = self._floats(argument, expects, jnp.asarray(given))
        self._bounded(argument, expects, given, array)
        return array

    def _floats(self, argument: str, expects: Values, array: jax.Array) -> jax.Array:
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(complaint(self.name, argument, "be real", f"{array.dtype}", "take .real and .imag apart"))
        shape, must = self.shape, f"have the shape of {self.first}, {self.shape}"
        if expects.shape == "class" and array.ndim == 0:
            array = jnp.broadcast_to(array, shape[self.axis : self.axis + 1])
        if expects.shape != "same":
            axis = self.axis
            shape = shape[:axis] + shape[axis + 1 :] if expects.shape == "label" else shape[axis : axis + 1]
            must = f"have the shape of {self.first} {self.shape} without axis {axis}, {shape}"
            must = must if expects.shape == "label" else f"hold one number per class, {shape}"
        if array.shape != shape:
            remedy = f"reshape {argument} to {shape}" if array.size == math.prod(shape) else "nothing broadcasts"
            raise ValueError(complaint(self.name, argument, must, f"{array.shape}", remedy))
        return as_compute(array)

    def _mask(self, argument: str, mask: jax.Array) -> jax.Array:
        if mask.dtype != jnp.bool_:
            raise TypeError(complaint(self.name, argument, "be boolean", f"{mask.dtype}", "compare, as in weights > 0"))
        if mask.shape != self.shape:
            must = f"have the shape of {self.first}, {self.shape}"
            remedy = "it masks within examples; mask examples with losses.mean(…, where=…)"
            raise ValueError(complaint(self.name, argument, must, f"{mask.shape}", remedy))
        return mask

    def _bounded(self, argument: str, expects: Values, given: Any, array: jax.Array) -> None:
        if not check_values(self.name, argument, given, expects):
            self.traced.append((expects, array))

    def _labels(self, argument: str, given: Any) -> jax.Array:
        """Class indices, int32 or int64, that can be looked up: 0 for what is no class.

        Of an example with a label per element, what is ignored or no class is −1, so that the maths can leave it out.
        """
        axis, shape, ignored = self.axis, self.shape, self.options.get("ignore_index")
        expects = self.spec.arrays[argument]
        labels, listed, classes = jnp.asarray(given), expects.shape == "same", shape[axis] + expects.more
        expected = shape if listed else shape[:axis] + shape[axis + 1 :]
        least = -1 if listed else 0
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            remedy = "cast with .astype(jnp.int32)"
            if labels.shape == shape:
                remedy = "use the categorical loss for one weight per class"
            raise TypeError(complaint(self.name, argument, "be integer class indices", f"{labels.dtype}", remedy))
        if labels.shape != expected:
            must = f"have the shape of {self.first} {shape}" + ("" if listed else f" without axis {axis}, {expected}")
            remedy = "nothing broadcasts"
            if labels.shape == shape:
                remedy = "take the argmax, or use the categorical loss for one weight per class"
            elif labels.size == math.prod(expected):
                remedy = f"reshape {argument} to {expected}"
            raise ValueError(complaint(self.name, argument, must, f"{labels.shape}", remedy))
        check_labels(self.name, argument, given, classes, ignored, least)
        if ignored is not None:
            self.ignored = labels == ignored
        labels = labels.astype(jnp.int64 if labels.dtype.itemsize > 4 else jnp.int32)
        valid = (labels >= least) & (labels < classes)
        if len(self.events) == 1:
            self.unknown = ~valid if _values(given) is None else None
            return jnp.where(valid, labels, 0)
        out = jnp.zeros_like(valid) if self.ignored is None else self.ignored
        if _values(given) is None:
            self.wrong.append(~valid & ~out)
        return jnp.where(valid & ~out, labels, -1)

    def _marks(self, where: Any) -> list[jax.Array]:
        """Factors for each example: NaN where something of it is wrong, else 1."""
        wrong = [jnp.any(array, self._elements(array)) for array in self.wrong]
        for expects, array in self.traced:
            axes = {"class": (0,), "same": self.events, "label": self._elements(array)}[expects.shape]
            wrong.append(expects.broken(array, axes, where if expects.shape == "same" else None))
        return [jnp.where(out, jnp.nan, 1.0) for out in wrong]

    def _elements(self, array: jax.Array) -> tuple[int, ...]:
        """The axes of an array of labels that are inside an example."""
        return tuple(range(len(self.shape) - len(self.events), array.ndim))

    def judged(self, maths: Callable[..., Any], arguments: dict[str, Any]) -> jax.Array:
        """The values of the maths: 0 for what is ignored, NaN for what is wrong, and so are their gradients."""
        if self.ignored is not None:
            out = jnp.expand_dims(self.ignored, self.axis)
            arguments[self.first] = jnp.where(out, 0.0, arguments[self.first])
        marks = self._marks(arguments.get("where"))
        for mark in marks:  # as a factor of the predictions it reaches a gradient that is 0
            wide = jnp.expand_dims(mark, self.events) if mark.ndim else mark
            arguments[self.first] = arguments[self.first] * wide.astype(arguments[self.first].dtype)
        if self.unknown is not None:
            marks.append(jnp.where(jnp.any(self.unknown, self._elements(self.unknown)), jnp.nan, 1.0))
        value = maths(**arguments)
        for mark in marks:
            value = value * mark.astype(value.dtype)
        if self.ignored is None:
            return value
        return jnp.where(jnp.all(self.ignored, self._elements(self.ignored)), 0.0, value)


def _options(name: str, first: str, shape: tuple[int, ...], options: dict[str, Any], event: int) -> dict[str, Any]:
    """The options, checked: one name means one thing in every loss."""
    options = dict(options)
    if event > len(shape):
        must, remedy = ("have an event axis", "reshape to (1,)") if event == 1 else (f"have {event} event axes", "")
        raise ValueError(complaint(name, first, must, f"shape {shape}" if shape else "a scalar", remedy))
    if "axis" in options:
        axis = options["axis"]
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(complaint(name, "axis", "be an int", f"{axis!r}"))
        if not -len(shape) <= axis < len(shape):
            raise ValueError(complaint(name, "axis", f"be an axis of {first}, {shape}", int(axis)))
        options["axis"] = axis = int(axis) % len(shape)
        if not shape[axis]:
            raise ValueError(complaint(name, first, "have at least one class", f"{shape} with axis {axis}"))
    ignored = options.get("ignore_index")
    if isinstance(ignored, bool) or not isinstance(ignored, int | np.integer | None):
        raise TypeError(complaint(name, "ignore_index", "be an int or None", f"{ignored!r}"))
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
