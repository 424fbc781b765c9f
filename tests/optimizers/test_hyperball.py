"""Steps that keep a norm, decay that asks the update, and climbing: against NumPy and torch, where no peer has them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import (
    MATRICES,
    RATE,
    Case,
    agree,
    check,
    falling,
    gradients,
    numpy_path,
    parametrize,
    path_of,
    torch_path,
    tree,
)

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers


def norm(x):
    return np.sqrt(np.sum(np.square(x)))


def turned(w, u, rate):
    """As the paper writes it, ‖w₀‖ being ‖w‖; and where it says nothing."""
    q = w - rate * norm(w) * u / (norm(u) or 1)
    return norm(w) * q / norm(q)


def alone(rate_of):
    def start(w):
        def move(g, t):
            nonlocal w
            w = turned(w, g, rate_of(t - 1))
            return w

        return move

    return start


def adam_direction(w, b1, b2, eps, eps_root):
    m, v = 0 * w, 0 * w

    def direction(g, t):
        nonlocal m, v
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)

    return direction


def transcribed_adamh(rate_of, adam_rate_of, balls=lambda w: w.ndim >= 2, moments=(0.8, 0.9, 0.02, 0.03)):
    def start(w):
        direction = adam_direction(w, *moments)

        def move(g, t):
            nonlocal w
            u = direction(g, t)
            w = turned(w, u, rate_of(t - 1)) if balls(w) else w - adam_rate_of(t - 1) * u
            return w

        return move

    return start


def cautious_adamw(decay, decayed=lambda w: True):
    """λ w only where Adam's direction has its sign."""

    def start(w):
        direction = adam_direction(w, 0.8, 0.9, 0.02, 0.0)

        def move(g, t):
            nonlocal w
            u = direction(g, t)
            w = w - RATE * (u + (decay * w * (u * w >= 0) if decayed(w) else 0))
            return w

        return move

    return start


def constant(rate):
    return lambda step: rate


def cautious(decay, mask=None):
    return lo.chain(T.scale_by_adam(0.8, 0.9, 0.02), T.add_cautious_weight_decay(decay, mask), O.sgd(RATE))


