"""What goes through a composition, measured on its way and read out of the state."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    FRACTION,
    check_scalar,
    complaint,
    compute_dtype,
    default_float,
    dtype_of,
    first_difference,
    is_trainable,
    leaf_paths,
    none_is_leaf,
    standard_promotion,
)
from lossopt_jax.transforms._averages import bias_correction
from lossopt_jax.transforms._base import GradientTransformation, as_transformation
from lossopt_jax.transforms._chain import chain
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._scheduled import safe_increment


def _shapes(params: Any, raised: bool = False) -> Any:
    """What is trained as shapes, in storage or compute dtype, and None elsewhere."""

    def shape_of(leaf: Any) -> Any:
        if not is_trainable(leaf):
            return None
        return jax.ShapeDtypeStruct(jnp.shape(leaf), compute_dtype(dtype_of(leaf)) if raised else dtype_of(leaf))

    return jax.tree.map(shape_of, params, is_leaf=none_is_leaf)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """What a caller's measure raises says which one it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the measure {name!r} of monitor")
        raise


def _measured(measure: Callable[[Any], Any], updates: Any) -> Any:
    with standard_promotion():
        return measure(updates)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Function(GradientTransformation):
    """A function of the updates as a measure: what it returns, and no memory."""

    measure: Callable[[Any], Any]

    def _init(self, params: Any) -> tuple[()]:
        return ()

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        return _measured(self.measure, updates), state

    def __repr__(self) -> str:
        return repr(self.measure)


def _check_tree(where: str, measured: Any, before: Any) -> None:
    """A measurement must have the structure of the one before, None allowed, and its shapes."""
    if jax.tree.structure(measured, is_leaf=none_is_leaf) != jax.tree.structure(before, is_leaf=none_is_leaf):
        must = "return the tree that it returned for the parameters' shapes"
        raise ValueError(complaint(where, "the measure", must, first_difference(before, measured)))
    leaves = (jax.tree.leaves(tree, is_leaf=none_is_leaf) for tree in (before, measured))
    for path, old, new in zip(leaf_paths(before), *leaves, strict=True):
        if new is not None and (old is None or jnp.shape(new) != jnp.shape(old)):
            at = f" at {path!r}" if path else ""
            must = f"return {'None' if old is None else f'shape {jnp.shape(old)}'}{at} in every step"
            raise ValueError(complaint(where, "the measure", must, jnp.shape(new)))


def _wide(dtype: Any) -> Any:
    """What a measurement of this dtype is averaged in; how often something holds is counted in the default float."""
    return compute_dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else default_float()


class MeasureState(NamedTuple):
    """State of `measure_with_ema`: measurements so far (int32), and their average from zero."""

    step: jax.Array
    ema: Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MeasureWithEma(GradientTransformation):
    """A measurement averaged over steps; its output is no update, so that only `monitor` may hold it."""

    measure: Callable[[Any], Any]
    decay: Any
    debias: bool
    accumulator_dtype: Any

    @property
    def name(self) -> str:
        return "measure_with_ema"

    @property
    def _flags(self) -> frozenset[str]:
        return frozenset(("measure",))

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """The averaged measurement, and the state after it."""
        self._check_extra(extra)
        return self._run(self._enter(updates, params), state, params, extra)

    def _init(self, params: Any) -> MeasureState:
        found = jax.eval_shape(lambda updates: _measured(self.measure, updates), _shapes(params, raised=True))
        ema = jax.tree.map(lambda x: jnp.zeros(x.shape, self.accumulator_dtype or _wide(x.dtype)), found)
        return MeasureState(jnp.zeros((), jnp.int32), ema)

    def _run(self, updates: Any, state: MeasureState, params: Any, extra: dict[str, Any]) -> tuple[Any, MeasureState]:
        step = safe_increment(state.step)

        def average(old: jax.Array, x: Any) -> jax.Array | None:
            if x is None:  # no gradient of this leaf in this step
                return None
            x = jnp.asarray(x).astype(_wide(dtype_of(x)))
            decay = jnp.asarray(self.decay).astype(jnp.finfo(x.dtype).dtype)
            return decay * old.astype(x.dtype) + (1 - decay) * x

        def corrected(mean: jax.Array) -> jax.Array:
            real = jnp.finfo(mean.dtype).dtype
            return mean / bias_correction(jnp.asarray(self.decay).astype(real), step.astype(real))

        measured = _measured(self.measure, updates)
        _check_tree(self.name, measured, state.ema)
        mean = jax.tree.map(average, state.ema, measured, is_leaf=none_is_leaf)
        ema = jax.tree.map(
            lambda old, new: old if new is None else new.astype(old.dtype), state.ema, mean, is_leaf=none_is_leaf
        )
        return jax.tree.map(corrected, mean) if self.debias else mean, MeasureState(step, ema)


