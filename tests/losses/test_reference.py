"""Against live optax, Keras and torch, in float64, through SEMANTICS §11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

random = np.random.default_rng(0)
Z, Y, SOFT = random.normal(size=(5, 3)) * 3, random.normal(size=(5, 3)), random.uniform(size=(5, 3))
P, Q = 1 / (1 + np.exp(-Z)), np.exp(Z) / np.exp(Z).sum(-1, keepdims=True)
SIMPLEX, INDEX = SOFT / SOFT.sum(-1, keepdims=True), np.array([2, 0, 1, 2, 1], np.int32)
WHERE = np.arange(3) != ((INDEX + 1) % 3)[:, None]


def agree(ours, theirs, predictions, targets):
    """Values and, for a peer that JAX can differentiate, gradients."""
    np.testing.assert_allclose(ours(predictions, targets), theirs(predictions, targets), rtol=1e-12)
    one, two = (jax.jit(jax.grad(lambda p, f=f: jnp.sum(f(p, targets)))) for f in (ours, theirs))
    np.testing.assert_allclose(one(predictions), two(predictions), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("squared_error", Y, {}),
        ("l2_loss", Y, {}),
        ("sigmoid_binary_cross_entropy", SOFT, {}),
        ("softmax_cross_entropy", SIMPLEX, {}),
        ("softmax_cross_entropy", SIMPLEX, {"axis": 0}),
        ("softmax_cross_entropy", SIMPLEX, {"where": WHERE}),
        ("softmax_cross_entropy_with_integer_labels", INDEX, {}),
        ("softmax_cross_entropy_with_integer_labels", INDEX, {"where": WHERE}),
        ("softmax_cross_entropy_with_integer_labels", np.array([1, 4, 0], np.int32), {"axis": 0}),
    ],
)
def test_optax(name, targets, options, x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    ours, theirs = losses.registry[name], getattr(optax, name)
    agree(lambda p, t: ours(p, t, **options), lambda p, t: theirs(p, t, **options), Z, targets)


def test_optax_smooth_labels(x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    hot = np.eye(3)[INDEX]
    expected = optax.softmax_cross_entropy(Z, optax.smooth_labels(hot, 0.2))
    np.testing.assert_allclose(losses.softmax_cross_entropy(Z, hot, label_smoothing=0.2), expected, rtol=1e-12)
    got = losses.softmax_cross_entropy_with_integer_labels(Z, INDEX, label_smoothing=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "options"),
    [
        ("mean_squared_error", Z, Y, {}),
        ("mean_absolute_error", Z, Y, {}),
        ("binary_crossentropy", P, SOFT, {}),
        ("binary_crossentropy", P, SOFT, {"label_smoothing": 0.2}),
        ("binary_crossentropy", Z, SOFT, {"from_logits": True, "label_smoothing": 0.2}),
        ("categorical_crossentropy", Q, SIMPLEX, {}),
        ("categorical_crossentropy", Q, SIMPLEX, {"label_smoothing": 0.2}),
        ("categorical_crossentropy", Z, SIMPLEX, {"from_logits": True}),
        ("sparse_categorical_crossentropy", Q, INDEX, {}),
        ("sparse_categorical_crossentropy", Z, INDEX, {"from_logits": True}),
        ("sparse_categorical_crossentropy", Z, INDEX, {"from_logits": True, "ignore_class": 2}),
    ],
)
def test_keras(name, predictions, targets, options, x64):
    keras = pytest.importorskip("keras", reason="Keras is the peer")
    ours, theirs = losses.registry[name], getattr(keras.losses, name)
    mine = {"ignore_index" if key == "ignore_class" else key: value for key, value in options.items()}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs(targets, predictions, **options)
    np.testing.assert_allclose(ours(predictions, targets, **mine), expected, rtol=2e-7)


@pytest.mark.parametrize(
    ("name", "function", "predictions", "targets", "mine", "theirs"),
    [
        ("mean_squared_error", "mse_loss", Z, Y, {}, {}),
        ("mean_absolute_error", "l1_loss", Z, Y, {}, {}),
        ("binary_crossentropy", "binary_cross_entropy", P, SOFT, {}, {}),
        ("sigmoid_binary_cross_entropy", "binary_cross_entropy_with_logits", Z, SOFT, {}, {}),
        ("softmax_cross_entropy", "cross_entropy", Z, SIMPLEX, {}, {}),
        ("softmax_cross_entropy", "cross_entropy", Z, SIMPLEX, {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("softmax_cross_entropy_with_integer_labels", "cross_entropy", Z, INDEX, {}, {}),
        (
            "softmax_cross_entropy_with_integer_labels",
            "cross_entropy",
            Z,
            INDEX,
            {"ignore_index": 2, "label_smoothing": 0.2},
            {"ignore_index": 2, "label_smoothing": 0.2},
        ),
    ],
)
def test_torch(name, function, predictions, targets, mine, theirs, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    p, t = torch.tensor(predictions, requires_grad=True), torch.tensor(targets)
    t = t.long() if t.dtype == torch.int32 else t
    expected = getattr(torch.nn.functional, function)(p, t, **theirs)
    expected.backward()
    counted = targets != mine.get("ignore_index") if targets.ndim == 1 else None

    def ours(p):
        return losses.mean(losses.registry[name](p, targets, **mine), where=counted)

    value, gradient = jax.jit(jax.value_and_grad(ours))(predictions)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=1e-10, atol=1e-14)