CASES = {
    "hyperball": [
        Case("NumPy", lambda: T.hyperball(0.3), lambda: numpy_path(alone(constant(0.3)), per_leaf=True)),
        Case("NumPy", lambda: T.hyperball(falling), lambda: numpy_path(alone(falling), per_leaf=True)),
    ],
    "adamh": [
        Case(
            "NumPy",
            lambda: O.adamh(RATE, 0.8, 0.9, 0.02, 0.03),
            lambda: numpy_path(transcribed_adamh(constant(RATE), constant(RATE)), per_leaf=True),
        ),
        Case(
            "NumPy",
            lambda: O.adamh(falling, 0.8, 0.9, 0.02, 0.03, adam_learning_rate=jnp.asarray(RATE)),
            lambda: numpy_path(transcribed_adamh(falling, constant(RATE)), per_leaf=True),
        ),
        Case(
            "NumPy",
            lambda: O.adamh(jnp.asarray(RATE), 0.8, 0.9, 0.02, 0.03, param_labels={"w": "adam", "deep": "hyperball"}),
            lambda: numpy_path(transcribed_adamh(constant(RATE), constant(RATE), lambda w: w.ndim < 2), per_leaf=True),
        ),
    ],
    "add_cautious_weight_decay": [
        Case("NumPy", lambda: cautious(0.3), lambda: numpy_path(cautious_adamw(0.3))),
        Case(
            "NumPy",
            lambda: cautious(jnp.float64(0.3), MATRICES),
            lambda: numpy_path(cautious_adamw(0.3, lambda w: w.ndim > 1), per_leaf=True),
        ),
    ],
    "maximize": [
        Case(
            "torch",
            lambda: T.maximize(O.adamw(RATE, 0.8, 0.9, 0.02, weight_decay=0.3)),
            lambda: torch_path(lambda o, p: o.AdamW(p, RATE, (0.8, 0.9), 0.02, 0.3, maximize=True)),
        ),
        Case(
            "torch",
            lambda: T.maximize(lo.chain(T.add_decayed_weights(0.2), O.sgd(RATE, 0.8))),
            lambda: torch_path(lambda o, p: o.SGD(p, RATE, 0.8, weight_decay=0.2, maximize=True)),
        ),
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("rate", [1e-5, 0.02, 1.0])
def test_the_norm_stays(dtype, rate):
    """Over a thousand steps within the rounding of one: what one step loses the next one makes up for.

    One step measures ‖w‖ and ‖q‖ in float32, each to 2 ulp whatever the order of the sums; here they are in float64.
    """
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (32, 16), dtype), "big": 1e15 * jax.random.normal(key, (8, 8), dtype)}
    tx = T.hyperball(rate)

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(seed), p.shape, p.dtype), params)
        updates, state = tx.update(grads, state, params)
        return (lo.apply_updates(params, updates), state), None

    start = (params, tx.init(params))
    (after, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(1000)))(start)
    rounding = max(float(jnp.finfo(dtype).eps), 4 * float(jnp.finfo(jnp.float32).eps))
    for name, before in params.items():
        norms = [np.linalg.norm(np.asarray(w, np.float64)) for w in (after[name], before)]
        np.testing.assert_allclose(*norms, rtol=rounding)
        assert rate < 1e-3 or np.any(after[name] != before)


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_neither_size_matters(scale):
    p, g = jnp.array([3.0, 4.0]), jnp.array([1.0, -2.0])
    tx = T.hyperball(0.1)
    expected, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(tx.update(scale * g, tx.init(p), p)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(tx.update(g, tx.init(p), scale * p)[0], scale * expected, rtol=1e-6)


def test_where_there_is_no_direction_nothing_moves():
    tx, p = T.hyperball(1.0), jnp.array([3.0, 4.0])
    for g, w in ((jnp.zeros(2), p), (p, jnp.zeros(2)), (p, p)):  # the last one would lead to the centre
        np.testing.assert_array_equal(tx.update(g, tx.init(w), w)[0], 0)


def test_small_turns_do_not_cancel():
    """A step much smaller than the parameter keeps its digits."""
    p, g = jnp.array([1.0, 1e-3]), jnp.array([1e-3, 1.0])
    updates, _ = T.hyperball(1e-6).update(g, T.hyperball(1e-6).init(p), p)
    exact = turned(np.array(p, np.float64), np.array(g, np.float64), 1e-6) - np.array(p, np.float64)
    np.testing.assert_allclose(updates, exact, rtol=1e-4, atol=1e-14)


def test_adamh_s_groups_have_their_own_rates():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    state = O.adamh(0.1, adam_learning_rate=0.01).init(params)
    rates = {key: float(rate) for key, rate in lo.get_hyperparams(state).items() if "rate" in key}
    assert rates == {"hyperball/learning_rate": np.float32(0.1), "adam/learning_rate": np.float32(0.01)}
    with pytest.raises(ValueError, match=r"label of 'w' must be among \['adam', 'hyperball'\], got 'muon'"):
        O.adamh(0.1, param_labels="muon").init({"w": 1.0})


def test_cautious_decay_at_zero_tiny_and_opposite_updates():
    """≥ as in the paper: where the update is 0 the weight decays. A product would vanish and lose its sign."""
    p, g = jnp.array([2.0, 2.0, 2.0, 1e-30, 1e-30]), jnp.array([0.0, 1.0, -1.0, 1e-30, -1e-30])
    tx = T.add_cautious_weight_decay(0.5)
    updates, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates, [1.0, 2.0, -1.0, 1.5e-30, -1e-30], rtol=1e-6)


def test_cautious_decay_follows_a_schedule(x64):
    """The same as setting it by hand."""
    scheduled, by_hand = cautious(lambda step: 0.1 * step), cautious(0.0)
    params = jax.tree.map(jnp.asarray, tree(0))
    state, points = by_hand.init(params), []
    for step, grads in enumerate(gradients()):
        state = lo.set_hyperparams(state, weight_decay=0.1 * step)
        updates, state = by_hand.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = lo.apply_updates(params, updates)
        points.append(np.concatenate([np.ravel(p) for p in jax.tree.leaves(params)]))
    agree(path_of(scheduled), np.stack(points))


def test_in_a_chain_of_optax_s():
    p, g = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 3.0]])
    for tx in (T.hyperball(0.1), O.adamh(0.1), lo.chain(T.add_cautious_weight_decay(0.1), O.sgd(0.1))):
        for member in (tx, lo.interop.to_optax(tx)):
            chained = optax.chain(optax.clip(10.0), member)
            updates, _ = chained.update(g, chained.init(p), p)
            np.testing.assert_array_equal(updates, tx.update(g, tx.init(p), p)[0])


def test_what_is_missing_or_out_of_range_is_named():
    for tx in (T.hyperball(0.1), T.add_cautious_weight_decay(0.1)):
        with pytest.raises(TypeError, match="params must be given to update"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    for build in (lambda: T.hyperball(-0.1), lambda: T.add_cautious_weight_decay(-0.1), lambda: O.adamh(0.1, b2=1.0)):
        with pytest.raises(ValueError, match=r"^\w+: \w+ must"):
            build()