def measure_with_ema(
    measure: Callable[[Any], Any], decay: Any, debias: bool = True, accumulator_dtype: Any = None
) -> GradientTransformation:
    """A measurement averaged over steps, for `monitor`.

        m ← β m + (1−β) measure(u),    m = 0 at first
        reading: m / (1−βᵗ),  or m without debias

    Bools and integers count as numbers: of `lambda u: global_norm(u) > 1` it is how often. A measurement that is not
    finite stays in the average: let a guard stand around the monitor, or measure something finite.

    Args:
      measure: a function of the updates, as in `snapshot`.
      decay: β in [0, 1), a number or an array; a constant of the transform, and no hyperparameter in the state.
      debias: correct the start from zero.
      accumulator_dtype: the floating dtype that m is kept in; None for float32 (float64 where the measurement is).

    Returns:
      A measure with `init` and `update`, whose output is the reading.

    Raises:
      TypeError: `measure` is no callable, `decay` no number, or the dtype of integers.
      ValueError: `decay` is out of range.

    Differs from: optax, where the average of a bool changes its dtype at the first update.
    """
    if not callable(measure):
        raise TypeError(complaint("measure_with_ema", "measure", "be callable", f"{measure!r}"))
    check_scalar("measure_with_ema", "decay", decay, within=FRACTION)
    if accumulator_dtype is not None and not jnp.issubdtype(accumulator_dtype, jnp.inexact):
        raise TypeError(complaint("measure_with_ema", "accumulator_dtype", "be floating", f"{accumulator_dtype!r}"))
    return MeasureWithEma(measure, decay, debias, accumulator_dtype)


@dataclasses.dataclass(frozen=True)
class _Measures:
    """Measures by name: what they keep, and what they read."""

    named: tuple[tuple[str, GradientTransformation], ...]

    def __iter__(self) -> Any:
        return iter(self.named)

    def __repr__(self) -> str:
        return repr(dict(self.named))


