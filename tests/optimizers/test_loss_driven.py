"""Polyak's step, MoMo and hypergradients: their paths, and what is special about looking at the loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import (
    RATE,
    STEPS,
    Case,
    agree,
    check,
    falling,
    numpy_path,
    optax_path,
    parametrize,
    path_of,
    values,
    with_value,
)

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers

seen = partial(path_of, extra=with_value)
optax_seen = partial(optax_path, extra=with_value)


def peer(name, *args, in_optax=optax):
    """The same function with the same arguments in both libraries."""
    ours = getattr(O, name, None) or getattr(T, name)
    return Case("optax", lambda: ours(*args), lambda: optax_seen(lambda: getattr(in_optax, name)(*args)), run=seen)


def paper(ours, start, run=seen):
    return Case("NumPy", ours, lambda: numpy_path(start), run=run)


def bound(params, state):
    """What is known of the smallest loss."""
    return lo.get_slot(state, "lower_bound")


def momo(eta, decay, lowest, adapt=False, b1=0.9, b2=None, eps=None, show="w"):
    """MoMo, and with b2 MoMo-Adam, as the authors write it: the whole new point is divided by 1 + ηλ."""
    adam = b2 is not None

    def start(w):
        m, v, f, gamma, lb = 0 * w, 0 * w, 0.0, 0.0, lowest

        def move(g, t):
            nonlocal w, m, v, f, gamma, lb
            lr = eta(t - 1) if callable(eta) else eta
            b = b1 if adam or t > 1 else 0.0
            rho = 1 - b1**t if adam else 1.0
            m, f, gamma = b * m + (1 - b) * g, b * f + (1 - b) * values()[t - 1], b * gamma + (1 - b) * g @ w
            direction = m
            if adam:
                v = b2 * v + (1 - b2) * g * g
                direction = m / (np.sqrt(v / (1 - b2**t)) + eps)
            s = 1 + lr * decay
            if adapt and s * (f - gamma) + m @ w < s * rho * lb:
                lb = max((s * (f - gamma) + m @ w) / (2 * s * rho), lowest)
            tau = min(lr / rho, max(s * (f - rho * lb - gamma) + m @ w, 0.0) / (m @ direction))
            if adapt:
                lb = max((f + m @ w - gamma - tau * (m @ direction) / 2) / rho, lowest)
            w = (w - tau * direction) / s
            return w if show == "w" else np.array([lb])

        return move

    return start


def hypergradient(direction, kappa, eta=RATE, multiplicative=False, show="w"):
    """One rate for the whole tree; `direction()` gives a function (g, t) → u."""

    def start(w):
        u, last, before, step = 0 * w, eta(0) if callable(eta) else eta, None, direction()

        def move(g, t):
            nonlocal w, u, last, before
            base = eta(t - 1) if callable(eta) else eta
            last, before = last * base / (base if before is None else before), base
            k = kappa(t - 1) if callable(kappa) else kappa
            norms = np.linalg.norm(g) * np.linalg.norm(u)
            last = last * (1 + k * (g @ u / norms if norms else 0.0)) if multiplicative else last + k * g @ u
            u = step(g, t)
            w = w - last * u
            return w if show == "w" else np.array([last])

        return move

    return start


def plain():
    return lambda g, t: g


def momentum(mu=0.8, nesterov=False):
    def of():
        b = 0.0

        def step(g, t):
            nonlocal b
            b = mu * b + g
            return g + mu * b if nesterov else b

        return step

    return of


def adam(b1=0.6, b2=0.8, eps=0.03, eps_root=0.02):
    def of():
        m = v = 0.0

        def step(g, t):
            nonlocal m, v
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)

        return step

    return of


def rate(params, state):
    return lo.get_slot(state, "rate")


def scaled_polyak(scaling):
    """What optax's formula says of scaling, and its chain does not do: see test_scaling_multiplies_the_step."""
    return Case(
        "optax",
        lambda: O.polyak_sgd(0.01, scaling, 0.3, 0.5),
        lambda: optax_seen(
            lambda: optax.chain(optax.scale_by_polyak(0.3, 0.01, 0.5), optax.scale_by_learning_rate(scaling))
        ),
        run=seen,
    )


