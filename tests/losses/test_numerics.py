"""The rows of NUMERICS that losses answer, against 50 digits; u is one unit in the last place of float32."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lossopt_jax import losses

u = 2.0**-23
inf, nan = np.inf, np.nan
integer, dense = losses.softmax_cross_entropy_with_integer_labels, losses.softmax_cross_entropy
sigmoid, bce = losses.sigmoid_binary_cross_entropy, losses.binary_crossentropy
mp = mpmath.MPContext()
mp.dps = 50


def exact_softmax(z, t):
    """Value, gradient by logits and −log p of Σ t_j (−log p_j), in 50 digits."""
    z, t = [mp.mpf(float(v)) for v in z], [mp.mpf(float(v)) for v in t]
    normaliser = mp.log(mp.fsum(mp.exp(v) for v in z))
    surprise, mass = [normaliser - v for v in z], mp.fsum(t)
    gradient = [mass * mp.exp(-s) - w for s, w in zip(surprise, t, strict=True)]
    return mp.fdot(t, surprise), gradient, surprise


def exact_sigmoid(z, y):
    z, y = mp.mpf(float(z)), mp.mpf(float(y))
    value = y * mp.log1p(mp.exp(-z)) + (1 - y) * mp.log1p(mp.exp(z))
    return value, 1 / (1 + mp.exp(-z)) - y


def ulps(got, exact):
    """The largest relative error, in u; where the exact value is below float32's range, 0 is right."""
    pairs = zip(np.ravel(got), np.ravel(np.array(exact, object)), strict=True)
    return max((float(abs((mp.mpf(float(g)) - e) / e)) / u for g, e in pairs if abs(e) > 1e-37), default=0.0)


def one_hot(y, classes):
    return np.eye(classes, dtype=np.float32)[y]


def value_and_grad(f, *arguments, **options):
    return jax.jit(jax.value_and_grad(lambda z: f(z, *arguments, **options).sum()))


GRID = [
    *([k + 0.1 * j for j in range(3)] for k in (0, 100, -1000, 1e4)),
    *([a, -b, 0.3] for a in (3.1, 10.3, 17.7, 40.9, 80.2) for b in (0.1, 5.7)),
    [0.0, 0.0, 0.0],
    [60.0, 60.0, -1.0],
    [1e30, 0.0, -1e30],
]


def check_rows(logits, labels):
    """Integer and one-hot form, value and gradient, each within 4 u."""
    logits, classes = np.asarray(logits, np.float32), len(logits[0])
    for f, targets in ((integer, np.asarray(labels)), (dense, one_hot(labels, classes))):
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(f)))(logits, targets)
        for row, (z, y) in enumerate(zip(logits, labels, strict=True)):
            value, gradient, _ = exact_softmax(z, one_hot(y, classes))
            assert ulps(values[row], [value]) <= 4, z
            assert ulps(gradients[row], gradient) <= 4, z


@pytest.mark.parametrize("y", range(3))
def test_l1_l2_relative_precision(y):
    check_rows(GRID, [y] * len(GRID))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (10, 0), (10, 1000), (30, -1e4)])
def test_l1_random_logits_of_any_offset(scale, offset):
    generator = np.random.default_rng(0)
    check_rows(generator.normal(size=(40, 5)) * scale + offset, generator.integers(0, 5, 40))


def test_l2_half_precision_gradient():
    z = jnp.array([20.0, 0.0], jnp.bfloat16)
    value, gradient = value_and_grad(integer, 0)(z)
    assert value == pytest.approx(2.0611536e-9, rel=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), [-2.0611536e-9, 2.0611536e-9], rtol=4e-3)


def test_l2_soft_labels_and_their_gradient():
    generator = np.random.default_rng(1)
    for scale in (1, 20):
        z, t = (generator.normal(size=5) * scale).astype(np.float32), generator.dirichlet([1] * 5).astype(np.float32)
        value, _, surprise = exact_softmax(z, t)
        assert ulps(dense(z, t), [value]) <= 4
        assert ulps(jax.grad(lambda t, z=z: dense(z, t))(t), surprise) <= 4
        assert ulps(jax.jvp(lambda t, z=z: dense(z, t), (t,), (one_hot(2, 5),))[1], [surprise[2]]) <= 4


