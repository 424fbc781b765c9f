"""What `fit` gives back beside the state."""

from typing import Any


class History(dict[str, list[float]]):
    """Epoch by epoch: `history["loss"]`, `["val_loss"]`, `["accuracy"]`, `["learning_rate"]` … as lists of floats.

    Attributes:
      stopped: why the run ended early, or None.
    """

    stopped: str | None = None

    def append(self, logs: dict[str, float]) -> None:
        """Add one epoch."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss curves; returns the axes. Needs matplotlib."""
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        for name in ("loss", "val_loss"):
            if name in self:
                ax.plot(range(1, len(self[name]) + 1), self[name], label=name)
        ax.set(xlabel="epoch", ylabel="loss")
        ax.legend()
        return ax
