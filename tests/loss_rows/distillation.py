"""Logits of a student and a teacher."""

import numpy as np

from loss_rows import INDEX, Row, Z

TEACHER = np.random.default_rng(5).normal(size=(4, 3))
STUDENTS = np.array(
    [[1.0, -2.0, 0.5], [1.0, -2.0, 0.5 + 2.0**-20], [60, 0, -60], [1e4, 0, 0], [0, 0, 0], [2, 2.003, 1.998], [9, 8, 7]]
)
TEACHERS = np.array([[0.5, 1, 2], [1.0, -2.0, 0.5], [0, 0, 0], [1e4, 1, 1], [-80, 80, 0], [2, 2, 2], [9, 8, 7]])


def distillation(mp, z, teacher, temperature=1.0, alpha=0.5):
    temperature = mp.mpf(float(np.float32(temperature)))
    logarithms = []
    for logits in (z, teacher):
        scaled = [v / temperature for v in logits]
        whole = mp.log(mp.fsum(mp.exp(v) for v in scaled))
        logarithms.append([v - whole for v in scaled])
    return temperature**2 * mp.fsum(mp.exp(t) * (t - p) for p, t in zip(*logarithms, strict=True))


ROWS = {
    "distillation_loss": Row(
        [
            (Z, TEACHER, {}),
            (Z, TEACHER, {"temperature": 2.0}),
            (Z, TEACHER, {"alpha": 0.25, "labels": INDEX}),
        ],
        detached=("teacher_logits",),
        aliases=("Distillation",),
        exact=distillation,
        grid=(STUDENTS, TEACHERS),
        ulps=8,
    )
}
