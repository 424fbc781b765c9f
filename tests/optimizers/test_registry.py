"""What holds for every optimizer by name: a reference, a rate, its precision, its state on disk, descent."""

import inspect
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import flat, gradients, rules_of, tables, tree
from rows import OPTIMIZERS, TRANSFORMS, advance, by_name, half_square, whole

import lossopt_jax as lo
from lossopt_jax import optimizers as O
from lossopt_jax import transforms as T
from lossopt_jax.transforms._lift import RuleTransformation

rows = pytest.mark.parametrize(("name", "row"), OPTIMIZERS.items(), ids=OPTIMIZERS)

# Checked by what they do, not by a path: what they compose is, and their own tests say the rest.
COMPOSITIONS = {"chain", "named_chain", "masked", "partition", "kahan", "master_weights", "stochastic_rounding"}


def test_registry_is_exports_is_rows():
    functions = {n for n, f in vars(O).items() if inspect.isfunction(f)}
    assert set(O.registry) == set(OPTIMIZERS) == functions


def test_every_optimizer_and_every_rule_has_a_reference(x64):
    cases = tables()
    assert set(O.registry) <= set(cases)
    covered = {rule.name for table in cases.values() for case in table for rule in rules_of(case.ours())}
    rules = {row.build(row.value) for name, row in TRANSFORMS.items() if name not in COMPOSITIONS}
    assert {rule.name for tx in rules for rule in rules_of(tx)} <= covered


def test_the_table_in_docs_is_what_is_tested():
    cases, named = tables(), set()
    page = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6 or cells[0] in ("optimizer", "---"):
            continue
        names = re.findall(r"`(?:transforms\.)?(\w+)`", cells[4])
        assert all(name in (T.registry if f"transforms.{name}" in cells[4] else O.registry) for name in names), line
        peers = {case.peer for name in names for case in cases[name]}
        assert peers == {peer.strip() for peer in cells[5].split(",")} - {"–"}, line
        named |= set(names)
    assert set(O.registry) <= named


# ------------------------------------------------------------------------------------------------------------- rate


@rows
def test_the_rate_is_found_and_is_no_literal_of_the_program(name, row):  # NUMERICS O12, O13
    tx = row.build(1.2345e-3)
    params = {"w": jnp.ones((2, 3))}
    hypers = lo.get_hyperparams(tx.init(params))
    assert [float(v) for k, v in hypers.items() if k.split("/")[-1] == row.knob][:1] == [np.float32(1.2345e-3)]
    state = tx.init(params)
    text = jax.jit(lambda g, s, p: advance(tx, g, s, p)).lower(params, state, params).as_text()
    assert "1.2345" not in text
    assert "1.23449" not in text


@rows
def test_a_rate_out_of_range_is_refused(name, row):  # O27
    for bad in (-0.1, np.float32(-1.0)):
        with pytest.raises(ValueError, match=rf"{row.knob} must be [≥>] 0"):
            row.build(bad)


@rows
def test_asked_for_by_name(name, row):
    tx = by_name(name)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    updates, _ = advance(tx, params, tx.init(params), params)
    assert np.isfinite(flat(updates)).all()
    assert repr(O.registry.build(name)) == repr(O.registry.build(name.replace("_", "").upper()))


@rows
def test_every_hyperparameter_may_be_an_array_or_a_schedule(name, row):  # O30
    params, grads = {"w": jnp.arange(6.0).reshape(2, 3)}, {"w": jnp.ones((2, 3))}
    for member in rules_of(row.build(row.value)):
        if not isinstance(member, RuleTransformation) or member.name == "scale_by_levenberg_marquardt":
            continue  # a wrapper, or a rule of residuals, of which there are none here
        arguments = dict(member.arguments)
        plain = advance(member, grads, member.init(params), params)
        for scalar in member.rule.scalars:
            number = arguments[scalar] if not callable(arguments[scalar]) else arguments[scalar](0)
            for value in (lambda step, number=number: jnp.asarray(number, jnp.float32), np.float64(number)):
                other = RuleTransformation(member.rule, tuple((arguments | {scalar: value}).items()))
                again = advance(other, grads, other.init(params), params)
                for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
                    np.testing.assert_array_equal(a, b)


# -------------------------------------------------------------------------------------------------------- precision


def first_updates(tx, dtype, steps=3):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), tree(0))
    state, updates = tx.init(params), []
    same = {key: np.float32(value) for key, value in lo.get_hyperparams(state).items() if np.isfinite(value)}
    state = lo.set_hyperparams(state, **same)  # 1 − 0.999 differs by 1.3e-5 between the two
    given = {"value": jnp.asarray(2.0), "value_fn": half_square, "grad": params}
    for _, grads in zip(range(steps), gradients(), strict=False):
        grads = jax.tree.map(lambda g: jnp.asarray(np.float32(g), dtype), grads)
        step, state = whole(tx).update(grads, state, params, **given)
        updates.append(step)
    return updates


