"""`compile`: a loss, an optimizer and metrics, each by name or configured, become a program of pure functions."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    complaint,
    cpu_compiler_options,
    holds_tracers,
    is_array_like,
    leaf_paths,
    none_is_leaf,
    on_one_cpu,
)
from lossopt_jax.training import _steps
from lossopt_jax.training._data import as_arrays, as_examples, batch_rows, check_batch_size, count, equal_batches, take
from lossopt_jax.training._fit import fit
from lossopt_jax.training._history import History
from lossopt_jax.training._resolve import Objective, resolve_loss, resolve_metrics, resolve_optimizer
from lossopt_jax.training._state import TrainState, check_alive
from lossopt_jax.transforms import GradientTransformation

_EVALUATION_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Program:
    """A model, its loss, optimizer and metrics, compiled into functions from state to state. Made by `compile`."""

    apply_fn: Callable[..., Any]
    optimizer: GradientTransformation
    objective: Objective
    metrics: dict[str, Any]
    stateful: bool = False
    asked: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        return id(self)

    def init(self, params: Any, model_state: Any = None, seed: int = 0) -> TrainState:
        """The state before the first step: copies, so that the caller's arrays live on.

        Args:
          params: the parameters, a tree of arrays; integer leaves are carried along and not trained.
          model_state: for a stateful model, what it carries beside its parameters.
          seed: for the keys of a stateful model, and the order of data in `fit`.

        Raises:
          TypeError: a leaf that is no array; the message names its path.
        """
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params, is_leaf=none_is_leaf), strict=True):
            if leaf is not None and not is_array_like(leaf):
                remedy = "keep what is no array out of params and put it back in apply_fn"
                raise TypeError(complaint("init", f"the parameter at {path!r}", "be an array", f"{leaf!r}", remedy))

        def copy(leaf: Any) -> Any:
            return jax.lax.convert_element_type(jnp.array(leaf, copy=True), jnp.result_type(leaf))

        params, model_state = jax.tree.map(copy, (params, model_state))
        opt_state = self.optimizer.init(params)
        zero, seed = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32)
        return TrainState(zero, seed, params, opt_state, model_state, self.model.clean())

    def train_step(self, state: TrainState, batch: Any, *, donate: bool = True) -> tuple[TrainState, dict[str, Any]]:
        """One update. Compiled, and the only call that consumes its state (`donate=False` keeps it).

        A step whose loss or gradient is not finite changes nothing; `logs["skipped"]` says so.

        Args:
          state: from `init` or the last step.
          batch: a pair (x, y).
          donate: reuse the memory of `state` for the result.

        Returns:
          (state, logs): logs hold this batch's "loss", metrics, "grad_norm", "learning_rate" and "skipped", as 0-d
          arrays. `state.metrics` runs on; see `read` and `reset`.
        """
        check_alive("train_step", state)
        x, y, _ = as_examples("train_step", batch)
        if holds_tracers((state, x, y)):
            return self._step(state, x, y)
        state = self.settled(state)
        if donate:
            return self._donating_step(state, x, y, on_one_cpu((state, x, y)))
        return self._keeping_step(state, x, y)

    def evaluate(self, state: TrainState, data: Any, *, batch_size: int | None = None) -> dict[str, float]:
        """The loss and the metrics over all examples, as floats.

        Args:
          state: from `init`, `train_step` or `fit`; kept.
          data: a pair (x, y), or an iterable of batches.
          batch_size: examples at a time; None for 1024.
        """
        check_alive("evaluate", state)
        return {name: float(value) for name, value in self.model.read(self._evaluated(state, data, batch_size)).items()}

    def _evaluated(self, state: TrainState, data: Any, batch_size: int | None) -> dict[str, Any]:
        parts = (state.params, state.model_state)
        if isinstance(data, Iterable) and not isinstance(data, tuple):
            sums = self.model.clean()
            for x, y, where in equal_batches("evaluate", data):
                sums = self._evaluation_step(*parts, sums, x, y, where)
            return sums
        x, y, size = as_examples("evaluate", data)
        batch_size = min(size, check_batch_size("evaluate", batch_size or _EVALUATION_BATCH))
        return self._evaluation(*parts, x, y, size, batch_size)

    def predict(self, state: TrainState, x: Any, *, batch_size: int | None = None) -> Any:
        """What the model says of each example, in order.

        Args:
          state: from `init`, `train_step` or `fit`; kept.
          x: inputs, [N, ...].
          batch_size: examples at a time; None for 1024.
        """
        check_alive("predict", state)
        x = as_arrays("predict", "x", x)
        size = count("predict", x)
        batch_size = min(size, check_batch_size("predict", batch_size or _EVALUATION_BATCH))
        return self._prediction(state.params, state.model_state, x, size, batch_size)

    def fit(
        self,
        state: TrainState,
        data: Any,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Sequence[Callable[..., Any]] = (),
        progress: bool | str = True,
    ) -> tuple[TrainState, History]:
        """Train for some epochs.

        Arrays go to the device once; an epoch, validation included, is one compiled program. From an iterable every
        batch is one. A ragged last batch is filled up and masked, never dropped. A loss or gradient that is not
        finite stops the run with a RuntimeWarning that explains it; the state is then the last finite one.

        Args:
          state: from `init`; kept.
          data: a pair (x, y) of arrays or trees [N, ...], or an iterable of such batches, begun anew every epoch.
          epochs: how often to see all examples.
          batch_size: examples per step, for arrays.
          validation_data: a pair or an iterable, evaluated after every epoch.
          validation_split: or the share of the last examples, taken before shuffling, in [0, 1).
          shuffle: a new order every epoch, for arrays.
          seed: decides the order of the examples and the keys of a stateful model.
          callbacks: called as callback(epoch, logs, state) after every epoch; True ends the run.
          progress: a bar on a terminal or in a notebook (with tqdm), else one line per epoch; "bar", "lines" or False.

        Returns:
          (state, history): lists of floats by name, one per epoch: "loss" (mean over the epoch's examples), metrics,
          "val_…", "learning_rate" (at the epoch's end).

        Raises:
          ValueError: no examples, lengths or shapes that do not fit, arguments out of range.
          TypeError: data that is no pair of numbers.
        """
        return fit(
            self, state, data, epochs, batch_size, validation_data, validation_split, shuffle, seed, callbacks, progress
        )

    def read(self, state: TrainState) -> dict[str, jax.Array]:
        """The loss and the metrics over all steps since the last `reset`."""
        return self.model.read(state.metrics)

    def reset(self, state: TrainState) -> TrainState:
        """The state with the running sums of its metrics at zero."""
        return state._replace(metrics=self.model.clean())

    def describe(self) -> str:
        """What each name became, one per line."""
        loss = self.objective
        kind = {True: "logits", False: "probabilities", None: "values"}[loss.logits]
        view = "; predictions of shape (N,) are read as (N, 1)" if loss.event else ""
        lines = [
            f"optimizer  {self.optimizer!r}",
            "           hyperparameters live in the state: what it holds wins over these constants, after a resume too",
            f"loss       {loss.name} of {kind}, mean over the batch{view}",
            *(f"metric     {name}: {metric!r}" for name, metric in self.metrics.items()),
        ]
        return "\n".join([*lines, *(f"asked      {name}={value}" for name, value in self.asked)])

    def settled(self, state: TrainState) -> TrainState:
        """A state, perhaps from a checkpoint, with the optimizer's arrays in the memory where steps leave them."""
        return state._replace(opt_state=self.optimizer._settled(state.opt_state))

    @functools.cached_property
    def model(self) -> _steps.Model:
        """The parts that the pure functions of `_steps` work on."""
        return _steps.Model(self.apply_fn, self.optimizer, self.objective, self.metrics, self.stateful)

    def _jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=cpu_compiler_options(), **options)

    def _step(self, state: TrainState, x: Any, y: Any, blocks: bool | None = None) -> tuple[TrainState, dict[str, Any]]:
        clean = state._replace(metrics=self.model.clean())
        after, trace = _steps.train_step(self.model, clean, x, y, None, True, blocks)
        figures = self.model.read(after.metrics) | {"loss": trace.loss, "grad_norm": trace.grad_norm}
        logs = figures | trace.learning_rate | {"skipped": ~trace.ok}
        merged = {
            name: metric.merge(state.metrics[name], after.metrics[name])
            for name, metric in ({"loss": _steps.LOSS} | self.metrics).items()
        }
        return after._replace(metrics=merged), logs

    @functools.cached_property
    def _donating_step(self) -> Callable[..., Any]:
        return self._jit(self._step, donate_argnums=0, static_argnums=3)

    @functools.cached_property
    def _keeping_step(self) -> Callable[..., Any]:
        return self._jit(self._step)

    @functools.cached_property
    def epoch(self) -> Callable[..., Any]:
        """One epoch and its validation, for `fit` over arrays; consumes its state.

        (state, alive, x, y, validation, size, batch_size, shuffle, blocks) → (state, alive, a row per step, figures)
        """

        def epoch(
            state: Any,
            alive: Any,
            x: Any,
            y: Any,
            held_out: Any,
            size: int,
            batch_size: int,
            shuffle: bool,
            blocks: bool,
        ) -> Any:
            state, alive, log = _steps.train_epoch(self.model, state, alive, x, y, size, batch_size, shuffle, blocks)
            figures = self.model.read(state.metrics)
            if held_out is not None:
                rows = count("fit", held_out)
                sums = _steps.evaluate(
                    self.model, state.params, state.model_state, *held_out, rows, min(rows, max(batch_size, 256))
                )
                figures |= {f"val_{name}": value for name, value in self.model.read(sums).items()}
            return state, alive, log, figures | _steps.learning_rates(state.opt_state)

        return self._jit(epoch, donate_argnums=0, static_argnums=(5, 6, 7, 8))

    @functools.cached_property
    def guarded_step(self) -> Callable[..., Any]:
        """(state, x, y, where, alive, blocks) → (state, alive, row), for `fit` over batches; consumes its state."""

        def step(state: Any, x: Any, y: Any, where: Any, alive: Any, blocks: bool) -> Any:
            state, trace = _steps.train_step(self.model, state, x, y, where, alive, blocks)
            return state, trace.ok, _steps.row(trace)

        return self._jit(step, donate_argnums=0, static_argnums=5)

    @functools.cached_property
    def _evaluation(self) -> Callable[..., Any]:
        return self._jit(functools.partial(_steps.evaluate, self.model), static_argnums=(4, 5))

    @functools.cached_property
    def _evaluation_step(self) -> Callable[..., Any]:
        return self._jit(functools.partial(_steps.evaluate_batch, self.model))

    @functools.cached_property
    def range_test(self) -> Callable[..., Any]:
        """The scan of `find_lr`."""
        return self._jit(functools.partial(_steps.range_test, self.model), static_argnums=(8, 9))

    @functools.cached_property
    def _prediction(self) -> Callable[..., Any]:
        def predict(params: Any, model_state: Any, x: Any, size: int, batch_size: int) -> Any:
            rows, _ = batch_rows(jnp.arange(size), size, batch_size)

            def step(_: None, rows: jax.Array) -> Any:
                return None, self.model.predict(params, model_state, take(x, rows), None, False)[0]

            batches = jax.lax.scan(step, None, rows)[1]
            return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], batches)

        return self._jit(predict, static_argnums=(3, 4))


