"""Keras's losses of regions and of circles, live, with its order and its words."""

import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax.keras import losses

keras = pytest.importorskip("keras", reason="Keras is the peer")
generator = np.random.default_rng(0)
P = generator.uniform(size=(2, 3, 4, 2)).astype(np.float32)
T = (generator.uniform(size=P.shape) > 0.5).astype(np.float32)


@pytest.fixture(autouse=True)
def keras_promotes():
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("axis", [None, (1, 2, 3), (1, 2), -1])
def test_dice_and_tversky_are_keras_s(axis):
    expected = keras.losses.dice(T, P, axis=axis)
    np.testing.assert_allclose(losses.dice(T, P, axis=axis), expected, rtol=1e-5, atol=1e-6)
    expected = keras.losses.tversky(T, P, alpha=0.2, beta=0.9, axis=axis)
    np.testing.assert_allclose(losses.tversky(T, P, 0.2, 0.9, axis=axis), expected, rtol=1e-5, atol=1e-6)


def test_regions_do_not_broadcast():
    with pytest.raises(ValueError, match="y_true must have the shape of y_pred"):
        losses.dice(T[:1], P)
    assert losses.dice(jnp.zeros((2, 3)), jnp.zeros((2, 3))) == 0


@pytest.mark.parametrize("references", [False, True])
def test_circle_is_keras_s(references):
    x, y = generator.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 0, 1, 2, 2])
    others, named = generator.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 1, 2])
    x, others = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, others))
    options = {"ref_labels": named, "ref_embeddings": others} if references else {}
    for remove in (True, False):
        expected = keras.losses.circle(y, x, **options, remove_diagonal=remove, gamma=3, margin=0.3)
        got = losses.circle(y, x, **options, remove_diagonal=remove, gamma=3.0, margin=0.3)
        some = np.isfinite(expected) & (np.asarray(expected) > 0)
        assert some.sum() >= 4
        np.testing.assert_allclose(got[some], np.asarray(expected)[some], rtol=2e-5)
    with pytest.raises(TypeError, match="remove_diagonal must be True or False"):
        losses.circle(y, x, remove_diagonal=1)
