"""Cautious steps, MARS, optimism and noise: their paths, and the moments of the noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import MATRICES, RATE, Case, agree, check, falling, numpy_path, optax_path, parametrize, path_of, tree

import lossopt_jax as lo
from lossopt_jax._core import leaf_seed, random_normal

T, O = lo.transforms, lo.optimizers


def rate_at(eta, t):
    return eta(t - 1) if callable(eta) else eta


def paper(ours, start, run=path_of):
    return Case("NumPy", ours, lambda: numpy_path(start, per_leaf=True), run=run)


# --------------------------------------------------------------------------------------------------------- cautious


def adam_direction(w, b1, b2, eps, eps_root=0.0):
    m, v = 0 * w, 0 * w

    def direction(g, t):
        nonlocal m, v
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)

    return direction


def lion_direction(w, b1, b2):
    m = 0 * w

    def direction(g, t):
        nonlocal m
        u, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        return u

    return direction


def trace_direction(w, decay):
    m = 0 * w

    def direction(g, t):
        nonlocal m
        m = decay * m + g
        return m

    return direction


def masked_steps(direction_of, eta, decay, floor, matrices_alone=False):
    """Algorithm 1: the elements that agree, over their share of the array."""

    def start(w):
        direction = direction_of(w)
        here = decay if not matrices_alone or w.ndim > 1 else 0.0

        def move(g, t):
            nonlocal w
            u = direction(g, t)
            keep = u * g > 0
            w = w - rate_at(eta, t) * (u * keep / max(keep.mean(), floor) + here * w)
            return w

        return move

    return start


def cautious_cases(recipe, direction_of, *args):
    """Each with a floor that no array reaches, and with one that some do."""
    return [
        paper(
            partial(recipe, eta, *args, weight_decay=0.3, mask=mask, **floor),
            masked_steps(partial(direction_of, **own), eta, 0.3, floor.get("min_fraction", 1e-3), mask is not None),
        )
        for eta in (RATE, falling)
        for mask in (None, MATRICES)
        for floor in ({}, {"min_fraction": 0.8})
        for own in [dict(zip(("b1", "b2", "eps", "eps_root"), args, strict=False))]
    ]


# ------------------------------------------------------------------------------------------------------------- MARS


def mars(eta, b1, gamma, max_norm, decay, rule_of):
    """Algorithm 2 with the gradient of the step before, clipped by the norm of the array as its authors' code."""

    def start(w):
        before, rule = 0 * w, rule_of(w)

        def move(g, t):
            nonlocal w, before
            c = g + gamma * b1 / (1 - b1) * (g - before)
            norm = np.sqrt(np.sum(c * c))
            before, c = g, c / max(1.0, norm / max_norm)
            w = w - rate_at(eta, t) * (rule(c, t) + decay * w)
            return w

        return move

    return start


def mars_adamw(eta, *, b1=0.95, b2=0.99, eps=1e-8, eps_root=0.0, gamma=0.025, max_norm=1.0, decay=0.0):
    return mars(eta, b1, gamma, max_norm, decay, lambda w: adam_direction(w, b1, b2, eps, eps_root))


def mars_lion(eta, *, b1=0.95, gamma=0.025, max_norm=1.0, decay=0.0):
    def rule_of(w):
        m = 0 * w

        def rule(c, t):
            nonlocal m
            m = b1 * m + (1 - b1) * c
            return np.sign(m)

        return rule

    return mars(eta, b1, gamma, max_norm, decay, rule_of)


# ------------------------------------------------------------------------------------------------ optimism and noise


def peer(name, *args, in_optax=None, **kwargs):
    """The same function with the same arguments in both libraries."""
    ours = getattr(O, name, None) or getattr(T, name)
    theirs = in_optax or getattr(optax, name)
    return Case("optax", partial(ours, *args, **kwargs), lambda: optax_path(lambda: theirs(*args, **kwargs)))


def old_optimistic_adam(*args, **kwargs):
    with pytest.warns(DeprecationWarning, match="optimistic_adam_v2"):
        return optax.optimistic_adam(*args, **kwargs)


