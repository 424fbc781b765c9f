"""Schedule-free training, GPA and lookahead: their paths, and the points at which to evaluate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import (
    RATE,
    Case,
    agree,
    check,
    falling,
    flat,
    gradients,
    numpy_path,
    optax_path,
    parametrize,
    path_of,
    tree,
)

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers


def rising(step):
    """A rate whose largest value is always the newest for a while, and then is not."""
    return 0.1 * jnp.sin(0.2 * (1.0 + step))


# ------------------------------------------------------------------------------------------------------ their paths


def evaluated(params, state):
    return T.schedule_free_eval_params(state, params)


def evaluated_gpa(params, state):
    return T.gpa_eval_params(state, params)


def package(name, rate=RATE, mix=None, at="y", **options):
    """The reference package: the points y at which it trains, or x at which it evaluates; `mix` is a schedule for β."""
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is in the extra 'oracles'")
    params = [torch.tensor(p, requires_grad=True) for p in jax.tree.leaves(tree(0))]
    optimizer, points = getattr(schedulefree, name)(params, **options), []
    optimizer.train()
    for step, grads in enumerate(gradients()):
        for p, g in zip(params, jax.tree.leaves(grads), strict=True):
            p.grad = torch.tensor(g)
        group = optimizer.param_groups[0]
        group["lr"] = float(rate(step)) if callable(rate) else rate
        if mix is not None:
            group["betas"] = (mix(step), group["betas"][1])
        optimizer.step()
        points.append(np.concatenate([optimizer.state[p][at].detach().numpy().ravel() for p in params]))
    return np.stack(points)


SGD, ADAMW = "SGDScheduleFreeReference", "AdamWScheduleFreeReference"


def of_package(ours, name, **options):
    """Two cases: where it trains and where it evaluates."""
    return [
        Case("schedulefree", ours, partial(package, name, **options)),
        Case("schedulefree", ours, partial(package, name, at="x", **options), partial(path_of, read=evaluated)),
    ]


def of_optax(name, *args):
    """Without warmup; the same two points."""

    def read(params, state):
        return optax.contrib.schedule_free_eval_params(state, params)

    def ours():
        return getattr(O, name)(*args)

    def theirs():
        return getattr(optax.contrib, name)(*args)

    return [
        Case("optax", ours, lambda: optax_path(theirs)),
        Case("optax", ours, lambda: optax_path(theirs, read=read), partial(path_of, read=evaluated)),
    ]


def slower(step):
    """A mix that changes."""
    return 0.9 - 0.04 * step


def averaged(rate, mix):
    """Everything that the rule takes."""
    base = (T.scale_by_rms(0.8, 0.02, eps_in_sqrt=False, bias_correction=True), T.add_decayed_weights(0.3))
    return lo.chain(*base, T.scale_by_schedule_free(rate, mix, 1.3, 1.7, 6))


def around(rate):
    """The same around an optimizer that has its rate, without a warmup."""
    base = T.scale_by_rms(0.8, 0.02, eps_in_sqrt=False, bias_correction=True)
    return T.schedule_free(lo.chain(base, T.add_decayed_weights(0.3), T.scale_by_learning_rate(rate)), rate, 0.6, 1.3)


OPTIONS = {"betas": (0.6, 0.8), "eps": 0.02, "weight_decay": 0.3, "weight_lr_power": 1.3}


def primal_averages(step, mu_y, mu_x, show="y"):
    """GPA's algorithm 1 with its three sequences; `step(w)` gives the function (g at y, y, t) → change of z."""

    def start(w):
        x, y, z, move = w, w, w, step(w)

        def advance(g, t):
            nonlocal x, y, z
            look = mu_y(t - 1) if callable(mu_y) else mu_y
            z = z + move(g, y, t)
            x = mu_x * x + (1 - mu_x) * z
            y = look * x + (1 - look) * z
            return y if show == "y" else x

        return advance

    return start


def adamw_step(eta, b1, b2, eps, eps_root, decay):
    def step(w):
        m, v = 0 * w, 0 * w

        def move(g, y, t):
            nonlocal m, v
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            direction = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
            return -(eta(t - 1) if callable(eta) else eta) * (direction + decay * y)

        return move

    return step


GPA = {"b1": 0.6, "b2": 0.8, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3}