def polyak(eta):
    def start(w):
        def move(g, t):
            nonlocal w
            w = w - min(values()[t - 1] / (g @ g), eta(t - 1)) * g
            return w

        return move

    return start


def near_bounds(r, a, n=1, best=20.0, seed=3):
    """Losses whose means of n lie a little above or a little below what would be an improvement."""
    rng, losses, mean = np.random.default_rng(seed), [], best
    while len(losses) < STEPS:
        losses += list(mean + abs(mean) * np.linspace(-0.3, 0.3, n) * (n > 1))
        best = min(best, mean)
        bound = best - r * abs(best) - a
        mean = bound + rng.choice([-2e-5, 2e-5]) * abs(bound)
        best = best if mean > bound else mean
    return np.array(losses)


def without(losses, *lost):
    """The same with numbers lost; the mean of those that are left is another one."""
    losses = losses.copy()
    losses[list(lost)] = [np.nan, np.inf, -np.inf, np.nan][: len(lost)]
    return losses


def plateau(values, b, p, r, a, c, n, least):
    """As the docstring says it, one mean after the other."""

    def start(w):
        s, best, bad, cooling, seen = 1.0, np.inf, 0, 0, []

        def move(g, t):
            nonlocal w, s, best, bad, cooling, seen
            seen.append(values[t - 1])
            if len(seen) == n:
                finite = [v for v in seen if np.isfinite(v)]
                better = bool(finite) and (best == np.inf or np.mean(finite) < best - r * abs(best) - a)
                best = np.mean(finite) if better else best
                bad = 0 if better or cooling else bad + 1
                cooling = max(cooling - 1, 0)
                if bad and bad >= p:
                    s, bad, cooling = s * b, 0, c
                s, seen = max(s, least), []
            w = w - s * g
            return w

        return move

    return start


def on_plateaus(args, values, peer="NumPy"):
    """Down by `reduce_on_plateau`, the losses being these."""

    def given(step, params, grads):
        return {"value": jnp.asarray(values[step])}

    def make(library, rule):
        return library.chain(rule(*args), library.scale(-1.0) if library is optax else T.scale(-1.0))

    return Case(
        peer,
        lambda: make(lo, T.reduce_on_plateau),
        (lambda: numpy_path(plateau(values, *args)))
        if peer == "NumPy"
        else lambda: optax_path(lambda: make(optax, optax.contrib.reduce_on_plateau), given),
        run=partial(path_of, extra=given),
    )


