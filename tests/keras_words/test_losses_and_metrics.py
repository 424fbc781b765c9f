"""Keras's argument order gives the values of this library's own functions, and compile reads it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.keras import losses, metrics

P, T = jnp.array([[0.2, 0.9], [0.4, 0.3]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
NAMES = ["binary_crossentropy", "categorical_crossentropy", "mean_squared_error", "mean_absolute_error"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_take_the_target_first(name):
    prediction = P / P.sum(-1, keepdims=True) if name.startswith("categorical") else P
    theirs, ours = getattr(losses, name), getattr(lo.losses, name)
    assert jnp.array_equal(theirs(T, prediction), ours(prediction, T))
    assert jnp.array_equal(theirs(y_true=T, y_pred=prediction), ours(prediction, T))
    assert list(inspect.signature(theirs).parameters)[:2] == ["y_true", "y_pred"]


def test_sparse_crossentropy_takes_the_labels_first():
    prediction, labels = jnp.array([[0.2, 0.8], [0.7, 0.3]]), jnp.array([1, 0])
    np.testing.assert_allclose(
        losses.sparse_categorical_crossentropy(labels, prediction), -np.log([0.8, 0.7]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mse", "mean_squared_error"),
        ("MSE", "mean_squared_error"),
        ("mae", "mean_absolute_error"),
        ("MAE", "mean_absolute_error"),
    ],
)
def test_short_names(alias, name):
    assert getattr(losses, alias) is getattr(losses, name)


def test_options_pass_through():
    z = jnp.array([[0.3, -0.2]])
    assert jnp.array_equal(
        losses.binary_crossentropy(T[:1], z, from_logits=True),
        lo.losses.binary_crossentropy(z, T[:1], from_logits=True),
    )


@pytest.mark.parametrize(
    ("name", "target", "prediction", "expected"),
    [
        ("binary_accuracy", [[0.0, 1.0], [1.0, 0.0]], [[0.2, 0.9], [0.4, 0.3]], [1.0, 0.5]),
        ("categorical_accuracy", [[0.0, 1.0], [1.0, 0.0]], [[0.2, 0.9], [0.4, 0.5]], [1.0, 0.0]),
        ("sparse_categorical_accuracy", [1, 0], [[0.2, 0.9], [0.4, 0.5]], [1.0, 0.0]),
        ("mean_squared_error", [[0.0, 1.0]], [[1.0, 1.0]], [0.5]),
        ("mean_absolute_error", [[0.0, 1.0]], [[1.0, 3.0]], [1.5]),
    ],
)
def test_metrics_give_one_value_per_example(name, target, prediction, expected):
    values = getattr(metrics, name)(jnp.array(target), jnp.array(prediction))
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"])
def test_compile_knows_the_metric(name):
    loss = {"binary": "bce", "categorical": "cce", "sparse": "scce"}[name.split("_")[0]]
    program = lo.compile(lambda p, x: x, optimizer="sgd", loss=loss, metrics=[getattr(metrics, name)])
    assert list(program.metrics) == [name]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("huber", {}),
        ("huber", {"delta": 0.3}),
        ("log_cosh", {}),
        ("cosine_similarity", {}),
        ("kl_divergence", {}),
        ("poisson", {}),
        ("hinge", {}),
        ("squared_hinge", {}),
        ("categorical_hinge", {}),
        ("binary_focal_crossentropy", {}),
        ("categorical_focal_crossentropy", {}),
        ("mean_absolute_percentage_error", {}),
        ("mean_squared_logarithmic_error", {}),
    ],
)
def test_values_are_those_of_keras(name, options):
    keras = pytest.importorskip("keras", reason="Keras is the peer")
    generator = np.random.default_rng(0)
    y_true, y_pred = (generator.dirichlet(np.ones(3), 4).astype(np.float32) for _ in range(2))
    if "hinge" in name:
        y_true = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]] * (2 if name != "categorical_hinge" else 1)
        y_true = y_true - (1 if name != "categorical_hinge" else 0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = getattr(keras.losses, name)(y_true, y_pred, **options)
    got = getattr(losses, name)(y_true, y_pred, **options)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_compile_reads_changed_losses():
    program = lo.compile(lambda p, x: x * p, optimizer="sgd", loss=losses.huber)
    state = program.init(jnp.float32(2.0))
    logs = program.evaluate(state, (jnp.ones((4, 1)), jnp.zeros((4, 1))), batch_size=4)
    np.testing.assert_allclose(logs["loss"], 1.5, rtol=1e-6)