def test_l2_hessian_of_a_sure_prediction():
    hessian = jax.jit(jax.hessian(lambda z: integer(z, 0)))(jnp.array([20.0, 0.0]))
    np.testing.assert_allclose(hessian, 2.0611536e-9 * np.array([[1, -1], [-1, 1]]), rtol=4 * u)


def test_l3_half_precision_rows():
    z = jnp.asarray(np.random.default_rng(2).normal(size=(64, 1000)) * 3, jnp.bfloat16)
    y, wide = np.arange(64), np.asarray(z.astype(jnp.float32), np.float64)
    exact = np.log(np.exp(wide).sum(-1)) - wide[np.arange(64), y]
    got = integer(z, y)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, atol=1.4e-6)
    assert abs(losses.mean(got) - exact.mean()) <= 6.2e-7


def test_l4_many_classes():
    assert integer(jnp.zeros((1, 100_000), jnp.float16), [0])[0] == pytest.approx(np.log(1e5), rel=4 * u)


@pytest.mark.parametrize("form", ["dense", "integer", "categorical", "sparse"])
def test_l5_impossible_class(form):
    f, target = {
        "dense": (dense, one_hot(0, 3)),
        "integer": (integer, np.int32(0)),
        "categorical": (lambda z, t: losses.categorical_crossentropy(z, t, from_logits=True), one_hot(0, 3)),
        "sparse": (lambda z, t: losses.sparse_categorical_crossentropy(z, t, from_logits=True), np.int32(0)),
    }[form]
    z, p = jnp.array([0.0, -inf, 1.0]), 1 / (1 + np.exp(-1.0))
    value, gradient = value_and_grad(f, target)(z)
    assert value == pytest.approx(np.log1p(np.e), rel=4 * u)
    np.testing.assert_allclose(gradient, [-p, 0, p], rtol=4 * u)
    np.testing.assert_array_equal(jax.jit(jax.hessian(lambda z: f(z, target)))(z)[1], 0)
    if form in ("dense", "categorical"):
        np.testing.assert_allclose(
            jax.jit(jax.grad(f, 1))(z, target), [np.log1p(np.e), 0, np.log1p(np.e) - 1], rtol=4 * u
        )


@pytest.mark.parametrize("direction", [0, 2])
def test_l6_forward_mode(direction):
    z, t = jnp.array([0.0, -inf, 1.0]), one_hot(0, 3)
    expected = jax.grad(dense)(z, t)[direction]
    assert jax.jvp(lambda z: dense(z, t), (z,), (one_hot(direction, 3),))[1] == pytest.approx(expected, rel=4 * u)
    assert jax.jvp(lambda z: integer(z, 0), (z,), (one_hot(direction, 3),))[1] == pytest.approx(expected, rel=4 * u)
    assert jax.jvp(dense, (z, t), (one_hot(direction, 3), 0 * t))[1] == pytest.approx(expected, rel=4 * u)
    upstream = jax.jvp(lambda q: dense(jnp.log(q), t), (jnp.array([1.0, 0.0, np.e]),), (jnp.array([1.0, 1.0, 0.0]),))
    assert upstream[1] == pytest.approx(-1 / (1 + 1 / np.e), rel=8 * u)


def test_l6_row_of_impossible_classes_is_uniform():
    value, gradient = value_and_grad(integer, 0)(jnp.full(4, -inf))
    assert value == pytest.approx(np.log(4), rel=4 * u)
    np.testing.assert_array_equal(gradient, [-0.75, 0.25, 0.25, 0.25])


