"""Pairs and triplets."""

import numpy as np

from loss_rows import Row, Y, Z
from lossopt_jax.losses import cosine_distance

N = np.random.default_rng(7).normal(size=(4, 3))
SIGNS = np.array([1, -1, 1, -1], np.int32)
PAIR_SIGNS = np.array([[1, -1, 1], [-1, -1, 1], [1, 1, -1], [-1, 1, -1]], np.int32)

ROWS = {
    "triplet_margin_loss": Row(
        [
            (Z, Y, {"negatives": N}),
            (Z, Y, {"negatives": N, "swap": True, "margin": 3.0}),
            *[(Z, Y, {"negatives": N, "norm_degree": p}) for p in (1.0, 3.0, np.inf)],
        ],
        aliases=("TripletMarginLoss",),
    ),
    "triplet_margin_with_distance_loss": Row(
        [(Z, Y, {"negatives": N}), (Z, Y, {"negatives": N, "distance_function": cosine_distance, "swap": True})],
        aliases=("TripletMarginWithDistanceLoss",),
    ),
    "margin_ranking_loss": Row(
        [(Z, Y, {"targets": PAIR_SIGNS}), (Z, Y, {"targets": PAIR_SIGNS, "margin": 0.7})],
        aliases=("MarginRankingLoss",),
    ),
    "cosine_embedding_loss": Row(
        [(Z, Y, {"targets": SIGNS}), (Z, Y, {"targets": SIGNS, "margin": 0.2})], aliases=("CosineEmbeddingLoss",)
    ),
}
