"""Lists against optax, angular margins against their definition, circles against Keras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)
S, Y, W = generator.normal(size=(5, 4)) * 2, generator.uniform(size=(5, 4)), generator.uniform(size=(5, 4))
WHERE = np.array([[1, 1, 0, 1]] * 4 + [[0, 0, 0, 0]], bool)


def same(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"where": WHERE}, {"where": WHERE, "weights": W}])
def test_ranking_is_optax_s(options, x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    given = {k: jnp.asarray(v) for k, v in options.items()}

    def theirs(s):
        return optax.losses.ranking_softmax_loss(s, jnp.asarray(Y), **given)

    def ours(s):
        where = options.get("where", np.ones_like(WHERE)).any(-1)
        return losses.mean(losses.ranking_softmax_loss(s, Y, **options), where=where)

    same(jax.value_and_grad(ours)(S), jax.value_and_grad(theirs)(jnp.asarray(S)))


@pytest.mark.parametrize("max_fun", [jax.scipy.special.logsumexp, lambda s: 0.5 * jnp.sum(jnp.square(s))])
def test_fenchel_young_is_optax_s(max_fun, x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    both = (module.make_fenchel_young_loss(max_fun) for module in (losses, optax.losses))
    same(*(jax.value_and_grad(lambda s, f=f: jnp.sum(f(s, jnp.asarray(Y))))(jnp.asarray(S)) for f in both))


def test_l25_a_score_of_minus_infinity_without_a_target():
    loss = losses.make_fenchel_young_loss(jax.scipy.special.logsumexp)
    assert loss(jnp.array([0.0, -jnp.inf, 1.0]), jnp.array([1.0, 0.0, 0.0])) == pytest.approx(1.3132617, rel=1e-6)
    with pytest.raises(ValueError, match="targets must have the shape"):
        loss(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises(TypeError, match="max_fun must be a function"):
        losses.make_fenchel_young_loss(3)


def test_angular_margins_by_their_definitions(x64):
    cosines, labels = np.tanh(S / 2), np.array([0, 3, 1, 2, 2])
    hot = np.eye(4)[labels].astype(bool)
    angle = np.arccos(cosines)
    wider = np.where(angle + 0.7 < np.pi, np.cos(angle + 0.7), cosines - 0.7 * np.sin(0.7))
    for name, target in (("cosface_loss", cosines - 0.7), ("arcface_loss", wider)):
        expected = losses.softmax_cross_entropy_with_integer_labels(5 * np.where(hot, target, cosines), labels)
        same(losses.registry[name](cosines, labels, margin=0.7, scale=5.0), expected)


def test_arcface_at_the_ends():
    for end in (1.0, -1.0):
        value, gradient = jax.value_and_grad(losses.arcface_loss)(jnp.array([end, 0.2, -0.3]), 0)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_circle_is_keras_s():
    keras = pytest.importorskip("keras", reason="Keras is the peer")
    x = generator.normal(size=(9, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 3, 3])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        expected = keras.losses.circle(labels, unit, gamma=10, margin=0.25)
    np.testing.assert_allclose(losses.circle_loss(x, labels, gamma=10.0, margin=0.25), expected, rtol=2e-5)


def test_circle_without_a_partner():
    for labels in ([0, 0, 0], [0, 1, 2]):
        value, gradient = jax.value_and_grad(lambda x, y=labels: losses.circle_loss(x, np.array(y)).sum())(jnp.eye(3))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
