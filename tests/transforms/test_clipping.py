"""Clips of gradients so long that the factor itself would vanish, and the functions that clips are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import lossopt_jax as lo

T = lo.transforms

LONG = {"w": jnp.array([[1.8e38, -0.6e38], [0.0, 1e20]]), "b": jnp.array([2.4e38, 1.0])}
CLIPS = {
    "clip_by_global_norm": (T.clip_by_global_norm, True),
    "clip_by_norm": (T.clip_by_norm, False),
    "correct_by_previous_gradient": (lambda c: T.correct_by_previous_gradient(gamma=0.0, max_norm=c), False),
    "adaptive_grad_clip": (lambda c: T.adaptive_grad_clip(c, axis=(0, 1)), False),
}


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("most", [1.0, 1e-3])
@pytest.mark.parametrize("name", CLIPS)
def test_a_norm_near_the_end_of_float32_is_clipped_to_the_bound(name, most, compiled):
    make, whole = CLIPS[name]
    tx = make(most)
    params = {"w": jnp.full((2, 2), 0.5), "b": jnp.full((2,), 0.5**0.5)}  # of norm 1
    update = jax.jit(tx.update) if compiled else tx.update
    clipped, _ = update(LONG, tx.init(params), params)
    for part, before in [(clipped, LONG)] if whole else [(clipped[k], LONG[k]) for k in LONG]:
        np.testing.assert_allclose(norm(part), most, rtol=1e-6)
        for u, g in zip(jax.tree.leaves(part), jax.tree.leaves(before), strict=True):
            exact = most * (np.asarray(g, np.float64) / norm(before))
            np.testing.assert_allclose(u, exact, rtol=1e-6, atol=1e-38)


def test_the_gradient_of_a_norm_near_the_end_of_float32():
    slope = jax.grad(T.global_norm)(LONG)
    np.testing.assert_allclose(norm(slope), 1, rtol=1e-6)


def test_private_gradients_near_the_end_of_float32_are_clipped_to_the_bound():
    tx = T.differentially_private_aggregate(1.0, 0.0, seed=0)
    params = jax.tree.map(jnp.zeros_like, LONG)
    examples = jax.tree.map(lambda g: jnp.stack([g, 0 * g]), LONG)
    total, _ = tx.update(examples, tx.init(params), params)
    np.testing.assert_allclose(norm(total), 0.5, rtol=1e-6)


# ------------------------------------------------------------------------------------------- the functions, as optax's


def loosely(function, *args, **options):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return function(*args, **options)


def assert_same(mine, theirs, tolerance=1e-14):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def normal(seed, *shape, complex_too=False):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_too else 0))


SAFE = [
    ((), {}, {}),
    ((5,), {}, {"keepdims": True}),
    ((5,), {"ord": 1}, {}),
    ((5,), {"ord": 3}, {"keepdims": True}),
    ((5,), {"ord": np.inf}, {}),
    ((5,), {"ord": 0}, {}),
    ((3, 4), {}, {}),
    ((3, 4), {"ord": "fro"}, {}),
    ((3, 4), {"ord": "nuc"}, {}),
    ((3, 4), {"ord": 2}, {}),
    ((3, 4), {"axis": 1}, {"keepdims": True}),
    ((3, 4), {"axis": -2, "ord": -np.inf}, {}),
    ((2, 3, 4), {"axis": (0, 2)}, {}),
    ((2, 3, 4), {"axis": (0, 2), "ord": 1}, {"keepdims": True}),
]


@pytest.mark.parametrize("complex_too", [False, True])
@pytest.mark.parametrize("case", SAFE)
@pytest.mark.usefixtures("x64")
def test_safe_norm_is_optax_s(case, complex_too):
    shape, options, more = case
    x = normal(0, *shape, complex_too=complex_too)
    for least in (1e-3, 1.5, 1e3):
        mine = T.safe_norm(x, least, **options, **more)
        theirs = loosely(optax.safe_norm, x, least, **options, **more) if shape else jnp.maximum(jnp.abs(x), least)
        np.testing.assert_allclose(mine, theirs, rtol=1e-14)
        assert mine.shape == theirs.shape


@pytest.mark.usefixtures("x64")
def test_safe_gradients():
    x = normal(0, 3, 4)
    for options in ({}, {"ord": 1}, {"axis": 1}, {"ord": "nuc"}):
        check_grads(jax.jit(lambda x, o=options: T.safe_norm(x, 0.1, **o)), (x,), 1, ["rev"], rtol=1e-5)
        slope = jax.grad(lambda x, o=options: jnp.sum(T.safe_norm(x, 0.1, **o)))(0 * x)
        assert not np.any(slope)
    check_grads(jax.jit(lambda x: T.safe_root_mean_squares(x, 0.1)), (x,), 1, ["rev"], rtol=1e-5)
    assert not np.any(jax.grad(T.safe_root_mean_squares)(0 * x, 0.0))
    for z in (x, normal(1, 5, complex_too=True)):
        for least in (1e-3, 2.0):
            mine, theirs = T.safe_root_mean_squares(z, least), loosely(optax.safe_root_mean_squares, z, least)
            np.testing.assert_allclose(mine, theirs, rtol=1e-14)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 2.0**127), (jnp.float32, 2.0**-120), (jnp.float16, 6e4)])
@pytest.mark.parametrize("ord", [None, 1, np.inf])
def test_safe_norms_fit_wherever_they_do(dtype, size, ord):
    x = jnp.zeros(8, dtype).at[3].set(size)
    assert T.safe_norm(x, 0.0, ord) == x[3].astype(jnp.float32)
    assert T.safe_norm(x, 0.0, ord).dtype == jnp.float32
    np.testing.assert_allclose(T.safe_root_mean_squares(x, 0.0), float(x[3]) / 8**0.5, rtol=1e-6)
    np.testing.assert_array_equal(T.unitwise_norm(x), jnp.full(8, x[3].astype(jnp.float32)))
    slope = jax.grad(lambda x: T.safe_norm(x.astype(jnp.float32), 0.0, ord))(x)
    assert slope[3] == 1


@pytest.mark.parametrize("ord", [None, 1, np.inf, -np.inf])
def test_safe_norms_keep_a_nan(ord):
    x = jnp.zeros(10000).at[3000].set(jnp.nan)
    assert jnp.isnan(T.safe_norm(x, 1.0, ord))
    assert jnp.isnan(T.safe_root_mean_squares(x, 1.0))


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (3, 4), (2, 3, 4), (2, 1, 3, 4), (2, 2, 2, 3, 4)])
@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.usefixtures("x64")
def test_units_are_optax_s(shape, axis):
    if axis is not None and not shape:
        pytest.skip("no axis")
    x, c = normal(0, *shape, complex_too=True), jnp.abs(normal(1, *shape))
    mine = T.unitwise_norm(x, axis)
    assert_same(mine, loosely(optax.transforms.unitwise_norm, x, axis))
    for most in (c, 0 * c, 10 + c):
        arguments = mine, most, x
        assert_same(T.unitwise_clip(*arguments), loosely(optax.transforms.unitwise_clip, *arguments))
        small = mine * 0 + 1e-8, most * 1e-9, x
        assert_same(T.unitwise_clip(*small), loosely(optax.transforms.unitwise_clip, *small))


def examples(seed, none=False):
    tree = {"a": normal(seed, 6, 3, 4), "b": [normal(seed + 1, 6), normal(seed + 2, 6, 5, complex_too=True)]}
    return tree | {"none": None} if none else tree


@pytest.mark.parametrize("most", [0.0, 1.5, 4.0, np.inf])
@pytest.mark.usefixtures("x64")
def test_examples_are_clipped_as_by_optax(most):
    grads = examples(0, none=True)
    mine, count = T.per_example_global_norm_clip(grads, most)
    theirs, number = loosely(optax.per_example_global_norm_clip, grads, most)
    assert_same(mine, theirs)
    assert int(count) == int(number)
    for uniform in (True, False):
        mine = T.per_example_layer_norm_clip(grads, most, uniform)
        theirs = loosely(optax.per_example_layer_norm_clip, grads, most, uniform)
        assert_same(mine[0], theirs[0])
        assert jax.tree.map(int, mine[1]) == jax.tree.map(int, theirs[1])


def test_an_example_that_is_not_finite_counts_as_zero():
    grads = {"w": jnp.array([[3.0, 4.0], [jnp.nan, 1.0], [jnp.inf, 1.0], [0.1, 0.0]], jnp.bfloat16), "n": None}
    total, count = T.per_example_global_norm_clip(grads, 1.0)
    assert count == 3
    assert total["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(total["w"], np.float32), [0.7, 0.8], rtol=2**-8)
    assert T.per_example_global_norm_clip({}, 1.0)[0] == {}
    assert T.per_example_layer_norm_clip([None], 1.0)[0] == [None]


def test_counts_stay_at_the_last():
    for dtype in (jnp.int8, jnp.uint8, jnp.int32, jnp.uint32, jnp.float32, jnp.bfloat16):
        last = (jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo)(dtype).max
        for count in (jnp.asarray(last, dtype), jnp.asarray([0, 3], dtype)):
            assert_same(T.safe_increment(count), loosely(optax.safe_increment, count), 0)
    assert T.safe_int32_increment is T.safe_increment


COMPLAINTS = {
    "count": (lambda: T.safe_increment(True), TypeError, "safe_increment: count must be"),
    "units": (lambda: T.unitwise_clip(jnp.ones(2), jnp.ones(1), jnp.ones(2)), ValueError, "unitwise_clip: g_norm"),
    "axis": (lambda: T.unitwise_norm(jnp.ones(2), 1), ValueError, "unitwise_norm: axis must"),
    "no examples": (lambda: T.per_example_global_norm_clip({"a": jnp.ones(())}, 1.0), ValueError, "gradient at 'a'"),
    "other examples": (
        lambda: T.per_example_layer_norm_clip([jnp.ones((2, 1)), None, jnp.ones((3, 1))], 1.0),
        ValueError,
        "per_example_layer_norm_clip: the gradient at '2' must have an axis of examples",
    ),
}


@pytest.mark.parametrize("make", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(make):
    call, kind, match = make
    with pytest.raises(kind, match=match):
        call()