def optimistic_rates(eta, optimism):
    """−η g − o (g − g₋), for rates that optax's `optimistic_adam` does not take as schedules."""

    def start(w):
        before = None

        def move(g, t):
            nonlocal w, before
            change = 0 * g if before is None else g - before
            before, w = g, w - rate_at(eta, t) * g - rate_at(optimism, t) * change
            return w

        return move

    return start


def noisy(eta, variance, gamma, seed):
    """g + √(variance / t^γ) n, by the generator that the library declares for seed, step, path and index."""

    def theirs():
        paths = iter(("deep/b", "deep/s", "w"))

        def start(w):
            path = next(paths)

            def move(g, t):
                nonlocal w
                bits = leaf_seed(jnp.uint32(seed), jnp.int32(t - 1), path)
                n = np.asarray(random_normal(bits, w.shape, jnp.float64))
                w = w - rate_at(eta, t) * (g + np.sqrt(variance / t**gamma) * n)
                return w

            return move

        return numpy_path(start, per_leaf=True)

    return Case("NumPy", lambda: O.noisy_sgd(eta, variance, gamma, seed=seed), theirs)


ADAM = {"b1": 0.6, "b2": 0.8, "eps": 0.03, "eps_root": 0.02}
CASES = {
    "cautious_adamw": [
        *cautious_cases(O.cautious_adamw, adam_direction, 0.6, 0.8, 0.02, 0.01),
        *cautious_cases(O.cautious_adamw, adam_direction, 0.9, 0.999, 1e-8),
    ],
    "cautious_lion": [
        *cautious_cases(O.cautious_lion, lion_direction, 0.6, 0.8),
        *cautious_cases(O.cautious_lion, lion_direction, 0.9, 0.99),
    ],
    "cautious": [
        paper(
            lambda: T.cautious(lo.chain(T.trace(0.9), T.scale_by_learning_rate(RATE)), 0.4, flip_sign=True),
            masked_steps(partial(trace_direction, decay=0.9), RATE, 0.0, 0.4),
        )
    ],
    "mars_adamw": [
        paper(lambda: O.mars_adamw(RATE), mars_adamw(RATE)),
        paper(
            lambda: O.mars_adamw(falling, *ADAM.values(), 0.3, gamma=0.4, max_norm=0.7),
            mars_adamw(falling, **ADAM, gamma=0.4, max_norm=0.7, decay=0.3),
        ),
    ],
    "mars_lion": [
        paper(lambda: O.mars_lion(RATE), mars_lion(RATE)),
        paper(
            lambda: O.mars_lion(falling, 0.6, 0.3, gamma=0.4, max_norm=0.7),
            mars_lion(falling, b1=0.6, gamma=0.4, max_norm=0.7, decay=0.3),
        ),
    ],
    "optimistic_gradient_descent": [
        peer("optimistic_gradient_descent", RATE),
        peer("optimistic_gradient_descent", falling, 0.7, 0.4),
    ],
    "optimistic_adam": [
        peer("optimistic_adam", RATE, in_optax=old_optimistic_adam),
        peer("optimistic_adam", RATE, 0.4, *ADAM.values(), in_optax=old_optimistic_adam),
        peer("optimistic_adam", RATE, 0.4, *ADAM.values(), nesterov=False, in_optax=old_optimistic_adam),
    ],
    "scale_by_optimistic_learning_rate": [
        paper(lambda: T.scale_by_optimistic_learning_rate(falling, 0.4), optimistic_rates(falling, 0.4)),
        paper(lambda: T.scale_by_optimistic_learning_rate(RATE, falling), optimistic_rates(RATE, falling)),
    ],
    "optimistic_adam_v2": [
        peer("optimistic_adam_v2", RATE),
        peer("optimistic_adam_v2", falling, **ADAM, alpha=0.7, beta=0.4),
        peer("optimistic_adam_v2", falling, **ADAM, alpha=0.7, beta=0.4, nesterov=False),
    ],
    "scale_by_optimistic_gradient": [peer("scale_by_optimistic_gradient", 0.7, 0.4)],
    "noisy_sgd": [noisy(RATE, 0.01, 0.55, 0), noisy(falling, 0.3, 0.8, 7)],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


RECIPES = [name for name in CASES if name in O.registry]


@pytest.mark.parametrize("name", RECIPES)
def test_a_rate_is_a_number_an_array_or_a_schedule(x64, name):
    make = O.registry[name]
    plain = path_of(make(RATE))
    agree(path_of(make(jnp.asarray(RATE))), plain)
    agree(path_of(make(lambda step: RATE)), plain)


@pytest.mark.parametrize("name", RECIPES)
def test_inside_optax_s_chain(x64, name):
    make = O.registry[name]
    agree(
        optax_path(lambda: optax.chain(optax.scale(0.7), lo.interop.to_optax(make(RATE)))),
        path_of(lo.chain(T.scale(0.7), make(RATE))),
    )


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: T.cautious(O.sgd(0.1), -1.0), "min_fraction"),
        (lambda: T.add_noise(-1.0, 0.5), "eta"),
        (lambda: O.noisy_sgd(0.1, seed=-1), "seed"),
        (lambda: O.mars_adamw(0.1, 1.0), "b1"),
        (lambda: O.mars_adamw(0.1, gamma=-1.0), "gamma"),
        (lambda: O.mars_lion(0.1, max_norm=-1.0), "max_norm"),
        (lambda: O.optimistic_adam(0.1, -1.0), "optimism"),
    ],
)
def test_out_of_range_is_refused(build, name):
    with pytest.raises(ValueError, match=rf"{name} must be"):
        build()


