"""What a run looks like: loss curves, the range test, and three rates side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lossopt_jax.training._find_lr import RangeTest

# Okabe and Ito's colours, told apart with any kind of colour vision
BLUE, ORANGE, GREEN, PURPLE, YELLOW, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#B8B8B8"


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    settings = {
        "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, YELLOW]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E6E6E6",
        "lines.linewidth": 2.0,
        "font.size": 10.5,
        "legend.frameon": False,
        "savefig.dpi": 144,
    }
    with mpl.rc_context(settings):
        yield


def _figure(columns: int, width: float, height: float, title: str, subtitle: str) -> tuple[Any, Any]:
    # the object interface: no global figure, no backend chosen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # the second, empty title keeps the room for the subtitle
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.text(0.01, 0.99 - 0.27 / height, subtitle, ha="left", va="top", color="0.35")
    return figure, figure.subplots(1, columns, sharey=True)


def draw_losses(path: Path, name: str, what: str, history: Mapping[str, Sequence[float]]) -> None:
    """Loss per epoch on a log scale, in training and on the held-out part."""
    with _style():
        figure, ax = _figure(1, 7.2, 4.4, f"{name}: loss per epoch", what)
        for key, label, color in (("loss", "training", BLUE), ("val_loss", "held out", ORANGE)):
            losses = history[key]
            ax.plot(range(1, len(losses) + 1), losses, color=color, label=f"{label}, at the end {losses[-1]:.3g}")
        ax.set(xlabel="epoch", ylabel="loss (log scale)", yscale="log")
        _plain_ticks(ax)
        ax.legend()
        figure.savefig(path)


def draw_range_test(path: Path, name: str, what: str, test: RangeTest, taken: float) -> None:
    """Loss while the rate grows, with the suggestions and the rate that was taken."""
    with _style():
        figure, ax = _figure(1, 8.6, 4.4, f"{name}: learning-rate range test", what)
        test.plot(ax)
        ax.axvline(taken, color="black", linestyle=(0, (4, 3)), linewidth=1.2, label=f"taken {taken:.2g}")
        ax.set(xlabel="learning rate (log scale)", ylabel="loss of the batch")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path)


def draw_rates(
    path: Path, name: str, what: str, epochs: int, start: float, runs: Mapping[str, tuple[float, Sequence[float]]]
) -> None:
    """One panel per learning rate: its losses in colour, the other runs behind it, and where all of them began.

    A run that has fewer than `epochs` losses ended in one that was not finite: its curve leaves through the top.
    """
    with _style():
        figure, panels = _figure(len(runs), 11.5, 4.4, f"{name}: the same network at three learning rates", what)
        curves = {
            key: np.array([start, *losses, *[np.inf] * (len(losses) < epochs)]) for key, (_, losses) in runs.items()
        }
        seen = np.concatenate([curve[np.isfinite(curve)] for curve in curves.values()])
        # what explodes must not flatten what learns
        bottom, top = 0.8 * seen.min(), min(1.3 * seen.max(), 10 * start)
        top = max(top, 2 * start)
        for ax, color, (key, (rate, losses)) in zip(panels, (BLUE, GREEN, ORANGE), runs.items(), strict=True):
            for other, curve in curves.items():
                line = (
                    {"color": color, "linewidth": 2.8, "zorder": 3} if other == key else {"color": GREY, "linewidth": 1}
                )
                ax.plot(np.minimum(curve, 1e3 * top), **line)
            ax.axhline(start, color="black", linestyle=":", linewidth=1)
            ax.set_title(f"{key}: {rate:.2g}\n", loc="left", color=color, fontweight="bold")
            end = (
                f"ends at loss {losses[-1]:.3g}" if len(losses) == epochs else f"not finite in epoch {len(losses) + 1}"
            )
            ax.text(0, 1.02, end, transform=ax.transAxes)
            ax.set(xlabel="epoch", xlim=(-0.03 * epochs, 1.03 * epochs), yscale="log", ylim=(bottom, top))
            _plain_ticks(ax)
        panels[0].set_ylabel("training loss (log scale)")
        panels[0].annotate(
            "before training", (epochs, start), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=9
        )
        figure.savefig(path)


def _plain_ticks(ax: Any) -> None:
    """0.1, 0.2, 0.5, 1 … on the vertical axis instead of powers, as far as there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    if high < 10 * low:
        steps: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    else:
        steps = (1, 2, 5) if high < 1000 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
