"""The pure functions of a program: loss, gradient, one guarded step, one epoch, one pass of evaluation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax import losses, metrics
from lossopt_jax._core import (
    as_default_float,
    default_float,
    is_complex,
    is_trainable,
    none_is_leaf,
    standard_promotion,
)
from lossopt_jax.schedules import exponential_range
from lossopt_jax.training._data import batch_rows, take
from lossopt_jax.training._resolve import Objective
from lossopt_jax.training._state import TrainState
from lossopt_jax.transforms import GradientTransformation, get_hyperparams, global_norm, set_hyperparams
from lossopt_jax.transforms._compile import run_and_apply

LOSS = metrics.mean()


class Trace(NamedTuple):
    """One step's figures, kept to explain a step that failed."""

    loss: jax.Array
    grad_norm: jax.Array
    ok: jax.Array
    learning_rate: dict[str, jax.Array]


class Model(NamedTuple):
    """What `compile` was given, resolved."""

    apply_fn: Callable[..., Any]
    optimizer: GradientTransformation
    objective: Objective
    metrics: dict[str, metrics.Metric]
    stateful: bool

    def predict(self, params: Any, model_state: Any, x: Any, key: jax.Array | None, training: bool) -> tuple[Any, Any]:
        """(prediction, model state), in the user's own code under standard promotion."""
        with standard_promotion():
            if self.stateful:
                return self.apply_fn(params, model_state, x, key, training)
            return self.apply_fn(params, x), model_state

    def clean(self) -> dict[str, Any]:
        """Running sums of nothing."""
        return {"loss": LOSS.init()} | {name: metric.init() for name, metric in self.metrics.items()}

    def observe(
        self, sums: dict[str, Any], prediction: Any, y: Any, values: jax.Array, where: jax.Array | None
    ) -> dict[str, Any]:
        """The sums after one more batch."""
        seen = {"loss": LOSS.update(sums["loss"], values, where=where)}
        return seen | {n: m.update(sums[n], prediction, y, where=where) for n, m in self.metrics.items()}

    def read(self, sums: dict[str, Any]) -> dict[str, jax.Array]:
        """The figures in running sums."""
        return {"loss": LOSS.compute(sums["loss"])} | {n: m.compute(sums[n]) for n, m in self.metrics.items()}


def row(trace: Trace) -> jax.Array:
    """A step's figures in one array, since a compiled loop pays for every output: [loss, gradient norm, rates …]."""
    figures = (trace.loss, trace.grad_norm, *trace.learning_rate.values())
    return jnp.stack([figure.astype(default_float()) for figure in figures])


def learning_rates(opt_state: Any) -> dict[str, jax.Array]:
    """The rates in an optimizer's state: "learning_rate", or one per group."""
    found = get_hyperparams(opt_state)
    return {name: value for name, value in found.items() if name.split("/")[-1] == "learning_rate"}


def _trained(params: Any) -> tuple[Any, Any]:
    """The leaves that have gradients, and the others."""
    keep = jax.tree.map(lambda p: p if is_trainable(p) else None, params, is_leaf=none_is_leaf)
    rest = jax.tree.map(lambda p: None if is_trainable(p) else p, params, is_leaf=none_is_leaf)
    return keep, rest


def _joined(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=none_is_leaf)


