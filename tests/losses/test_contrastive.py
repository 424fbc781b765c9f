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


KEYS, NEGATIVES = (np.random.default_rng(1).normal(size=shape) for shape in ((6, 4), (5, 4)))


@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["keys", "negatives"])
def test_info_nce_is_the_papers_sum(negatives, x64):
    unit = [
        x / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (X, KEYS, NEGATIVES[:0] if negatives is None else NEGATIVES)
    ]
    chances = np.exp(unit[0] @ np.concatenate(unit[1:]).T / 0.3)
    expected = -np.log(np.diag(chances) / chances.sum(-1))
    np.testing.assert_allclose(losses.info_nce(X, KEYS, negatives, 0.3), expected, rtol=1e-12)


def test_info_nce_is_torch_s_cross_entropy(x64):
    torch = pytest.importorskip("torch", reason="the peer")
    q, k, n = (torch.tensor(x, requires_grad=True) for x in (X, KEYS, NEGATIVES))
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (q, k, n)]
    torch.nn.functional.cross_entropy(unit[0] @ torch.cat(unit[1:]).T / 0.07, torch.arange(6)).backward()
    gradients = jax.grad(lambda *x: losses.mean(losses.info_nce(*x)), (0, 1, 2))(X, KEYS, NEGATIVES)
    for one, two in zip(gradients, (q, k, n), strict=True):
        np.testing.assert_allclose(one, two.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_info_nce_of_batches_and_of_lone_or_zero_vectors():
    both = [jnp.stack([x, x[::-1]]) for x in (X, KEYS, NEGATIVES)]
    expected = [losses.info_nce(*(x[i] for x in both)) for i in range(2)]
    np.testing.assert_allclose(losses.info_nce(*both), np.stack(expected), rtol=1e-6)
    np.testing.assert_allclose(
        losses.info_nce(jnp.asarray(1e30 * X), jnp.asarray(1e-30 * KEYS)), losses.info_nce(X, KEYS), rtol=1e-5
    )
    for n in (0, 1):
        value, gradient = jax.value_and_grad(lambda x: losses.info_nce(x, x).sum())(jnp.eye(3)[:n])
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
    assert losses.info_nce(jnp.zeros((0, 3)), jnp.zeros((0, 3)), jnp.ones((2, 3))).shape == (0,)
    gradient = jax.grad(lambda x: losses.info_nce(x, KEYS.astype(np.float32)).sum())(jnp.asarray(X).at[0].set(0.0))
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all()
    assert losses.info_nce(jnp.asarray(X, jnp.bfloat16), jnp.asarray(KEYS, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((X.astype(int), KEYS), TypeError, "queries must be floating"),
        ((X, KEYS.astype(int)), TypeError, "keys must be floating"),
        ((X[0], KEYS), ValueError, "queries must be"),
        ((X, KEYS[:3]), ValueError, "keys must have the shape"),
        ((X, KEYS, NEGATIVES[:, :2]), ValueError, "negatives must be"),
        ((X, KEYS, NEGATIVES[None]), ValueError, "negatives must be"),
        ((X, KEYS, None, 0.0), ValueError, "temperature must"),
    ],
)
def test_info_nce_checks_its_arguments(given, error, message):
    with pytest.raises(error, match=f"info_nce: {message}"):
        losses.info_nce(*given)