# --------------------------------------------------------------------------------------------------------- cautious


def test_cautious_keeps_what_agrees_however_small():
    """The sign of a product would be lost: 1e-30 · 1e-30 is 0 in float32."""
    g = jnp.array([1e-30, -1e-30, 1e30, 0.0])
    tx = T.cautious(T.trace(0.0))
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], 4 / 3 * g, rtol=1e-6)


def test_cautious_drops_all_or_nothing():
    """No element agrees: no step and no 0/0, even without a floor."""
    tx, g = T.cautious(T.trace(0.9), 0.0), jnp.array([1.0, -2.0])
    updates, state = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(updates, g)
    updates, _ = tx.update(-0.1 * g, state)
    np.testing.assert_array_equal(updates, [0.0, 0.0])


def test_cautious_counts_exactly():
    """An integer count: float32 ones stop adding up at 2²⁴."""
    g = jnp.ones((2**12 + 1, 2**12 + 1), jnp.float32)
    share = jax.make_jaxpr(lambda g: T.cautious(T.scale(1.0)).update(g, T.cautious(T.scale(1.0)).init(g))[0])(g)
    assert "i32[] = reduce_sum" in str(share)


# ------------------------------------------------------------------------------------------------------------- MARS


def test_mars_takes_its_first_correction_from_zero():
    tx, g = T.correct_by_previous_gradient(max_norm=100.0), jnp.array([1.0, -2.0])
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(g, state)
    np.testing.assert_allclose(first, 1.475 * g, rtol=1e-6)
    np.testing.assert_allclose(second, g, rtol=1e-6)


def test_mars_is_finite_where_nothing_is_left():
    for g in (jnp.zeros(3), jnp.full(3, 1e-30), jnp.full(3, 1e30)):
        for norm in (0.0, 1.0):
            tx = T.correct_by_previous_gradient(max_norm=norm)
            updates, _ = tx.update(g, tx.init(g))
            assert np.isfinite(updates).all()
            assert np.linalg.norm(updates) <= norm * (1 + 1e-6)


