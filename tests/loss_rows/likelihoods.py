"""Negative log-likelihoods."""

import numpy as np

from loss_rows import Row, Y, Z

COUNTS = np.array([[0.4, 1.5, 4], [2, 0.8, 7], [1.2, 0.1, 3], [12, 5, 0.6]])
RATES, SPREAD = np.exp(Z), np.exp(Y)


ROWS = {
    "poisson": Row([(RATES, COUNTS, {})], signed=True),
    "poisson_nll_loss": Row(
        [(Z, COUNTS, {}), (Z, COUNTS, {"full": True}), (RATES, COUNTS, {"log_input": False})],
        signed=True,
        largest=80,
        aliases=("PoissonNLLLoss",),
    ),
    "gaussian_nll_loss": Row(
        [
            (Z, Y, {"variance": SPREAD}),
            (Z, Y, {"variance": SPREAD, "full": True}),
        ],
        signed=True,
        aliases=("GaussianNLLLoss",),
    ),
    "beta_nll_loss": Row([(Z, Y, {"variance": SPREAD})], signed=True, detached=("variance",)),
    "laplace_nll_loss": Row([(Z, Y, {"log_scale": Y})], signed=True),
    "student_t_nll_loss": Row(
        [(Z, Y, {"log_scale": Y}), (Z, Y, {"log_scale": Y, "degrees_of_freedom": 1.5})], signed=True
    ),
    "negative_binomial_nll_loss": Row([(Z, COUNTS, {"log_dispersion": Y})], largest=1e4),
}
