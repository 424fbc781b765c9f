"""Smoothed functions: optax's with the same key, and what their means and derivatives are known to be."""

import inspect
import math
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.test_util import check_grads

import lossopt_jax as lo

T = lo.transforms
NOISES = {"gumbel": (T.Gumbel(), optax.perturbations.Gumbel()), "normal": (T.Normal(), optax.perturbations.Normal())}


def loose(function):
    """With the promotion that optax needs."""

    def call(*args):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args)

    return call


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def choice(x):
    return jax.nn.one_hot(jnp.argmax(x), x.size, dtype=x.dtype)


def ranks_of(tree):
    """Trees in, trees out, without any derivative, of several dtypes."""
    order = jnp.sum(tree["a"][:, None] > tree["a"][None], axis=1)
    return {"order": order, "sign": [jnp.sign(tree["b"] - jnp.mean(tree["a"]))], "largest": jnp.max(tree["a"])}


# ---------------------------------------------------------------------------------------------------------- optax's


def test_arguments_are_optax_s():
    theirs = inspect.signature(optax.perturbations.make_perturbed_fun).parameters
    ours = inspect.signature(T.make_perturbed_fun).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in set(theirs) - {"noise"}:
        assert ours[name].default == theirs[name].default
    assert ours["noise"].default == T.Gumbel()


@pytest.mark.parametrize(
    ("name", "use_baseline"),
    [
        ("gumbel", True),
        pytest.param("normal", False, marks=pytest.mark.slow),
        pytest.param("gumbel", False, marks=pytest.mark.slow),
        pytest.param("normal", True, marks=pytest.mark.slow),
    ],
)
def test_it_is_optax_s(name, use_baseline, x64, key):
    """Value, derivatives forward and reverse, and a second one: sample by sample."""
    tree, along = ({"a": normal(4, seed=seed), "b": normal(2, 2, seed=seed + 1)} for seed in (0, 2))
    weights = normal(4, seed=4)

    def derivatives(fun, key, tree):
        def scalar(tree):
            out = fun(key, tree)
            return jnp.sum(out["order"] * weights) + jnp.sum(out["sign"][0]) * out["largest"], out

        return jax.jvp(jax.value_and_grad(scalar, has_aux=True), (tree,), (along,))

    noise, theirs = NOISES[name]
    peer = optax.perturbations.make_perturbed_fun(ranks_of, 60, 0.3, theirs, use_baseline)
    expected = loose(jax.jit(partial(derivatives, peer)))(key, tree)
    mine = T.make_perturbed_fun(ranks_of, 60, 0.3, noise, use_baseline)
    found = jax.jit(partial(derivatives, mine))(key, tree)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), found, expected)


def test_slices_change_nothing(x64, key):
    """Of the slices the last is shorter."""
    x, along = normal(4), normal(4, seed=1)

    def derivatives(size):
        smooth = partial(T.make_perturbed_fun(choice, 60, 0.3, batch_size=size), key)
        forward = jax.jvp(smooth, (x,), (along,))
        return forward, jax.grad(lambda x: jnp.sum(along * smooth(x)))(x)

    whole, sliced = jax.jit(lambda: (derivatives(None), derivatives(25)))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), sliced, whole)


# ------------------------------------------------------------------------------------------------- known in the mean


def near(draws, expected):
    """The mean of independent draws is within five standard errors of what it should be."""
    draws = np.asarray(draws, np.float64)
    error = draws.std(axis=0, ddof=1) / math.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - expected) <= 5 * error + 1e-12)
    assert np.all(error < 0.1 * np.max(np.abs(expected)))  # enough draws to say anything


def test_a_perturbed_choice_is_the_softmax(x64):
    x, sigma = normal(4, scale=0.5), 0.7
    smooth = T.make_perturbed_fun(choice, 400, sigma)
    keys = jax.random.split(jax.random.key(1), 200)
    values, jacobians = jax.jit(jax.vmap(lambda k: (smooth(k, x), jax.jacrev(partial(smooth, k))(x))))(keys)
    p = np.asarray(jax.nn.softmax(x / sigma))
    near(values, p)
    near(jacobians, (np.diag(p) - np.outer(p, p)) / sigma)


