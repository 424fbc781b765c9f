"""Curvature: optax's products and diagonals, a known Hessian, and what takes memory."""

import inspect
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

T = lo.transforms


def by_optax(name, *args):
    """Its second order helpers warn that they are to be removed."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore", DeprecationWarning)
        return jax.jit(lambda *rest: getattr(optax.second_order, name)(args[0], *rest))(*args[1:])


def loss(params, inputs, targets):
    hidden = jnp.tanh(inputs @ params["w"] + params["b"][None])
    return jnp.mean(jnp.square(hidden @ params["deep"][0] - targets)) + 0.3 * jnp.sin(params["deep"][1])


def batch(dtype=np.float64, rows=5):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "deep": [rng.normal(size=4), rng.normal(size=())]}
    given = params, rng.normal(size=(rows, 3)), rng.normal(size=rows)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), given)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


NAMES = ("hvp", "hessian_diag", "fisher_diag")


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_optax_s(name):
    theirs = list(inspect.signature(getattr(optax.second_order, name)).parameters)
    ours = inspect.signature(getattr(T, name)).parameters.values()
    assert [p.name for p in ours if p.kind is not p.KEYWORD_ONLY] == theirs


def test_they_are_optax_s(x64):
    params, x, y = batch()
    v = jnp.asarray(np.random.default_rng(1).normal(size=21))
    product = by_optax("hvp", loss, v, params, x, y)
    ours = jax.jit(partial(T.hvp, loss))
    tree = jax.tree.unflatten(jax.tree.structure(params), np.split(v, [4, 8, 9]))
    tree = jax.tree.map(lambda part, p: jnp.reshape(part, p.shape), tree, params)
    for direction in (v, tree):
        found = ours(direction, params, x, y)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
        np.testing.assert_allclose(flat(found), flat(product), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        jax.jit(partial(T.fisher_diag, loss))(params, x, y),
        by_optax("fisher_diag", loss, params, x, y),
        rtol=1e-12,
    )
    expected = by_optax("hessian_diag", loss, params, x, y)
    for size in (5, 100):
        found = jax.jit(partial(T.hessian_diag, loss, batch_size=size))(params, x, y)
        assert found.shape == (21,)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_a_known_hessian(x64):
    """Of w ↦ Σ xᵢ wᵢ³ + (w·y)²: 6 xᵢ wᵢ δᵢⱼ + 2 yᵢ yⱼ."""
    w, x, y = (jnp.asarray(v) for v in np.random.default_rng(3).normal(size=(3, 6)))
    matrix = np.diag(6 * x * w) + 2 * np.outer(y, y)

    def cubic(w, x, y):
        return jnp.sum(x * w**3) + jnp.sum(w * y) ** 2

    np.testing.assert_allclose(T.hessian_diag(cubic, w, x, y), np.diag(matrix), rtol=1e-13)
    np.testing.assert_allclose(T.hvp(cubic, y, w, x, y), matrix @ np.asarray(y), rtol=1e-13)
    gradient = 3 * x * w**2 + 2 * y * jnp.sum(w * y)
    np.testing.assert_allclose(T.fisher_diag(cubic, w, x, y), np.square(gradient), rtol=1e-13)


@pytest.mark.parametrize("reduce", [jnp.mean, jnp.sum])
def test_fisher_information_of_each_example(reduce, x64):
    """The mean of squares of gradients, taken one by one; not the square of their mean."""
    params, x, y = batch(rows=7)

    def nll(params, inputs, targets):
        return reduce(jnp.square(inputs["x"] @ params["deep"][0][:3] - targets)) / 2

    rows = [(np.asarray(x[i]) @ params["deep"][0][:3] - y[i]) * np.asarray(x[i]) for i in range(7)]
    expected = np.zeros(21)
    expected[4:7] = np.mean(np.square(rows), axis=0)
    for size in (3, 100):
        found = T.fisher_diag(nll, params, {"x": x}, y, per_example=True, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_half_precision_none_empty_and_no_parameters():
    x, y = (jnp.asarray(v, jnp.float32) for v in np.random.default_rng(3).normal(size=(2, 3)))
    half = {"w": x.astype(jnp.bfloat16), "n": None, "z": jnp.zeros((0, 2))}
    wide = half | {"w": half["w"].astype(jnp.float32)}

    def energy(p, x, y):
        w = p["w"].astype(jnp.float32)
        return jnp.sum(w * w) * jnp.sum(w * y) + jnp.sum(p["z"])

    for name, args in {"hessian_diag": (), "fisher_diag": (), "hvp": (y,)}.items():
        with jax.debug_nans():
            found, expected = (jax.jit(partial(getattr(T, name), energy))(*args, p, x, y) for p in (half, wide))
        if name == "hvp":
            assert (found["w"].dtype, found["n"], found["z"].shape) == (jnp.bfloat16, None, (0, 2))
        else:
            assert (found.dtype, found.shape) == (jnp.float32, (3,))
            assert getattr(T, name)(lambda p, x, y: jnp.sum(x), {}, x, y).shape == (0,)
        np.testing.assert_allclose(flat(found), flat(expected), rtol=2.0**-7)  # the gradient comes back in bfloat16


def test_the_diagonal_needs_no_n_by_n_numbers():
    """n = 4,096: the Hessian would take 67 MB."""
    w = jnp.ones((64, 64))
    compiled = jax.jit(lambda w, x: T.hessian_diag(lambda w, x, _: jnp.sum(jnp.tanh(x @ w)), w, x, None))
    memory = compiled.lower(w, jnp.ones((2, 64))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4e6
    many = jax.jit(lambda w, x: T.fisher_diag(lambda w, x, _: jnp.sum(jnp.tanh(x @ w)), w, x, None, per_example=True))
    memory = many.lower(w, jnp.ones((4096, 64))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4e6


def test_what_does_not_fit_is_named():
    params, x, y = batch(jnp.float32)
    for name, args in {"hvp": (jnp.ones(21),), "hessian_diag": (), "fisher_diag": ()}.items():
        with pytest.raises(TypeError, match=rf"{name}: (loss|negative_log_likelihood) must return a scalar, got shape"):
            getattr(T, name)(lambda p, x, y: y * p["b"][0], *args, params, x, y)
        with pytest.raises(TypeError, match=rf"{name}: the leaf at 'b' must be a real floating array, got int"):
            getattr(T, name)(loss, *args, params | {"b": jnp.arange(4)}, x, y)
    with pytest.raises(ValueError, match=r"hvp: v must have 21 elements, as the parameters have, got 20"):
        T.hvp(loss, jnp.ones(20), params, x, y)
    with pytest.raises(ValueError, match=r"hvp: v must be a vector of 21 elements or a tree.*nothing at 'b'"):
        T.hvp(loss, {"w": params["w"], "deep": params["deep"]}, params, x, y)
    with pytest.raises(ValueError, match=r"hvp: v at 'w' must have shape \(3, 4\), got \(4, 3\)"):
        T.hvp(loss, params | {"w": params["w"].T}, params, x, y)
    with pytest.raises(ValueError, match=r"hessian_diag: batch_size must be an integer ≥ 1"):
        T.hessian_diag(loss, params, x, y, batch_size=0)
    for rows in (y[:4], y[0]):
        with pytest.raises(ValueError, match=r"fisher_diag: inputs and targets must have one number of rows, ≥ 1"):
            T.fisher_diag(loss, params, x, rows, per_example=True)
    with pytest.raises(ValueError, match=r"one number of rows, ≥ 1, got \(0,\)"):
        T.fisher_diag(loss, params, x[:0], y[:0], per_example=True)
    with pytest.raises(TypeError, match=r"per_example must be True or False"):
        T.fisher_diag(loss, params, x, y, per_example=1)


# ------------------------------------------------------------------------------------------- Hutchinson's estimator


def estimates(tx, energy, params, count):
    def step(state, _):
        updates, state = tx.update(params, state, params, value_fn=energy)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=count)[1])()


def test_the_estimate_is_right_in_the_mean(x64):
    """z ⊙ Az has the mean diag A and the variance Σ_{j≠i} A²ᵢⱼ."""
    root = np.random.default_rng(0).normal(size=(7, 7))
    matrix = jnp.asarray(root + root.T)

    def energy(params):
        w = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])
        return w @ matrix @ w / 2

    count, params = 4000, {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    found = estimates(T.hutchinson_estimator_diag_hessian(), energy, params, count)
    found = np.concatenate([np.reshape(x, (count, -1)) for x in jax.tree.leaves(found)], axis=1)
    diagonal = np.diag(matrix)
    deviation = np.sqrt(np.sum(np.square(matrix), axis=1) - diagonal**2)
    assert np.all(np.abs(found.mean(0) - diagonal) < 4 * deviation / np.sqrt(count))
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.1)


def test_sophia_estimates_the_same():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones(8)}

    def product(params):
        return jnp.sum(params["a"]) * jnp.sum(params["b"])

    sophia = T.scale_by_sophia(b2=0.0, update_interval=1, seed=3)
    _, state = sophia.update(params, sophia.init(params), params, value_fn=product)
    one = estimates(T.hutchinson_estimator_diag_hessian(3), product, params, 1)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), lo.get_slot(state, "nu"), one)


def test_a_seed_is_a_number_nothing_or_a_key():
    make = T.hutchinson_estimator_diag_hessian
    assert make() == make(None) == make(0) == make(random_seed=0)
    assert make(jax.random.key(4)) == make(jax.random.PRNGKey(4)) != make(jax.random.key(5))
    assert make(jax.random.key(4)) != make(0)
    for wrong in (-1, 1.5, 2**32):
        with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 2³²\)"):
            make(wrong)
    with pytest.raises(TypeError, match=r"random_seed must be known when the transform is made.*pass an integer"):
        jax.jit(lambda key: make(key).init(jnp.ones(2)))(jax.random.key(0))


def test_the_loss_is_asked_for_by_our_name():
    tx, params = T.hutchinson_estimator_diag_hessian(), jnp.ones(2)
    with pytest.raises(TypeError, match=r"hutchinson_estimator_diag_hessian: value_fn must be given to update"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match=r"keywords must be among .*value_fn.*got 'obj_fn'"):
        tx.update(params, tx.init(params), params, obj_fn=jnp.sum)