def test_l10_masked_classes_never_touch():
    z, t, where = jnp.array([1.0, nan, 2.0, inf]), jnp.array([0.25, nan, 0.75, 2.0]), np.array([1, 0, 1, 0], bool)
    expected, (gz, gt) = jax.jit(jax.value_and_grad(dense, (0, 1)))(z[where], t[where])
    value, (got_z, got_t) = jax.jit(jax.value_and_grad(lambda z, t: dense(z, t, where=where), (0, 1)))(z, t)
    np.testing.assert_allclose(value, expected, rtol=4 * u)
    np.testing.assert_allclose(got_z, [gz[0], 0, gz[1], 0], rtol=4 * u)
    np.testing.assert_allclose(got_t, [gt[0], 0, gt[1], 0], rtol=4 * u)
    value, gradient = value_and_grad(integer, 0, where=where)(z)
    np.testing.assert_allclose([value, *gradient], [1.3132617, -0.7310586, 0, 0.7310586, 0], rtol=4 * u)
    for f, label in ((integer, np.int32(0)), (dense, t)):
        for α in (0.0, 0.1):
            value, gradient = value_and_grad(f, label, where=np.zeros(4, bool), label_smoothing=α)(z)
            assert value == 0
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8])
def test_l11_labels_out_of_range(dtype):
    z, bad = jnp.array([[1.0, 2.0, 3.0]] * 3), [-1, 3, 100] if dtype != np.uint8 else [255, 3, 100]
    for f, predictions in ((integer, z), (losses.sparse_categorical_crossentropy, jax.nn.softmax(z))):
        for label in bad:
            y = np.array([0, label, 1], dtype)
            with pytest.raises(ValueError, match=r"be in \[0, 3\), got " + str(label)):
                f(predictions, y)
            step = jax.jit(jax.vmap(jax.value_and_grad(f)))
            value, gradient = step(predictions, y)
            np.testing.assert_array_equal(np.isnan(value), [False, True, False])
            np.testing.assert_array_equal(np.isnan(gradient), np.array([[False] * 3, [True] * 3, [False] * 3]))


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
@pytest.mark.parametrize("f", [integer, losses.sparse_categorical_crossentropy], ids=["logits", "keras"])
def test_l11_ignored_labels(f, ignore_index):
    z = jnp.array([[1.0, 2.0, 3.0], [0.5] * 3, [nan] * 3, [inf] * 3, [-inf] * 3])
    options = {"ignore_index": ignore_index} | ({} if f is integer else {"from_logits": True})
    value, gradient = value_and_grad(f, np.array([2] + [ignore_index] * 4), **options)(z)
    np.testing.assert_allclose(value, 0.4076059, rtol=4 * u)
    np.testing.assert_array_equal(gradient[1:], 0)


def test_l17_smoothing_over_the_classes_that_are_in():
    z, where = jnp.array([1.0, 2.0, 5.0]), np.array([True, True, False])
    expected, gradient = value_and_grad(integer, 0, label_smoothing=0.1)(z[:2])
    for f, label in ((integer, 0), (dense, one_hot(0, 3))):
        got, got_gradient = value_and_grad(f, label, where=where, label_smoothing=0.1)(z)
        np.testing.assert_allclose(got, expected, rtol=4 * u)
        np.testing.assert_allclose(got_gradient, [*gradient, 0], rtol=4 * u)


def check_limits(f, rows):
    z, y, values, gradients = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    y = y.astype(np.int32) if f is integer else y
    got, got_gradients = jax.jit(jax.vmap(jax.value_and_grad(f)))(z, y)
    np.testing.assert_allclose(got, values, rtol=4 * u)
    np.testing.assert_allclose(got_gradients, gradients, rtol=4 * u)
    assert not np.isnan(jax.jit(jax.vmap(jax.hessian(f)))(z, y)).any()


def test_l5_traced_smoothing_of_nothing():
    smoothed = jax.jit(lambda z, α: integer(z, 0, label_smoothing=α))
    assert smoothed(jnp.array([0.0, -inf, 1.0]), 0.0) == pytest.approx(np.log1p(np.e), rel=4 * u)


def test_l18_infinite_logits_of_two_outcomes():
    rows = [(inf, 1, 0, 0), (inf, 0, inf, 1), (-inf, 0, 0, 0), (-inf, 1, inf, -1), (inf, 0.5, inf, 0.5)]
    check_limits(sigmoid, rows)


