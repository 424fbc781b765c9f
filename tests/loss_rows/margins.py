"""Losses with a margin."""

import numpy as np

from loss_rows import INDEX, PER_CLASS, SOFT, Row, Z

SIGNS = np.array([[1, -1, 1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1]], np.int32)
BITS = (SIGNS + 1) // 2
LISTS = np.array([[0, -1, 1], [2, 1, -1], [-1, 0, 0], [1, -1, -1]], np.int32)
SCORES = np.array([0, 0.5, 1, 1.5, -1, -0.3, -2, 31, -1e4])
GRID = np.stack(np.meshgrid(SCORES, [-1.0, 1.0])).reshape(2, -1)
BINARY_GRID = np.stack(np.meshgrid(SCORES, [0.0, 1.0])).reshape(2, -1)


def sparsemax(mp, z, y):
    x = -(2 * y - 1) * z
    return 0 * x if x <= -1 else x if x >= 1 else (1 + x) ** 2 / 4


ROWS = {
    "hinge_loss": Row([(Z, SIGNS, {}), (Z, BITS, {"encoding": "binary"})], aliases=("Hinge",)),
    "squared_hinge": Row([(Z, SIGNS, {})], aliases=("SquaredHinge", "squared_hinge_loss")),
    "perceptron_loss": Row([(Z, SIGNS, {})]),
    "soft_margin_loss": Row(
        [(Z, SIGNS, {})],
        exact=lambda mp, z, s: mp.log1p(mp.exp(-s * z)),
        grid=GRID,
        aliases=("SoftMarginLoss",),
    ),
    "sparsemax_loss": Row([(Z, BITS, {})], exact=sparsemax, grid=BINARY_GRID),
    "hinge_embedding_loss": Row([(Z, SIGNS, {})], signed=True, aliases=("HingeEmbeddingLoss",)),
    "categorical_hinge": Row([(Z, SOFT, {})], aliases=("CategoricalHinge",)),
    "multiclass_hinge_loss": Row([(Z, INDEX, {})]),
    "multiclass_perceptron_loss": Row([(Z, INDEX, {})]),
    "multiclass_sparsemax_loss": Row([(Z, INDEX, {}), (Z / 3, INDEX, {})], largest=1e4),
    "multi_margin_loss": Row(
        [(Z, INDEX, {}), (Z, INDEX, {"p": 2, "margin": 0.7, "class_weight": PER_CLASS})], aliases=("MultiMarginLoss",)
    ),
    "multilabel_margin_loss": Row([(Z, LISTS, {})], aliases=("MultiLabelMarginLoss",)),
    "multilabel_soft_margin_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"class_weight": PER_CLASS})], aliases=("MultiLabelSoftMarginLoss",)
    ),
}