@pytest.mark.slow
@rows
def test_float32_is_float64_to_rounding(name, row):  # O6
    """The first updates from default arguments: where bias corrections by 1 − bᵗ lose four digits."""
    narrow = first_updates(by_name(name), jnp.float32)
    jax.config.update("jax_enable_x64", True)
    try:
        wide = first_updates(by_name(name), jnp.float64)
    finally:
        jax.config.update("jax_enable_x64", False)
    bound = 2e-5 if name == "galore" else 2e-6  # singular vectors are known to a rounding over the gap between them
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * np.abs(b).max() + 1e-30)


@pytest.mark.slow
@rows
def test_bfloat16_parameters_train(name, row):  # O1
    """Through master weights as in float32, whatever the rule."""
    tx, rng = row.build(row.value), np.random.default_rng(0)
    if any("value_fn" in member.rule.needs for member in rules_of(tx)):
        pytest.skip("looks at the function itself, whose values differ in bfloat16")
    start = {
        "w": jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16),
        "b": jnp.asarray(rng.normal(size=4), jnp.bfloat16),
    }
    exact = jax.tree.map(lambda p: p.astype(jnp.float32), start)
    params, wrapped = start, lo.master_weights(tx)
    state, plain = wrapped.init(start), tx.init(exact)
    for _ in range(5):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.bfloat16), start)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        params, state = lo.compile_update(wrapped).fn(params, state, grads, value=2.0, grad=grads)
        steps, plain = tx.update(wide, plain, exact, value=2.0, grad=wide)
        exact = lo.apply_updates(exact, steps)
    master = lo.get_slot(state, "master")
    for key, leaf in exact.items():
        np.testing.assert_allclose(master[key], leaf, rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(params[key], master[key].astype(jnp.bfloat16))


# ------------------------------------------------------------------------------------------------------ state on disk

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "deep": [jnp.ones(3), jnp.ones(())]}


def after_two(tx):
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = advance(tx, PARAMS, state, PARAMS)
    return state


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def paths(state):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


@rows
def test_paths_are_readable_and_do_not_move(name, row):  # O17
    """A clip in front changes no path, nor does a rate that becomes a schedule."""
    tx = row.build(row.value)
    own = paths(tx.init(PARAMS))
    assert all(path.startswith("['") for path in own)
    if name != "dpsgd":  # which nothing may stand in front of
        assert set(own) <= set(paths(lo.chain(T.clip(1.0), tx).init(PARAMS)))
    assert own == paths(row.build(lambda step: row.value).init(PARAMS))


@rows
def test_flax_serialization(name, row):
    serialization = pytest.importorskip("flax.serialization", reason="flax is in the extra 'test'")
    tx = row.build(row.value)
    state = after_two(tx)
    assert_same(serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state)), state)


def test_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax comes with flax")
    states = {name: after_two(row.build(row.value)) for name, row in OPTIMIZERS.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        assert_same(checkpointer.restore(tmp_path / "states", jax.tree.map(jnp.zeros_like, states)), states)


# ---------------------------------------------------------------------------------------------------------- descent

# What a bowl of curvatures 1 and 30 wants, where that is not a rate of 0.1.
FITTING = {
    **{name: partial(O.registry[name], 0.05) for name in ("sgd", "asgd", "noisy_sgd")},
    **{name: partial(O.registry[name], 1.0) for name in ("adagrad", "sm3", "dowg", "ftrl")},
    "adadelta": partial(O.adadelta, 20.0),
    "dog": partial(O.dog, 3.0),
    "dpsgd": partial(O.dpsgd, 0.05, 100.0, 0.0),
    "fromage": partial(O.fromage, 0.05),  # its steps keep the length lr·‖w‖, so it bounces by as much
    "hypergradient_sgd": partial(O.hypergradient_sgd, 0.01, 1e-6),
    "lars": partial(O.lars, 10.0),
    "levenberg_marquardt": partial(O.levenberg_marquardt, lambda p: jnp.array([1.0, 30.0]) ** 0.5 * (p - 1.0)),
    "optimistic_gradient_descent": partial(O.optimistic_gradient_descent, 0.02),
    "signum": partial(O.signum, 0.03),
    "simplified_ademamix": partial(O.simplified_ademamix, 0.01, 0.9),
}


@pytest.mark.slow
@rows
def test_descent(name, row):
    """Each finds the bottom of a badly scaled bowl."""
    tx = whole(FITTING.get(name, partial(O.registry[name], 0.1))())
    scale = jnp.array([1.0, 30.0])

    def bowl(p):
        return jnp.sum(scale * (p - 1.0) ** 2) / 2

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(bowl)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=bowl)
        return (lo.apply_updates(params, updates), state), None

    start = jnp.array([3.0, -2.0])
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=400))((start, tx.init(start)))
    np.testing.assert_allclose(params, [1.0, 1.0], atol=0.1)