def test_derivatives_to_the_second_order_and_in_sigma(x64):
    """E (x + σz)⁺ = x Φ(x/σ) + σ φ(x/σ): derivatives Φ in x, φ/σ twice in x, φ in σ, −xφ/σ² in both."""
    point, spread = 0.3, 0.8

    def smooth(key, x, sigma):
        return T.make_perturbed_fun(jax.nn.relu, 400, sigma, T.Normal())(key, x)

    def all_of(key):
        of = partial(smooth, key)
        first, second = jax.grad(of, (0, 1)), jax.jacfwd(jax.grad(of), (0, 1))
        return (of(point, spread), *first(point, spread), *second(point, spread))

    density = scipy.stats.norm.pdf(point / spread)
    share = scipy.stats.norm.cdf(point / spread)
    expected = point * share + spread * density, share, density, density / spread, -point * density / spread**2
    draws = jax.jit(jax.vmap(all_of))(jax.random.split(jax.random.key(2), 2000))
    for found, value in zip(draws, expected, strict=True):
        near(found, value)


def drawn(key, count, size):
    """The samples of one array: a key for each, of which the first part is the array's."""
    keys = jax.random.split(key, count)
    return np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.split(key, 1)[0], (size,)))(keys))


def test_a_linear_function_with_normal_noise(x64, key):
    """(1/n) Σ zzᵀ a, wherever x is: of the baseline nothing is left but what is linear in z."""
    a, sigma = normal(5), 0.2
    smooth = T.make_perturbed_fun(lambda x: jnp.sum(a * x), 50, sigma, T.Normal())
    z = drawn(key, 50, 5)
    both = jax.jit(jax.value_and_grad(smooth, 1))
    for x in (jnp.zeros(5), normal(5, seed=3, scale=1e3)):
        value, gradient = both(key, x)
        np.testing.assert_allclose(value, np.mean((np.asarray(x) + sigma * z) @ a), rtol=1e-12)
        np.testing.assert_allclose(gradient, z.T @ z @ a / 50, rtol=1e-8)
    plain = T.make_perturbed_fun(lambda x: jnp.sum(a * x), 50, sigma, T.Normal(), use_baseline=False)
    x = normal(5, seed=3)
    expected = ((np.asarray(x) + sigma * z) @ a) @ z / (50 * sigma)
    np.testing.assert_allclose(jax.jit(jax.grad(plain, 1))(key, x), expected, rtol=1e-12)


# ----------------------------------------------------------------------------------------------- types, memory, form


def test_types_of_what_comes_out(key):
    def fun(tree):
        x = tree["x"]
        assert x.dtype == jnp.bfloat16
        return {"half": x, "count": jnp.argmax(x), "truth": x > 0, "wave": jnp.exp(1j * tree["y"])}, tree["n"]

    smooth = T.make_perturbed_fun(fun, 256)
    given = {"x": jnp.ones(3, jnp.bfloat16), "y": jnp.ones(2), "n": None}
    along = jax.tree.map(jnp.ones_like, given)
    (out, none), tangents = jax.jit(lambda x, v: jax.jvp(partial(smooth, key), (x,), (v,)))(given, along)
    assert none is None
    types = {"half": jnp.bfloat16, "count": jnp.float32, "truth": jnp.float32, "wave": jnp.complex64}
    assert {name: leaf.dtype for name, leaf in out.items()} == types
    assert all(np.isfinite(np.asarray(leaf, np.complex64)).all() for leaf in jax.tree.leaves(tangents))
    mean = 1 + 0.1 * 0.5772
    np.testing.assert_allclose(np.float32(out["half"]), mean, atol=5 * 0.1 * math.pi / math.sqrt(6 * 256))


def test_the_score_keeps_its_digits_where_x_is_large(key):
    """In float32 (x + σz − x)/σ would be off by up to 0.004 at x = 10⁵ with σ = 1."""
    x = jnp.full(4, 1e5, jnp.float32)
    smooth = T.make_perturbed_fun(lambda x: jnp.sum(x - 1e5), 200, 1.0, T.Normal())
    z = drawn(key, 200, 4).astype(np.float64)
    seen = (np.asarray(x) + z.astype(np.float32)).astype(np.float64) - 1e5
    np.testing.assert_allclose(jax.jit(jax.grad(smooth, 1))(key, x), np.sum(seen, axis=1) @ z / 200, rtol=2e-6)