def _loss_of(
    model: Model, state: TrainState, x: Any, y: Any, where: jax.Array | None
) -> Callable[[Any], tuple[jax.Array, Any]]:
    """Parameters → loss, (prediction, values, model state): this batch with this step's key."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step) if model.stateful else None

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        prediction, model_state = model.predict(params, state.model_state, x, key, True)
        values = model.objective(prediction, y)
        return losses.mean(values, where=where), (prediction, values, model_state)

    return loss_of


def gradient(loss_of: Callable[[Any], tuple[jax.Array, Any]], params: Any) -> Any:
    """(loss, (prediction, values, model state)), gradients; complex ones conjugated, to point uphill."""
    trained, rest = _trained(params)
    loss, gradients = jax.value_and_grad(lambda trained: loss_of(_joined(trained, rest)), has_aux=True)(trained)
    return loss, jax.tree.map(lambda g: jnp.conj(g) if is_complex(g) else g, gradients)


def train_step(
    model: Model,
    state: TrainState,
    x: Any,
    y: Any,
    where: jax.Array | None,
    alive: jax.Array | bool,
    blocks: bool | None = None,
) -> tuple[TrainState, Trace]:
    """One step, or none: a loss or gradient that is not finite, or a run that is over, leaves the state alone.

    Args:
      blocks: as for `run_and_apply`.
    """
    loss_of = _loss_of(model, state, x, y, where)
    (loss, (prediction, values, model_state)), gradients = gradient(loss_of, state.params)
    norm = global_norm(gradients)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm) & alive
    # for the rules that ask for the loss, or for its value elsewhere
    extra = {"value": loss, "grad": gradients, "value_fn": lambda params: loss_of(params)[0]}
    params, opt_state = run_and_apply(
        model.optimizer, state.params, state.opt_state, gradients, extra, ok=ok, blocks=blocks
    )
    seen = model.observe(state.metrics, prediction, y, values, where)
    rest = state.step, state.model_state, state.metrics
    step, model_state, seen = jax.tree.map(functools.partial(jnp.where, ok), (state.step + 1, model_state, seen), rest)
    after = TrainState(step, state.seed, params, opt_state, model_state, seen)
    return after, Trace(loss, norm, ok, learning_rates(opt_state))


def train_epoch(
    model: Model,
    state: TrainState,
    alive: jax.Array,
    x: Any,
    y: Any,
    size: int,
    batch_size: int,
    shuffle: bool,
    blocks: bool | None,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Every example once: (state, all steps fine, a row per step); after a bad step the rest does nothing."""
    order = jnp.arange(size)
    if shuffle:
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(state.seed), state.step), order)
    rows, masks = batch_rows(order, size, batch_size)

    def step(carry: tuple[TrainState, jax.Array], batch: Any) -> Any:
        state, alive = carry
        rows, where = batch
        state, trace = train_step(model, state, take(x, rows), take(y, rows), where, alive, blocks)
        return (state, trace.ok), row(trace)

    state = state._replace(metrics=model.clean())
    (state, alive), log = jax.lax.scan(step, (state, alive), (rows, masks))
    return state, alive, log


def evaluate(model: Model, params: Any, model_state: Any, x: Any, y: Any, size: int, batch_size: int) -> dict[str, Any]:
    """The running sums over all examples, in order."""
    rows, masks = batch_rows(jnp.arange(size), size, batch_size)

    def step(sums: dict[str, Any], batch: Any) -> Any:
        rows, where = batch
        return evaluate_batch(model, params, model_state, sums, take(x, rows), take(y, rows), where), None

    return jax.lax.scan(step, model.clean(), (rows, masks))[0]


def evaluate_batch(
    model: Model, params: Any, model_state: Any, sums: dict[str, Any], x: Any, y: Any, where: jax.Array | None
) -> dict[str, Any]:
    """The running sums after one more batch."""
    prediction, _ = model.predict(params, model_state, x, None, False)
    return model.observe(sums, prediction, y, model.objective(prediction, y), where)


def range_test(
    model: Model,
    state: TrainState,
    x: Any,
    y: Any,
    low: jax.Array,
    high: jax.Array,
    smoothing: jax.Array,
    divergence: jax.Array,
    seed: jax.Array,
    steps: int,
    batch_size: int,
) -> tuple[jax.Array, ...]:
    """Train while the rate grows: (rates, losses, smoothed losses, still alive), [steps] each."""
    size = jax.tree.leaves(y)[0].shape[0]
    order = jax.random.permutation(jax.random.key(seed), size)
    rows = order[jnp.arange(steps * batch_size) % size].reshape(steps, batch_size)
    rates = jax.vmap(exponential_range(low, high, steps - 1))(jnp.arange(steps))

    def step(carry: Any, batch: Any) -> Any:
        state, average, best, alive, t = carry
        rate, rows = batch
        state = state._replace(opt_state=set_hyperparams(state.opt_state, learning_rate=rate))
        state, trace = train_step(model, state, take(x, rows), take(y, rows), None, alive)
        loss = trace.loss.astype(average.dtype)
        average = smoothing * average + (1 - smoothing) * loss
        smooth = average / (1 - smoothing**t)
        best = jnp.minimum(best, smooth)
        # a loss below zero has no multiple to diverge to: measure from the best instead
        limit = best + (divergence - 1) * jnp.abs(best)
        alive = alive & trace.ok & (smooth <= limit)
        return (state, average, best, alive, t + 1), (loss, smooth, alive)

    smoothing, divergence = as_default_float(smoothing), as_default_float(divergence)
    zero = jnp.zeros(())
    start = (state, zero, jnp.full((), jnp.inf), jnp.ones((), bool), jnp.ones(()))
    return rates, *jax.lax.scan(step, start, (rates, rows))[1]
