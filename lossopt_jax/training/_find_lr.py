"""The learning-rate range test: one compiled scan in which the rate is a value, swept from low to high."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import complaint
from lossopt_jax.training import _steps
from lossopt_jax.training._data import as_examples, check_batch_size
from lossopt_jax.training._program import Program
from lossopt_jax.training._state import TrainState, check_alive


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The result of `find_lr`.

    Attributes:
      rates: the rates tried, up to the one where the loss diverged.
      losses: the smoothed loss at each.
      raw: the loss of each step, as it came.
      suggestions: rates by rule: "valley" (two thirds into the longest descent), "steep" (the fastest fall),
        "minimum" (a tenth of the rate of the lowest loss), "slide" (the last rate before the curve breaks away).
      diverged: whether the sweep ended in divergence; if not, try a higher `high`.
    """

    rates: np.ndarray
    losses: np.ndarray
    raw: np.ndarray
    suggestions: dict[str, float]
    diverged: bool

    @property
    def suggestion(self) -> float:
        """The one to take when in doubt: the valley."""
        return self.suggestions["valley"]

    def plot(self, ax: Any = None) -> Any:
        """Draw loss over rate with the suggestions; returns the axes. Needs matplotlib."""
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        ax.plot(self.rates, self.raw, color="0.8", linewidth=1, label="loss")
        ax.plot(self.rates, self.losses, color="C0", label="smoothed")
        for index, (name, rate) in enumerate(self.suggestions.items()):
            height = np.interp(np.log(rate), np.log(self.rates), self.losses)
            ax.plot([rate], [height], "o", color=f"C{index + 1}", label=f"{name} {rate:.2g}")
        low, high = self.losses.min(), self.losses[0]
        ax.set(
            xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - 0.1 * (high - low), 1.6 * high - 0.6 * low)
        )
        ax.legend()
        return ax


def find_lr(
    program: Program,
    state: TrainState,
    data: Any,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    seed: int = 0,
) -> RangeTest:
    """Train for some steps while the rate grows, and read good rates off the loss.

        η_s = low (high/low)^(s/(steps−1)),      s = 0 … steps − 1
        L̂ ← (β L̂ + (1−β) L),  debiased;      stop where L̂ > divergence · min L̂, or is not finite

    One compiled scan; the rate is set in the optimizer's state, in every group. The state is kept.

    Args:
      program: from `compile`; its optimizer must have a "learning_rate".
      state: where to start.
      data: a pair (x, y); batches are drawn from a random order, again and again.
      low: first rate, > 0.
      high: last rate, > low.
      steps: how many.
      batch_size: examples per step.
      smoothing: β in [0, 1).
      divergence: end where the smoothed loss is this many times its best, > 1.
      seed: decides the order of the examples.

    Raises:
      ValueError: an argument out of range, no learning rate to set, no examples.

    Source: Smith 2017, arXiv:1506.01186.
    """
    check_alive("find_lr", state)
    if not 0 < low < high < np.inf:
        raise ValueError(complaint("find_lr", "rates", "satisfy 0 < low < high", f"{low} and {high}"))
    if not 0 <= smoothing < 1 or divergence <= 1:
        got = f"{smoothing} and {divergence}"
        raise ValueError(complaint("find_lr", "smoothing and divergence", "be in [0, 1) and > 1", got))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
        raise ValueError(complaint("find_lr", "steps", "be an int ≥ 10", f"{steps!r}"))
    if not _steps.learning_rates(state.opt_state):
        remedy = "use lo.transforms.scale_by_learning_rate, or an optimizer of this library"
        raise ValueError(complaint("find_lr", "the optimizer", "hold a learning_rate in its state", "none", remedy))
    x, y, size = as_examples("find_lr", data)
    batch_size = min(size, check_batch_size("find_lr", batch_size))
    state = program.settled(state)
    rates, raw, smooth, alive = jax.device_get(
        program.range_test(state, x, y, low, high, smoothing, divergence, jnp.uint32(seed), steps, batch_size)
    )
    kept = max(int(alive.sum()), 2)
    rates, raw, smooth = (np.asarray(part[:kept], np.float64) for part in (rates, raw, smooth))
    if not np.isfinite(smooth).all():
        got = f"{raw[0]:.3g}, then {raw[1]:.3g}"
        remedy = f"check the data and low{program.objective.logits_hint}"
        raise ValueError(complaint("find_lr", "the loss", "be finite at the lowest rate", got, remedy))
    # an average starts as noisy as its first values: no advice from its first 1/(1−β)
    settled = min(round(1 / (1 - smoothing)), kept // 4)
    return RangeTest(rates, smooth, raw, suggest(rates[settled:], smooth[settled:]), kept < steps)


def suggest(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Four ways to read a range-test curve."""
    logs = np.log(rates)
    slope = np.gradient(losses, logs)
    lowest = int(np.argmin(losses))
    start, end = _longest_descent(losses)
    falling = slope[: lowest + 1]
    rise = losses[0] - losses[lowest]
    flat = [i for i in range(lowest, len(losses)) if losses[i] <= losses[lowest] + 0.05 * rise]
    return {
        "valley": float(rates[start + (2 * (end - start)) // 3]),
        "steep": float(rates[int(np.argmin(falling))]),
        "minimum": float(rates[lowest] / 10),
        "slide": float(rates[_last_run(flat)] / 3),
    }


def _last_run(indices: list[int]) -> int:
    """The end of the unbroken run that the list begins with."""
    end = indices[0]
    for index in indices[1:]:
        if index != end + 1:
            break
        end = index
    return end


def _longest_descent(losses: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest falling subsequence."""
    length, origin = np.ones(len(losses), int), np.arange(len(losses))
    for i in range(1, len(losses)):
        higher = np.nonzero(losses[:i] > losses[i])[0]
        if higher.size:
            best = higher[length[higher] == length[higher].max()][-1]
            length[i], origin[i] = length[best] + 1, origin[best]
    end = int(np.argmax(length))
    return int(origin[end]), end
