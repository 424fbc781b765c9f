"""Pairs and triplets against torch, and where it and optax go wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_rows import Y, Z
from loss_rows.triplets import PAIR_SIGNS, SIGNS, N

from lossopt_jax import losses


def same(ours, theirs, *arrays):
    """Values and gradients with respect to every array, in float64."""
    torch = pytest.importorskip("torch", reason="the peer")
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    expected = theirs(torch.nn.functional, *tensors)
    expected.sum().backward()
    values, pull = jax.vjp(ours, *[jnp.asarray(x) for x in arrays])
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-9)
    for gradient, tensor in zip(pull(jnp.ones_like(values)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("swap", [False, True])
def test_triplets_are_torchs(x64, swap):
    for p in (1.0, 2.0, 3.0):
        same(
            lambda a, b, c, p=p: losses.triplet_margin_loss(a, b, c, norm_degree=p, eps=0.0, margin=2.0, swap=swap),
            lambda F, a, b, c, p=p: F.triplet_margin_loss(a, b, c, 2.0, p, 0.0, swap, reduction="none"),
            *(Z, Y, N),
        )
    same(
        lambda a, b, c: losses.triplet_margin_with_distance_loss(a, b, c, swap=swap),
        lambda F, a, b, c: F.triplet_margin_with_distance_loss(a, b, c, swap=swap, reduction="none"),
        *(Z, Y, N),
    )


def test_triplet_is_optaxs(x64):
    optax = pytest.importorskip("optax", reason="the peer")
    for options in ({}, {"eps": 0.1, "margin": 3.0}, {"norm_degree": 4, "axis": 0}):
        ours, theirs = (
            losses.triplet_margin_loss(Z, Y, N, **options),
            optax.losses.triplet_margin_loss(Z, Y, N, **options),
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_pairs_are_torchs(x64):
    torch = pytest.importorskip("torch", reason="the peer")
    for margin in (0.0, 0.7):
        same(
            lambda a, b, m=margin: losses.margin_ranking_loss(a, b, PAIR_SIGNS, m),
            lambda F, a, b, m=margin: F.margin_ranking_loss(a, b, torch.tensor(PAIR_SIGNS), m, reduction="none"),
            *(Z, Y),
        )
        # torch adds 1e-12 to squared lengths
        x, y, t = (torch.tensor(v) for v in (1e4 * Z, 1e4 * Y, SIGNS))
        expected = torch.nn.functional.cosine_embedding_loss(x, y, t, margin, reduction="none")
        np.testing.assert_allclose(losses.cosine_embedding_loss(Z, Y, SIGNS, margin), expected.numpy(), rtol=1e-9)


def test_l13_norms_of_any_degree_and_size():
    a, p, n = np.zeros(2, np.float32), np.array([5.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    for degree in (1, 2, 3, np.inf):
        np.testing.assert_allclose(losses.triplet_margin_loss(a, p, n, norm_degree=degree), 5, rtol=1e-6)
    value, gradient = jax.value_and_grad(losses.triplet_margin_loss)(a, 4e37 * p, n)
    np.testing.assert_allclose(value, 2e38, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1, 1], rtol=1e-6)
    half = [jnp.asarray(x, jnp.float16) for x in (a, 60 * p, n)]
    np.testing.assert_allclose(losses.triplet_margin_loss(*half), 300, rtol=1e-6)


def test_nothing_moves_at_the_margin_and_where_vectors_are_equal():
    x = np.ones(3, np.float32)
    for f in (losses.triplet_margin_loss, losses.triplet_margin_with_distance_loss):
        np.testing.assert_array_equal(jax.grad(f)(x, x, x), 0)
    assert jax.grad(losses.margin_ranking_loss)(1.0, 1.0, 1) == 0
    np.testing.assert_array_equal(jax.grad(losses.cosine_embedding_loss)(0 * x, x, 1), 0)


def test_what_is_no_sign_is_refused():
    for f, x in ((losses.margin_ranking_loss, jnp.ones(1)), (losses.cosine_embedding_loss, jnp.ones((1, 2)))):
        with pytest.raises(ValueError, match="targets must be -1 or 1"):
            f(x, x, jnp.zeros(1))
        assert jnp.isnan(jax.jit(f)(x, x, jnp.zeros(1))).all()
