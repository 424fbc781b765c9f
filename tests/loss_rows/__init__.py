"""One row per registered loss, in a file per topic: with what the laws call it.

A row is a `Row` of cases (predictions, targets, options), whose first axis is a batch of four.
"""

import importlib
import pkgutil
from typing import Any, NamedTuple

import numpy as np

random = np.random.default_rng(0)
Z = random.normal(size=(4, 3)) * 2
P, Q = 1 / (1 + np.exp(-Z)), np.exp(Z) / np.exp(Z).sum(-1, keepdims=True)
Y, SOFT = random.normal(size=(4, 3)), random.uniform(size=(4, 3))
SIMPLEX, INDEX = SOFT / SOFT.sum(-1, keepdims=True), np.array([2, 0, 1, 2], np.int32)
CLASSES = np.array([[True, True, False], [True, True, True], [False, True, True], [False, True, True]])
SUBSET = np.array([1, 0, 1, 2], np.int32)
PER_CLASS = np.array([0.5, 2.0, 1.25])


class Row(NamedTuple):
    """The cases of a loss, and what the laws may ask of it.

    cases: (predictions, targets, options) each; the first one is also what every law about the loss itself takes.
    largest: the largest size of predictions whose value and gradient are finite.
    signed: whether values may be negative.
    detached: arguments whose gradient is not that of the value, on purpose.
    apart: how far two programs of it may be apart, in units of the largest number: more where terms cancel.
    aliases: other names of it in the registry.
    exact: (mpmath, prediction, target, **options) → the value in 50 digits, of numbers, or of lists along the event
      axis; or None.
    grid: predictions and targets at which it is compared, [n] or [n, C]; pairs of a few numbers if not given.
    ulps: how many units in the last place of float32 it may be off there.
    """

    cases: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]
    largest: float = 1e18
    signed: bool = False
    detached: tuple[str, ...] = ()
    apart: float = 2e-7
    aliases: tuple[str, ...] = ()
    exact: Any = None
    grid: tuple[Any, Any] | None = None
    ulps: float = 4


def _collected() -> dict[str, Row]:
    rows = {}
    for module in pkgutil.iter_modules(__path__):
        rows |= importlib.import_module(f"{__name__}.{module.name}").ROWS
    return rows


ROWS = _collected()