def gpa_cases(eta, mu_y, mu_x):
    step = adamw_step(eta, *GPA.values())

    def ours():
        return O.gpa_adamw(eta, **GPA, mu_y=mu_y, mu_x=mu_x)

    return [
        Case("NumPy", ours, lambda: numpy_path(primal_averages(step, mu_y, mu_x))),
        Case(
            "NumPy",
            ours,
            lambda: numpy_path(primal_averages(step, mu_y, mu_x, "x")),
            partial(path_of, read=evaluated_gpa),
        ),
    ]


def looking_ahead(which):
    """optax trains a pair; the gradients are those of its fast half."""

    def path(make):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tx, params = make(), jax.tree.map(jnp.asarray, tree(0))
            pair, points = optax.LookaheadParams(fast=params, slow=params), []
            state = tx.init(pair)
            for grads in gradients():
                updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, pair)
                pair = optax.apply_updates(pair, updates)
                points.append(flat(getattr(pair, which)))
        return np.stack(points)

    return path


def slow(params, state):
    return lo.get_slot(state, "slow")


def lookahead_cases(name, rate, *args):
    def ours():
        return T.lookahead(getattr(O, name)(rate), *args)

    def theirs():
        return optax.lookahead(getattr(optax, name)(rate), *args)

    return [
        Case("optax", ours, lambda: looking_ahead("fast")(theirs)),
        Case("optax", ours, lambda: looking_ahead("slow")(theirs), partial(path_of, read=slow)),
    ]


