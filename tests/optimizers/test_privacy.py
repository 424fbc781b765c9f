"""Private gradients: against optax without noise, in NumPy with it, and what a gradient per example asks of a chain."""

import re
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import RATE, Case, agree, check, falling, flat, gradients, optax_path, parametrize, path_of, tree

import lossopt_jax as lo
from lossopt_jax._core import leaf_paths, leaf_seed, random_normal

T, O, C = lo.transforms, lo.optimizers, optax.contrib


def examples(grads):
    """Four gradients out of one, some within the bound and some beyond."""
    return jax.tree.map(lambda g: jnp.stack([g, 0.03 * g, g * g - 1, 0 * g]), grads)


def per_example(tx):
    return SimpleNamespace(init=tx.init, update=lambda grads, *rest: tx.update(examples(grads), *rest))


def run(tx):
    return path_of(per_example(tx))


def peer(name, ours, *args, **kwargs):
    def theirs():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # optax's recipe calls its own rule by an old name
            return optax_path(lambda: per_example(getattr(C, name)(*args, **kwargs)))

    return Case("optax", ours, theirs, run)


def private(clip, multiplier, seed, rate):
    """Algorithm 1 with this library's normal numbers."""
    points, w = [], jax.tree.map(np.array, tree(0))
    paths, (leaves, treedef) = leaf_paths(w), jax.tree.flatten(w)
    for step, grads in enumerate(gradients()):
        batch = [np.asarray(g) for g in jax.tree.leaves(examples(grads))]
        norms = np.sqrt(sum(np.sum(np.square(g.reshape(4, -1)), axis=1) for g in batch))
        for i, (path, g) in enumerate(zip(paths, batch, strict=True)):
            clipped = g / np.maximum(1, norms / clip).reshape(4, *[1] * (g.ndim - 1))
            noise = random_normal(leaf_seed(jnp.uint32(seed), jnp.int32(step), path), leaves[i].shape, jnp.float64)
            leaves[i] = leaves[i] - rate * (clipped.sum(0) + multiplier * clip * np.asarray(noise)) / 4
        points.append(flat(jax.tree.unflatten(treedef, leaves)))
    return np.stack(points)


CASES = {
    "differentially_private_aggregate": [
        peer("differentially_private_aggregate", lambda: T.differentially_private_aggregate(3.0, 0.0), 3.0, 0.0, key=0),
        Case(
            "NumPy",
            lambda: lo.chain(T.differentially_private_aggregate(3.0, 0.7, 5), T.scale(-RATE)),
            lambda: private(3.0, 0.7, 5, RATE),
            run,
        ),
    ],
    "dpsgd": [
        peer("dpsgd", lambda: O.dpsgd(RATE, 3.0, 0.0), RATE, 3.0, 0.0, seed=0),
        peer("dpsgd", lambda: O.dpsgd(falling, 0.5, 0.0, 1, 0.8), falling, 0.5, 0.0, seed=1, momentum=0.8),
        peer(
            "dpsgd",
            lambda: O.dpsgd(jnp.float32(RATE), 0.5, 0.0, momentum=0.8, nesterov=True),
            jnp.float32(RATE),
            *(0.5, 0.0, 0, 0.8, True),
        ),
        Case("NumPy", lambda: O.dpsgd(RATE, 3.0, 0.7, 5), lambda: private(3.0, 0.7, 5, RATE), run),
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


def once(tx, grads, params, state=None):
    return tx.update(grads, tx.init(params) if state is None else state, params)


def test_below_the_bound_it_is_the_mean_gradient(x64):
    params, x = {"w": jnp.array([0.5, -1.0]), "b": jnp.array(0.1)}, jnp.arange(6.0).reshape(3, 2)

    def loss(params, x):
        return jnp.square(jnp.tanh(x @ params["w"] + params["b"]) - 1)

    each = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    updates, _ = jax.jit(lambda g: once(T.differentially_private_aggregate(1e6, 0.0), g, params))(each)
    mean = jax.grad(lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, x)))(params)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, g, rtol=1e-12), updates, mean)