def test_l18_infinite_logits_of_classes():
    rows = [
        ([inf, 0], 0, 0, [0, 0]),
        ([0, inf], 0, inf, [-1, 1]),
        ([0, -inf], 1, inf, [1, -1]),
        ([0, -inf], 0, 0, [0, 0]),
        ([inf, inf], 0, np.log(2), [-0.5, 0.5]),
    ]
    check_limits(integer, rows)
    check_limits(dense, [(z, one_hot(y, 2), *expected) for z, y, *expected in rows])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_sigmoid_form_of_any_finite_logit(dtype, y):
    z = jnp.asarray(np.array([0.0, *(s * v for v in np.geomspace(1e-6, 1e4, 41) for s in (1, -1))]), dtype)
    _, gradient = value_and_grad(sigmoid, jnp.full(z.shape, y))(z)
    exact = [exact_sigmoid(v, y) for v in np.asarray(z.astype(jnp.float32))]
    assert ulps(jax.jit(sigmoid)(z, jnp.full(z.shape, y)), [e[0] for e in exact]) <= 4
    if dtype == "float32" and y != 0.25:
        assert ulps(gradient, [e[1] for e in exact]) <= 4
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), [float(e[1]) for e in exact], rtol=float(jnp.finfo(dtype).eps), atol=1e-7
    )


def test_l19_squares_overflow_only_where_the_result_does():
    assert losses.l2_loss(jnp.float16(300.0)) == 45000
    assert losses.l2_loss(jnp.float32(2.4e19)) == pytest.approx(2.88e38, rel=4 * u)
    assert losses.squared_error(jnp.float32(1.8e19)) == pytest.approx(3.24e38, rel=4 * u)
    assert losses.squared_error(jnp.float32(1e20)) == inf


def test_l20_excluded_label():
    value, gradient = value_and_grad(integer, [2], where=[[True, True, False]])(jnp.array([[0.0, 1.0, 9.0]]))
    assert value == inf
    assert np.isfinite(gradient).all()


def test_l27_where_has_the_shape_of_the_logits():
    for f, label in ((integer, np.zeros(3, int)), (dense, np.eye(3))):
        with pytest.raises(ValueError, match="where must have the shape of logits"):
            f(jnp.ones((3, 3)), label, where=np.ones(3, bool))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_k1_perfect_probabilities_cost_exactly_nothing(dtype):
    p = jnp.array([[0.0], [1.0]], dtype)
    value, gradient = value_and_grad(bce, [[0], [1]])(p)
    assert value == 0
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [[1], [-1]])


def test_k1_wrong_probabilities_can_be_left():
    rows = [
        (0.0, 1.0, -np.log(1e-30), -1e30),
        (1.0, 0.0, -np.log(1e-30), 1e30),
        (1e-9, 1.0, -np.log(np.float32(1e-9)), -1e9),
        (1e-9, 0.0, 1e-9, 1.0),
        (1e-25, 1.0, -np.log(np.float64(np.float32(1e-25))), -1e25),
        (1 - 2**-24, 0.0, 24 * np.log(2), 2**24),
        (1 - 2**-24, 1.0, 2**-24, -1.0),
    ]
    p, y, values, gradients = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    got, got_gradients = jax.jit(jax.vmap(jax.value_and_grad(bce)))(p[:, None], y[:, None])
    np.testing.assert_allclose(got, values, rtol=4 * u)
    np.testing.assert_allclose(got_gradients[:, 0], gradients, rtol=4 * u)


@pytest.mark.parametrize("y", [0.0, 1.0, 0.3])
def test_k1_probabilities_against_50_digits(y):
    p = np.concatenate([np.geomspace(1e-20, 0.5, 30), 1 - np.geomspace(1e-7, 0.5, 30)]).astype(np.float32)
    q, t = [mp.mpf(float(v)) for v in p], mp.mpf(float(np.float32(y)))
    exact = [-t * mp.log(v) - (1 - t) * mp.log1p(-v) for v in q]
    assert ulps(bce(p[:, None], np.full((60, 1), y, np.float32)), exact) <= 4


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_k1_no_probability(y):
    p = np.array([[0.5, bad] for bad in (-3.0, -1e-6, 1.001, 2.0, nan)], np.float32)
    targets = np.full((5, 2), y, np.float32)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(bce)))(p, targets)
    assert np.isnan(value).all()
    np.testing.assert_array_equal(np.isnan(gradient), [[False, True]] * 5)
    for row in range(4):
        with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got .*from_logits=True"):
            bce(p[row], targets[row])