CASES = {
    "schedule_free_sgd": [
        *of_package(lambda: O.schedule_free_sgd(RATE), SGD),
        *of_package(lambda: O.schedule_free_sgd(RATE, 6), SGD, warmup_steps=6),
        *of_package(
            lambda: O.schedule_free_sgd(RATE, 6, 0.6, 0.3, 1.3),
            SGD,
            warmup_steps=6,
            momentum=0.6,
            weight_decay=0.3,
            weight_lr_power=1.3,
        ),
        *of_package(lambda: O.schedule_free_sgd(falling, 6), SGD, rate=falling, warmup_steps=6),
        *of_optax("schedule_free_sgd", RATE),
        *of_optax("schedule_free_sgd", RATE, None, 0.6, 0.3, 1.3),
    ],
    "schedule_free_adamw": [
        *of_package(lambda: O.schedule_free_adamw(RATE), ADAMW),
        *of_package(
            lambda: O.schedule_free_adamw(RATE, 6, 0.6, 0.8, 0.02, 0.3, 1.3),
            ADAMW,
            warmup_steps=6,
            betas=(0.6, 0.8),
            eps=0.02,
            weight_decay=0.3,
            weight_lr_power=1.3,
        ),
        *of_package(lambda: O.schedule_free_adamw(rising, 3), ADAMW, rate=rising, warmup_steps=3),
        *of_optax("schedule_free_adamw", RATE),
        *of_optax("schedule_free_adamw", RATE, None, 0.6, 0.8, 0.02, 0.3, 1.3),
    ],
    "scale_by_schedule_free": [
        case
        for rate in (RATE, falling, rising)
        for mix in (0.6, slower)
        for case in of_package(
            partial(averaged, rate, mix),
            ADAMW,
            rate=rate,
            mix=mix if callable(mix) else None,
            r=1.7,
            warmup_steps=6,
            **OPTIONS,
        )
    ],
    "schedule_free": [
        case
        for rate in (RATE, falling, rising)
        for case in of_package(partial(around, rate), ADAMW, rate=rate, **OPTIONS)
    ],
    "gpa_adamw": [*gpa_cases(RATE, 0.7, 0.9967), *gpa_cases(falling, 0.4, 0.8)],
    "gpa": [*gpa_cases(RATE, slower, 0.8)],
    "lookahead": [
        *lookahead_cases("adam", RATE, 3, 0.4),
        *lookahead_cases("adam", RATE, 4, 0.7, True),
        *lookahead_cases("sgd", falling, 1, 0.3),
        *lookahead_cases("sgd", falling, 5, 1.0, True),
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


@pytest.mark.parametrize("make", [O.schedule_free_sgd, O.schedule_free_adamw, O.gpa_adamw])
def test_a_rate_is_a_number_an_array_or_a_schedule(x64, make):
    plain = path_of(make(RATE))
    agree(path_of(make(jnp.asarray(RATE))), plain)
    agree(path_of(make(lambda step: RATE)), plain)


# -------------------------------------------------------------------------------------- one rate, steps and weights


@pytest.mark.parametrize("make", [O.schedule_free_sgd, O.schedule_free_adamw])
def test_setting_the_rate_acts_on_steps_and_weights(x64, make):
    """By hand as by a schedule, under one key."""
    tx = make(RATE, 4)
    params = jax.tree.map(jnp.asarray, tree(0))
    state, points = tx.init(params), []
    assert [key for key in lo.get_hyperparams(state) if "learning_rate" in key] == ["learning_rate"]
    for step, grads in enumerate(gradients()):
        state = lo.set_hyperparams(state, learning_rate=rising(step))
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = lo.apply_updates(params, updates)
        points.append(flat(params))
    agree(np.stack(points), path_of(make(rising, 4)))


def test_a_base_of_another_library_says_its_rate(x64):
    agree(
        path_of(T.schedule_free(optax.sgd(RATE), RATE, 0.6)),
        optax_path(lambda: optax.contrib.schedule_free(optax.sgd(RATE), RATE, 0.6)),
    )


def test_both_rates_of_a_base_are_set_by_one_name(x64):
    tx = T.schedule_free(O.sgd(0.3), 0.3)
    params = jax.tree.map(jnp.asarray, tree(0))
    state = lo.set_hyperparams(tx.init(params), learning_rate=RATE)
    rates = {key: float(value) for key, value in lo.get_hyperparams(state).items() if "learning_rate" in key}
    assert rates == {"scale_by_learning_rate/learning_rate": RATE, "scale_by_schedule_free/learning_rate": RATE}


def test_a_rate_of_zero_weighs_nothing():
    """No 0/0 at the start of somebody's own warmup, and those steps do not count afterwards."""
    rates = np.array([0.0, 0.0, 0.1, 0.1])
    tx = O.schedule_free_sgd(lambda step: jnp.asarray(rates)[step])
    params, state = jnp.float32(1.0), tx.init(jnp.float32(1.0))
    counts = []
    for _ in rates:
        updates, state = tx.update(jnp.float32(1.0), state, params)
        params = params + updates
        counts.append(float(lo.get_slot(state, "points")))
    assert counts[2:] == [1.0, 2.0]
    np.testing.assert_allclose(T.schedule_free_eval_params(state, params), 0.85, rtol=1e-6)  # of 0.9 and 0.8


def test_optax_warms_up_steps_and_weights_apart(x64):
    """Why with warmup_steps the reference package decides: optax's first step is 0 and has a weight."""
    theirs = optax_path(lambda: optax.contrib.schedule_free_sgd(RATE, 6))
    mine = path_of(O.schedule_free_sgd(RATE, 6))
    assert np.abs(theirs[0] - flat(tree(0))).max() < 1e-12
    assert np.abs(mine - theirs).max() > 0.2 * np.abs(mine - flat(tree(0))).max()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: O.schedule_free_sgd(0.1, b1=1.0), "b1"),
        (lambda: O.schedule_free_adamw(0.1, -1), "warmup_steps"),
        (lambda: T.scale_by_schedule_free(0.1, weight_power=-1.0), "weight_power"),
        (lambda: O.gpa_adamw(0.1, mu_y=1.5), "mu_y"),
        (lambda: O.gpa_adamw(0.1, mu_x=1.0), "mu_x"),
        (lambda: T.lookahead(O.sgd(0.1), 0, 0.5), "sync_period"),
        (lambda: T.lookahead(O.sgd(0.1), 2.5, 0.5), "sync_period"),
        (lambda: T.lookahead(O.sgd(0.1), 2, 1.5), "slow_step_size"),
    ],
)
def test_out_of_range_is_refused(build, name):
    with pytest.raises(ValueError, match=rf"{name} must be"):
        build()


# ----------------------------------------------------------------------------------------------- where to evaluate


def step_once(tx, params, count=5):
    state = tx.init(params)
    for _ in range(count):
        updates, state = tx.update(params, state, params)
        params = lo.apply_updates(params, updates)
    return params, state


PARAMS = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(3)}
LABELS = {"w": "w", "b": "b"}


