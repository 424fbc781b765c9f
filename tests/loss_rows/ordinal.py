"""Ordered classes."""

import numpy as np

from loss_rows import INDEX, Row, Z

FALLING = np.array([[3.0, 0.5, -2.0], [1.0, 0.9, 0.8], [-1.0, -4.0, -4.5], [6.0, 2.0, 1.0]])
LEVELS = np.array([3, 1, 0, 2], np.int32)
LOGITS = np.array([[2.0, 0.0, -1.0], [1e-3, 0.0, -1e-3], [90, 80, -20], [-1e4, -2e4, -3e4], [30.0, 29.999, -1.0]])
GRID = np.repeat(LOGITS, 4, 0), np.tile(np.arange(4, dtype=np.int32), len(LOGITS))


def coral(mp, z, y, axis=-1, ignore_index=None, threshold_weight=(1.0, 1.0, 1.0)):
    if y == ignore_index:
        return mp.mpf(0)
    costs = [mp.log1p(mp.exp(-v if y > k else v)) for k, v in enumerate(z)]
    return mp.fsum(mp.mpf(float(w)) * c for w, c in zip(threshold_weight, costs, strict=True))


def cumulative_link(mp, z, y, ignore_index=None):
    if y == ignore_index:
        return mp.mpf(0)
    ends = [mp.inf, *z, -mp.inf]
    high, low = ends[int(y)], ends[int(y) + 1]
    with mp.workdps(20000):
        return -mp.log(1 / (1 + mp.exp(-high)) - 1 / (1 + mp.exp(-low)))


ROWS = {
    "coral_loss": Row(
        [(Z, LEVELS, {}), (Z, INDEX, {"ignore_index": 2, "threshold_weight": np.array([0.5, 2.0, 1.25])})],
        aliases=("CORAL",),
        exact=coral,
        grid=GRID,
    ),
    "cumulative_link_loss": Row(
        [(FALLING, LEVELS, {}), (FALLING, LEVELS, {"ignore_index": 2})],
        aliases=("OrdinalLogistic",),
        exact=cumulative_link,
        grid=GRID,
    ),
}
