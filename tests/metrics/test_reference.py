"""Against scikit-learn, and Keras where Keras is right."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from lossopt_jax import metrics

RNG = np.random.default_rng(3)
N = 200
P = RNG.uniform(size=N)
Y = (P + 0.4 * RNG.normal(size=N) > 0.5).astype(int)
ROWS = RNG.uniform(size=(N, 4))
LABELS = RNG.integers(0, 4, N)
W = RNG.uniform(size=N)


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("metric", "prediction", "target", "theirs"),
    [
        (metrics.binary_accuracy(), P, Y, lambda w: sk.accuracy_score(Y, P > 0.5, sample_weight=w)),
        (metrics.binary_accuracy(0.3), P, Y, lambda w: sk.accuracy_score(Y, P > 0.3, sample_weight=w)),
        (
            metrics.sparse_categorical_accuracy(),
            ROWS,
            LABELS,
            lambda w: sk.accuracy_score(LABELS, ROWS.argmax(1), sample_weight=w),
        ),
        (
            metrics.categorical_accuracy(),
            ROWS,
            np.eye(4)[LABELS],
            lambda w: sk.accuracy_score(LABELS, ROWS.argmax(1), sample_weight=w),
        ),
        (metrics.mean_squared_error(), P, 2.0 * Y, lambda w: sk.mean_squared_error(2.0 * Y, P, sample_weight=w)),
        (metrics.mean_absolute_error(), P, 2.0 * Y, lambda w: sk.mean_absolute_error(2.0 * Y, P, sample_weight=w)),
        (metrics.r2_score(), P, 0.5 * P + Y, lambda w: sk.r2_score(0.5 * P + Y, P, sample_weight=w)),
        (metrics.r2_score(4), ROWS, ROWS**2, lambda w: sk.r2_score(ROWS**2, ROWS, sample_weight=w)),
        (metrics.mean(), P, None, lambda w: np.average(P, weights=w)),
    ],
    ids=lambda value: value.name if isinstance(value, metrics.Metric) else "",
)
def test_scikit_learn(x64, metric, prediction, target, theirs, weights):
    target = None if target is None else jnp.asarray(target)
    mine = metric(jnp.asarray(prediction), target, weights=None if weights is None else jnp.asarray(weights))
    np.testing.assert_allclose(mine, theirs(weights), rtol=1e-12)


def test_r2_far_from_zero_in_float32():
    """Targets of 1e4 ± 1: sums of squares would lose every digit; moments keep them."""
    y = (1e4 + RNG.normal(size=500)).astype(np.float32)
    p = (y + 0.1 * RNG.normal(size=500)).astype(np.float32)
    metric = metrics.r2_score()
    state = metric.init()
    for s in range(0, 500, 50):
        state = metric.update(state, jnp.asarray(p[s : s + 50]), jnp.asarray(y[s : s + 50]))
    np.testing.assert_allclose(metric.compute(state), sk.r2_score(y.astype(float), p.astype(float)), rtol=1e-4)


@pytest.mark.parametrize(("prediction", "expected"), [([2.0, 2.0], 1.0), ([2.0, 3.0], 0.0)])
def test_r2_of_a_constant_target(prediction, expected):
    assert metrics.r2_score()(jnp.array(prediction), jnp.array([2.0, 2.0])) == expected
    target = jnp.full(7, 0.1)
    shift = jnp.linspace(0.0, 1.0 - expected, 7)
    assert metrics.r2_score()(target + shift, target) == expected


def test_live_keras_multi_label():
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    import jax

    y = (RNG.uniform(size=(N, 3)) > 0.5).astype(np.float32)
    p = RNG.uniform(size=(N, 3)).astype(np.float32)
    theirs = keras.metrics.BinaryAccuracy()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs.update_state(y, p)
        expected = float(theirs.result())
    np.testing.assert_allclose(metrics.binary_accuracy()(jnp.asarray(p), jnp.asarray(y)), expected, rtol=1e-6)
