"""Labels that may be wrong."""

import numpy as np

from loss_rows import INDEX, Row, Z

LOGITS = np.array([[0.3, -1.0, 2.0], [0, 0, 0], [12, -3, 7.5], [-40, 20, 20], [1e4, 2e4, 0], [-1e-3, 0, 1e-3]])
GRID = np.repeat(LOGITS, 3, 0), np.tile(np.arange(3, dtype=np.int32), len(LOGITS))


def softmax(mp, z):
    whole = mp.fsum(mp.exp(v) for v in z)
    return [mp.exp(v) / whole for v in z]


def symmetric(mp, z, y, alpha=0.1, beta=1.0, log_zero=-4.0, ignore_index=None):
    if y == ignore_index:
        return mp.mpf(0)
    alpha, beta, log_zero = (mp.mpf(float(np.float32(x))) for x in (alpha, beta, log_zero))
    p = softmax(mp, z)
    return -alpha * mp.log(p[int(y)]) - beta * log_zero * mp.fsum(p[: int(y)] + p[int(y) + 1 :])


def tempered_softmax(mp, z, t):
    """By bisection for λ, then Newton's method."""
    if t == 1:
        return softmax(mp, z)

    def total(m, power):
        return mp.fsum((1 + (t - 1) * (m - v)) ** power for v in z)

    order, low, high = 1 / (1 - t), max(z), max(z) + len(z) ** t / (t - 1)
    for _ in range(40):
        m = (low + high) / 2
        low, high = (m, high) if total(m, order) > 1 else (low, m)
    for _ in range(12):
        low += (total(low, order) - 1) / total(low, order - 1)
    return [(1 + (t - 1) * (low - v)) ** order for v in z]


def bi_tempered(mp, z, y, t1=0.8, t2=1.2, label_smoothing=0.0, ignore_index=None):
    if y == ignore_index:
        return mp.mpf(0)
    t1, t2, smoothing = (mp.mpf(float(np.float32(x))) for x in (t1, t2, label_smoothing))

    def log(x):
        return mp.log(x) if t1 == 1 else (x ** (1 - t1) - 1) / (1 - t1)

    value = mp.mpf(0)
    for j, p in enumerate(tempered_softmax(mp, z, t2)):
        t = (j == y) * (1 - smoothing) + smoothing / len(z)
        value += (t * (log(t) - log(p)) if t else 0) - (t ** (2 - t1) - p ** (2 - t1)) / (2 - t1)
    return value


ROWS = {
    "symmetric_cross_entropy": Row(
        [(Z, INDEX, {}), (Z, INDEX, {"alpha": 6.0, "beta": 0.3, "log_zero": -2.5, "ignore_index": 2})],
        aliases=("SCE",),
        exact=symmetric,
        grid=GRID,
    ),
    "bi_tempered_loss": Row(
        [
            (Z, INDEX, {}),
            (Z, INDEX, {"t1": 0.5, "t2": 4.0, "label_smoothing": 0.1, "ignore_index": 2}),
            (Z, INDEX, {"t1": 1.0, "t2": 1.0}),
            (Z, INDEX, {"t1": 0.0, "t2": 1.05}),
        ],
        aliases=("BiTempered",),
        exact=bi_tempered,
        grid=GRID,
        ulps=64,  # a power near 1e-20 of what float32 holds multiplies a rounding by its logarithm
    ),
}
