"""Log-probabilities of sequences."""

import numpy as np

from loss_rows import Row, Y, Z

C, R, RC, RR = (-np.exp(x) for x in (Z, Y, Z[::-1], Y[::-1]))
REFERENCE = {"reference_chosen": RC, "reference_rejected": RR}

ROWS = {
    "dpo_loss": Row([(C, R, REFERENCE), (C, R, {**REFERENCE, "beta": 0.5, "label_smoothing": 0.1})], aliases=("DPO",)),
    "ipo_loss": Row([(C, R, REFERENCE)], aliases=("IPO",)),
    "kto_loss": Row(
        [
            (C, RC, {"desirable": Z > 0}),
            (C, RC, {"desirable": Z > 0, "divergence": 0.3, "beta": 0.5, "undesirable_weight": 1.5}),
        ],
        aliases=("KTO",),
    ),
    "simpo_loss": Row([(C, R, {}), (C, R, {"beta": 0.7, "gamma": 0.3})], aliases=("SimPO",)),
    "orpo_loss": Row([(C, R, {})], aliases=("ORPO",)),
}
