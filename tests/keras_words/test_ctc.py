"""Keras's CTC: 0 is the blank and pads the labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax.keras import losses


def test_ctc_is_that_of_keras():
    keras = pytest.importorskip("keras", reason="the peer")
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend")
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 5)), jnp.float32)
    labels = np.array([[1, 2, 2], [4, 0, 0], [3, 1, 0]], np.int32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = keras.losses.ctc(labels, z)
    np.testing.assert_allclose(losses.ctc(labels, z), theirs, rtol=1e-6)
    np.testing.assert_allclose(losses.ctc(y_true=labels, y_pred=z), theirs, rtol=1e-6)
    assert losses.ctc(np.array([[1, 1, 1]]), jnp.zeros((1, 2, 4)))[0] == np.inf
