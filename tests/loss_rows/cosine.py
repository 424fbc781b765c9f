"""Angles and distances between vectors."""

import numpy as np

from loss_rows import CLASSES, Row, Y, Z

# of lengths that neither square nor vanish
LENGTHS = np.array([1, 1e-15, 1e18, 1, 30, 1e-2])[:, None]
GRID = np.resize(Z, (6, 3)) * LENGTHS, np.resize(Y, (6, 3)) * LENGTHS[::-1]


def cosine(mp, p, t, epsilon=0):
    lengths = [max(mp.sqrt(mp.fdot(x, x)), epsilon) for x in (p, t)]
    return mp.fdot(p, t) / (lengths[0] * lengths[1]) if all(lengths) else mp.mpf(0)


ROWS = {
    "cosine_similarity": Row(
        [(Z, Y, {}), (Z, Y, {"where": CLASSES}), (Z, Y, {"epsilon": 1.5})],
        signed=True,
        exact=cosine,
        grid=GRID,
        ulps=8,
        aliases=("CosineSimilarity",),
    ),
    "cosine_distance": Row([(Z, Y, {}), (Z, Y, {"where": CLASSES}), (Z, Y, {"epsilon": 1.5})]),
    "pairwise_distance": Row(
        [(Z, Y, {}), *[(Z, Y, {"p": p}) for p in (1.0, 3.0, 1.5, np.inf)]], aliases=("PairwiseDistance",)
    ),
}