def test_evaluation_looks_inside_anything():
    params, state = step_once(O.schedule_free_sgd(0.1), PARAMS)
    plain = T.schedule_free_eval_params(state, params)
    for wrap in (lambda tx: lo.chain(T.clip(1e3), tx), lo.master_weights, lambda tx: T.lookahead(tx, 100, 0.5)):
        params, state = step_once(wrap(O.schedule_free_sgd(0.1)), PARAMS)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(evaluated(params, {"opt": (state,)})), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_evaluation_is_that_of_each_group():
    tx = lo.partition({"w": O.schedule_free_sgd(0.1, b1=0.5), "b": O.schedule_free_sgd(0.1, b1=0.9)}, LABELS)
    both = evaluated(*step_once(tx, PARAMS))
    for name, b1 in {"w": 0.5, "b": 0.9}.items():
        alone = evaluated(*step_once(O.schedule_free_sgd(0.1, b1=b1), PARAMS[name]))
        np.testing.assert_allclose(both[name], alone, rtol=1e-6)
    params, state = step_once(lo.partition({"w": O.schedule_free_sgd(0.1), "b": O.sgd(0.1)}, LABELS), PARAMS)
    np.testing.assert_array_equal(evaluated(params, state)["b"], params["b"])
    assert np.any(evaluated(params, state)["w"] != params["w"])


def test_evaluation_keeps_dtypes_and_what_is_not_trained():
    params = {"h": jnp.ones(3, jnp.bfloat16), "i": jnp.arange(3), "z": jnp.ones(2, jnp.complex64), "n": None}
    tx = O.schedule_free_sgd(0.1)
    grads = {"h": jnp.ones(3, jnp.bfloat16), "i": None, "z": jnp.ones(2, jnp.complex64), "n": None}
    _, state = tx.update(grads, tx.init(params), params)
    after = T.schedule_free_eval_params(state, params)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, params)
    np.testing.assert_array_equal(after["i"], params["i"])


def test_evaluation_without_an_average_is_refused():
    with pytest.raises(ValueError, match=r"schedule_free_eval_params: state must hold one schedule_free .*got none"):
        T.schedule_free_eval_params(O.sgd(0.1).init(PARAMS), PARAMS)
    two = lo.chain(O.gpa_adamw(0.1), T.gpa()).init(PARAMS)
    with pytest.raises(ValueError, match=r"gpa_eval_params: state must hold one gpa for a parameter, got 2"):
        T.gpa_eval_params(two, PARAMS)


def test_a_changed_mix_moves_no_average():
    """x is what the last β made it, whatever β comes next."""
    params, state = step_once(O.schedule_free_sgd(0.1), PARAMS)
    before = T.schedule_free_eval_params(state, params)
    state = lo.set_hyperparams(state, b1=0.3)
    np.testing.assert_array_equal(T.schedule_free_eval_params(state, params)["w"], before["w"])
    updates, last = O.schedule_free_sgd(0.1).update(jax.tree.map(jnp.zeros_like, params), state, params)
    z = params["w"] + 0.9 * lo.get_slot(state, "kept") * lo.get_slot(state, "ahead")["w"]
    x = before["w"] + (z - before["w"]) / lo.get_slot(last, "points")
    np.testing.assert_allclose(params["w"] + updates["w"], 0.3 * x + 0.7 * z, rtol=1e-5)


@pytest.mark.parametrize("b1", [0.0, 1e-3])
def test_a_mix_of_nothing_is_the_base_and_its_average(x64, b1):
    """β = 0, where dividing by it would lose x: y = z, and x their mean."""
    points = path_of(O.schedule_free_sgd(RATE, b1=b1))
    means = path_of(O.schedule_free_sgd(RATE, b1=b1), read=evaluated)
    descent = path_of(O.sgd(RATE))
    np.testing.assert_allclose(points, descent, rtol=0, atol=20 * b1 + 1e-12)
    agree(means, np.cumsum(descent, axis=0) / np.arange(1, len(descent) + 1)[:, None])


# ------------------------------------------------------------------------------------------------- float32, for long


def drift(tx, evaluate, fast, average):
    """How far x is from the average of the points z after 20,000 steps in float32 near 1000, in ulps of those."""
    start = 1000 + jnp.arange(8.0)

    def step(carry, t):
        params, state = carry
        updates, state = tx.update(jnp.cos(t.astype(jnp.float32) * (1 + jnp.arange(8.0))), state, params)
        params = lo.apply_updates(params, updates)
        return (params, state), fast(params, state)

    (params, state), z = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(20_000))
    x = average(np.asarray(start, np.float64), np.asarray(z, np.float64))
    return np.abs(np.asarray(evaluate(state, params), np.float64) - x).max() / np.spacing(np.float32(1000))


def mean(start, z):
    return z.mean(axis=0)