@pytest.mark.parametrize("bad", [0.0, 1e-30, 1e18, 3e38, np.inf, -np.inf, np.nan])
def test_one_example_weighs_at_most_the_bound(bad):
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    grads = jax.tree.map(lambda p: jnp.ones((5, *p.shape)), params)
    tx = T.differentially_private_aggregate(0.1, 0.0)
    without, _ = once(tx, jax.tree.map(lambda g: g.at[2].set(0.0), grads), params)
    moved, _ = once(tx, {**grads, "a": grads["a"].at[2].set(bad)}, params)
    difference = jax.tree.map(jnp.subtract, moved, without)
    assert float(T.global_norm(difference)) <= 0.1 / 5 * (1 + 1e-5)


def test_noise_has_its_moments_and_differs_by_seed_step_and_leaf_and_not_by_sharding():
    params = {"a": jnp.zeros((256, 128)), "b": jnp.zeros((256, 128))}
    grads = jax.tree.map(lambda p: jnp.zeros((10, *p.shape)), params)

    def two(tx, grads, params):
        first, state = once(tx, grads, params)
        return [*jax.tree.leaves(first), *jax.tree.leaves(once(tx, grads, params, state)[0])]

    tx = T.differentially_private_aggregate(0.5, 2.0, seed=3)
    drawn = two(tx, grads, params)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    for spec in (("d",), (None, "d")):
        sharded = (
            jax.device_put(grads, NamedSharding(mesh, PartitionSpec(None, *spec))),
            jax.device_put(params, NamedSharding(mesh, PartitionSpec(*spec))),
        )
        for one, other in zip(drawn, jax.jit(lambda g, p: two(tx, g, p))(*sharded), strict=True):
            np.testing.assert_array_equal(one, other)
    drawn += two(T.differentially_private_aggregate(0.5, 2.0, seed=4), grads, params)
    sample = np.stack([np.ravel(x) for x in drawn])
    count = sample.shape[1]
    np.testing.assert_allclose(sample.std(axis=1), 0.5 * 2.0 / 10, rtol=5 / np.sqrt(2 * count))
    assert np.all(np.abs(sample.mean(axis=1)) < 5 * 0.1 / np.sqrt(count))
    assert np.all(np.abs(np.corrcoef(sample) - np.eye(len(sample))) < 5 / np.sqrt(count))


def test_types_are_the_parameters_and_untrained_leaves_pass():
    params = {
        "h": jnp.ones(3, jnp.bfloat16),
        "z": jnp.array([1 + 2j], jnp.complex64),
        "s": jnp.array(2.0),
        "i": jnp.arange(2),
        "n": None,
    }
    grads = {
        "h": jnp.ones((4, 3)),
        "z": jnp.full((4, 1), 1 - 1j),
        "s": jnp.ones(4),
        "i": np.zeros((2,), jax.dtypes.float0),
        "n": None,
    }
    tx = O.dpsgd(1.0, 100.0, 0.0, momentum=0.9)
    updates, state = jax.jit(lambda params: once(tx, grads, params))(params)
    np.testing.assert_array_equal(np.asarray(updates["h"], np.float32), -1)
    np.testing.assert_allclose(updates["z"], [-1 + 1j])
    assert (updates["h"].dtype, updates["s"].shape, updates["n"]) == (jnp.bfloat16, (), None)
    start = tx.init(params)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, start)


def test_no_examples_give_the_noise_and_no_leaves_nothing():
    params = jnp.zeros(4)
    noise, _ = once(T.differentially_private_aggregate(1.0, 1.0), jnp.zeros((1, 4)), params)
    np.testing.assert_array_equal(
        once(T.differentially_private_aggregate(1.0, 1.0), jnp.zeros((0, 4)), params)[0], noise
    )
    assert once(T.differentially_private_aggregate(1.0, 1.0), {}, {})[0] == {}


