"""What is measured inside a composition: the right number, readable from anywhere, at no change to anything else."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3) / 8, "b": np.ones(3, np.float32)}
GRADS = [jax.tree.map(lambda p, k=k: (p + k) * (-1) ** k, PARAMS) for k in range(4)]


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


def types(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf), getattr(leaf, "weak_type", False)), tree)


SNAPSHOT = T.snapshot("norm", T.global_norm)
BOTH = T.monitor({"norm": T.global_norm, "mean": T.measure_with_ema(T.global_norm, 0.5)})

# A composition around a monitor, and the key of its reading.
AROUND = {
    "alone": (lambda m: m, "norm"),
    "chain": (lambda m: lo.chain(m, O.adam(0.1)), "norm"),
    "named_chain": (lambda m: lo.named_chain(("mine", m), ("rule", O.sgd(0.1))), "norm"),
    "partition": (lambda m: lo.partition({"all": lo.chain(m, O.sgd(0.1)), "none": O.adam(0.1)}, "all"), "all/norm"),
    "masked": (lambda m: lo.masked(lo.chain(m, O.sgd(0.1)), {"w": True, "b": True}), "norm"),
    "multi_steps": (lambda m: T.multi_steps(lo.chain(m, O.sgd(0.1)), 1), "norm"),
    "guard": (lambda m: T.apply_if_finite(lo.chain(m, T.clip_by_global_norm(1.0), O.adamw(0.1))), "norm"),
    "condition": (lambda m: T.conditionally_mask(lo.chain(m, O.sgd(0.1)), lambda step: step >= 0), "norm"),
    "master_weights": (lambda m: lo.master_weights(lo.chain(m, O.sgd(0.1))), "norm"),
    "compress_state": (lambda m: lo.compress_state(lo.chain(m, O.adam(0.1)), "int8"), "norm"),
    "lookahead": (lambda m: T.lookahead(lo.chain(m, O.sgd(0.1)), 2, 0.5), "norm"),
    "sam": (lambda m: T.sam(O.sgd(0.1), lo.chain(m, O.sgd(0.1)), sync_period=9), "adv_optimizer/norm"),
    "beside packed": (lambda m: lo.chain(m, lo.pack_small(O.adam(0.1))), "norm"),
    "optax.chain": (lambda m: optax.chain(m, optax.sgd(0.1)), "norm"),
    "optax.multi_transform": (lambda m: optax.multi_transform({"x": optax.chain(m)}, {"w": "x", "b": "x"}), "norm"),
}


@pytest.mark.parametrize(("around", "key"), AROUND.values(), ids=AROUND)
def test_read_from_any_composition_and_of_one_type_in_a_scan(around, key):
    tx = around(BOTH)
    state = jax.jit(tx.init)(PARAMS)

    def step(state, grads):
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(grads, state, PARAMS)[1], None

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *GRADS)
    after, _ = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)(state, stacked)
    assert types(after) == types(tx.init(PARAMS)) == types(jax.eval_shape(tx.init, PARAMS))
    found = lo.get_measurements({"opt": after, "other": 1.0})
    mean = key.replace("norm", "mean")
    assert set(found) - {"bad_steps", "bad_in_a_row"} == {key, mean}
    np.testing.assert_allclose(found[key], norm(GRADS[-1]), rtol=1e-6)
    expected = sum(0.5 ** (len(GRADS) - k) * norm(g) for k, g in enumerate(GRADS)) / (1 - 0.5 ** len(GRADS))
    np.testing.assert_allclose(found[mean], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["chain", "partition", "guard"])
def test_measured_in_compile_update_too_and_nothing_else_changes(name):
    tx, plain = AROUND[name][0](BOTH), AROUND[name][0](T.identity())
    start = jax.tree.map(jnp.asarray, PARAMS)
    (params, state), step = (start, tx.init(start)), lo.compile_update(tx)
    expected, there = start, plain.init(start)
    for grads in GRADS:
        params, state = step(jax.tree.map(jnp.copy, params), state, grads)
        expected, there = lo.compile_update(plain)(jax.tree.map(jnp.copy, expected), there, grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), params, expected)
    np.testing.assert_allclose(lo.get_measurements(state)[AROUND[name][1]], norm(GRADS[-1]), rtol=1e-6)
    np.testing.assert_equal(lo.get_hyperparams(state), lo.get_hyperparams(there))


def test_a_vmap_reads_one_for_each():
    tx = lo.chain(BOTH, O.sgd(0.1))
    params, grads = jnp.zeros((3, 2)), jnp.arange(6.0).reshape(3, 2)
    _, state = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(params), params)
    for name in ("norm", "mean"):
        np.testing.assert_allclose(lo.get_measurements(state)[name], np.linalg.norm(grads, axis=1), rtol=1e-6)


def test_before_and_behind():
    """The two norms around a rule, and a clip's ratio."""
    inner = lo.chain(T.measure_update(T.clip_by_global_norm(0.5), after="clipped_norm"), O.sgd(0.2))
    tx = lo.chain(inner, T.snapshot("update_norm", T.global_norm))
    _, state = tx.update(GRADS[1], tx.init(PARAMS), PARAMS)
    read = lo.get_measurements(state)
    assert sorted(read) == ["clipped_norm", "gradient_norm", "update_norm"]
    for name, expected in (("gradient_norm", norm(GRADS[1])), ("clipped_norm", 0.5), ("update_norm", 0.1)):
        np.testing.assert_allclose(read[name], expected, rtol=1e-6)
    assert list(lo.get_hyperparams(state)) == ["max_norm", "learning_rate"]
    with pytest.raises(ValueError, match="must be outermost"):
        T.measure_update(lo.master_weights(O.sgd(0.1)))


