"""Masks."""

import numpy as np

from loss_rows import P, Row, Y, Z

BITS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.int32)

ROWS = {
    "lovasz_hinge": Row([(Z, BITS, {}), (Z, 2 * BITS - 1, {"encoding": "signed"})]),
    "boundary_loss": Row([(P, Y, {})], signed=True),
}