CATEGORICAL = [(losses.categorical_crossentropy, [[1.0, 0.0, 0.0]]), (losses.sparse_categorical_crossentropy, [0])]


@pytest.mark.parametrize(("f", "target"), CATEGORICAL, ids=["dense", "sparse"])
def test_k2_rows(f, target):
    value, gradient = value_and_grad(f, target)(jnp.zeros((1, 3)))
    np.testing.assert_allclose([value, *gradient[0]], [-np.log(1e-30), -1e30, 0, 0], rtol=4 * u)
    assert f(jnp.zeros((1, 3)), target)[0] == value
    for bad, must in (
        ([[2.0, 1.0, 1.0]], r"be in \[0, 1\]"),
        ([[-5.0, 2.0, 3.0]], r"be in"),
        ([[0.5, 0.2, 0.2]], "sum"),
    ):
        with pytest.raises(ValueError, match=must):
            f(jnp.array(bad), target)
    assert np.isnan(jax.jit(f)(jnp.array([[-5.0, 2.0, 3.0]]), jnp.asarray(target))[0])
    rounded = jax.nn.softmax(jnp.asarray(np.random.default_rng(3).normal(size=(64, 3)), jnp.bfloat16))
    assert np.isfinite(f(rounded, jnp.tile(jnp.asarray(target), (64, 1)) if f is CATEGORICAL[0][0] else [0] * 64)).all()
    certain = f(jnp.array([[1.0 + u, 0.0, 0.0]]), target)
    assert certain == 0


def test_k5_absolute_error_at_an_exact_hit():
    for f in (losses.absolute_error, losses.mean_absolute_error):
        np.testing.assert_array_equal(jax.grad(lambda p, f=f: f(p, jnp.ones(1)).sum())(jnp.ones(1)), 0)
    gradient = jax.grad(lambda p: losses.absolute_error(p, jnp.zeros(2)).sum())(jnp.array([-2.0, 3.0]))
    np.testing.assert_array_equal(gradient, [-1, 1])


def test_k7_weights():
    assert losses.mean([1.0, 1, 1, 1], weights=[2.0, 0, 0, 0]) == 1
    for bad in (nan, inf, -inf):
        value, gradient = jax.value_and_grad(lambda v: losses.mean(v, weights=[2.0, 0.0]))(jnp.array([0.5, bad]))
        assert value == 0.5
        np.testing.assert_array_equal(gradient, [1, 0])


def test_k11_smoothing_counts_the_classes_of_its_axis():
    targets, p = jax.nn.one_hot(jnp.zeros((1, 5), int), 2, axis=1), jnp.full((1, 2, 5), 0.5)
    got = losses.categorical_crossentropy(p, targets, label_smoothing=0.5, axis=1)
    np.testing.assert_allclose(got, np.full((1, 5), np.log(2)), rtol=4 * u)
    np.testing.assert_allclose(
        integer(0 * p, jnp.zeros((1, 5), int), axis=1, label_smoothing=0.5), np.full((1, 5), np.log(2)), rtol=4 * u
    )