def moving(start, z):
    decay = float(np.float32(0.9967))
    for point in z:
        start = decay * start + (1 - decay) * point
    return start


def test_float32_keeps_the_average_over_long_runs():
    """Rounding the parameters is all that x suffers from; optax, which forms x in every step, is 3969 ulps off."""

    def fast(beta):
        return lambda params, state: (
            params + jnp.float32(beta) * lo.get_slot(state, "kept") * lo.get_slot(state, "ahead")
        )

    assert drift(O.schedule_free_sgd(0.5), T.schedule_free_eval_params, fast(0.9), mean) < 128
    assert drift(O.gpa_adamw(1e-3), T.gpa_eval_params, fast(0.7), moving) < 32
    with jax.numpy_dtype_promotion("standard"):
        peer = optax.contrib.schedule_free_sgd(0.5)
        assert drift(peer, optax.contrib.schedule_free_eval_params, lambda params, state: state.z, mean) > 1000


def test_weights_do_not_drift_in_float32():
    """A sum of η² is 6e-4 off after 100,000 steps; the number of points is exact."""
    tx = O.schedule_free_sgd(0.1)
    state, g = tx.init(jnp.zeros(())), jnp.ones(())
    state = jax.lax.fori_loop(0, 100_000, lambda _, state: tx.update(g, state, g)[1], state)
    assert float(lo.get_slot(state, "points")) == 100_000


# ---------------------------------------------------------------------------------------------------------- lookahead


def test_lookahead_begins_anew_where_it_returns_to(x64):
    """A memory of parameters, such as madgrad's first point, is the synchronised point (optax: the one before)."""
    tx = T.lookahead(O.madgrad(0.1), 3, 0.5, True)
    params = jax.tree.map(jnp.asarray, tree(0))
    state = tx.init(params)
    for step, grads in zip(range(1, 7), gradients(), strict=False):
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = lo.apply_updates(params, updates)
        if step % 3 == 0:
            agree(flat(lo.get_slot(state, "x0")), flat(params))
            assert not np.any(flat(lo.get_slot(state, "nu")))
            assert int(state.inner["scale_by_madgrad"].step) == 0


def test_lookahead_keeps_hyperparameters_at_a_return():
    tx = T.lookahead(O.sgd(0.1), 1, 0.5, True)
    state = lo.set_hyperparams(tx.init(PARAMS), learning_rate=0.3)
    _, state = tx.update(PARAMS, state, PARAMS)
    assert float(lo.get_hyperparams(state)["learning_rate"]) == np.float32(0.3)


def test_lookahead_resets_leaves_that_were_not_trained_and_other_libraries_states():
    params = {"w": jnp.ones(3, jnp.bfloat16), "frozen": jnp.ones(2), "i": jnp.arange(2)}
    grads = {"w": jnp.ones(3, jnp.bfloat16), "frozen": None, "i": None}
    for fast, given in ((O.madgrad(0.1), grads), (optax.trace(0.9), grads | {"frozen": jnp.ones(2)})):
        tx = T.lookahead(fast, 1, 0.5, True)
        _, state = tx.update(given, tx.init(params), params)
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, tx.init(params))


# --------------------------------------------------------------------------------------------------- in other chains


@pytest.mark.parametrize("make", [O.schedule_free_sgd, O.gpa_adamw, lambda rate: T.lookahead(O.sgd(rate), 2, 0.5)])
def test_inside_optax_s_chain(x64, make):
    plain = path_of(make(RATE))
    agree(optax_path(lambda: optax.chain(optax.identity(), lo.interop.to_optax(make(RATE)))), plain)
    agree(path_of(lo.chain(T.scale(1.0), make(RATE))), plain)


def test_lookahead_needs_the_parameters():
    tx = T.lookahead(O.sgd(0.1), 2, 0.5)
    with pytest.raises(TypeError, match="lookahead: params must be given to update"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_schedule_free_training_is_one_leaf_program():
    """Elementwise from end to end, so that it may be cut into blocks and compressed; and it is the same."""
    tx = O.schedule_free_adamw(0.1, 2)
    step = lo.compile_update(tx)
    (params, state), (plain, plain_state) = (jax.tree.map(jnp.array, (PARAMS, tx.init(PARAMS))) for _ in range(2))
    for _ in range(3):
        params, state = step(params, state, PARAMS)
        updates, plain_state = tx.update(PARAMS, plain_state, plain)
        plain = lo.apply_updates(plain, updates)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((plain, plain_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