see = {"bound": partial(seen, read=bound), "rate": partial(path_of, read=rate)}
ADAM = {"b1": 0.6, "b2": 0.8, "eps": 0.03}
CASES = {
    "reduce_on_plateau": [
        *(
            on_plateaus((0.5, p, 0.4, 0.0, c, n, 0.2), near_bounds(0.4, 0.0, n), "optax")
            for p, c, n in [(1, 0, 1), (1, 1, 1), (2, 0, 1), (1, 1, 2), (1, 0, 3)]
        ),
        *(
            on_plateaus((b, p, r, a, c, n, least), near_bounds(r, a, n, best), "NumPy")
            for b, p, r, a, c, n, least, best in [
                (0.7, 1, 0.4, 0.2, 0, 1, 0.0, 20.0),
                (0.7, 2, 0.0, 0.2, 0, 1, 0.3, 1.0),
                (0.7, 1, 0.4, 0.2, 1, 1, 0.0, -3.0),
                (0.7, 0, 0.4, 0.0, 0, 1, 0.0, -3.0),
                (0.7, 1, 0.4, 0.2, 0, 3, 0.0, 20.0),
                (0.7, 1, 0.0, 0.2, 0, 3, 0.0, 1.0),
                (0.7, 1, 1.0, 0.2, 0, 1, 0.0, 20.0),
            ]
        ),
        on_plateaus((0.7, 1, 0.4, 0.2, 0, 1, 0.0), without(near_bounds(0.4, 0.2), 0, 3, 7, 8)),
        on_plateaus((0.7, 1, 0.4, 0.2, 0, 3, 0.0), without(near_bounds(0.4, 0.2, 3), 3, 6, 7, 8)),
    ],
    "scale_by_polyak": [
        peer("scale_by_polyak", *args)
        for args in [(), (0.3, 0.01), (0.3, 0.01, 50.0), (1.5, 0.01, 50.0, "sps"), (1.5, 0.01, 50.0, "sps+")]
    ],
    "polyak_sgd": [
        *(peer("polyak_sgd", *args) for args in [(), (0.01, 1.0, 0.3, 50.0), (0.01, 1.0, 1.5, 50.0, "sps+")]),
        *(scaled_polyak(scaling) for scaling in (0.4, np.float64(0.3), falling)),
        paper(lambda: O.polyak_sgd(lambda step: 0.05 * falling(step)), polyak(lambda step: 0.05 * falling(step))),
    ],
    "momo": [
        *(
            peer("momo", *args, in_optax=optax.contrib)
            for args in [
                (),
                (RATE, 0.7, 0.3),
                (falling, 0.7, 0.3),
                (RATE, 0.7, 0.3, 0.0, True),
                (falling, 0.7, 0.0, 0.0, True),
            ]
        ),
        *(
            paper(lambda a=a: O.momo(a[0], 0.7, 0.3, 0.4, a[1]), momo(a[0], 0.4, 0.3, a[1], 0.7))
            for a in [(RATE, False), (np.float64(RATE), True), (falling, False), (falling, True)]
        ),
        paper(lambda: O.momo(RATE, 0.7, -0.2, 0.4, True), momo(RATE, 0.4, -0.2, True, 0.7, show="bound"), see["bound"]),
    ],
    "momo_adam": [
        *(
            peer("momo_adam", *args, in_optax=optax.contrib)
            for args in [
                (),
                (RATE, 0.6, 0.8, 0.03, 0.3),
                (falling, 0.6, 0.8, 0.03, 0.3),
                (RATE, 0.6, 0.8, 0.03, 0.3, 0.0, True),
                (falling, 0.6, 0.8, 0.03, 0.0, 0.0, True),
            ]
        ),
        *(
            paper(lambda a=a: O.momo_adam(a[0], *ADAM.values(), 0.3, 0.4, a[1]), momo(a[0], 0.4, 0.3, a[1], **ADAM))
            for a in [(RATE, False), (np.float64(RATE), True), (falling, False), (falling, True)]
        ),
        paper(
            lambda: O.momo_adam(RATE, *ADAM.values(), -0.2, 0.4, True),
            momo(RATE, 0.4, -0.2, True, **ADAM, show="bound"),
            see["bound"],
        ),
    ],
    "hypergradient_sgd": [
        paper(lambda: O.hypergradient_sgd(RATE, 1e-4), hypergradient(plain, 1e-4), path_of),
        paper(lambda: O.hypergradient_sgd(np.float64(RATE), 1e-4, 0.8), hypergradient(momentum(), 1e-4), path_of),
        paper(
            lambda: O.hypergradient_sgd(falling, 1e-4, 0.8, True),
            hypergradient(momentum(nesterov=True), 1e-4, falling),
            path_of,
        ),
        paper(
            lambda: O.hypergradient_sgd(RATE, 0.3, 0.8, multiplicative=True),
            hypergradient(momentum(), 0.3, multiplicative=True),
            path_of,
        ),
    ],
    "hypergradient_adam": [
        paper(
            lambda a=a, k=k, m=m: O.hypergradient_adam(a, k, *ADAM.values(), 0.02, multiplicative=m),
            hypergradient(adam(), k, a, m),
            path_of,
        )
        for a, k, m in [
            (RATE, 1e-3, False),
            (np.float64(RATE), 0.3, True),
            (falling, 1e-3, False),
            (falling, 0.3, True),
        ]
    ],
    "hypergradient": [
        paper(
            lambda: T.hypergradient(T.trace(0.8), falling, lambda step: 1e-4 * (1.0 + step)),
            hypergradient(momentum(), lambda step: 1e-4 * (1.0 + step), falling),
            path_of,
        ),
        paper(
            lambda: T.hypergradient(T.trace(0.8), falling, 1e-4),
            hypergradient(momentum(), 1e-4, falling, show="rate"),
            see["rate"],
        ),
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


# ------------------------------------------------------------------------------------------------------- the loss


LOSS_DRIVEN = {"polyak_sgd": O.polyak_sgd, "momo": O.momo, "momo_adam": O.momo_adam}
ADAPTING = {
    **LOSS_DRIVEN,
    "sps+": partial(O.polyak_sgd, variant="sps+"),
    "momo, adapting": partial(O.momo, adapt_lower_bound=True, weight_decay=0.1),
    "momo_adam, adapting": partial(O.momo_adam, adapt_lower_bound=True, weight_decay=0.1, eps=0.0),
}
loss_driven = pytest.mark.parametrize("make", LOSS_DRIVEN.values(), ids=LOSS_DRIVEN)
adapting = pytest.mark.parametrize("make", ADAPTING.values(), ids=ADAPTING)


def bowl(params):
    return jnp.sum(jnp.array([1.0, 3.0]) * (params - 1.0) ** 2) / 2


def descend(tx, update, count=20):
    params = jnp.array([3.0, -2.0])
    state = tx.init(params)
    for _ in range(count):
        params, state = update(params, state, *jax.value_and_grad(bowl)(params))
    return params


@loss_driven
def test_without_a_loss_it_says_what_to_do(make):
    tx = make()
    with pytest.raises(TypeError, match=r"value must be given to update, got nothing; call tx\.update\(…, value=…\)"):
        tx.update(1.0, tx.init(1.0), 1.0)


@loss_driven
def test_every_way_to_pass_the_loss_is_one_path(make):
    tx, foreign = lo.chain(T.clip(10.0), make()), optax.chain(optax.identity(), lo.interop.to_optax(make()))
    compiled = lo.compile_update(tx)

    def by(tx):
        def update(params, state, value, grads):
            updates, state = tx.update(grads, state, params, value=value)
            return lo.apply_updates(params, updates), state

        return update

    def scanned(_, count=20):
        def body(carry, _):
            return by(tx)(*carry, *jax.value_and_grad(bowl)(carry[0])), None

        start = jnp.array([3.0, -2.0])
        return jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), length=count))()[0][0]

    expected = descend(tx, by(tx))
    assert bowl(expected) < bowl(jnp.array([3.0, -2.0]))
    for path in (
        descend(tx, jax.jit(by(tx))),
        descend(tx, lambda params, state, value, grads: compiled(params, state, grads, value=value)),
        descend(foreign, by(foreign)),
        scanned(tx),
    ):
        np.testing.assert_allclose(path, expected, rtol=1e-5)
    dropped = optax.chain(optax.identity(), make())
    with pytest.raises(TypeError, match="to_optax"):
        descend(dropped, by(dropped))