def test_updates_pass_unchanged():
    for tx in (BOTH, SNAPSHOT, T.monitor({})):
        updates, _ = tx.update(GRADS[2], tx.init(PARAMS), PARAMS)
        jax.tree.map(np.testing.assert_array_equal, updates, GRADS[2])


# --------------------------------------------------------------------------------------------------------- bad steps


def test_a_guard_keeps_bad_steps_out_of_readings_and_counts_them():
    tx = T.apply_if_finite(T.measure_update(lo.chain(BOTH, O.sgd(0.1))))
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    bad = jax.tree.map(lambda g: g * np.float32(np.nan), GRADS[0])
    for grads, bad_steps, in_a_row in ((GRADS[1], 0, 0), (bad, 1, 1), (bad, 2, 2), (GRADS[2], 2, 0), (bad, 3, 1)):
        before, (_, state) = lo.get_measurements(state), update(grads, state, PARAMS)
        read = lo.get_measurements(state)
        assert (int(read.pop("bad_steps")), int(read.pop("bad_in_a_row"))) == (bad_steps, in_a_row)
        if grads is bad:
            np.testing.assert_equal(read, {name: before[name] for name in read})
    np.testing.assert_allclose(read["gradient_norm"], norm(GRADS[2]), rtol=1e-6)
    np.testing.assert_allclose(read["mean"], (norm(GRADS[1]) / 4 + norm(GRADS[2]) / 2) / 0.75, rtol=1e-6)


def test_outside_a_guard_a_bad_step_is_seen():
    tx = lo.chain(SNAPSHOT, T.apply_if_finite(O.sgd(0.1)))
    _, state = tx.update({"w": np.full((2, 3), np.inf, np.float32), "b": None}, tx.init(PARAMS), PARAMS)
    assert {name: float(value) for name, value in lo.get_measurements(state).items()} == {
        "norm": np.inf,
        "bad_steps": 1,
        "bad_in_a_row": 1,
    }


# ------------------------------------------------------------------------------------------------------------- names


def test_a_name_that_stands_twice_is_qualified():
    state = lo.chain(SNAPSHOT, O.sgd(0.1), SNAPSHOT).init(PARAMS)
    assert set(lo.get_measurements(state)) == {"monitor/norm", "monitor_2/norm"}
    named = lo.named_chain(("before", SNAPSHOT), ("rule", O.sgd(0.1)), ("after", SNAPSHOT))
    assert set(lo.get_measurements(named.init(PARAMS))) == {"before/norm", "after/norm"}
    guards = T.apply_if_finite(lo.chain(T.skip_large_updates(O.sgd(0.1), 1e9))).init(PARAMS)
    assert set(lo.get_measurements(guards)) == {
        *("bad_steps", "bad_in_a_row"),
        *("skip_large_updates/bad_steps", "skip_large_updates/bad_in_a_row"),
    }
    groups = lo.partition({"x": lo.chain(SNAPSHOT), "y": lo.chain(SNAPSHOT, SNAPSHOT)}, {"w": "x", "b": "y"})
    assert set(lo.get_measurements(groups.init(PARAMS))) == {"x/norm", "y/monitor/norm", "y/monitor_2/norm"}
    assert lo.get_measurements(O.adam(0.1).init(PARAMS)) == {}


