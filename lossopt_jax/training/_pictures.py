"""What a run looks like: loss curves, the range test, and three rates side by side."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lossopt_jax.training._find_lr import RangeTest

# Okabe and Ito's colours, told apart with any kind of colour vision
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8B8B8"


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    settings = {
        "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, SKY]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "grid.color": "#E6E6E6",
        "lines.linewidth": 2.0,
        "font.size": 10.5,
        "legend.frameon": False,
        "savefig.dpi": 144,
    }
    with mpl.rc_context(settings):
        yield


def _figure(columns: int, width: float, height: float) -> tuple[Any, Any]:
    # the object interface: no global figure, no backend chosen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True)


def draw_losses(path: Path, title: str, history: Mapping[str, Sequence[float]]) -> None:
    """Loss per epoch on a log scale, in training and on the held-out part."""
    with _style():
        figure, ax = _figure(1, 7.2, 4.4)
        epochs = range(1, len(history["loss"]) + 1)
        ax.plot(epochs, history["loss"], color=BLUE, label="training")
        ax.plot(epochs, history["val_loss"], color=ORANGE, label="held out")
        final = history["val_loss"][-1]
        ax.annotate(
            f"{final:.3g}", (len(epochs), final), xytext=(6, 0), textcoords="offset points", color=ORANGE, va="center"
        )
        ax.set(xlabel="epoch", ylabel="loss (log scale)", yscale="log", title=title)
        _plain_log_ticks(ax.yaxis)
        ax.legend()
        figure.savefig(path)


def draw_range_test(path: Path, title: str, test: RangeTest, chosen: float) -> None:
    """Loss while the rate grows, with the suggestions and the rate that was taken."""
    with _style():
        figure, ax = _figure(1, 7.2, 4.4)
        test.plot(ax)
        ax.axvline(chosen, color="black", linestyle=(0, (4, 3)), linewidth=1.2, label=f"taken {chosen:.2g}")
        ax.set(xlabel="learning rate (log scale)", ylabel="loss of the batch", title=title)
        ax.legend(loc="upper left")
        figure.savefig(path)


def draw_rates(path: Path, title: str, start: float, runs: Mapping[str, tuple[float, Sequence[float]]]) -> None:
    """One panel per learning rate: its loss curve in colour, the others behind it, and where all of them began."""
    with _style():
        figure, panels = _figure(len(runs), 11.5, 4.2)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        curves = {name: [start, *losses] for name, (_, losses) in runs.items()}
        for ax, color, (name, (rate, losses)) in zip(panels, (SKY, GREEN, ORANGE), runs.items(), strict=True):
            for other, curve in curves.items():
                if other != name:
                    ax.plot(range(len(curve)), curve, color=GREY, linewidth=1)
            ax.plot(range(len(curves[name])), curves[name], color=color, linewidth=2.6)
            ax.axhline(start, color="black", linestyle=":", linewidth=1)
            verdict = f"ends at loss {losses[-1]:.3g}" if losses else "no longer a number after one epoch"
            ax.set_title(f"{name}: {rate:.2g}\n", color=color)
            ax.text(0, 1.02, verdict, transform=ax.transAxes)
            ax.set(xlabel="epoch", yscale="log")
            _plain_log_ticks(ax.yaxis)
        panels[0].set_ylabel("training loss (log scale)")
        panels[0].annotate("before training", (0, start), xytext=(4, 4), textcoords="offset points", fontsize=9)
        figure.savefig(path)


def _plain_log_ticks(axis: Any) -> None:
    """0.1, 0.2, 0.5, 1 … instead of powers, as many as fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
