"""Masks."""

import numpy as np

from loss_rows import P, Row, Y, Z

BITS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.int32)

IMAGES = np.random.default_rng(3).normal(size=(4, 5, 3)) * 2
CHANCES = np.exp(IMAGES) / np.exp(IMAGES).sum(-1, keepdims=True)
PIXELS = np.array([[0, 1, 2, 2, 1], [0, 0, 0, 0, 0], [2, 1, 2, 1, 2], [1, 0, 0, 2, 0]], np.int32)

ROWS = {
    "lovasz_hinge": Row([(Z, BITS, {}), (Z, 2 * BITS - 1, {"encoding": "signed"})]),
    "lovasz_softmax_loss": Row(
        [
            (CHANCES, PIXELS, {}),
            (CHANCES, PIXELS, {"classes": "all", "ignore_index": 0}),
            (IMAGES, PIXELS, {"from_logits": True, "ignore_index": 1}),
        ],
        aliases=("LovaszSoftmax",),
    ),
    "boundary_loss": Row([(P, Y, {})], signed=True),
}
