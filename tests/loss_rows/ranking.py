"""Lists, and cosines with a margin."""

import numpy as np

from loss_rows import CLASSES, INDEX, SOFT, Row, Y, Z

COSINES = np.tanh(Z / 2)

ROWS = {
    "ranking_softmax_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"where": CLASSES, "weights": np.exp(Y)})], aliases=("ListNet",)
    ),
    "list_mle_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"where": CLASSES, "weights": np.exp(Y)})], aliases=("ListMLE",), apart=1e-6
    ),
    "approx_ndcg_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"where": CLASSES, "weights": np.exp(Y), "temperature": 0.7})],
        aliases=("ApproxNDCG",),
    ),
    "lambda_rank_loss": Row(
        [(Z, SOFT, {}), (Z, SOFT, {"where": CLASSES, "weights": np.exp(Y), "temperature": 0.7})],
        detached=("labels", "weights"),
        aliases=("LambdaRank", "LambdaLoss"),
    ),
    "cosface_loss": Row([(COSINES, INDEX, {}), (COSINES, INDEX, {"margin": 0.1, "scale": 3.0})], aliases=("CosFace",)),
    "arcface_loss": Row([(COSINES, INDEX, {}), (COSINES, INDEX, {"margin": 1.2, "scale": 3.0})], aliases=("ArcFace",)),
}
