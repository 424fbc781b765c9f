"""Groups by path: what a pattern takes, what it refuses, and leaves that are not trained at all."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
PARAMS = {
    "encoder": {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "layers": [jnp.ones((2, 2)), None]},
    "bias": jnp.full(2, 2.0),
    "act": jnp.tanh,
}
GRADS = jax.tree.map(lambda p: jnp.ones_like(p) if isinstance(p, jax.Array) else None, PARAMS)
PATHS = ["act", "bias", "encoder/dense/bias", "encoder/dense/kernel", "encoder/layers/0", "encoder/layers/1"]


def first_of_optax(tx, grads, params):
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(grads, tx.init(params), params)[0]


def chosen(mask):
    """The paths of the leaves that the mask takes."""
    state = T.selective_transform(O.sgd(0.1, 0.9), freeze_mask=mask).init(PARAMS)
    trace = dict(zip(PATHS, jax.tree.leaves(lo.get_slot(state, "trace"), is_leaf=lambda x: x is None), strict=True))
    return {path for path in PATHS[1:5] if trace[path] is None}


@pytest.mark.parametrize(
    ("mask", "paths"),
    [
        ("*/bias", {"encoder/dense/bias"}),
        ("*bias", {"bias", "encoder/dense/bias"}),
        ("encoder/*", {"encoder/dense/bias", "encoder/dense/kernel", "encoder/layers/0"}),
        ("encoder/layers/[0-3]", {"encoder/layers/0"}),
        (re.compile(r"dense/(bias|kernel)$"), {"encoder/dense/bias", "encoder/dense/kernel"}),
        (("bias", re.compile("kernel")), {"bias", "encoder/dense/kernel"}),
        (lo.by_path(lambda path, leaf: leaf.ndim > 1), {"encoder/dense/kernel", "encoder/layers/0"}),
        (lo.by_path({"*kernel": True, "*": False}), {"encoder/dense/kernel"}),
    ],
    ids=range(8),
)
def test_what_a_mask_takes(mask, paths):
    assert chosen(mask) == paths


@pytest.mark.parametrize(
    "tx", [T.selective_transform(O.adamw(0.1), freeze_mask="encoder/*"), lo.chain(lo.freeze("encoder/*"), O.adamw(0.1))]
)
def test_frozen_leaves_stay(tx):
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    after = lo.apply_updates(PARAMS, updates)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], PARAMS["encoder"])
    assert after["act"] is jnp.tanh
    assert np.all(after["bias"] < 2)


def test_frozen_leaves_take_no_memory_and_no_compute():
    tx = T.selective_transform(O.adamw(0.1), freeze_mask="encoder/*")
    shapes = {leaf.shape for leaf in jax.tree.leaves(tx.init(PARAMS))}
    assert shapes == {(), (2,)}
    arrays = {name: leaf for name, leaf in PARAMS.items() if name != "act"}
    grads = {name: leaf for name, leaf in GRADS.items() if name != "act"}
    state = tx.init(arrays)
    compiled = jax.jit(lambda g, p: tx.update(g, state, p)[0]).lower(grads, arrays).compile()
    assert compiled.cost_analysis()["flops"] < 200  # for two numbers
    after, _ = lo.compile_update(tx)(jax.tree.map(jnp.copy, arrays), tx.init(arrays), grads)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], arrays["encoder"])


def test_frozen_is_optax_s_without_decay():
    params, grads = ({"a": jnp.array([1.0, 2.0]), "b": jnp.array(scale)} for scale in (3.0, 0.5))
    for mine, theirs in (
        (lo.chain(O.adam(0.1), lo.freeze({"a": True, "b": False})), (optax.adam(0.1), optax.freeze)),
        (lo.chain(lo.freeze("a"), O.adam(0.1)), (optax.adam(0.1), optax.freeze)),
    ):
        peer = optax.chain(theirs[0], theirs[1]({"a": True, "b": False}))
        updates, _ = mine.update(grads, mine.init(params), params)
        expected = first_of_optax(peer, grads, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_labels_by_path_are_what_optax_makes_of_them():
    labels = lo.by_path({"*kernel": "matrix", "*": "rest"})
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    mine = lo.partition({"matrix": O.adam(0.1), "rest": O.sgd(0.2)}, labels)
    theirs = optax.multi_transform({"matrix": optax.adam(0.1), "rest": optax.sgd(0.2)}, labels)
    updates, state = mine.update(grads, mine.init(params), params)
    expected = first_of_optax(theirs, grads, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    state = lo.set_hyperparams(state, **{"matrix/learning_rate": 0.5})
    rates = lo.get_hyperparams(state)
    np.testing.assert_allclose([rates["matrix/learning_rate"], rates["rest/learning_rate"]], [0.5, 0.2])


def test_the_first_pattern_that_matches_labels():
    labels = lo.by_path({re.compile("^bias"): 1, "*bias": 2, "*": 3})(PARAMS)
    assert (labels["bias"], labels["encoder"]["dense"]["bias"], labels["encoder"]["dense"]["kernel"]) == (1, 2, 3)


def test_by_path_compares_and_hashes():
    assert lo.by_path({"*": 1}) == lo.by_path({"*": 1}) != lo.by_path({"*": 2})
    assert hash(lo.masked(O.sgd(0.1), "*/bias")) == hash(lo.masked(O.sgd(0.1), "*/bias"))


class Module:
    """A tree that can be called, as Equinox's modules are."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, *args):
        raise AssertionError("called")


jax.tree_util.register_pytree_with_keys(
    Module, lambda m: (((jax.tree_util.GetAttrKey("weight"), m.weight),), None), lambda _, children: Module(*children)
)


def test_a_module_in_the_place_of_a_mask_is_a_tree():
    tx = lo.masked(O.sgd(0.1, 0.9), Module(True))
    assert lo.get_slot(tx.init(Module(jnp.ones(2))), "trace").weight.shape == (2,)
    assert chosen_paths(Module(jnp.ones(2))) == ["weight"]


def chosen_paths(tree):
    seen = []
    lo.by_path(lambda path, leaf: seen.append(path))(tree)
    return seen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lo.masked(O.sgd(0.1), "*/bais").init(PARAMS), r"'\*/bais' must match .*'encoder/dense/bias'"),
        (lambda: lo.freeze(("bias", "kernel")).init(PARAMS), "'kernel' must match"),
        (lambda: lo.by_path({"*kernel": 1})(PARAMS), r"must match each leaf, got none for 'bias', .*add \"\*\""),
        (lambda: lo.by_path({"*": 1, "*kernel": 2})(PARAMS), r"'\*kernel' must match a parameter that no earlier"),
        (lambda: lo.partition({"a": O.sgd(0.1)}, lo.by_path({"*": "b"})).init(PARAMS), "label of 'bias' must be among"),
    ],
)
def test_what_matches_nothing_is_refused_with_paths(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rules", [3, {1: "a"}, {("a", "b"): "c"}])
def test_rules_of_another_kind_are_refused(rules):
    with pytest.raises(TypeError, match="by_path: "):
        lo.by_path(rules)