def test_names_are_told_apart_by_the_whole_path_if_need_be():
    """Of measurements and of hyperparameters: one rule at two places under the same name."""
    inside = [lo.chain(SNAPSHOT, T.scale(factor)) for factor in (2.0, 3.0)]
    state = lo.named_chain(("a", inside[0]), ("b", inside[1])).init(PARAMS)
    assert set(lo.get_measurements(state)) == {"a/norm", "b/norm"}
    for held, factor in ((state, 2.0), (lo.set_hyperparams(state, **{"a/step_size": 5.0}), 5.0)):
        assert {k: float(v) for k, v in lo.get_hyperparams(held).items()} == {"a/step_size": factor, "b/step_size": 3}


# ----------------------------------------------------------------------------------------------------- what it reads


def test_readings_have_the_type_of_the_measure():
    measures = {
        "norms": lambda u: jax.tree.map(jnp.linalg.norm, u),
        "zeros": lambda u: sum(jnp.sum(leaf == 0) for leaf in jax.tree.leaves(u)),
        "large": lambda u: T.global_norm(u) > 1,
        "all": lambda u: u,
        "often": T.measure_with_ema(lambda u: T.global_norm(u) > 1, 0.5),
        "half": T.measure_with_ema(T.global_norm, 0.5, False, jnp.bfloat16),
        "momentum": T.trace(0.9),
    }
    tx = T.monitor(measures)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.zeros(3), "name": "layer"}
    start = tx.init(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(lo.get_measurements(start)))
    grads = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.array([0.0, 1.0, 0.0]), "name": None}
    _, state = tx.update(grads, start, params)
    assert types(state) == types(start)
    read = lo.get_measurements(state)
    assert {n: x.dtype for n, x in read.items() if n not in ("norms", "all", "momentum")} == {
        **{"zeros": jnp.int32, "large": jnp.bool_, "often": jnp.float32, "half": jnp.float32}
    }
    assert state.slots["measures"][5].ema.dtype == jnp.bfloat16
    np.testing.assert_allclose(read["norms"]["w"], 6**0.5, rtol=1e-6)
    assert (int(read["zeros"]), bool(read["large"]), float(read["often"])) == (2, True, 1.0)
    np.testing.assert_allclose(read["half"], 7**0.5 / 2, rtol=1e-6)
    np.testing.assert_array_equal(read["momentum"]["b"], grads["b"])
    assert read["all"]["b"].unsafe_buffer_pointer() != grads["b"].unsafe_buffer_pointer()
    assert read["norms"]["name"] is None


def test_a_leaf_without_a_gradient_keeps_its_reading():
    norms = lambda u: jax.tree.map(jnp.linalg.norm, u)  # noqa: E731
    tx = T.monitor({"norms": norms, "mean": T.measure_with_ema(norms, 0.5)})
    state = tx.init(PARAMS)
    for grads in (GRADS[1], GRADS[2] | {"b": None}):
        _, state = tx.update(grads, state, PARAMS)
    read = lo.get_measurements(state)
    for name in ("norms", "mean"):
        np.testing.assert_allclose(read[name]["b"], norm(GRADS[1]["b"]), rtol=1e-6)
    np.testing.assert_allclose(read["norms"]["w"], norm(GRADS[2]["w"]), rtol=1e-6)


@pytest.mark.parametrize("debias", [True, False])
def test_an_average_by_itself_is_optax_s(debias):
    arguments = (0.7, debias, jnp.float16)
    mine, theirs = T.measure_with_ema(T.global_norm, *arguments), optax.measure_with_ema(optax.tree.norm, *arguments)
    made = {"mine": mine, "theirs": theirs, "inside": T.monitor({"x": theirs}), "outside": optax.monitor({"x": mine})}

    @jax.jit
    def step(grads, states):
        with jax.numpy_dtype_promotion("standard"):
            return {name: tx.update(grads, states[name], PARAMS) for name, tx in made.items()}

    states = {name: tx.init(PARAMS) for name, tx in made.items()}
    for grads in GRADS:
        after = step(grads, states)
        states = {name: state for name, (_, state) in after.items()}
        reading, expected = after["mine"][0], after["theirs"][0]
        np.testing.assert_allclose(reading, expected, rtol=1e-3)  # the average is kept in half precision
        np.testing.assert_allclose(lo.get_measurements(states["inside"])["x"], expected, rtol=1e-6)
        np.testing.assert_allclose(optax.tree.get(states["outside"], "x"), reading, rtol=1e-6)
    assert mine.init(PARAMS).ema.dtype == states["mine"].ema.dtype == jnp.float16
    assert float(mine.update(GRADS[0], next(iter(mine))(PARAMS))[0]) > 0  # the two of them as a pair, eagerly


