"""Distances between numbers."""

import numpy as np

from loss_rows import Row, Y, Z

POSITIVE = np.exp(Z), np.exp(Y)
ABOVE = np.stack(np.meshgrid([-0.99, -0.3, 0, 1e-10, 0.2, 1, 1.0001, 30, 1e9], [-0.9, 0, 1, 3e4])).reshape(2, -1)


def huber(mp, p, t, delta=1.0):
    e, delta = abs(p - t), mp.mpf(float(np.float32(delta)))
    return e * e / 2 if e <= delta else delta * (e - delta / 2)


def smooth_l1(mp, p, t, beta=1.0):
    return huber(mp, p, t, beta) / mp.mpf(float(np.float32(beta)))


def quantile(mp, p, t, quantile=0.5, delta=None):
    e, tau = t - p, mp.mpf(float(np.float32(quantile)))
    side = tau if e > 0 else tau - 1
    return side * e if delta is None else abs(side) * smooth_l1(mp, p, t, delta)


def expectile(mp, p, t, expectile=0.5):
    tau = mp.mpf(float(np.float32(expectile)))
    return (1 - tau if t < p else tau) * (p - t) ** 2


def square_of_logs(mp, p, t):
    return (mp.log1p(p) - mp.log1p(t)) ** 2


def percentage(mp, p, t, epsilon=1e-7):
    return 100 * abs(p - t) / max(abs(t), mp.mpf(float(np.float32(epsilon))))


ROWS = {
    "squared_error": Row([(Z, Y, {})], exact=lambda mp, p, t: (p - t) ** 2),
    "l2_loss": Row([(Z, Y, {})], exact=lambda mp, p, t: (p - t) ** 2 / 2),
    "absolute_error": Row([(Z, Y, {})], exact=lambda mp, p, t: abs(p - t)),
    "mean_squared_error": Row([(Z, Y, {})], aliases=("mse", "MSELoss")),
    "mean_absolute_error": Row([(Z, Y, {})], aliases=("mae", "l1", "L1Loss")),
    "huber_loss": Row(
        [(Z, Y, {}), (Z, Y, {"delta": 0.3}), (Z, Y, {"delta": 1e4})], exact=huber, aliases=("Huber", "HuberLoss")
    ),
    "smooth_l1_loss": Row([(Z, Y, {}), (Z, Y, {"beta": 0.3})], exact=smooth_l1, aliases=("SmoothL1Loss",)),
    "log_cosh": Row([(Z, Y, {})], exact=lambda mp, p, t: mp.log(mp.cosh(p - t)), aliases=("LogCosh",)),
    "quantile_loss": Row(
        [(Z, Y, {}), (Z, Y, {"quantile": 0.9}), (Z, Y, {"quantile": 0.2, "delta": 0.7})],
        exact=quantile,
        aliases=("pinball_loss",),
    ),
    "expectile_loss": Row([(Z, Y, {}), (Z, Y, {"expectile": 0.9})], exact=expectile),
    "squared_log_error": Row([(*POSITIVE, {})], exact=square_of_logs, grid=ABOVE),
    "mean_squared_logarithmic_error": Row([(*POSITIVE, {})], aliases=("msle", "mean_squared_log_error")),
    "absolute_percentage_error": Row([(Z, Y, {}), (Z, Y, {"epsilon": 0.5})], exact=percentage),
    "mean_absolute_percentage_error": Row([(Z, Y, {})], aliases=("mape",)),
    "general_robust_loss": Row(
        [
            (Z, Y, {}),
            *[(Z, Y, {"alpha": a, "scale": 0.7}) for a in (2.0, 1.9999, 0.0, 1e-4, -2.0, -30.0, -np.inf)],
        ],
        aliases=("barron_loss",),
    ),
}