def _starts(params: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The states of the measures, in their order: a name shall stand in the state once, where its reading is."""
    return tuple(measure._init(params) for _, measure in arguments["measures"])


def _zeros(params: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Readings before any was taken."""

    def reading(name: str, measure: GradientTransformation) -> Any:
        def first(updates: Any, params: Any) -> Any:
            return measure._run(updates, measure._init(params), params, {})[0]

        with _blaming(name):
            found = jax.eval_shape(first, _shapes(params, raised=True), _shapes(params))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    return {name: reading(name, measure) for name, measure in arguments["measures"]}


def _check_types(name: str, new: Any, old: Any) -> None:
    """A measure, which may be another library's, must keep the types of its state."""
    types = [jax.tree.map(lambda x: (jnp.shape(x), dtype_of(x)), tree) for tree in (old, new)]
    if types[0] != types[1]:
        remedy = "use lo.transforms.measure_with_ema"
        raise TypeError(complaint("monitor", f"the state of {name!r}", f"keep the types {types[0]}", types[1], remedy))


def _reading(new: Any, old: Any) -> Any:
    """A new reading in the dtype of the old one; a leaf without a gradient keeps that. Never the caller's buffer."""
    return jax.tree.map(
        lambda x, was: was if x is None else jnp.array(x, dtype_of(was), copy=True), new, old, is_leaf=none_is_leaf
    )


@wrapper(
    members=(),
    measurements=Slot(per="tree", fill=_zeros, exact=True),
    measures=Slot(per="tree", fill=_starts, exact=True),
)
def _monitor(run, updates, slots, t, *, measures: Any):
    """Take the readings and let the updates pass."""
    readings, states = {}, []
    for (name, measure), before in zip(measures, slots.measures, strict=True):
        with _blaming(name):
            new, after = measure._run(updates, before, run.params, run.extra)
        _check_types(name, after, before)
        _check_tree(f"monitor, measure {name!r}", new, slots.measurements[name])
        readings[name] = _reading(new, slots.measurements[name])
        states.append(after)
    return updates, {}, {"measurements": readings, "measures": tuple(states)}


def _as_measure(name: Any, measure: Any) -> GradientTransformation:
    if not isinstance(name, str):
        raise TypeError(complaint("monitor", "the names of measures", "be strings", f"{name!r}"))
    if callable(measure):
        return _Function(measure)
    return as_transformation("monitor", measure)


@registry.register()
def monitor(measures: Mapping[str, Any]) -> GradientTransformation:
    """Measure the updates where it stands in a chain, and let them pass unchanged.

    `get_measurements(state)` gives the readings of the last update, from wherever in the state. They have the shapes
    and dtypes that a measure gives for float32 updates (float64 where the input is); the state keeps its types from
    `init` on, with readings of 0 then. A measure sees None where nothing is trained; where it returns None because a
    leaf had no gradient in this step, that part of the reading stays.

    A measure in front of the first rule costs a pass over the gradients at most, and nothing where a clip or a guard
    takes the same norm. Behind a rule it makes `compile_update` write the updates down.

    Args:
      measures: name → measure: a function of the updates, such as `global_norm`; `measure_with_ema(…)`; or any
        transform, whose output is the reading.

    Raises:
      TypeError: no mapping, a name that is no string, or a measure that is neither callable nor a transform.
      ValueError: a measure that returns another structure or shape than at `init`.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> T = lo.transforms
      >>> often = T.measure_with_ema(lambda updates: T.global_norm(updates) > 1, decay=0.9)
      >>> tx = lo.chain(T.monitor({"norm": T.global_norm, "clipped": often}), T.clip_by_global_norm(1.0))
      >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> {name: round(float(value), 6) for name, value in lo.get_measurements(state).items()}
      {'clipped': 1.0, 'norm': 5.0}

    Slots: measurements, measures (what each returns and keeps).  Lift: wrapper, of nothing.
    Differs from: optax, whose state changes its tree at the first update, so that `scan` refuses it.
    """
    if not isinstance(measures, Mapping):
        raise TypeError(complaint("monitor", "measures", "map names to measures", f"{measures!r}"))
    return _monitor(_Measures(tuple((name, _as_measure(name, measure)) for name, measure in measures.items())))


@registry.register()
def snapshot(measure_name: str, measure: Any) -> GradientTransformation:
    """One measurement of the updates where it stands in a chain: `monitor({measure_name: measure})`.

    Args:
      measure_name: the key in `get_measurements(state)`.
      measure: as in `monitor`.

    Raises:
      TypeError: as `monitor`.

    Differs from: optax, which measures the parameters at first.
    """
    return monitor({measure_name: measure})


@registry.register()
def measure_update(inner: Any, before: str = "gradient_norm", after: str = "update_norm") -> GradientTransformation:
    """Measure the global norm of what goes into a transform and of what comes out.

    Around an optimizer: how long gradient and update are. Around a clip: their ratio is the clip's.

        tx = apply_if_finite(chain(measure_update(clip_by_global_norm(1.0), after="clipped_norm"), adamw(rate)))
        get_measurements(state)     gradient_norm, clipped_norm, bad_steps, bad_in_a_row
        get_hyperparams(state)      learning_rate, …

    Args:
      inner: a transform.
      before: the key of the first norm in `get_measurements(state)`.
      after: the key of the second.

    Raises:
      ValueError: `inner` must be outermost.
    """
    return chain(snapshot(before, global_norm), inner, snapshot(after, global_norm))