def test_t3_nothing_to_learn_from():
    value, gradient = value_and_grad(lambda z: losses.mean(integer(z, [-100], ignore_index=-100)))(
        jnp.array([[0.0, 1]])
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert losses.mean(integer(jnp.zeros((0, 3)), jnp.zeros(0, int))) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("delta", [1.0, 100.0, 1e4])
def test_l7_huber_gradient_is_the_difference(dtype, delta):
    e = jnp.asarray([1e-5, -1e-3, 0.01, 0.1, -0.9], dtype)
    gradient = jax.jit(jax.vmap(jax.grad(lambda e: losses.huber_loss(e, jnp.zeros_like(e), delta))))(e)
    np.testing.assert_array_equal(gradient.astype(jnp.float32), e.astype(jnp.float32))


def test_k6_huber_of_what_squares_overflow():
    for f in (losses.huber_loss, losses.smooth_l1_loss):
        value, gradient = jax.value_and_grad(f)(jnp.float16(6e4), jnp.float16(0))
        assert value == pytest.approx(59999.5 - 0 * 60000, abs=40)
        assert gradient == 1
        value, gradient = jax.value_and_grad(f)(jnp.float32(3e38), jnp.float32(0))
        assert (value, gradient) == (pytest.approx(3e38, rel=1e-6), 1)


def test_l9_cosine_of_any_length():
    cosine = jax.jit(jax.vmap(jax.value_and_grad(losses.cosine_similarity)))
    a, b = np.array([[1.0, 2.0]], np.float32), np.array([[2.0, 1.0]], np.float32)
    lengths = np.array([1e-30, 1e-21, 1, 1e19, 1e38], np.float32)[:, None]
    values, gradients = cosine(lengths * a, np.repeat(b, 5, 0))
    np.testing.assert_allclose(values, 0.8, rtol=4 * u)
    np.testing.assert_allclose(gradients[:4] * lengths[:4], np.repeat([[0.24, -0.12]], 4, 0), rtol=1e-5)
    value, gradient = cosine(np.zeros((1, 2), np.float32), b)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert losses.cosine_similarity(jnp.array([1e-3, 0.0]), jnp.array([1.0, 0.0]), epsilon=1e-4) == 1
    one, two = np.float32([1, 2, 3]), np.float32([1.001, 2, 3])
    x, y = ([mp.mpf(float(v)) for v in vector] for vector in (one, two))
    exact = 1 - mp.fdot(x, y) / mp.sqrt(mp.fdot(x, x) * mp.fdot(y, y))
    assert losses.cosine_distance(one, two) == pytest.approx(float(exact), rel=1e-3)


def test_l10_masked_never_reaches_value_or_gradient():
    keep = np.array([True, True, False])
    bad, other = jnp.array([-1.0, -2.0, nan]), jnp.array([0.5, 0.2, inf])
    masked = [
        "cosine_similarity", "cosine_distance", "kl_divergence", "kl_divergence_with_log_targets",
        "generalized_kl_divergence", "jensen_shannon_divergence", "renyi_divergence", "bhattacharyya_distance",
        "hellinger_distance",
    ]  # fmt: skip
    for name in masked:
        f = losses.registry[name]
        targets = jnp.where(keep, other if "log" not in name else -other, inf)
        value, gradient = jax.value_and_grad(lambda p, f=f, t=targets: f(p, t, where=keep))(bad)
        expected, g = jax.value_and_grad(f)(bad[:2], targets[:2])
        np.testing.assert_allclose([value, *gradient], [expected, *g, 0], rtol=2e-6, atol=1e-8, err_msg=name)
        value, gradient = jax.value_and_grad(lambda p, f=f, t=targets: f(p, t, where=~(keep | True)))(bad)
        np.testing.assert_array_equal([value - float(name == "cosine_distance"), *gradient], 0, err_msg=name)


def test_l5_l22_divergences_where_nothing_is_expected():
    log_p, t = jnp.array([-0.7, -0.7, -inf]), jnp.array([0.5, 0.5, 0.0])
    for f in (losses.kl_divergence, losses.generalized_kl_divergence):
        for argument in (0, 1):
            assert np.isfinite(jax.grad(f, argument)(log_p, t)).all()
    with np.errstate(divide="ignore"):
        log_t = jnp.log(t)
    names = ("kl_divergence_with_log_targets", "jensen_shannon_divergence", "renyi_divergence", "hellinger_distance")
    for f in map(losses.registry.__getitem__, names):
        for argument in (0, 1):
            value, gradient = jax.value_and_grad(f, argument)(log_p, log_t)
            expected = f(log_p[:2], log_t[:2])
            assert value == pytest.approx(float(expected), rel=1e-6)
            assert np.isfinite(gradient).all()
    assert losses.kl_divergence(jnp.array([0.0, -inf]), jnp.array([0.5, 0.5])) == inf


def test_l23_generalized_divergence_of_what_is_near():
    p, t = np.float32([0.2501, 0.2499, 0.25, 0.25]), np.float32([0.25] * 4)
    log_p = jnp.log(p)
    terms = [(mp.mpf(float(a)), mp.mpf(1) / 4) for a in log_p]
    exact = mp.fsum(mp.exp(a) - quarter * (1 + a - mp.log(quarter)) for a, quarter in terms)
    assert losses.generalized_kl_divergence(log_p, t) == pytest.approx(float(exact), rel=2e-3)


def test_l23_divergence_of_probabilities_that_are_near():
    generator = np.random.default_rng(0)
    for size in (4, 30, 1000):
        t = generator.dirichlet(np.ones(size), 5).astype(np.float32)
        t[0, :2] = 0, 1e-30
        p = t * np.exp(np.geomspace(1e-4, 1.0, 5)[:, None] * generator.normal(size=t.shape))
        p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
        exact = [
            float(
                mp.fsum(mp.mpf(float(b)) * mp.log(mp.mpf(float(b)) / float(a)) for a, b in zip(*row, strict=True) if b)
            )
            for row in zip(p, t, strict=True)
        ]
        for f in (losses.kullback_leibler_divergence, jax.jit(losses.kullback_leibler_divergence)):
            np.testing.assert_allclose(f(p, t), exact, rtol=1e-5)
    p, t = jnp.float32([0.2501, 0.2499, 0.25, 0.25]), jnp.full(4, 0.25)
    value, gradient = jax.value_and_grad(losses.kullback_leibler_divergence, (0, 1))(p, t)
    quarter = mp.mpf(1) / 4
    exact = mp.fsum(quarter * mp.log(quarter / float(x)) for x in p)
    assert value == pytest.approx(float(exact), rel=4 * u)
    np.testing.assert_allclose(gradient[0], [float(-quarter / float(x)) for x in p], rtol=2 * u)
    np.testing.assert_allclose(gradient[1], [float(1 + mp.log(quarter / float(x))) for x in p], rtol=4 * u)
    value = losses.kullback_leibler_divergence(jnp.float32([0.359375, 0.640625]), jnp.float32([0.25, 0.75]))
    exact = mp.log(mp.mpf(0.25) / 0.359375) / 4 + 3 * mp.log(mp.mpf(0.75) / 0.640625) / 4
    assert value == pytest.approx(float(exact), rel=8 * u)


def test_poisson_of_a_rate_of_nothing():
    value, gradient = jax.value_and_grad(losses.poisson)(jnp.array([0.0]), jnp.array([3.0]))
    np.testing.assert_allclose([value, gradient[0]], [90 * np.log(10), -3e30], rtol=4 * u)


@pytest.mark.parametrize(
    "name", ["hinge_loss", "squared_hinge", "perceptron_loss", "soft_margin_loss", "sparsemax_loss"]
)
def test_l21_targets_of_the_other_encoding(name):
    f, z = losses.registry[name], jnp.array([3.0, -5.0])
    signed = name != "sparsemax_loss"
    good, bad = ([1, -1], [1, 0]) if signed else ([1, 0], [1, -1])
    with pytest.raises(ValueError, match=f"{name}: targets must be .* or say encoding="):
        f(z, np.array(bad))
    other = f(z, np.array(bad), encoding="binary" if signed else "signed")
    np.testing.assert_array_equal(f(z, np.array(good)), other)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(f)))(z, jnp.array(bad, jnp.float32))
    np.testing.assert_array_equal(np.isnan(value), [False, True])
    np.testing.assert_array_equal(np.isnan(gradient), [False, True])
    with pytest.raises(ValueError, match="encoding must be among"):
        f(z, np.array(good), encoding="ternary")