@adapting
def test_no_gradient_no_step_whatever_the_loss(make):
    tx, params = make(), jnp.zeros(3)
    state = tx.init(params)
    for value in (1.0, 1.0, 0.0, -1.0):
        updates, state = tx.update(jnp.zeros(3), state, params, value=value)
        assert not np.any(updates)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@adapting
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [2.0, 0.0, -2.0])
def test_tiny_and_huge_gradients_of_a_loss(make, dtype, value):
    """Four hundred elements of 1e18, whose squares overflow together; a loss below its bound."""
    huge = min(float(jnp.finfo(dtype).max) / 4, 1e18)
    for size in (0.0, 1e-38, 1e-30, 1e-5, huge):
        tx, params = make(), jnp.ones(400, dtype)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jnp.full(400, size, dtype), state, params, value=value)
            assert np.isfinite(np.asarray(updates, np.float32)).all()
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


@adapting
def test_mixed_precision_in_one_tree(x64, make):
    params = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(2), "c": jnp.ones(2, jnp.bfloat16)}
    tx = make()
    state = tx.init(params)
    updates, after = tx.update(params, state, params, value=jnp.float32(0.5))
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_scaling_multiplies_the_step(x64):
    """By s, as in optax's formula; optax's chain hides s from the step it computes, which then divides by s."""
    params, grads, value = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), 0.5

    def step(tx):
        return tx.update(grads, tx.init(params), params, value=value)[0]

    agree(step(O.polyak_sgd(1.0, 0.5)), -0.5 * value / 25 * grads)
    with jax.numpy_dtype_promotion("standard"):
        agree(step(optax.polyak_sgd(1.0, 0.5)), -value / 25 / 0.5 * grads)


