"""Divergences between distributions."""

import numpy as np

from loss_rows import CLASSES, SIMPLEX, SOFT, Q, Row

LOG_Q, LOG_T = np.log(Q), np.log(SIMPLEX)
MASKED = {"where": CLASSES}
NEAR = np.log([[0.2501, 0.2499, 0.25, 0.25], [0.7, 0.1, 0.15, 0.05], [1e-9, 1e-4, 0.4, 0.6], [0.1, 0.2, 0.3, 0.4]])
TARGETS = np.log([[0.25] * 4, [0.69, 0.11, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.59, 0.01]])


def divergences(mp, p, t):
    return mp.fsum(b * (mp.log(b) - a) for a, b in zip(p, t, strict=True))


def jensen_shannon(mp, p, t):
    total = 0
    for a, b in zip(p, t, strict=True):
        m = (mp.exp(a) + mp.exp(b)) / 2
        total += (mp.exp(a) * (a - mp.log(m)) + mp.exp(b) * (b - mp.log(m))) / 2
    return total


def generalized(mp, p, t):
    return divergences(mp, p, t) + mp.fsum(mp.exp(a) - b for a, b in zip(p, t, strict=True))


ROWS = {
    "kl_divergence": Row([(LOG_Q, SIMPLEX, {}), (LOG_Q, SIMPLEX, MASKED)], signed=True, aliases=("KLDivLoss",)),
    "kl_divergence_with_log_targets": Row([(LOG_Q, LOG_T, {}), (LOG_Q, LOG_T, MASKED)], signed=True),
    "generalized_kl_divergence": Row(
        [(LOG_Q, SOFT, {}), (LOG_Q, SOFT, MASKED)], largest=80, aliases=("convex_kl_divergence",)
    ),
    "kullback_leibler_divergence": Row([(Q, SIMPLEX, {})], signed=True),
    "jensen_shannon_divergence": Row(
        [(LOG_Q, LOG_T, {}), (LOG_Q, LOG_T, MASKED)],
        largest=80,
        exact=jensen_shannon,
        grid=(NEAR, TARGETS),
        ulps=16,
    ),
    "renyi_divergence": Row(
        [(LOG_Q, LOG_T, {}), (LOG_Q, LOG_T, {"alpha": 2.0}), (LOG_Q, LOG_T, {**MASKED, "alpha": 0.3})],
        signed=True,
        apart=1e-6,
        largest=1e18,
    ),
    "bhattacharyya_distance": Row([(LOG_Q, LOG_T, {}), (LOG_Q, LOG_T, MASKED)], signed=True, apart=1e-6),
    "hellinger_distance": Row([(LOG_Q, LOG_T, {}), (LOG_Q, LOG_T, MASKED)], largest=80),
}
