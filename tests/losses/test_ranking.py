"""Lists against optax, angular margins against their definition, circles against Keras."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)
S, Y, W = generator.normal(size=(5, 4)) * 2, generator.uniform(size=(5, 4)), generator.uniform(size=(5, 4))
GRADES = np.array([[2, 0, 1, 3], [0, 1, 0, 1], [0, 0, 4, 0], [1, 1, 1, 1], [1, 0, 2, 0]], np.float64)
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


def kept(options):
    """The scores, labels and weights of each list that are in, in float64."""
    where, weights = options.get("where", np.ones_like(WHERE)), options.get("weights", np.ones_like(S))
    return [(s[k], y[k], w[k]) for s, y, w, k in zip(S, GRADES, weights, where, strict=True)]


def gains_and_best(y, w):
    gains = w * (2.0**y - 1)
    return gains, np.sum(-np.sort(-gains) / np.log2(np.arange(2, len(y) + 2)))


def list_mle(s, y, w):
    order = sorted(range(len(s)), key=lambda i: -y[i])
    return sum(w[i] * (np.log(np.exp(s[order[k:]]).sum()) - s[i]) for k, i in enumerate(order))


def approx_ndcg(s, y, w):
    gains, best = gains_and_best(y, w)
    ranks = 0.5 + (1 / (1 + np.exp((s[:, None] - s) / 0.7))).sum(-1)
    return 1 - np.sum(gains / np.log2(1 + ranks)) / best if best else 0.0


def lambda_rank(s, y, w):
    gains, best = gains_and_best(y, w)
    ranks = [1 + sum(s > own) for own in s]
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    swaps = [(gains[i] - gains[j]) * (1 / np.log2(1 + ranks[i]) - 1 / np.log2(1 + ranks[j])) for i, j in pairs]
    return sum(abs(d) * np.log1p(np.exp((s[j] - s[i]) / 0.7)) / best for d, (i, j) in zip(swaps, pairs, strict=True))


@pytest.mark.parametrize("options", [{}, {"where": WHERE, "weights": W}], ids=["plain", "where-weights"])
@pytest.mark.parametrize("paper", [list_mle, approx_ndcg, lambda_rank])
def test_lists_by_their_papers(paper, options, x64):
    loss = losses.registry[f"{paper.__name__}_loss"]
    given = {} if paper is list_mle else {"temperature": 0.7}
    expected = [paper(*one) for one in kept(options)]
    np.testing.assert_allclose(loss(S, GRADES, **options, **given), expected, rtol=1e-12)


LISTS = [losses.list_mle_loss, losses.approx_ndcg_loss, losses.lambda_rank_loss]


def test_lists_keep_the_bits_of_float64():
    scores = generator.normal(size=(6, 50)).astype(np.float32) + np.float32(1000)
    grades = generator.integers(0, 5, size=scores.shape)
    scores[0], grades[0] = np.linspace(1000, 1050, 50), np.arange(50) // 10
    for loss in LISTS:
        # a power of two: the rounding of a quotient x by another T changes e^x by |x| half units
        options = {} if loss is losses.list_mle_loss else {"temperature": 0.125}
        step = jax.vmap(jax.value_and_grad(functools.partial(loss, **options)))
        narrow = step(scores, grades.astype(np.float32))
        jax.config.update("jax_enable_x64", True)
        wide = jax.tree.map(np.asarray, step(scores.astype(np.float64), grades.astype(np.float64)))
        jax.config.update("jax_enable_x64", False)
        np.testing.assert_allclose(narrow[0], wide[0], rtol=4 * 2.0**-23)
        # of ApproxNDCG, a near tie at far ranks gives the difference of two slopes that are nearly equal
        bound = (32 if loss is losses.approx_ndcg_loss else 8) * 2.0**-23
        assert np.max(np.abs(narrow[1] - wide[1]) / np.abs(wide[1]).max(-1, keepdims=True)) < bound


@pytest.mark.parametrize("loss", LISTS)
def test_lists_at_the_ends(loss):
    grades = jnp.array([2.0, 0.0, 1.0])
    for where, labels in ((jnp.zeros(3, bool), grades), (None, 0 * grades)):
        scores = jnp.array([1.0, 2.0, 0.5]) if where is None else jnp.full(3, jnp.nan)
        value, gradient = jax.value_and_grad(loss)(scores, labels, where=where)
        if where is not None or loss is not losses.list_mle_loss:
            assert value == 0
            np.testing.assert_array_equal(gradient, 0)
    for scores in ([0.0, -np.inf, 3.0], [np.inf, 0.0, np.inf], [np.inf, 1.0, -np.inf]):
        value, gradient = jax.value_and_grad(loss)(jnp.array(scores), grades)
        assert not np.isnan(value)
        assert np.isfinite(gradient).all()


def test_equal_scores_and_equal_labels():
    """Where all scores are equal, the first step must still tell the items apart; equal labels are in position."""
    for loss in LISTS:
        assert jnp.argmin(jax.grad(loss)(jnp.zeros(3), jnp.array([0.0, 1.0, 0.0]))) == 1
    first, second = (losses.list_mle_loss(jnp.array(s), jnp.ones(2)) for s in ([3.0, 0.0], [0.0, 3.0]))
    np.testing.assert_allclose([first, second], np.log1p(np.exp([-3.0, 3.0])), rtol=1e-6)
    with pytest.raises(ValueError, match="approx_ndcg_loss: labels must be in"):
        losses.approx_ndcg_loss(jnp.zeros(2), jnp.array([-1.0, 1.0]))


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