def test_a_gradient_per_example_is_asked_for_by_name():
    tx, params = O.dpsgd(0.1, 1.0, 0.0), {"b": jnp.zeros(()), "w": jnp.zeros((2, 3))}
    good = jax.tree.map(lambda p: jnp.zeros((4, *p.shape)), params)
    for b, w, message in (
        ((), (2, 3), "the gradient at 'b' must begin with an axis of 1 examples, got shape ()"),
        ((4,), (2, 3), "the gradient at 'w' must begin with an axis of 4 examples, got shape (2, 3)"),
        ((4,), (4, 2, 2), "the gradient at 'w' must have shape (4, 2, 3), got (4, 2, 2)"),
        ((4, 1), (4, 2, 3), "the gradient at 'b' must have shape (4,), got (4, 1)"),
    ):
        grads = {"b": jnp.zeros(b), "w": jnp.zeros(w)}
        for update in (tx.update, jax.jit(tx.update), lambda g, s, p: lo.compile_update(tx)(p, s, g)):
            with pytest.raises(ValueError, match=re.escape(message)):
                update(grads, tx.init(params), params)
    with pytest.raises(ValueError, match=re.escape("'w' must begin with an axis of 4 examples")):
        tx.update({"b": jnp.zeros(4), "w": jnp.zeros((2, 3))}, tx.init(params))
    updates, _ = tx.update(good, tx.init(params))
    assert jax.tree.map(jnp.shape, updates) == {"b": (), "w": (2, 3)}
    after, _ = lo.compile_update(tx)(jax.tree.map(jnp.copy, params), tx.init(params), good)
    assert jax.tree.map(jnp.shape, after) == {"b": (), "w": (2, 3)}


def test_it_begins_a_chain_that_stands_in_nothing_else():
    tx = T.differentially_private_aggregate(1.0, 0.0)
    inside = lo.chain(tx, T.clip(1.0))
    assert lo.chain(lo.chain(), inside, O.sgd(0.1)) == lo.chain(tx, T.clip(1.0), O.sgd(0.1))
    params = jnp.zeros(3)
    for begun in (lo.named_chain(("private", tx), ("sgd", O.sgd(1.0))), lo.named_chain(("private", inside))):
        assert once(begun, jnp.ones((2, 3)), params)[0].shape == (3,)
    for build in (
        lambda: lo.chain(T.clip(1.0), tx),
        lambda: lo.chain(O.sgd(0.1), inside),
        lambda: lo.named_chain(("clip", T.clip(1.0)), ("private", tx)),
        lambda: lo.masked(inside, True),
        lambda: lo.partition({"a": tx}, "a"),
        lambda: T.lookahead(O.dpsgd(0.1, 1.0, 0.0), 2, 0.5),
        lambda: T.maximize(O.dpsgd(0.1, 1.0, 0.0)),
    ):
        with pytest.raises(ValueError, match="must be given a gradient per example"):
            build()


def test_in_a_chain_of_optax_s():
    tx, params, grads = O.dpsgd(0.1, 1.0, 0.5), jnp.zeros(3), jnp.ones((4, 3))
    chained = optax.chain(lo.interop.to_optax(tx), optax.scale(2.0))
    updates, _ = chained.update(grads, chained.init(params), params)
    agree(np.asarray(updates), 2 * np.asarray(once(tx, grads, params)[0]))


def test_out_of_range_is_refused():
    for build in (
        lambda: T.differentially_private_aggregate(-1.0, 0.0),
        lambda: T.differentially_private_aggregate(np.inf, 0.0),
        lambda: T.differentially_private_aggregate(1.0, -0.1),
        lambda: O.dpsgd(0.1, 1.0, 0.0, seed=-1),
        lambda: O.dpsgd(0.1, 1.0, 0.0, nesterov=True),
    ):
        with pytest.raises(ValueError, match=r"^\w+: \w+ must"):
            build()


@pytest.mark.parametrize("wrap", [lo.master_weights, lo.stochastic_rounding])
def test_outermost_wrappers_take_gradients_per_example(wrap):
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    grads = {"w": jnp.arange(24.0).reshape(4, 3, 2).astype(jnp.bfloat16)}
    tx, wide = O.dpsgd(0.1, 1.0, 0.0), jax.tree.map(lambda p: p.astype(jnp.float32), params)
    after, _ = lo.compile_update(wrap(tx)).fn(params, wrap(tx).init(params), grads)
    expected, _ = lo.compile_update(tx).fn(wide, tx.init(wide), jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    np.testing.assert_allclose(after["w"].astype(jnp.float32), expected["w"], rtol=2**-7)
    with pytest.raises(ValueError, match="gradient per example"):
        lo.chain(T.clip(1.0), tx)
