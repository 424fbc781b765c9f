"""Sophia against optax and NumPy where the estimate is exact, and the estimate itself against a known Hessian."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import MATRICES, RATE, Case, check, falling, numpy_path, optax_path, parametrize, path_of

import lossopt_jax as lo

T, O, C = lo.transforms, lo.optimizers, optax.contrib


def waves(params):
    """Σ sin w + w²/2, whose Hessian is the diagonal 1 − sin w."""
    return sum(jnp.sum(jnp.sin(p) + p * p / 2) for p in jax.tree.leaves(params))


def compiled(tx, **extra):
    """The conditional would be compiled at every eager call, in either library."""
    return SimpleNamespace(init=tx.init, update=jax.jit(lambda *given: tx.update(*given, **extra)))


def run(tx):
    return path_of(compiled(tx, value_fn=waves))


def live(make):
    return optax_path(lambda: compiled(make(), obj_fn=waves))


def exact():
    """The diagonal of the Hessian for optax, without any random sign."""
    return optax.GradientTransformationExtraArgs(
        lambda params: (), lambda _, state, params, obj_fn: (jax.tree.map(lambda p: 1 - jnp.sin(p), params), state)
    )


def peer(*args, **kwargs):
    theirs = kwargs | ({"clip_threshold": None} if kwargs.get("clip_threshold") == math.inf else {})
    return Case("optax", lambda: O.sophia(*args, **kwargs), lambda: live(lambda: C.sophia(*args, **theirs)), run)


def transcribed(w):
    """In NumPy, with k = 3."""
    b1, b2, eps, gamma, bound = 0.8, 0.6, 0.02, 0.7, 0.5
    m, h = 0 * w, 0 * w

    def move(g, t):
        nonlocal w, m, h
        m = b1 * m + (1 - b1) * g
        u = np.clip(m / (1 - b1**t) / np.maximum(gamma * h, eps), -bound, bound)
        if t % 3 == 1:
            h = b2 * h + (1 - b2) * (1 - np.sin(w))
        w = w - RATE * u
        return w

    return move


def ours(*args):
    return lo.chain(T.scale_by_sophia(*args), T.scale_by_learning_rate(RATE))


CASES = {
    "sophia": [
        peer(RATE),
        peer(falling, 0.8, 0.6, 0.02, gamma=0.7, clip_threshold=0.5, update_interval=3),
        peer(jnp.float32(RATE), 0.8, 0.6, 0.02, 0.3, MATRICES, 0.7, 0.5, 2),
        peer(RATE, weight_decay=lambda step: 0.1 * step, eps=0.2, gamma=0.7, update_interval=1),
        peer(0.01, gamma=0.7, eps=0.1, clip_threshold=math.inf, update_interval=1),
        Case(
            "optax",
            lambda: O.sophia(RATE, 0.8, 0.6, 0.02, gamma=0.7, update_interval=3, seed=5),
            lambda: live(
                lambda: C.sophia(RATE, 0.8, 0.6, 0.02, gamma=0.7, update_interval=3, hessian_diagonal_fn=exact())
            ),
            run,
        ),
    ],
    "hutchinson_estimator_diag_hessian": [
        Case(
            "optax",
            lambda seed=seed: lo.chain(T.hutchinson_estimator_diag_hessian(seed), T.scale_by_learning_rate(RATE)),
            lambda: live(
                lambda: optax.chain(C.hutchinson_estimator_diag_hessian(), optax.scale_by_learning_rate(RATE))
            ),
            run,
        )
        for seed in (None, 5)
    ],
    "scale_by_sophia": [Case("NumPy", lambda: ours(0.8, 0.6, 0.02, 0.7, 0.5, 3), lambda: numpy_path(transcribed), run)],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


def estimates(value_fn, params, seed=0, steps=1):
    """The estimate of every step: with β₂ = 0 it is the slot."""
    tx = T.scale_by_sophia(b2=0.0, update_interval=1, seed=seed)

    def step(state, _):
        state = tx.update(params, state, params, value_fn=value_fn)[1]
        return state, lo.get_slot(state, "nu")

    return jax.lax.scan(step, tx.init(params), length=steps)[1]


def test_the_estimate_is_right_in_the_mean(x64):
    """z ⊙ Az has the mean diag A and the variance Σ_{j≠i} A²ᵢⱼ."""
    root = np.random.default_rng(0).normal(size=(7, 7))
    matrix = jnp.asarray(root + root.T)

    def energy(params):
        w = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])
        return w @ matrix @ w / 2

    count = 4000
    found = estimates(energy, {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}, steps=count)
    found = np.concatenate([np.reshape(x, (count, -1)) for x in jax.tree.leaves(found)], axis=1)
    diagonal = np.diag(matrix)
    deviation = np.sqrt(np.sum(np.square(matrix), axis=1) - diagonal**2)
    assert np.all(np.abs(found.mean(0) - diagonal) < 4 * deviation / np.sqrt(count))
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.1)


def product(params):
    """A Hessian that is all off its diagonal, so that an estimate shows the signs."""
    return jnp.sum(params["a"]) * jnp.sum(params["b"])


def test_signs_differ_by_seed_step_and_leaf_and_not_by_sharding():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    one = estimates(product, params, 1, 2)
    again = jax.jit(lambda params: estimates(product, params, 1, 2))
    mesh = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec("d"))
    for other in (again(params), again(jax.device_put(params, mesh))):
        jax.tree.map(np.testing.assert_array_equal, one, other)

    def signs(x):
        return np.sign(np.asarray(x) * np.sign(np.asarray(x).flat[0]))

    other = estimates(product, params, 2, 2)
    patterns = [signs(x) for run in (one, other) for leaf in run.values() for x in leaf]
    for i, left in enumerate(patterns):
        for right in patterns[:i]:
            assert 8 < np.sum(left != right) < 56


def test_nothing_is_estimated_between():
    """The function is part of the program once, and of its run every k-th step."""
    calls = []

    def counted(params):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(params * params)

    tx, params = T.scale_by_sophia(update_interval=5), jnp.ones(3)
    update = jax.jit(lambda state: tx.update(params, state, params, value_fn=counted)[1])
    state = tx.init(params)
    seen = []
    for _ in range(11):
        before = len(calls)
        state = jax.block_until_ready(update(state))
        jax.effects_barrier()
        seen.append(len(calls) > before)
    assert seen == [step % 5 == 0 for step in range(11)]


def test_untrained_half_and_complex_leaves():
    params = {
        "h": jnp.ones(3, jnp.bfloat16),
        "z": jnp.array([1 + 2j], jnp.complex64),
        "w": jnp.ones(2),
        "i": jnp.arange(2),
        "frozen": jnp.ones(2),
    }
    grads = params | {"i": None, "frozen": None}

    def energy(p):
        half = jnp.sum(p["h"].astype(jnp.float32) ** 2)
        return half + 2 * jnp.sum(jnp.abs(p["z"]) ** 2) + jnp.sum(p["w"] * p["frozen"] * p["w"]) * 3

    tx = T.scale_by_sophia(b2=0.5)
    _, state = tx.update(grads, tx.init(params), params, value_fn=energy)
    nu = lo.get_slot(state, "nu")
    for name, expected in {"h": 1.0, "z": 2 + 2j, "w": 3.0}.items():
        np.testing.assert_allclose(nu[name], expected, rtol=1e-6)
    assert nu["i"] is None
    np.testing.assert_array_equal(nu["frozen"], 0)


def test_in_a_chain_of_optax_s():
    tx, params = O.sophia(0.1, weight_decay=0.3), jnp.array([1.0, -2.0])
    chained = optax.chain(optax.clip(10.0), lo.interop.to_optax(tx))
    alone, _ = tx.update(params, tx.init(params), params, value_fn=waves)
    updates, _ = chained.update(params, chained.init(params), params, value_fn=waves)
    np.testing.assert_array_equal(updates, alone)


def test_what_is_missing_or_out_of_range_is_named():
    tx, params = O.sophia(0.1), jnp.ones(2)
    with pytest.raises(TypeError, match=r"scale_by_sophia: value_fn must be given to update.*to_optax"):
        tx.update(params, tx.init(params), params)
    for wrong in ({"eps": 0.0}, {"gamma": -0.1}, {"clip_threshold": 0.0}, {"update_interval": 0}, {"b2": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            O.sophia(0.1, **wrong)
