"""What 'accuracy' means, by loss, shapes and logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import metrics

NAN = np.nan


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ([0, 1, 1, 0], [0.2, 0.7, 0.9, 0.4], 1.0),
        ([[0], [1]], [[0.2], [0.3]], 0.5),
        ([0, 2], [[0.9, 0.0, 0.1], [0.9, 0.0, 0.1]], 0.5),
        ([[0], [2]], [[0.9, 0.0, 0.1], [0.9, 0.0, 0.1]], 0.5),
        ([[[0], [1]]], [[[0.9, 0.1], [0.9, 0.1]]], 0.5),
    ],
    ids=["(N,) twice", "(N, 1) twice", "(N,) and (N, C)", "(N, 1) and (N, C)", "sequences"],
)
def test_by_shapes(target, prediction, expected):
    assert metrics.accuracy()(jnp.array(prediction), jnp.array(target)) == expected


def test_ambiguous_shapes_say_what_to_name():
    with pytest.raises(ValueError, match=r"'binary_accuracy'.*'categorical_accuracy'"):
        metrics.accuracy()(jnp.ones((4, 3)), jnp.ones((4, 3)))


@pytest.mark.parametrize(
    ("task", "target", "prediction", "expected"),
    [
        # three independent labels, two of them right
        ("binary", [[1, 1, 0]], [[0.1, 0.9, 0.1]], 2 / 3),
        # all wrong, though argmax says class 0 for both
        ("binary", [[0, 0, 0]], [[0.9, 0.9, 0.9]], 0.0),
        ("categorical", [[0, 1, 0]], [[0.1, 0.4, 0.2]], 1.0),
        ("sparse", [1], [[0.1, 0.4, 0.2]], 1.0),
    ],
)
def test_by_loss(task, target, prediction, expected):
    metric = metrics.accuracy().resolve(task)
    assert metric.name == "accuracy"
    np.testing.assert_allclose(metric(jnp.array(prediction), jnp.array(target)), expected, rtol=1e-6)


@pytest.mark.parametrize(("logits", "expected"), [(True, 1.0), (False, 0.0), (None, 0.0)])
def test_logits_have_their_threshold_at_zero(logits, expected):
    for metric in (metrics.accuracy().resolve("binary", logits), metrics.binary_accuracy().resolve(None, logits)):
        assert metric(jnp.array([0.3]), jnp.array([1])) == expected
    assert metrics.accuracy(from_logits=logits)(jnp.array([0.3]), jnp.array([1])) == expected


def test_a_threshold_of_ones_own_stays():
    assert metrics.binary_accuracy(0.2).resolve("binary", True)(jnp.array([0.1]), jnp.array([0])) == 1


def test_what_was_said_is_not_overruled():
    assert metrics.binary_accuracy(from_logits=False).resolve("binary", True)(jnp.array([0.3]), jnp.array([0])) == 1


@pytest.mark.parametrize(
    ("metric", "task"),
    [
        (metrics.accuracy(), "regression"),
        (metrics.sparse_categorical_accuracy(), "binary"),
        (metrics.sparse_categorical_accuracy(), "categorical"),
        (metrics.categorical_accuracy(), "sparse"),
        (metrics.binary_accuracy(), "sparse"),
        (metrics.mean_squared_error(), "sparse"),
        (metrics.r2_score(), "binary"),
        (metrics.accuracy(0.3), "sparse"),
    ],
)
def test_a_metric_that_does_not_fit_the_loss(metric, task):
    with pytest.raises(ValueError, match=metric.name):
        metric.resolve(task)


@pytest.mark.parametrize(
    ("metric", "prediction", "target"),
    [
        (metrics.binary_accuracy(), [NAN, NAN], [0, 1]),
        (metrics.categorical_accuracy(), [[NAN, 0.1]], [[1, 0]]),
        (metrics.sparse_categorical_accuracy(), [[NAN, NAN], [0.1, NAN]], [0, 1]),
    ],
)
def test_nan_is_never_right(metric, prediction, target):
    assert metric(jnp.array(prediction), jnp.array(target)) == 0


def test_the_first_of_equal_classes_counts():
    prediction = jnp.array([[0.3, 0.3, 0.3]] * 3)
    assert metrics.sparse_categorical_accuracy()(prediction, jnp.array([0, 1, 2])) == pytest.approx(1 / 3)


def test_bool_targets():
    assert metrics.binary_accuracy()(jnp.array([0.2, 0.9]), jnp.array([False, True])) == 1
