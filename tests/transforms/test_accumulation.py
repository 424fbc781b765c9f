"""Several small batches for one step: as one large batch, and nothing in between."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS

T, O = lo.transforms, lo.optimizers


def batches(seed=0, rows=12):
    x, y = np.random.default_rng(seed).normal(size=(2, rows, 3))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y[:, 0], jnp.float32)


def mean_loss(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


def test_mini_batches_of_any_sizes_are_one_large_batch():
    x, y = batches()
    w, sizes = jnp.array([0.3, -0.2, 0.5]), (5, 3, 4)
    tx = T.multi_steps(O.adam(0.1), 3)
    state = tx.init(w)
    expected, _ = O.adam(0.1).update(jax.grad(mean_loss)(w, x, y), O.adam(0.1).init(w), w)
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        rows = slice(end - size, end)
        updates, state = tx.update(jax.grad(mean_loss)(w, x[rows], y[rows]), state, w, weight=size)
        if end < 12:
            np.testing.assert_array_equal(updates, 0)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
    assert int(lo.get_slot(state, "mini_step")) == 0


def test_a_bad_mini_batch_is_dropped_by_a_guard_around():
    tx = T.apply_if_finite(T.multi_steps(O.sgd(1.0), 2))
    params, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    for g in ([1.0, 2.0], [np.nan, 1.0], [np.inf, 0.0], [3.0, 0.0]):
        updates, state = jax.jit(tx.update)(jnp.array(g), state, params)
        params = lo.apply_updates(params, updates)
    np.testing.assert_array_equal(params, [-2, -1])
    assert int(lo.get_slot(state, "bad_steps")) == 2


def test_a_mini_batch_of_no_weight_leaves_no_trace():
    tx = T.multi_steps(O.sgd(1.0), 3)
    for order in ((0, 1, 2), (1, 0, 2), (1, 2, 0)):
        gradients = np.array([[np.nan, np.inf], [1.0, 2.0], [3.0, 0.0]], np.float32)[list(order)]
        weights = np.array([0.0, 1.0, 3.0])[list(order)]
        params, state = jnp.zeros(2), tx.init(jnp.zeros(2))
        for g, weight in zip(gradients, weights, strict=True):
            updates, state = tx.update(jnp.asarray(g), state, params, weight=weight)
            params = lo.apply_updates(params, updates)
        np.testing.assert_allclose(params, [-2.5, -0.5], rtol=1e-6)


def test_no_step_without_any_weight():
    tx = T.multi_steps(lo.chain(T.scale_by_adam(), O.sgd(1.0)), 2)
    state = tx.init(jnp.zeros(2))
    for _ in range(2):
        updates, state = tx.update(jnp.full(2, jnp.nan), state, jnp.zeros(2), weight=0.0)
        np.testing.assert_array_equal(updates, 0)
    assert int(state.inner["scale_by_adam"].step) == 0
    assert int(lo.get_slot(state, "mini_step")) == 0


def test_k_may_change_at_any_time():
    tx = T.multi_steps(O.sgd(1.0), 8)
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for k in (8, 8, 8, 2, 2, 2):
        state = lo.set_hyperparams(state, every_k=float(k))
        updates, state = tx.update(jnp.ones(()), state, params)
        params = lo.apply_updates(params, updates)
    assert float(params) == -2  # after the fourth and the sixth


@pytest.mark.parametrize("inner", [O.adamw, O.lion, *[O.adafactor] * CPU_FUSES_SUMS], ids=lambda make: make.__name__)
def test_compile_update_waits_in_place(inner, one_device):
    """No array of a parameter's size is copied or kept for a while; the slots of the optimizer rest between steps."""
    tx = T.multi_steps(inner(1e-3), 4)
    params = [jnp.ones((1024, 1024))] * 2
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, tx.init(params), params))
    compiled = lo.compile_update(tx).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * 4 * 2 * 1024 * 1024
    assert not re.search(r"= f32\[1024,1024\]\S* copy\(", compiled.as_text())


def test_compile_update_is_update_and_apply():
    tx = T.multi_steps(O.adamw(1e-2), 3)
    start = {"w": jnp.linspace(-1, 1, 300_000).reshape(600, 500), "b": jnp.ones(5)}
    step = lo.compile_update(tx)
    p, s = jax.tree.map(jnp.copy, start), tx.init(start)
    q, r = start, tx.init(start)
    for seed in range(7):
        keys = jax.random.split(jax.random.key(seed))
        g = {name: jax.random.normal(key, start[name].shape) for name, key in zip(start, keys, strict=True)}
        p, s = step(p, s, g)
        updates, r = tx.update(g, r, q)
        q = lo.apply_updates(q, updates)
    for a, b in zip(jax.tree.leaves((p, s)), jax.tree.leaves((q, r)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("k", [0, 0.5, -1])
def test_fewer_than_one_is_refused(k):
    with pytest.raises(ValueError, match="must be ≥ 1"):
        T.multi_steps(O.sgd(0.1), k)


def test_a_negative_weight_is_refused():
    tx = T.multi_steps(O.sgd(0.1), 2)
    with pytest.raises(ValueError, match="weight must be ≥ 0"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), weight=-1.0)
