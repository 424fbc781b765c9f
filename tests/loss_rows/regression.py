"""Distances between numbers."""

from loss_rows import Row, Y, Z

ROWS = {
    "squared_error": Row([(Z, Y, {})]),
    "l2_loss": Row([(Z, Y, {})]),
    "absolute_error": Row([(Z, Y, {})]),
    "mean_squared_error": Row([(Z, Y, {})], aliases=("mse", "MSELoss")),
    "mean_absolute_error": Row([(Z, Y, {})], aliases=("mae", "l1", "L1Loss")),
}
