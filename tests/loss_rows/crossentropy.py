"""Cross entropies of two outcomes or of classes."""

from loss_rows import CLASSES, INDEX, SIMPLEX, SOFT, SUBSET, P, Q, Row, Z

ROWS = {
    "sigmoid_binary_cross_entropy": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"label_smoothing": 0.2})], aliases=("BCEWithLogitsLoss",)
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
        ]
    ),
    "softmax_cross_entropy_with_integer_labels": Row(
        [
            (Z, INDEX, {}),
            (Z, INDEX, {"ignore_index": 2, "label_smoothing": 0.2}),
            (Z, SUBSET, {"where": CLASSES, "label_smoothing": 0.2}),
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
