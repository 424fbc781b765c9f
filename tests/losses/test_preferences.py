"""Losses of preferences by their papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax import losses

generator = np.random.default_rng(0)
C, R, RC, RR = -generator.uniform(0.1, 3, size=(4, 6))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_preferences_by_their_definitions(x64):
    lead = np.log(np.exp(C) / np.exp(RC)) - np.log(np.exp(R) / np.exp(RR))
    odds = np.exp(C) / (1 - np.exp(C)) / (np.exp(R) / (1 - np.exp(R)))
    smoothed = -0.9 * np.log(sigmoid(0.3 * lead)) - 0.1 * np.log(sigmoid(-0.3 * lead))
    pairs = [
        (losses.dpo_loss(C, R, RC, RR), -np.log(sigmoid(0.1 * lead))),
        (losses.dpo_loss(C, R, RC, RR, beta=0.3, label_smoothing=0.1), smoothed),
        (losses.ipo_loss(C, R, RC, RR, beta=0.3), (lead - 1 / 0.6) ** 2),
        (losses.simpo_loss(C, R, beta=2.5, gamma=0.4), -np.log(sigmoid(2.5 * (C - R) - 0.4))),
        (losses.orpo_loss(C, R), -np.log(sigmoid(np.log(odds)))),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)


def test_tokens(x64):
    z, y = generator.normal(size=(2, 5, 7)), generator.integers(0, 7, (2, 5))
    expected = np.take_along_axis(z - np.log(np.exp(z).sum(-1, keepdims=True)), y[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.token_log_probs(z, y), expected, rtol=1e-12)
    out = jnp.where(y == 3, 0, expected)
    np.testing.assert_allclose(losses.token_log_probs(z, y, ignore_index=3), out, rtol=1e-12)


def test_kto_by_its_definition(x64):
    good = np.array([True, False, True, True, False, False])
    margin = np.log(np.exp(C) / np.exp(RC)) - 0.2
    expected = np.where(good, 1.33 * (1 - sigmoid(0.3 * margin)), 0.9 * (1 - sigmoid(-0.3 * margin)))
    options = {"divergence": 0.2, "beta": 0.3, "desirable_weight": 1.33, "undesirable_weight": 0.9}
    np.testing.assert_allclose(losses.kto_loss(C, RC, good, **options), expected, rtol=1e-11)
    slope = jax.grad(lambda z: losses.kto_loss(C[0], RC[0], True, z))(0.2)
    assert slope == 0
