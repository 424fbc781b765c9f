"""Compensated parameters of half precision: what is stored, and what it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.transforms import WrapperState

O = lo.optimizers
HALF = [jnp.bfloat16, jnp.float16]


def compensated(w, gradients, rate, dtype):
    """The paper's loop in NumPy: the low word is a number of the parameter's dtype."""
    w, low = w.astype(dtype), np.zeros_like(w, dtype)
    for g in gradients:
        wanted = np.float32(low) - np.float32(rate) * np.float32(g)
        new = (np.float32(w) + np.float32(wanted.astype(dtype))).astype(dtype)
        low = (wanted - (np.float32(new) - np.float32(w))).astype(dtype)
        w = new
    return w, low


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_paper_s_loop(dtype, compiled):
    rng = np.random.default_rng(0)
    start = rng.normal(size=200).astype(np.float32)
    gradients = [rng.normal(size=200).astype(dtype) for _ in range(50)]
    tx, params = lo.kahan(O.sgd(1e-3)), jnp.asarray(start, dtype)
    state, step = tx.init(params), lo.compile_update(tx)
    for g in gradients:
        if compiled:
            params, state = step(params, state, jnp.asarray(g))
        else:
            updates, state = tx.update(jnp.asarray(g), state, params)
            params = lo.apply_updates(params, updates)
    weights, low = compensated(start, gradients, 1e-3, dtype)
    np.testing.assert_array_equal(np.asarray(params), weights)
    np.testing.assert_array_equal(np.asarray(lo.get_slot(state, "low")), low)


@pytest.mark.parametrize("dtype", HALF)
def test_small_steps_add_up(dtype):
    """A thousand steps of 2⁻¹³ from 1: half precision alone stays where it is."""
    tx, params = lo.kahan(O.sgd(1.0)), jnp.ones(3, dtype)
    state = tx.init(params)
    gradient, step = jnp.full(3, -(2.0**-13), dtype), jax.jit(tx.update)
    for _ in range(1000):
        updates, state = step(gradient, state, params)
        params = lo.apply_updates(params, updates)
    both = np.float32(params) + np.float32(lo.get_slot(state, "low"))
    np.testing.assert_allclose(both, 1 + 1000 * 2.0**-13, rtol=2.0**-14)


def least_squares(tx, dtype, steps=400):
    x = jax.random.normal(jax.random.key(0), (64, 8))
    y = x @ jnp.linspace(-1, 1, 8) + 0.1

    def loss(w):
        return jnp.mean((x @ w[:8].astype(jnp.float32) + w[8].astype(jnp.float32) - y) ** 2)

    @jax.jit
    def step(w, state):
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return lo.apply_updates(w, updates), state

    w = jnp.full(9, 2.0, dtype)
    state = tx.init(w)
    for _ in range(steps):
        w, state = step(w, state)
    low = lo.get_slot(state, "low") if isinstance(state, WrapperState) else None
    return float(loss(w.astype(jnp.float32) + (0 if low is None else low.astype(jnp.float32))))


def test_bfloat16_reaches_what_float32_reaches():
    exact = least_squares(O.sgd(1e-2), jnp.float32)
    plain = least_squares(O.sgd(1e-2), jnp.bfloat16)
    mine = least_squares(lo.kahan(O.sgd(1e-2)), jnp.bfloat16)
    assert abs(mine - exact) < 0.02 * exact + 1e-4 < abs(plain - exact)


def test_float32_has_no_low_word_and_the_same_bits():
    params = {"w": jnp.ones(3), "h": jnp.ones(3, jnp.bfloat16)}
    low = lo.get_slot(lo.kahan(O.sgd(0.1)).init(params), "low")
    assert low["w"] is None
    assert low["h"].dtype == jnp.bfloat16
    grads = jax.tree.map(lambda p: 0.3 * p, params)
    mine, _ = lo.kahan(O.adam(0.1)).update(grads, lo.kahan(O.adam(0.1)).init(params), params)
    plain, _ = O.adam(0.1).update(grads, O.adam(0.1).init(params), params)
    np.testing.assert_array_equal(mine["w"], plain["w"])
