"""Contrastive losses against optax, the papers' sums, and where optax goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

X, LABELS = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 1, 0, 2, 1, 0])
BOTH = pytest.mark.parametrize("loss", [losses.ntxent, losses.supervised_contrastive_loss])


def test_ntxent_is_optaxs(x64):
    optax = pytest.importorskip("optax", reason="the peer")
    for temperature in (0.07, 1.0):
        value, gradient = jax.value_and_grad(losses.ntxent)(X, LABELS, temperature)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            expected, slope = jax.value_and_grad(optax.ntxent)(jnp.asarray(X), jnp.asarray(LABELS), temperature)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-10)


def test_supervised_is_the_papers_sum(x64):
    unit = X / np.linalg.norm(X, axis=-1, keepdims=True)
    s = unit @ unit.T / 0.2
    expected = []
    for i, row in enumerate(s):
        others = [k for k in range(6) if k != i]
        positives = [s[i, j] for j in others if LABELS[j] == LABELS[i]]
        level = np.log(sum(np.exp(row[k]) for k in others))
        expected.append(np.mean([level - one for one in positives]) if positives else 0)
    np.testing.assert_allclose(losses.supervised_contrastive_loss(X, LABELS, 0.2), expected, rtol=1e-12)


@BOTH
def test_leading_axes_are_batches(loss):
    got = loss(jnp.stack([X, X[::-1]]), jnp.stack([LABELS, LABELS[::-1]]))
    expected = [loss(x, y) for x, y in ((X, LABELS), (X[::-1], LABELS[::-1]))]
    np.testing.assert_allclose(got, np.stack(expected), rtol=1e-6)


@BOTH
def test_l15_without_a_positive_pair_nothing_is_lost(loss):
    for n in (0, 1, 3):
        value, gradient = jax.value_and_grad(lambda x, n=n: loss(x, np.arange(n)).sum())(jnp.eye(3)[:n])
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
    x = jnp.asarray(X).at[0].set(0.0)
    for labels in (LABELS, np.zeros(6, int)):
        assert np.isfinite(jax.grad(lambda x, y=labels: loss(x, y).sum())(x)).all()


@BOTH
def test_lengths_do_not_matter(loss):
    np.testing.assert_allclose(loss(jnp.asarray(1e30 * X), LABELS), loss(jnp.asarray(X), LABELS), rtol=1e-5)


@BOTH
def test_arguments_are_checked(loss):
    for given, error, message in [
        ((X.astype(int), LABELS), TypeError, "embeddings must be floating"),
        ((X[0], LABELS), ValueError, "embeddings must be"),
        ((X, LABELS * 1.0), TypeError, "labels must be integer"),
        ((X, LABELS[:3]), ValueError, "labels must have the shape"),
        ((X, LABELS, 0.0), ValueError, "temperature must"),
    ]:
        with pytest.raises(error, match=f"{loss.__name__}: {message}"):
            loss(*given)