def compile(
    apply_fn: Callable[..., Any],
    optimizer: Any = "rmsprop",
    loss: Any = None,
    metrics: Any = (),
    *,
    from_logits: bool | None = None,
    stateful: bool = False,
) -> Program:
    """Join a model, an optimizer, a loss and metrics into a program.

    Every name and argument is checked here, before anything is traced. Names ignore case, `_` and `-`; arguments may
    stand in the string: `"adamw(weight_decay=0.1)"`.

    Args:
      apply_fn: (params, x) → prediction [N, ...]; with `stateful`, (params, model_state, x, key, training) →
        (prediction, model_state), where key is None outside training.
      optimizer: a name (its customary rate is used unless given), a transform, or one of another library.
      loss: a name, a loss of `lo.losses` or `lossopt_jax.keras`, or a function (prediction, target) → one value per
        example. One whose first parameter is called y_true, target or labels is refused; wrap it in
        `lossopt_jax.keras.loss`.
      metrics: names, or metrics such as `lo.metrics.accuracy()`. "accuracy" becomes the one that fits the loss.
      from_logits: whether predictions are logits, said once for the loss and the metrics; None for probabilities,
        unless the loss's name says logits.
      stateful: the model has state (batch statistics) or randomness (dropout).

    Raises:
      ValueError: an unknown name (the message lists the nearest), an argument out of range or of no use, a metric
        that does not fit the loss, a loss that takes the target first.
      TypeError: an object that is no optimizer, loss or metric.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> program = lo.compile(lambda p, x: x @ p["w"], optimizer="sgd", loss="mse", metrics=["mae"])
      >>> state = program.init({"w": jnp.zeros((3, 1))})
      >>> state, logs = program.train_step(state, (jnp.ones((4, 3)), jnp.ones((4, 1))))
      >>> float(logs["loss"])
      1.0
    """
    if not callable(apply_fn):
        raise TypeError(complaint("compile", "apply_fn", "be a function (params, x) → prediction", f"{apply_fn!r}"))
    if from_logits is not None and not isinstance(from_logits, bool):
        raise TypeError(complaint("compile", "from_logits", "be True, False or None", f"{from_logits!r}"))
    objective = resolve_loss(loss, from_logits)
    asked = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
    return Program(
        apply_fn,
        resolve_optimizer(optimizer),
        objective,
        resolve_metrics(metrics, objective),
        stateful,
        tuple((name, repr(value)) for name, value in asked.items() if isinstance(value, str | list | tuple)),
    )
