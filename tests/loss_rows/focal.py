"""Focal, poly and robust cross entropies."""

import numpy as np

from loss_rows import CLASSES, INDEX, SIMPLEX, SOFT, P, Q, Row, Z


def focal(mp, z, y, alpha=None, gamma=2.0):
    p, gamma = 1 / (1 + mp.exp(-z)), mp.mpf(float(np.float32(gamma)))
    entropy = -y * mp.log(p) - (1 - y) * mp.log(1 / (1 + mp.exp(z)))
    missed = y * (1 / (1 + mp.exp(z))) + (1 - y) * p
    weight = 1 if alpha is None else (lambda a: a * y + (1 - a) * (1 - y))(mp.mpf(float(np.float32(alpha))))
    return weight * missed**gamma * entropy


SIZES = np.array([0, 1e-4, 0.3, 1, 2.5, 7, 12, 31])
LOGITS = np.concatenate([SIZES, -SIZES, [80, -80, 1e4, -1e4]])
GRID = np.stack(np.meshgrid(LOGITS, [0.0, 1.0])).reshape(2, -1)

ROWS = {
    "sigmoid_focal_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"alpha": 0.25, "gamma": 3.0}), (Z, SOFT, {"gamma": 0.5})],
        exact=focal,
        grid=GRID,
        ulps=8,
    ),
    "binary_focal_crossentropy": Row(
        [
            (P, SOFT, {}),
            (P, SOFT, {"apply_class_balancing": True, "label_smoothing": 0.1, "gamma": 1.5}),
            (Z, SOFT, {"from_logits": True}),
        ],
        aliases=("BinaryFocalCrossentropy",),
    ),
    "categorical_focal_crossentropy": Row(
        [
            (Q, SIMPLEX, {}),
            (Q, SIMPLEX, {"alpha": 0.7, "label_smoothing": 0.1, "gamma": 1.5}),
            (Z, SIMPLEX, {"from_logits": True}),
        ],
        aliases=("CategoricalFocalCrossentropy",),
    ),
    "softmax_focal_loss_with_integer_labels": Row(
        [(Z, INDEX, {}), (Z, INDEX, {"gamma": 0.5, "ignore_index": 2})], aliases=("softmax_focal_loss",)
    ),
    "poly_loss_cross_entropy": Row([(Z, SIMPLEX, {}), (Z, SIMPLEX, {"epsilon": -1.0, "where": CLASSES})], apart=1e-6),
    "asymmetric_loss": Row([(Z, SOFT, {}), (Z, SOFT, {"gamma_negative": 2.5, "margin": 0.2})], aliases=("ASL",)),
    "categorical_generalized_cross_entropy": Row(
        [(Q, INDEX, {}), (Q, INDEX, {"q": 0.2, "ignore_index": 2})],
        aliases=("CategoricalGeneralizedCrossEntropy", "generalized_cross_entropy"),
    ),
}
