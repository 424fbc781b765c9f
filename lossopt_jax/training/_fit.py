"""The epochs of `fit`: on the device for arrays, batch by batch for anything that iterates."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import complaint, on_one_cpu
from lossopt_jax.training import _steps
from lossopt_jax.training._data import as_examples, check_batch_size, equal_batches
from lossopt_jax.training._history import History
from lossopt_jax.training._progress import progress_of
from lossopt_jax.training._state import TrainState, check_alive

if TYPE_CHECKING:
    from lossopt_jax.training._program import Program

# state, all steps fine so far, a row per step, the epoch's figures
Epoch = tuple[TrainState, jax.Array, Any, dict[str, Any]]


def fit(
    program: "Program",
    state: TrainState,
    data: Any,
    epochs: int,
    batch_size: int,
    validation_data: Any,
    validation_split: float,
    shuffle: bool,
    seed: int,
    callbacks: Sequence[Callable[..., Any]],
    progress: bool | str,
) -> tuple[TrainState, History]:
    """See `Program.fit`."""
    check_alive("fit", state)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise ValueError(complaint("fit", "epochs", "be an int ≥ 0", f"{epochs!r}"))
    check_batch_size("fit", batch_size)
    if not 0 <= validation_split < 1:
        raise ValueError(complaint("fit", "validation_split", "be in [0, 1)", validation_split))
    if validation_split and validation_data is not None:
        raise ValueError(complaint("fit", "validation", "be said once", "validation_data and validation_split"))
    # the caller's state stays alive; the copies are donated from epoch to epoch
    state = jax.tree.map(jnp.copy, program.settled(state))._replace(seed=jnp.asarray(seed, jnp.uint32))
    if not isinstance(data, tuple):
        run = _over_batches(program, data, validation_data, validation_split)
        return _epochs(program, state, run, epochs, callbacks, progress, ahead=0)
    run = _over_arrays(program, data, batch_size, validation_data, validation_split, shuffle)
    return _epochs(program, state, run, epochs, callbacks, progress, ahead=0 if callbacks else 1)


def _epochs(
    program: "Program",
    state: TrainState,
    run: Callable[[TrainState, jax.Array], Epoch],
    epochs: int,
    callbacks: Sequence[Callable[..., Any]],
    progress: bool | str,
    ahead: int,
) -> tuple[TrainState, History]:
    """Run the epochs; look at the figures of one only when `ahead` further ones are under way.

    That hides the fetching. It is safe because an epoch after a bad one does nothing.
    """
    history, alive = History(), jnp.ones((), bool)
    waiting: deque[tuple[int, Any, Any, Any]] = deque()
    with progress_of(progress, epochs) as display:
        for epoch in range(epochs + ahead):
            if epoch < epochs:
                state, alive, log, figures = run(state, alive)
                waiting.append((epoch, alive, log, figures))
            if epoch < ahead or not waiting:
                continue
            done, fine, log, figures = waiting.popleft()
            fine, figures = jax.device_get((fine, figures))
            if not fine:
                history.stopped = _explanation(program, np.asarray(log), list(_steps.learning_rates(state)), done)
                warnings.warn(history.stopped, RuntimeWarning, stacklevel=4)
                break
            logs = {name: float(figures[name]) for name in _in_order(program, figures)}
            history.append(logs)
            display.epoch(logs, len(log))
            if any([callback(done, logs, state) is True for callback in callbacks]):
                break
    return state, history


def _in_order(program: "Program", figures: dict[str, Any]) -> list[str]:
    """The loss, the metrics, both again on held-out data, then the rates."""
    names = ["loss", *program.metrics]
    known = [name for name in (*names, *(f"val_{name}" for name in names)) if name in figures]
    return [*known, *(name for name in figures if name not in known)]


def _explanation(program: "Program", log: np.ndarray, rates: list[str], epoch: int) -> str:
    """Why a run stopped: the step, the figures around it, and what to try."""
    bad = int(np.argmin(np.isfinite(log[:, :2]).all(axis=1)))
    loss, norm, *values = log[bad]
    before = f", {log[bad - 1, 1]:.3g} one step before" if bad else ""
    with_rates = "".join(f" with {name} {value:.3g}" for name, value in zip(rates, values, strict=True))
    return (
        f"fit: the loss must stay finite, got loss {loss:.3g} and gradient norm {norm:.3g}{before} at step {bad + 1} "
        f"of epoch {epoch + 1}{with_rates}; the state returned is the last finite one. Try a lower learning rate "
        f"(lo.training.find_lr), lo.chain(lo.transforms.clip_by_global_norm(1.0), …), inputs scaled to unit "
        f"variance{program.objective.logits_hint}, or look for NaN in the data"
    )


def _over_arrays(
    program: "Program",
    data: Any,
    batch_size: int,
    validation_data: Any,
    validation_split: float,
    shuffle: bool,
) -> Callable[[TrainState, jax.Array], Epoch]:
    """An epoch is one compiled program; validation on arrays is part of it."""
    x, y, size = as_examples("fit", data)
    held_out = None
    if validation_split:
        kept = size - int(size * validation_split)
        if not 0 < kept < size:
            got = f"{validation_split} of {size} examples"
            raise ValueError(complaint("fit", "validation_split", "leave examples on both sides", got))
        held_out = jax.tree.map(lambda leaf: leaf[kept:], (x, y))
        x, y = jax.tree.map(lambda leaf: leaf[:kept], (x, y))
        size = kept
    elif isinstance(validation_data, tuple):
        held_out = as_examples("fit", validation_data)[:2]
    batch_size = min(batch_size, size)

    def run(state: TrainState, alive: jax.Array) -> Epoch:
        state, alive, log, figures = program.epoch(
            state, alive, x, y, held_out, size, batch_size, shuffle, on_one_cpu((state, x, y))
        )
        if validation_data is not None and held_out is None:
            figures = figures | _validated(program, state, validation_data)
        return state, alive, log, figures

    return run


def _over_batches(
    program: "Program", data: Any, validation_data: Any, validation_split: float
) -> Callable[[TrainState, jax.Array], Epoch]:
    """A step is one compiled program; nothing is fetched before the epoch's end."""
    if not isinstance(data, Iterable):
        raise TypeError(complaint("fit", "data", "be a pair (x, y) or an iterable of them", type(data).__name__))
    if validation_split:
        got = f"{validation_split} for batches"
        raise ValueError(complaint("fit", "validation_split", "be 0 unless data are arrays", got, "hold batches out"))

    def run(state: TrainState, alive: jax.Array) -> Epoch:
        state, rows = program.reset(state), []
        for x, y, where in equal_batches("fit", data):
            state, alive, row = program.guarded_step(state, x, y, where, alive, on_one_cpu((state, x, y)))
            rows.append(row)
        if not rows:
            remedy = "pass a list, or an object that can be iterated again every epoch"
            raise ValueError(complaint("fit", "data", "give at least one batch per epoch", "none", remedy))
        figures = program.read(state) | _validated(program, state, validation_data)
        return state, alive, np.stack(jax.device_get(rows)), figures | _steps.learning_rates(state.opt_state)

    return run


def _validated(program: "Program", state: TrainState, data: Any) -> dict[str, Any]:
    if data is None:
        return {}
    return {f"val_{name}": value for name, value in program.evaluate(state, data).items()}