def test_margins_are_kinks_of_slope_nothing():
    for f, z in ((losses.hinge_loss, 1.0), (losses.perceptron_loss, 0.0), (losses.squared_hinge, 1.0)):
        np.testing.assert_array_equal(jax.grad(lambda z, f=f: f(z, np.ones(1)).sum())(jnp.full(1, z)), 0)
    for f, z in ((losses.multiclass_hinge_loss, [1.0, 0.0]), (losses.multiclass_perceptron_loss, [1.0, 1.0])):
        np.testing.assert_array_equal(jax.grad(f)(jnp.array(z), 0), 0)


@pytest.mark.parametrize(
    "name", ["multiclass_hinge_loss", "multiclass_perceptron_loss", "multiclass_sparsemax_loss", "multi_margin_loss"]
)
def test_l11_labels_of_multiclass_losses(name):
    f, z = losses.registry[name], jnp.array([[1.0, 2.0, 3.0]] * 3)
    with pytest.raises(ValueError, match=r"be in \[0, 3\), got 7"):
        f(z, np.array([0, 7, 1]))
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(f)))(z, jnp.array([0, 7, -1]))
    np.testing.assert_array_equal(np.isnan(value), [False, True, True])
    assert np.isnan(gradient[1:]).any(1).all()
    assert np.isnan(f(jnp.array([[1.0, nan, 3.0]]), [0])).all()