def test_below_its_bound_sps_climbs_and_sps_plus_stays():
    grads = jnp.array([3.0, 4.0])
    for variant, expected in {"sps": 0.5 / 25 * grads, "sps+": 0 * grads}.items():
        tx = O.polyak_sgd(f_min=1.0, variant=variant)
        np.testing.assert_allclose(tx.update(grads, tx.init(grads), grads, value=0.5)[0], expected, rtol=1e-6)
    tx = T.scale_by_polyak(variant="sps-")
    state = tx.init(grads)
    with pytest.raises(ValueError, match=r"scale_by_polyak: variant must be 'sps' or 'sps\+', got 'sps-'"):
        tx.update(grads, state, value=1.0)


@pytest.mark.parametrize("make", [O.momo, O.momo_adam], ids=["momo", "momo_adam"])
def test_decay_divides_the_whole_new_point(x64, make):
    """As the authors' package; optax decays the old point and subtracts the whole step from it."""
    params, grads, value = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), 50.0
    theirs = getattr(optax.contrib, make.__name__)

    def point(make):
        tx = make(0.5, weight_decay=0.4)
        with jax.numpy_dtype_promotion("standard"):
            return params + tx.update(grads, tx.init(params), params, value=value)[0]

    direction = grads if make is O.momo else jnp.sign(grads)
    agree(point(make), (params - 0.5 * direction) / 1.2, atol=1e-8)
    agree(point(theirs), params / 1.2 - 0.5 * direction, atol=1e-8)


@pytest.mark.parametrize("make", [O.momo, O.momo_adam], ids=["momo", "momo_adam"])
def test_the_bound_rises_to_a_minimum_that_is_not_zero(make):
    tx = make(1.0, adapt_lower_bound=True)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: bowl(p) + 5.0)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (lo.apply_updates(params, updates), state), None

    start = jnp.array([3.0, -2.0])
    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=300)
    assert bowl(params) < 0.05
    np.testing.assert_allclose(lo.get_slot(state, "lower_bound"), 5.0, atol=0.1)


# -------------------------------------------------------------------------------------------------- hypergradients


def constant_gradients(tx, state=None, count=3, grads=None):
    """(updates of the last step, state) under one gradient."""
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])} if grads is None else grads
    state = tx.init(grads) if state is None else state
    for _ in range(count):
        updates, state = tx.update(grads, state, grads)
    return updates, state


def test_the_rate_is_a_slot_and_one_for_the_whole_tree():
    updates, state = constant_gradients(O.hypergradient_sgd(0.5, 0.01))
    np.testing.assert_allclose(lo.get_slot(state, "rate"), 0.5 + 2 * 0.01 * 25, rtol=1e-6)
    np.testing.assert_allclose(updates["a"], -3.0, rtol=1e-6)
    _, state = constant_gradients(O.hypergradient_sgd(0.5, 0.1, multiplicative=True))
    np.testing.assert_allclose(lo.get_slot(state, "rate"), 0.5 * 1.1**2, rtol=1e-6)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_another_learning_rate_scales_what_was_learned(multiplicative):
    tx = O.hypergradient_sgd(0.5, 0.01, multiplicative=multiplicative)
    _, state = constant_gradients(tx)
    learned = lo.get_slot(state, "rate")
    _, as_before = constant_gradients(tx, state, 1)
    _, halved = constant_gradients(tx, lo.set_hyperparams(state, learning_rate=0.25), 1)
    change = lo.get_slot(as_before, "rate") - learned
    np.testing.assert_allclose(
        lo.get_slot(halved, "rate"), learned / 2 + change / (2 if multiplicative else 1), rtol=1e-6
    )