def test_a_decay_may_be_traced_and_swept():
    def last(decay):
        tx = T.monitor({"mean": T.measure_with_ema(T.global_norm, decay)})
        state = tx.init(PARAMS)
        for grads in GRADS[:2]:
            _, state = tx.update(grads, state, PARAMS)
        return lo.get_measurements(state)["mean"]

    first, second = map(norm, GRADS[:2])
    expected = [((1 - d) * d * first + (1 - d) * second) / (1 - d * d) for d in (0.0, 0.5, 0.9)]
    np.testing.assert_allclose(jax.jit(jax.vmap(last))(jnp.array([0.0, 0.5, 0.9])), expected, rtol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_the_norm_that_a_clip_takes_costs_nothing_more():
    def moved(tx):
        params = jnp.ones((512, 512))
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        return compiled.cost_analysis()["bytes accessed"]

    clip = (T.clip_by_global_norm(1.0), O.adam(0.1))
    assert moved(lo.chain(SNAPSHOT, *clip)) < 1.001 * moved(lo.chain(*clip))


# ------------------------------------------------------------------------------------------------------------ errors


def two_or_three(updates):
    """Of a shape that depends on what has a gradient."""
    return jnp.zeros(2 if updates["b"] is None else 3)


WRONG = {
    "no mapping": (lambda: T.monitor([T.global_norm]), TypeError, "monitor: measures must map names to measures"),
    "no measure": (lambda: T.monitor({"x": 1.0}), TypeError, "monitor: members must have init and update, got 1.0"),
    "no name": (lambda: T.snapshot(1, T.global_norm), TypeError, "the names of measures must be strings, got 1"),
    "no function": (lambda: T.measure_with_ema("norm", 0.9), TypeError, "measure must be callable, got 'norm'"),
    "decay": (lambda: T.measure_with_ema(T.global_norm, 1.0), ValueError, "decay must be in"),
    "text": (lambda: T.measure_with_ema(T.global_norm, "0.9"), TypeError, "measure_with_ema: decay must"),
    "integer": (lambda: T.measure_with_ema(T.global_norm, 0.9, True, jnp.int32), TypeError, "must be floating"),
    "chained": (lambda: lo.chain(T.measure_with_ema(T.global_norm, 0.9)), TypeError, "give it to monitor"),
    "masked": (lambda: lo.masked(T.measure_with_ema(T.global_norm, 0.9), True), TypeError, "give it to monitor"),
    "foreign": (
        lambda: after_one(T.monitor({"x": optax.measure_with_ema(lambda u: optax.tree.norm(u) > 1, 0.9)})),
        TypeError,
        "the state of 'x' must keep the types .*use lo.transforms.measure_with_ema",
    ),
    "structure": (
        lambda: after_one(T.snapshot("x", lambda u: [1.0] if u["b"] is None else 1.0), b=None),
        ValueError,
        "measure 'x': the measure must return the tree that it returned",
    ),
    "shape": (
        lambda: after_one(T.monitor({"x": two_or_three}), b=None),
        ValueError,
        r"measure 'x': the measure must return shape \(3,\) in every step, got \(2,\)",
    ),
    "shape of an average": (
        lambda: after_one(T.monitor({"x": T.measure_with_ema(two_or_three, 0.9)}), b=None),
        ValueError,
        r"must return shape \(3,\) in every step, got \(2,\)",
    ),
}


def after_one(tx, **grads):
    return jax.eval_shape(tx.update, GRADS[0] | grads, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_measure_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: T.measure_with_ema(f, 0.9)], ids=["plain", "ema"])
def test_what_a_measure_raises_says_which(wrap):
    with pytest.raises(ZeroDivisionError) as raised:
        T.monitor({"fine": T.global_norm, "broken": wrap(lambda u: 1 / 0)}).init(PARAMS)
    assert raised.value.__notes__[-1] == "in the measure 'broken' of monitor"


def test_prints_compares_and_pickles():
    assert repr(T.monitor({"n": abs, "m": T.measure_with_ema(abs, 0.9)})) == (
        "monitor(measures={'n': <built-in function abs>, 'm': measure_with_ema(measure=<built-in function abs>, "
        "decay=0.9, debias=True, accumulator_dtype=None)})"
    )
    assert SNAPSHOT == T.monitor({"norm": T.global_norm}) != T.snapshot("other", T.global_norm) != SNAPSHOT
    assert pickle.loads(pickle.dumps(BOTH)) == BOTH
    assert hash(BOTH) == hash(pickle.loads(pickle.dumps(BOTH)))