def test_l18_k3_focal_at_the_ends():
    z, y = jnp.array([inf, -inf, inf, -inf, 1e4, -1e4]), jnp.array([1.0, 0, 0, 1, 0, 1])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(losses.sigmoid_focal_loss)))(z, y)
    np.testing.assert_array_equal(value, [0, 0, inf, inf, 1e4, 1e4])
    np.testing.assert_array_equal(gradient, [0, 0, 1, -1, 1, -1])
    for gamma in (0.5, 2.0):
        for p in (0.0, 1.0):
            step = jax.value_and_grad(lambda p, g=gamma: losses.binary_focal_crossentropy(p, p, gamma=g).sum())
            value, gradient = step(jnp.full((1, 1), p, jnp.bfloat16))
            assert value == 0
            assert np.isfinite(gradient.astype(jnp.float32)).all()
    value = losses.categorical_focal_crossentropy(jnp.array([[0.0, 5000.0]]), jnp.array([[1.0, 0]]), from_logits=True)
    assert value == 1250


def test_k21_generalized_entropy_of_nothing():
    p = jnp.array([[0.0, 0.5, 0.5]])
    value, gradient = value_and_grad(losses.categorical_generalized_cross_entropy, [0])(p)
    assert value == pytest.approx(2, rel=4 * u)
    np.testing.assert_allclose(gradient, [[-1e15, 0, 0]], rtol=1e-4)


def test_t2_soft_margin_of_any_score():
    step = jax.jit(jax.vmap(jax.value_and_grad(losses.soft_margin_loss)))
    value, gradient = step(jnp.array([89.5, 1e30, -1e30]), jnp.array([-1.0, -1, -1]))
    np.testing.assert_array_equal(value, np.float32([89.5, 1e30, 0]))
    np.testing.assert_array_equal(gradient, [1, 1, 0])


def test_l23_a_student_near_its_teacher():
    teacher = np.log(np.float32([0.25] * 4))
    student = np.log(np.float32([0.2501, 0.2499, 0.25, 0.25]))
    wide = [np.float64(x) - np.log(np.exp(np.float64(x)).sum()) for x in (student, teacher)]
    exact = np.sum(np.exp(wide[1]) * (np.expm1(wide[0] - wide[1]) - (wide[0] - wide[1])))
    assert losses.distillation_loss(student, teacher) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "cosine_similarity"])
def test_a_vmap_chooses_once_for_the_whole_batch(name):
    """A `cond` under `vmap` is a select of both sides, which costs both."""
    f, x = losses.registry[name], jnp.ones((4, 3))
    for call in (f, jax.vmap(f), jax.vmap(jax.grad(f))):
        assert " cond[" in str(jax.make_jaxpr(call)(x, x))
