"""What `fit` shows: a bar where someone watches, a line per epoch elsewhere, or nothing."""

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

from lossopt_jax._core import complaint


def _watched() -> bool:
    """On a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _figure(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def progress_of(choice: bool | str, epochs: int) -> "_Silence":
    """The display for `fit(progress=choice)`."""
    if choice not in (True, False, "bar", "lines"):
        raise ValueError(complaint("fit", "progress", "be True, False, 'bar' or 'lines'", repr(choice)))
    if choice is False:
        return _Silence()
    tqdm = importlib.util.find_spec("tqdm") is not None
    if choice == "bar" and not tqdm:
        raise ValueError(complaint("fit", "progress", "not be 'bar' without tqdm", "'bar'", "pip install tqdm"))
    if choice == "bar" or (choice is True and tqdm and _watched()):
        return _Bar(epochs)
    return _Lines(epochs)


class _Silence:
    """Shows nothing."""

    def __enter__(self) -> "_Silence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def epoch(self, logs: dict[str, float], steps: int) -> None:
        """Called after every epoch with its figures."""


class _Lines(_Silence):
    """One line per epoch on standard output."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.done, self.since = epochs, 0, time.perf_counter()

    def epoch(self, logs: dict[str, float], steps: int) -> None:
        self.done += 1
        now = time.perf_counter()
        spent, self.since = now - self.since, now
        figures = " - ".join(f"{name}: {_figure(value)}" for name, value in logs.items())
        sys.stdout.write(f"Epoch {self.done}/{self.epochs} - {steps} steps - {spent:.2f}s - {figures}\n")
        sys.stdout.flush()


class _Bar(_Silence):
    """A tqdm bar over the epochs, with the last figures beside it."""

    def __init__(self, epochs: int) -> None:
        from tqdm.auto import tqdm

        self.bar: Any = tqdm(total=epochs, unit="epoch", dynamic_ncols=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def epoch(self, logs: dict[str, float], steps: int) -> None:
        self.bar.set_postfix({name: _figure(value) for name, value in logs.items()}, refresh=False)
        self.bar.update()
