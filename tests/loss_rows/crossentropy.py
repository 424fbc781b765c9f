"""Cross entropies of two outcomes or of classes."""

import numpy as np

from loss_rows import CLASSES, INDEX, PER_CLASS, SIMPLEX, SOFT, SUBSET, P, Q, Row, Z

LOG_Q = np.log(Q)

ROWS = {
    "nll_loss": Row(
        [(LOG_Q, INDEX, {}), (LOG_Q, INDEX, {"ignore_index": 2, "class_weight": PER_CLASS})],
        signed=True,
        aliases=("NLLLoss",),
    ),
    "sigmoid_binary_cross_entropy": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"label_smoothing": 0.2}), (Z, SOFT, {"pos_weight": PER_CLASS})],
        aliases=("BCEWithLogitsLoss",),
    ),
    "binary_crossentropy": Row(
        [
            (P, SOFT, {}),
            (P, SOFT, {"label_smoothing": 0.2}),
            (Z, SOFT, {"from_logits": True, "label_smoothing": 0.2}),
        ],
        aliases=("bce", "binary_cross_entropy", "BCELoss"),
    ),
    "softmax_cross_entropy": Row(
        [
            (Z, SIMPLEX, {}),
            (Z, SOFT, {"label_smoothing": 0.2}),
            (Z, SIMPLEX, {"where": CLASSES, "label_smoothing": 0.2}),
            (Z, SIMPLEX, {"class_weight": PER_CLASS, "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 3.0}),
        ],
        aliases=("safe_softmax_cross_entropy",),
    ),
    "softmax_cross_entropy_with_integer_labels": Row(
        [
            (Z, INDEX, {}),
            (Z, INDEX, {"ignore_index": 2, "label_smoothing": 0.2}),
            (Z, SUBSET, {"where": CLASSES, "label_smoothing": 0.2}),
            (Z, INDEX, {"class_weight": PER_CLASS, "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 3.0}),
        ],
        aliases=("CrossEntropyLoss",),
    ),
    "categorical_crossentropy": Row(
        [
            (Q, SIMPLEX, {}),
            (Q, SIMPLEX, {"label_smoothing": 0.2}),
            (Z, SIMPLEX, {"from_logits": True}),
        ],
        aliases=("cce",),
    ),
    "sparse_categorical_crossentropy": Row(
        [(Q, INDEX, {}), (Q, INDEX, {"ignore_index": 2}), (Z, INDEX, {"from_logits": True})], aliases=("scce",)
    ),
}