def test_memory_is_bounded_by_a_slice(key):
    def temporaries(**options):
        smooth = T.make_perturbed_fun(lambda x: jnp.sort(x), 1000, **options)
        grad = jax.jit(jax.grad(lambda key, x: jnp.sum(smooth(key, x) ** 2), 1))
        return grad.lower(key, jnp.ones(1000)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(batch_size=10) < 1e6 < 4e6 < temporaries()


def test_no_derivative_of_the_function_is_taken(key):
    def outside(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x.max(-1)), shape, x, vmap_method="expand_dims")

    for size in (None, 4):
        smooth = T.make_perturbed_fun(outside, 10, batch_size=size)
        assert np.isfinite(jax.jit(jax.grad(smooth, 1))(key, jnp.arange(3.0))).all()


def test_what_is_refused(key):
    make = T.make_perturbed_fun
    for wrong in ({"num_samples": 0}, {"sigma": 0.0}, {"sigma": -1.0}, {"batch_size": 0}, {"num_samples": 1.5}):
        with pytest.raises(ValueError, match=rf"make_perturbed_fun: {next(iter(wrong))} must be"):
            make(choice, **wrong)
    with pytest.raises(TypeError, match=r"noise must have sample and log_prob"):
        make(choice, noise="gumbel")
    with pytest.raises(TypeError, match=r"fun must be a function"):
        make(3.0)
    with pytest.raises(TypeError, match=r"make_perturbed_fun: the leaf at 'a' must be a real floating array, got int"):
        make(choice)(key, {"a": jnp.arange(3)})


# ---------------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("name", NOISES)
def test_densities_are_scipy_s_and_draws_optax_s(name, x64, key):
    ours, theirs = NOISES[name]
    law = {"gumbel": scipy.stats.gumbel_r, "normal": scipy.stats.norm}[name]
    z = np.linspace(-4, 9, 50)
    np.testing.assert_allclose(ours.log_prob(jnp.asarray(z)), law.logpdf(z), rtol=1e-13)
    difference = ours.log_prob(jnp.asarray(z)) - theirs.log_prob(jnp.asarray(z))
    np.testing.assert_allclose(difference, difference[0], atol=1e-13)
    for arguments in ((), ((3, 2),), ((4,), jnp.float32)):
        np.testing.assert_array_equal(ours.sample(key, *arguments), theirs.sample(key, *arguments))
    assert scipy.stats.kstest(np.asarray(ours.sample(key, (2000,))), law.cdf).pvalue > 1e-3
    assert ours == type(ours)() == pickle.loads(pickle.dumps(ours))
    assert ours.log_prob(jnp.bfloat16(1)).dtype == jnp.float32


def test_multi_normal_is_optax_s_and_scipy_s(x64, key):
    loc, log_scale, x = normal(3, 2), normal(2, seed=1), normal(5, 3, 2, seed=2)
    ours, theirs = T.multi_normal(loc, log_scale), loose(optax.multi_normal)(loc, log_scale)
    density = scipy.stats.multivariate_normal(np.ravel(loc), np.diag(np.tile(np.exp(2 * np.asarray(log_scale)), 3)))
    np.testing.assert_allclose(ours.log_prob(x), density.logpdf(np.reshape(x, (5, 6))), rtol=1e-12)
    np.testing.assert_allclose(ours.log_prob(x), loose(theirs.log_prob)(x), rtol=1e-12)
    np.testing.assert_allclose(ours.log_prob(x[0]), density.logpdf(np.ravel(x[0])), rtol=1e-12)
    np.testing.assert_allclose(ours.sample((4, 1), key), loose(theirs.sample)((4, 1), key), rtol=1e-14)
    assert ours.log_scale is log_scale
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    through = jax.jit(lambda law: jax.tree.map(jnp.asarray, law))(ours)
    jax.tree.map(np.testing.assert_array_equal, through.params, ours.params)
    check_grads(jax.jit(lambda *p: T.multi_normal(*p).log_prob(x)), (loc, log_scale), 1, rtol=1e-5)
    mean = jax.grad(lambda m: jnp.sum(T.multi_normal(m, log_scale).sample((7,), key)))(loc)
    np.testing.assert_allclose(mean, 7)