def test_setting_b1_of_mars_acts_on_correction_and_mean(x64):
    one, other = O.mars_adamw(RATE, 0.6, gamma=0.4), O.mars_adamw(RATE, 0.9, gamma=0.4)
    params = jax.tree.map(jnp.asarray, tree(0))
    state = lo.set_hyperparams(one.init(params), b1=0.9)
    grads = jax.tree.map(jnp.asarray, tree(5))
    for a, b in zip(
        jax.tree.leaves(one.update(grads, state, params)[0]),
        jax.tree.leaves(other.update(grads, other.init(params), params)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------- optimism


def test_optimism_finds_the_saddle_that_descent_circles():
    """min over x, max over y of x y, from (1, 2): Daskalakis et al., and the figures of optax's docstring."""

    def distances(tx):
        def step(carry, _):
            (x, y), state = carry
            updates, state = tx.update((y, -x), state, (x, y))
            return (lo.apply_updates((x, y), updates), state), jnp.hypot(x, y)

        start = (jnp.float32(1.0), jnp.float32(2.0))
        return jax.lax.scan(step, (start, tx.init(start)), length=1025)[1]

    for tx in (O.optimistic_adam(1e-2, 1.0), O.optimistic_adam_v2(1.0, alpha=1e-2)):
        np.testing.assert_allclose(distances(tx)[4 ** jnp.arange(5)], [2.243, 2.195, 2.161, 2.055, 0.796], atol=2e-3)
    assert distances(O.optimistic_gradient_descent(0.1))[-1] < 0.1
    assert distances(O.sgd(0.1))[-1] > 100


# ------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("t", [1, 2, 10])
def test_noise_has_its_mean_and_variance(t):
    """Of a million elements, within three standard errors; η/t^γ."""
    eta, gamma, n = 0.3, 0.55, 2**20
    tx = T.add_noise(eta, gamma, seed=1)
    g = jnp.full((n,), 5.0)
    state = tx.init(g)
    state = state._replace(step=jnp.int32(t - 1))
    noise = np.asarray(tx.update(g, state)[0] - g, np.float64)
    variance = eta / t**gamma
    assert abs(noise.mean()) < 3 * (variance / n) ** 0.5
    assert abs(noise.var() / variance - 1) < 3 * (2 / n) ** 0.5
    assert abs((noise**3).mean() / variance**1.5) < 3 * (15 / n) ** 0.5
    assert abs((noise**4).mean() / variance**2 - 3) < 3 * (96 / n) ** 0.5


def noise_of(tx, params, steps=1):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return updates


def test_noise_is_another_one_at_every_step_leaf_and_seed():
    params = {"a": jnp.zeros(4096), "b": jnp.zeros(4096)}
    one, two = noise_of(T.add_noise(1.0, 0.0), params), noise_of(T.add_noise(1.0, 0.0), params, steps=2)
    other = noise_of(T.add_noise(1.0, 0.0, seed=1), params)
    samples = np.stack([one["a"], one["b"], two["a"], two["b"], other["a"], other["b"]])
    apart = np.corrcoef(samples) - np.eye(len(samples))
    assert np.abs(apart).max() < 4 / 4096**0.5


def test_noise_is_the_same_in_a_group_and_on_eight_devices():
    params = {"a": jnp.zeros((64, 8)), "b": jnp.zeros(16)}
    tx = T.add_noise(1.0, 0.5, seed=3)
    plain = noise_of(tx, params)
    grouped = noise_of(lo.partition({"x": tx, "y": O.sgd(1.0)}, {"a": "x", "b": "y"}), params)
    np.testing.assert_array_equal(grouped["a"], plain["a"])
    mesh = Mesh(np.array(jax.devices()), ("d",))
    spread = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, PartitionSpec("d"))), params)
    for wrap in (lambda f: f, jax.jit):
        sharded = wrap(partial(noise_of, tx))(spread)
        for name, leaf in plain.items():
            np.testing.assert_allclose(sharded[name], leaf, rtol=1e-6)


def test_noise_goes_on_after_a_resume():
    tx, params = T.add_noise(1.0, 0.5), jnp.zeros(5)
    _, saved = tx.update(params, tx.init(params))
    again, _ = tx.update(params, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), saved))
    np.testing.assert_array_equal(again, noise_of(tx, params, steps=2))


def test_no_noise_is_sgd(x64):
    np.testing.assert_array_equal(path_of(O.noisy_sgd(RATE, 0.0)), path_of(O.sgd(RATE)))
