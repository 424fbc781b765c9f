"""Losses of masks against optax, the papers' definitions, and where optax and Keras go wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)
LOGITS = generator.normal(size=(2, 4, 3, 5)) * 2
HOT = np.eye(5)[generator.integers(0, 5, (2, 4, 3))]
MASK = (generator.uniform(size=LOGITS.shape) > 0.6).astype(np.float64)
WHERE = generator.uniform(size=LOGITS.shape) > 0.3
CASES = {
    "dice_loss": [
        {},
        {"alpha": 0.3, "beta": 0.9, "smooth": 0.1, "class_weights": np.arange(5.0)},
        {"reduction": "none", "axis": (1,), "ignore_background": True},
        {"reduction": "sum"},
    ],
    "multiclass_generalized_dice_loss": [{}, {"smooth": 0.2, "ignore_background": True}],
}


@pytest.mark.parametrize("name", CASES)
def test_dice_is_optaxs(name, x64):
    optax = pytest.importorskip("optax", reason="the peer")
    for options in CASES[name]:
        ours, theirs = (functools.partial(getattr(m, name), **options) for m in (losses, optax.losses))
        one, g = jax.vjp(ours, LOGITS, HOT)
        with jax.numpy_rank_promotion("allow"):
            two, h = jax.vjp(theirs, LOGITS, HOT)
        np.testing.assert_allclose(one, two, rtol=1e-6)
        v = generator.normal(size=one.shape)
        for a, b in zip(g(v), h(v), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_one_region_is_optaxs(x64):
    optax = pytest.importorskip("optax", reason="the peer")
    expected = optax.losses.binary_dice_loss(LOGITS, MASK, smooth=0.3)
    np.testing.assert_allclose(losses.binary_dice_loss(LOGITS, MASK, smooth=0.3), expected, rtol=1e-12)
    np.testing.assert_allclose(losses.dice_loss(LOGITS[..., None], MASK[..., None], smooth=0.3), expected, rtol=1e-12)


def test_tversky_is_the_papers(x64):
    axes, p = (1, 2, 3), 1 / (1 + np.exp(-LOGITS))
    kept = WHERE.astype(float)
    tp, fp, fn = ((x * kept).sum(axes) for x in (p * MASK, p * (1 - MASK), (1 - p) * MASK))
    expected = 1 - (tp + 0.5) / (tp + 0.2 * fp + 0.7 * fn + 0.5)
    options = {"alpha": 0.2, "beta": 0.7, "smooth": 0.5, "where": WHERE}
    spoiled = np.where(WHERE, LOGITS, np.nan)
    np.testing.assert_allclose(losses.tversky_loss(spoiled, MASK, **options), expected, rtol=1e-12)
    np.testing.assert_allclose(
        losses.focal_tversky_loss(spoiled, MASK, gamma=2.0, **options), expected**0.5, rtol=1e-12
    )
    gradient = jax.grad(lambda z: losses.tversky_loss(z, MASK, **options).sum())(spoiled)
    np.testing.assert_array_equal(gradient[~WHERE], 0)
    assert np.isfinite(gradient).all()


REGIONS = ["dice_loss", "binary_dice_loss", "tversky_loss", "focal_tversky_loss", "multiclass_generalized_dice_loss"]


@pytest.mark.parametrize("name", REGIONS)
def test_numbers_that_are_no_share_are_never_averaged(name):
    flag = {"dice_loss": "apply_softmax", "multiclass_generalized_dice_loss": "apply_softmax"}.get(
        name, "apply_sigmoid"
    )
    p = jnp.asarray(jax.nn.softmax(LOGITS), jnp.float32)
    t, where = jnp.asarray(HOT, jnp.float32), jnp.asarray(WHERE)
    place = tuple(np.argwhere(WHERE[1])[0])
    out, hidden = (1, *place), (1, *np.argwhere(~WHERE[1])[0])
    for argument, low, high in (("targets", -0.1, 1.1), ("predictions", -0.1, 1.2)):
        for wrong in (low, high):
            for index, where_ in ((out, None), (out, where), (hidden, where)):
                given = {"predictions": p, "targets": t}
                given[argument] = given[argument].at[index].set(wrong)

                def call(given, where_=where_):
                    return getattr(losses, name)(**given, where=where_, **{flag: False})

                expected = np.array([False, where_ is None or index == out])
                expected = expected if name != "multiclass_generalized_dice_loss" else expected.any()
                value = jax.jit(call)(given)
                gradient = jax.jit(jax.grad(lambda g, call=call: call(g).sum()))(given)["predictions"]
                np.testing.assert_array_equal(np.isnan(value), np.broadcast_to(expected, value.shape))
                assert bool(jnp.isnan(gradient[1]).all()) == expected.any()
                assert jnp.isfinite(gradient[0]).all() or value.ndim == 0
                if expected.any():
                    with pytest.raises(ValueError, match=rf"{name}: {argument} must be in \[0, 1\]"):
                        call(given)
                else:
                    call(given)
    logits = getattr(losses, name)(jnp.asarray(LOGITS, jnp.float32), t)
    assert jnp.isfinite(logits).all()


def test_lovasz_is_the_jaccard_loss_of_what_is_wrong(x64):
    """The surrogate of a set function equals it on sets: margins of 0 and 1."""
    bits = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    true, wrong = bits[:, :3], bits[:, 3:].astype(float)
    found = np.where(wrong, 1 - true, true)
    union, both = np.maximum(found, true).sum(-1), np.minimum(found, true).sum(-1)
    expected = np.where(union, 1 - both / np.maximum(union, 1), 0.0)
    logits = (2 * true - 1) * (1 - wrong)
    np.testing.assert_allclose(losses.lovasz_hinge(logits, true), expected, rtol=1e-12)


IMAGE, PIXELS = generator.dirichlet(np.ones(3), 9), np.array([0, 2, 2, 0, 0, 2, 0, 2, 2])


def jaccard_extension(errors, true):
    """Σ over the chain of sets of the largest errors, by the values of the set function."""

    def jaccard(wrong):
        found = true ^ wrong
        union = (true | found).sum()
        return 1 - (true & found).sum() / union if union else 0.0

    order = np.argsort(-errors)
    sets = [np.isin(np.arange(len(errors)), order[:k]) for k in range(len(errors) + 1)]
    return sum(errors[i] * (jaccard(sets[k + 1]) - jaccard(sets[k])) for k, i in enumerate(order))


@pytest.mark.parametrize("ignored", [None, 0, 7, -1])
def test_lovasz_softmax_is_the_papers(ignored, x64):
    labels = np.where(np.arange(9) == 4, PIXELS if ignored is None else ignored, PIXELS)
    kept = labels != ignored
    costs = [jaccard_extension(np.abs((labels == c) - IMAGE[:, c])[kept], (labels == c)[kept]) for c in range(3)]
    present = [c for c in range(3) if (labels[kept] == c).any()]
    options = {"ignore_index": ignored}
    for given, logits in ((IMAGE, False), (np.log(IMAGE) + 3, True)):
        got = losses.lovasz_softmax_loss(given, labels, logits, ignore_index=ignored)
        np.testing.assert_allclose(got, np.mean([costs[c] for c in present]), rtol=1e-12)
        got = losses.lovasz_softmax_loss(given, labels, logits, classes="all", ignore_index=ignored)
        np.testing.assert_allclose(got, np.mean(costs), rtol=1e-12)
    dropped = losses.lovasz_softmax_loss(IMAGE[kept], labels[kept])
    spoiled = np.where(kept[:, None], IMAGE, np.nan)
    value, gradient = jax.value_and_grad(lambda p: losses.lovasz_softmax_loss(p, labels, **options))(spoiled)
    np.testing.assert_allclose(value, dropped, rtol=1e-12)
    np.testing.assert_array_equal(gradient[~kept], 0)
    assert np.isfinite(gradient).all()


def test_lovasz_softmax_of_labels_that_are_wrong_or_ignored():
    p, labels = jnp.asarray(np.stack([IMAGE] * 3), jnp.float32), np.stack([PIXELS] * 3)
    labels[0, 0], labels[1] = 3, -1

    @jax.jit
    def step(labels):
        return jax.vmap(jax.value_and_grad(lambda p, y: losses.lovasz_softmax_loss(p, y, ignore_index=-1)))(p, labels)

    value, gradient = step(labels)
    np.testing.assert_array_equal(np.isnan(value), [True, False, False])
    np.testing.assert_array_equal(np.isnan(gradient).all((1, 2)), [True, False, False])
    assert value[1] == 0
    np.testing.assert_array_equal(gradient[1], 0)
    bad = jax.jit(losses.lovasz_softmax_loss)(p.at[1, 2, 0].set(1.5), np.stack([PIXELS] * 3))
    np.testing.assert_array_equal(np.isnan(bad), [False, True, False])
    for given, message in [
        ((p, labels), "labels must be in"),
        ((p, labels[:, :4]), "labels must have the shape"),
        ((p * 2, np.stack([PIXELS] * 3)), "probabilities must be in"),
        ((p, np.stack([PIXELS] * 3), False, "some"), "classes must be among"),
    ]:
        with pytest.raises(ValueError, match=f"lovasz_softmax_loss: {message}"):
            losses.lovasz_softmax_loss(*given)


def test_lovasz_of_large_masks_and_of_elements_that_are_sure():
    n = 1 << 18
    true = np.arange(n) % 4 == 0
    logits = np.linspace(0.9, -0.9, n)
    order = np.argsort(-(1 - np.where(true, 1, -1) * logits.astype(np.float32)), kind="stable")
    gradient = jax.grad(lambda z: losses.lovasz_hinge(z, true))(jnp.asarray(logits, jnp.float32))
    ranked = true[order]
    exact = np.where(ranked, 1.0, (true.sum() - np.cumsum(ranked)) / np.maximum(true.sum() + np.cumsum(~ranked) - 1, 1))
    exact /= true.sum() + np.cumsum(~ranked)
    np.testing.assert_allclose(np.abs(gradient)[order], exact, rtol=4 * 2.0**-23)
    value, gradient = jax.value_and_grad(lambda z: losses.lovasz_softmax_loss(z, np.array([0]), True))(
        jnp.array([[20.0, 0]])
    )
    np.testing.assert_allclose(value, 2.0611536181902037e-09, rtol=4 * 2.0**-23)
    np.testing.assert_allclose(gradient[0], [-2.0611536e-9, 2.0611536e-9], rtol=8 * 2.0**-23)


@pytest.mark.parametrize("name", ["dice_loss", "multiclass_generalized_dice_loss"])
def test_l14_jit_and_empty_masks(name):
    f = functools.partial(getattr(losses, name), apply_softmax=False, smooth=0.0)
    p, t = jnp.full((1, 4, 2), 0.5), jnp.ones((1, 4, 2))
    np.testing.assert_allclose(jax.jit(f)(p, t), 1 / 3, rtol=1e-6)
    value, gradient = jax.value_and_grad(lambda p: f(p, 0 * t).sum())(0 * p)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_l14_l26_large_masks_of_small_dtypes():
    hot = np.zeros((1, 512, 512, 3), np.float32)
    hot[..., 0], hot[:, :3, :3, :2] = 1, (0, 1)
    expected = losses.multiclass_generalized_dice_loss(np.zeros_like(hot), hot)
    frequency = np.array([512.0**2 - 9, 9, np.inf]) ** -2.0
    weights = 3 * frequency / frequency.sum()
    tp, total = hot.sum((0, 1, 2)) / 3, hot.sum((0, 1, 2)) + 512**2 / 3
    np.testing.assert_allclose(expected, np.mean(weights * (1 - (tp + 1) / (total / 2 + 1))), rtol=1e-5)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.int32):
        got = losses.multiclass_generalized_dice_loss(np.zeros_like(hot), jnp.asarray(hot, dtype))
        np.testing.assert_array_equal(got, expected)
    half = losses.multiclass_generalized_dice_loss(jnp.zeros(hot.shape, jnp.float16), jnp.asarray(hot, jnp.float16))
    np.testing.assert_array_equal(half, expected)


def test_k8_k10_alpha_weights_false_positives_and_two_empty_masks_cost_nothing():
    f = functools.partial(losses.tversky_loss, alpha=1.0, beta=0.0, smooth=0.0, apply_sigmoid=False)
    np.testing.assert_allclose(f(jnp.array([[1.0, 1], [1, 0]]), jnp.array([[1.0, 0], [1, 1]])), [0.5, 0], rtol=1e-6)
    none = jnp.zeros((1, 4))
    for g in (losses.binary_dice_loss, losses.tversky_loss, losses.focal_tversky_loss):
        value, gradient = jax.value_and_grad(lambda p, g=g: g(p, none, smooth=0.0, apply_sigmoid=False).sum())(none)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"smooth": -1.0}, ValueError, "smooth must"),
        ({"apply_softmax": 1}, TypeError, "apply_softmax must be True or False"),
        ({"ignore_background": None}, TypeError, "ignore_background must be True or False"),
        ({"reduction": "max"}, ValueError, "reduction must be among"),
        ({"class_weights": np.ones(3)}, ValueError, "class_weights must hold one per class"),
        ({"where": np.ones((2, 4, 5))}, TypeError, "where must be boolean"),
        ({"where": np.ones((2, 4), bool)}, ValueError, "where must have the shape"),
        ({"axis": 7}, ValueError, "axis must"),
        ({"targets": np.ones((2, 4, 1))}, ValueError, "targets must have the shape"),
        ({"predictions": np.ones((2, 4, 5), int)}, TypeError, "predictions must be floating"),
    ],
)
def test_arguments_are_checked(options, error, message):
    given = {"predictions": np.zeros((2, 4, 5), np.float32), "targets": np.zeros((2, 4, 5), np.float32), **options}
    with pytest.raises(error, match=f"dice_loss: {message}"):
        losses.dice_loss(**given)