@pytest.mark.parametrize("log_scale", [-170.0, -100.0, 0.0, 80.0])
def test_multi_normal_of_extreme_scales(log_scale):
    law = T.multi_normal(jnp.ones(2), jnp.full(2, log_scale))
    np.testing.assert_allclose(law.log_prob(jnp.ones(2)), -2 * log_scale - math.log(2 * math.pi), rtol=1e-6)
    value = jax.grad(lambda s: T.multi_normal(jnp.ones(2), s).log_prob(jnp.ones(2)))(jnp.full(2, log_scale))
    np.testing.assert_array_equal(value, -1)


def test_multi_normal_takes_half_precision_and_names_what_is_wrong(key):
    law = T.multi_normal(jnp.ones(2, jnp.bfloat16), 0.0)
    assert law.sample((3,), key).dtype == law.log_prob(jnp.ones((3, 2), jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"multi_normal: loc and log_scale must have shapes that broadcast"):
        T.multi_normal(jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match=r"multi_normal: the leaf at 'loc' must be a real floating array, got int"):
        T.multi_normal(jnp.arange(2), jnp.ones(2))
    for x in (jnp.ones(3), jnp.ones(()), jnp.ones((2, 1))):
        with pytest.raises(ValueError, match=r"multi_normal.log_prob: x must have the shape \(…, \*\(2,\)\)"):
            law.log_prob(x)


# ------------------------------------------------------------------------------------------------------- a gradient


def test_scale_gradient_is_optax_s_and_works_forwards(x64):
    tree = {"a": normal(3), "b": [normal(2, 2, seed=1)]}

    def of(scaled, scale):
        def energy(tree):
            tree = jax.tree.map(jnp.sin, scaled(tree, scale))
            return jnp.sum(tree["a"]) ** 2 + jnp.sum(jnp.exp(tree["b"][0]))

        return energy

    scales = (0.0, 1.0, -0.7, 2)
    ours, theirs, forward = (
        jax.jit(lambda tree, make=make, f=f: [make(of(f, scale))(tree) for scale in scales])(tree)
        for make, f in ((jax.grad, T.scale_gradient), (jax.grad, optax.scale_gradient), (jax.jacfwd, T.scale_gradient))
    )
    traced = jax.jit(lambda scale: jax.value_and_grad(of(T.scale_gradient, scale))(tree))
    for scale, expected, *found in zip(scales, theirs, ours, forward, strict=True):
        value, gradient = traced(jnp.asarray(float(scale)))
        np.testing.assert_allclose(value, of(lambda tree, _: tree, 0)(tree), rtol=1e-14)
        for other in (*found, gradient):
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), other, expected)
    for scaled in (T.scale_gradient, optax.scale_gradient):  # of f(y) with dy/dx = s: s² f''
        second = jax.grad(jax.grad(lambda x, scaled=scaled: scaled(x, 0.5) ** 3))(2.0)
        np.testing.assert_allclose(second, 0.25 * 12)


def test_scale_gradient_leaves_values_alone():
    tree = {"h": jnp.ones(2, jnp.bfloat16), "i": jnp.arange(2), "n": None, "z": jnp.ones(1, jnp.complex64), "s": "text"}
    for scale in (0.5, jnp.float32(0.5)):
        out = T.scale_gradient(tree, scale)
        for name in tree:
            assert out[name] is tree[name] or (out[name].dtype == tree[name].dtype and np.all(out[name] == tree[name]))
    half = jax.grad(lambda x: 3 * T.scale_gradient(x, 0.5))(jnp.bfloat16(1))
    assert (half.dtype, float(half)) == (jnp.bfloat16, 1.5)
    unknown = jax.jit(jax.grad(lambda x, s: jnp.log(T.scale_gradient(x, s))))(0.0, 0.0)
    assert unknown == 0  # whatever the derivative
    with pytest.raises(ValueError, match=r"scale_gradient: scale must be a scalar"):
        T.scale_gradient(tree, jnp.ones(2))