@pytest.mark.parametrize("multiplicative", [False, True])
def test_a_rate_of_zero_moves_and_learns_nothing_and_forgets_nothing(multiplicative):
    tx = O.hypergradient_sgd(0.5, 0.01, multiplicative=multiplicative)
    _, state = constant_gradients(tx)
    updates, still = constant_gradients(tx, lo.set_hyperparams(state, learning_rate=0.0))
    assert not any(map(np.any, updates.values()))
    assert lo.get_slot(still, "rate") == lo.get_slot(state, "rate")
    _, again = constant_gradients(tx, lo.set_hyperparams(still, learning_rate=0.5), 1)
    assert lo.get_slot(again, "rate") == lo.get_slot(constant_gradients(tx, state, 1)[1], "rate")
    warm = O.hypergradient_sgd(lambda step: 0.1 * step, 0.01, multiplicative=multiplicative)
    _, state = constant_gradients(warm, count=2)
    first = 0.1 * 1.01 if multiplicative else 0.1 + 0.01 * 25
    np.testing.assert_allclose(lo.get_slot(state, "rate"), first, rtol=1e-6)


def test_the_multiplicative_form_does_not_see_the_size_of_gradients():
    tx = O.hypergradient_sgd(0.1, 0.3, multiplicative=True)
    for size in (1e-30, 1.0, 1e30):
        _, state = constant_gradients(tx, grads=jnp.array([3.0, -4.0]) * size)
        np.testing.assert_allclose(lo.get_slot(state, "rate"), 0.1 * 1.3**2, rtol=1e-6)
    tx = O.hypergradient_adam(0.1, 0.3, multiplicative=True)
    for size in (1.0, 1e18):
        _, state = constant_gradients(tx, grads=jnp.array([3.0, -4.0]) * size)
        np.testing.assert_allclose(lo.get_slot(state, "rate"), 0.1 * (1 + 0.3 * 7 / 50**0.5) ** 2, rtol=1e-5)


def test_a_hypergradient_that_overflows_leaves_the_rate_alone():
    _, state = constant_gradients(O.hypergradient_sgd(0.5, 0.01), grads=jnp.full(400, 1e18))
    assert lo.get_slot(state, "rate") == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: O.hypergradient_sgd(0.1, nesterov=True), "hypergradient_sgd: nesterov must have momentum"),
        (lambda: O.hypergradient_adam(0.1, -1.0), "hypergradient: hypergradient_rate must be ≥ 0"),
        (lambda: O.momo(beta=1.0), r"scale_by_momo: beta must be in \[0, 1\)"),
        (lambda: O.polyak_sgd(-1.0), "scale_by_polyak: max_learning_rate must be ≥ 0"),
    ],
)
def test_out_of_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


DESCENT = {
    "polyak_sgd": O.polyak_sgd(),
    "momo": O.momo(),
    "momo_adam": O.momo_adam(0.3),
    "hypergradient_sgd": O.hypergradient_sgd(1e-3, 1e-4),
    "hypergradient_sgd, multiplicative": O.hypergradient_sgd(1e-5, 0.3, multiplicative=True),
    "hypergradient_adam": O.hypergradient_adam(1e-3, 1e-4),
    "hypergradient_adam, multiplicative": O.hypergradient_adam(1e-5, 0.1, multiplicative=True),
}


@pytest.mark.parametrize("tx", DESCENT.values(), ids=DESCENT)
def test_descent(tx):
    """From rates that are a thousand times too small, where a rate is learned."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(bowl)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (lo.apply_updates(params, updates), state), None

    start = jnp.array([3.0, -2.0])
    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=400)
    np.testing.assert_allclose(params, [1.0, 1.0], atol=0.05)
