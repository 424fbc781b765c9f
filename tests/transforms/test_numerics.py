"""Where the incumbents go wrong (reference NUMERICS, rows O and T); each fails there and passes here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lossopt_jax as lo
from lossopt_jax.transforms import debias, global_norm
from lossopt_jax.transforms._precision import round_stochastically

T, O = lo.transforms, lo.optimizers
half = pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])


def one_update(tx, grads, params=None):
    params = grads if params is None else params
    return tx.update(grads, tx.init(params), params)[0]


# ------------------------------------------------------------------------- O1: parameters of low precision train


def through_compile_update(tx, params, grads, steps):
    step, state = lo.compile_update(tx), tx.init(params)
    params = jnp.copy(params)
    for _ in range(steps):
        params, state = step(params, state, grads)
    return params


def through_addition(tx, params, grads, steps):
    """Anybody's p + u, in the parameter's dtype: what optax.apply_updates does."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (params + updates, state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]


def through_optax(tx, params, grads, steps):
    optax = pytest.importorskip("optax", reason="its apply_updates")
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


paths = pytest.mark.parametrize("run", [through_compile_update, through_addition, through_optax])


@paths
@half
@pytest.mark.parametrize("seed", [0, 1])
def test_stochastic_rounding_trains_half_precision(run, dtype, seed):
    ones = jnp.ones(4096, dtype)
    mean = float(np.mean(np.asarray(run(lo.stochastic_rounding(O.sgd(1e-3), seed), ones, ones, 500), np.float64)))
    assert abs(mean - 0.5) < 0.005


@paths
@half
def test_master_weights_train_half_precision(run, dtype):
    ones = jnp.ones(4096, dtype)
    after = np.asarray(run(lo.master_weights(O.sgd(1e-3)), ones, ones, 500), np.float64)
    np.testing.assert_allclose(after, 0.5, rtol=0, atol=0.5 * float(jnp.finfo(dtype).eps))


@paths
def test_weight_decay_acts_on_bfloat16(run):
    fours, none = jnp.full(4096, 4.0, jnp.bfloat16), jnp.zeros(4096, jnp.bfloat16)
    exact = 4 * (1 - 1e-4) ** 1000
    for tx in (O.adamw(1e-3, weight_decay=0.1),):
        assert abs(np.asarray(run(lo.stochastic_rounding(tx), fours, none, 1000), float).mean() - exact) < 0.02
        assert abs(np.asarray(run(lo.master_weights(tx), fours, none, 1000), float).mean() - exact) < 0.02
        assert np.all(np.asarray(run(tx, fours, none, 10), float) == 4.0)


def test_master_is_the_float32_run_and_float32_is_its_own_master():
    rng = np.random.default_rng(0)
    start, grads = (jnp.asarray(rng.normal(size=(64,)), jnp.bfloat16) for _ in "pg")
    tx, plain = lo.master_weights(O.adam(0.01)), O.adam(0.01)
    params, state = start, tx.init(start)
    exact, exact_state = start.astype(jnp.float32), plain.init(start)
    for _ in range(20):
        updates, state = tx.update(grads, state, params)
        params = params + updates
        steps, exact_state = plain.update(grads.astype(jnp.float32), exact_state, exact)
        exact = lo.apply_updates(exact, steps)
    np.testing.assert_allclose(lo.get_slot(state, "master"), exact, rtol=1e-6)
    np.testing.assert_array_equal(params, lo.get_slot(state, "master").astype(jnp.bfloat16))


@half
@pytest.mark.parametrize("value", [1.0 + 1e-3, -3.1415926, 2.0**-14 * 1.3, 1e-6, 0.99999], ids=str)
def test_stochastic_rounding_is_unbiased_to_three_sigma(dtype, value):
    draws, value = 1_000_000, np.float32(value)
    rounded = np.asarray(round_stochastically(jnp.full(draws, value), dtype, jnp.uint32(17)), np.float64)
    below, above = np.unique(rounded)
    assert below < value < above
    assert float(jnp.nextafter(jnp.asarray(below, dtype), jnp.asarray(jnp.inf, dtype))) == above
    p = (value - below) / (above - below)
    sigma = (above - below) * math.sqrt(p * (1 - p) / draws)
    assert abs(rounded.mean() - value) < 3 * sigma + (above - below) * 2.0**-24


@half
def test_stochastic_rounding_keeps_what_is_representable_and_what_is_not_finite(dtype):
    info = jnp.finfo(dtype)
    exact = [0.0, 1.0, -0.5, float(info.max), -float(info.max), float(info.tiny), -math.inf, math.inf, math.nan]
    exact += [3 * 2.0**-24] if dtype == jnp.float16 else []  # a subnormal; those of bfloat16 are flushed on a CPU
    values = jnp.asarray(exact, dtype)
    for seed in range(20):
        rounded = round_stochastically(values.astype(jnp.float32), dtype, jnp.uint32(seed))
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(rounded.astype(jnp.float32), values.astype(jnp.float32))
        strange = jnp.asarray([0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001], jnp.uint32)  # which a carry or a cut would end
        strange = jax.lax.bitcast_convert_type(strange, jnp.float32)
        assert jnp.isnan(round_stochastically(strange, dtype, jnp.uint32(seed)).astype(jnp.float32)).all()


def test_random_bits_depend_on_seed_step_and_path_alone():
    tx = lo.stochastic_rounding(O.sgd(1e-3))
    rng = np.random.default_rng(3)
    p, g = (jnp.asarray(rng.normal(size=(64, 8)), jnp.bfloat16) for _ in "pg")
    mesh = Mesh(np.array(jax.devices()), ("d",))
    sharded = jax.device_put((p, g), NamedSharding(mesh, PartitionSpec("d")))

    def step(tx, p, g, **others):
        params, grads = {"w": p, **others}, {"w": g, **others}
        return np.asarray(tx.update(grads, tx.init(params), params)[0]["w"], np.float32)

    alone = step(tx, p, g)
    np.testing.assert_array_equal(step(tx, *sharded), alone)
    np.testing.assert_array_equal(step(tx, p, g, a=p, z=g), alone)
    groups = lo.partition({"x": O.sgd(1e-3), "y": O.sgd(1.0)}, lambda tree: {k: "x" if k == "w" else "y" for k in tree})
    np.testing.assert_array_equal(step(lo.stochastic_rounding(groups), p, g, a=p), alone)
    assert np.any(step(lo.stochastic_rounding(O.sgd(1e-3), seed=1), p, g) != alone)
    state = tx.init({"w": p})
    _, state = tx.update({"w": g}, state, {"w": p})
    assert np.any(np.asarray(tx.update({"w": g}, state, {"w": p})[0]["w"], np.float32) != alone)
    elsewhere = np.asarray(tx.update({"v": g}, tx.init({"v": p}), {"v": p})[0]["v"], np.float32)
    assert np.any(elsewhere != alone)


# ---------------------------------------------------------------------------------------- O2 – O7: dtypes and scale


def test_second_moment_decays_in_bfloat16():  # O2
    tx, p = T.scale_by_adam(b2=0.99), jnp.ones(1, jnp.bfloat16)
    state = tx.init(p)
    for g in [1.0] * 500 + [0.0] * 500:
        _, state = tx.update(jnp.full(1, g, jnp.bfloat16), state, p)
    np.testing.assert_allclose(lo.get_slot(state, "nu"), (1 - 0.99**500) * 0.99**500, rtol=1e-4)


HALF = {
    "adam": O.adam(1e-3),
    "adamw": O.adamw(1e-3),
    "amsgrad": O.amsgrad(1e-3),
    "rmsprop": O.rmsprop(1e-3, bias_correction=True, eps_in_sqrt=False),
    "centered": O.rmsprop(1e-3, centered=True, decay=0.0),
}


@pytest.mark.parametrize("tx", HALF.values(), ids=HALF)
def test_first_step_in_float16(tx):  # O3, O4, T5
    zeros = jnp.zeros(2, jnp.float16)
    np.testing.assert_array_equal(one_update(tx, zeros), zeros)
    if tx is not HALF["centered"]:  # no variance after one gradient
        update = one_update(tx, jnp.full(2, 1e-4, jnp.float16), zeros)
        np.testing.assert_allclose(np.asarray(update, float), -1e-3, rtol=2 * float(jnp.finfo(jnp.float16).eps))


def test_hyperparameters_are_float32_for_any_tree():  # O4
    for params in (jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float16), {"i": jnp.arange(2)}, {}):
        hypers = lo.get_hyperparams(O.adam(1e-3).init(params))
        assert {value.dtype for value in hypers.values()} == {jnp.dtype(jnp.float32)}
        assert float(hypers["b2"]) == np.float32(0.999)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999, 0.99999])
@pytest.mark.parametrize("t", [1, 3, 1000, 10**7])
def test_bias_correction(decay, t):  # O6
    b = np.float32(decay)
    exact = 1 / -math.expm1(t * math.log1p(float(b) - 1))
    got = debias(jnp.float32(1), jnp.float32(b), jnp.float32(t))
    assert abs(float(got) / exact - 1) < 2.7e-7


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.9999, 0.99999])
def test_first_adam_step_is_one(b2):  # O6
    update = one_update(T.scale_by_adam(b2=b2, eps=0.0), jnp.array([3e-3, -7.0, 1e-12]))
    np.testing.assert_allclose(update, [1, -1, 1], rtol=2.4e-7)


NORMS = {
    "bfloat16 leaves": ([np.ones(16, jnp.bfloat16)] * 300, 69.28203),
    "float16 overflow": (np.full(300, 20.0, np.float16), 346.4102),
    "huge": (np.full(3, 1e20, np.float32), 1.7320508e20),
    "tiny": (np.full(3, 1e-25, np.float32), 1.7320508e-25),
    "largest": (np.full(2, 2e38, np.float32), 2.828427e38),
    "smallest normal": (np.full(4, 1.2e-38, np.float32), 2.4e-38),
    "huge and tiny": ([np.full(3, 1e20, np.float32), np.full(3, 1e-25, np.float32)], 1.7320508e20),
    "just below the upper bound": (np.full(2, 6.5e18, np.float32), 6.5e18 * 2**0.5),
    "just below the lower bound": (np.full(2, 1.6e-10, np.float32), 1.6e-10 * 2**0.5),
    "zero": (np.zeros(3, np.float32), 0.0),
    "zero scalar": (np.float32(0), 0.0),
    "huge scalar": (np.float32(1e30), 1e30),
    "complex": ([np.full(2, 3 + 4j, np.complex64), np.float32(5.0)], 75**0.5),
    "no leaves": ([None, np.arange(3), "text"], 0.0),
    "empty leaf": (np.zeros((0, 3), np.float32), 0.0),
    "infinity": (np.array([np.inf, 1], np.float32), np.inf),
    "nan": (np.array([np.nan, np.inf], np.float32), np.nan),
}


@pytest.mark.parametrize(("tree", "expected"), NORMS.values(), ids=NORMS)
def test_global_norm(tree, expected):  # O7
    assert global_norm(tree).dtype == jnp.float32
    np.testing.assert_allclose(global_norm(tree), expected, rtol=3e-7)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.2e-38, 1.0, 1e20, 1e38, np.inf, np.nan])
def test_global_norm_of_a_constant_of_the_program(value):
    """XLA folds and regroups what it knows: nothing may overflow on the way."""
    norm = jax.jit(lambda: global_norm(jnp.full(4, value, jnp.float32)))()
    np.testing.assert_allclose(norm, 2 * np.float32(value), rtol=3e-7)


def test_global_norm_in_float64(x64):
    for scale in (1.0, 1e200, 1e-200, 1e-300):
        np.testing.assert_allclose(global_norm([np.full(3, scale), np.float32(0)]), scale * 3**0.5, rtol=1e-15)
    assert global_norm(np.ones(2, np.float32)).dtype == jnp.float32


def test_global_norm_under_vmap_and_grad():
    rows = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    np.testing.assert_allclose(jax.vmap(global_norm)(rows), [5, 5e30, 5e-30, 0], rtol=3e-7)
    for slope in (jax.vmap(jax.grad(global_norm)), jax.jit(jax.vmap(jax.jacfwd(global_norm)))):
        np.testing.assert_allclose(slope(rows), [[0.6, 0.8]] * 3 + [[0, 0]], rtol=3e-7)
    np.testing.assert_allclose(jax.hessian(global_norm)(rows[0]), [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-6)


def test_clip_by_global_norm():  # O7 and SEMANTICS 5
    clip = T.clip_by_global_norm(1.0)
    small, large = one_update(clip, [jnp.array([3.0, 4.0]), jnp.array([12.0])])
    np.testing.assert_allclose([*small, *large], [3 / 13, 4 / 13, 12 / 13], rtol=3e-7)
    inside = [jnp.array([0.3, 0.4]), jnp.array([1e-30])]
    for clipped, before in zip(one_update(clip, inside), inside, strict=True):
        np.testing.assert_array_equal(clipped, before)
    np.testing.assert_array_equal(one_update(T.clip_by_global_norm(0.0), jnp.zeros(2)), 0)
    np.testing.assert_array_equal(one_update(T.clip_by_global_norm(0.0), jnp.ones(2)), 0)
    np.testing.assert_allclose(one_update(clip, jnp.full(300, 20.0, jnp.float16))[0], 0.0577, rtol=1e-3)
    np.testing.assert_allclose(global_norm(one_update(clip, [jnp.ones(4, jnp.bfloat16)] * 50)), 1, rtol=4e-3)
    np.testing.assert_allclose(global_norm(one_update(clip, jnp.full(3, 1e20))), 1, rtol=3e-7)
    bad = jnp.array([1.0, jnp.inf])
    np.testing.assert_array_equal(one_update(clip, bad), bad)  # no factor helps: a guard's business


def test_clip_by_norm():  # SEMANTICS 5
    arrays = [jnp.array([3.0, 4.0]), jnp.full(3, 1e20), jnp.full(3, 1e-25), jnp.array([jnp.inf, 1.0]), jnp.float32(0)]
    clipped = one_update(T.clip_by_norm(1.0), arrays)
    np.testing.assert_allclose(clipped[0], [0.6, 0.8], rtol=3e-7)
    np.testing.assert_allclose(clipped[1], 3**-0.5, rtol=3e-7)
    for after, before in zip(clipped[2:], arrays[2:], strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(one_update(T.clip_by_norm(0.0), jnp.ones(2)), 0)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_adaptive_grad_clip(scale):
    tx = T.adaptive_grad_clip(0.1, eps=0.0)
    weights = jnp.array([[3.0, 0.0], [4.0, 1e-3]]) * scale
    grads = jnp.array([[0.3, jnp.inf], [0.4, 1.0]]) * scale
    updates, _ = tx.update(grads, tx.init(weights), weights)
    np.testing.assert_allclose(updates[:, 0], grads[:, 0], rtol=3e-7)  # ‖g‖ = 0.1 ‖w‖
    np.testing.assert_array_equal(updates[:, 1], grads[:, 1])  # no factor helps
    updates, _ = tx.update(10 * grads, tx.init(weights), weights)
    np.testing.assert_allclose(updates[:, 0], grads[:, 0], rtol=3e-7)


def test_zero_nans():
    bad = jnp.array([jnp.nan, -jnp.inf, 2.0])
    np.testing.assert_array_equal(one_update(T.zero_nans(), bad), [0, -jnp.inf, 2])
    np.testing.assert_array_equal(one_update(T.zero_nans(infinities=True), bad), [0, 0, 2])


def test_centralize():
    kernel, vector = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(one_update(T.centralize(), kernel), [[-1, 0, 1], [-1, 0, 1]])
    np.testing.assert_array_equal(one_update(T.centralize(axis=0), kernel), [[-1.5] * 3, [1.5] * 3])
    np.testing.assert_array_equal(one_update(T.centralize(), vector), vector)


@pytest.mark.parametrize("make", [lambda: T.centralize(axis=2), lambda: T.adaptive_grad_clip(0.1, axis=(0, -3))])
def test_an_axis_that_is_not_there_is_refused(make):
    tx, params = make(), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="axis must name axes of an array that has 2"):
        tx.update(params, tx.init(params), params)


def test_keep_params_nonnegative():
    tx, params = T.keep_params_nonnegative(), jnp.array([1.0, 1.0, -1.0, 1.0])
    updates, _ = tx.update(jnp.array([-2.0, -0.5, 0.5, jnp.nan]), tx.init(params), params)
    np.testing.assert_array_equal(lo.apply_updates(params, updates), [0, 0.5, 0, jnp.nan])


def test_clip_bounds_elements():
    update = one_update(T.clip(1.0), jnp.array([-3.0, 0.5, jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(update, [-1, 0.5, 1, jnp.nan])


# ------------------------------------------------------------------------------ O10 – O19: states, shapes, semantics


def test_rate_is_no_literal_of_the_program():  # O13
    tx, g = O.adam(1.2345e-3), jnp.ones(1)
    text = jax.jit(tx.update).lower(g, tx.init(g), g).as_text()
    assert "1.234" not in text


def test_rate_is_found_and_a_gradient_does_not_broadcast():  # O12, O14
    assert float(lo.get_hyperparams(O.adam(1e-3).init(jnp.ones(1)))["learning_rate"]) == np.float32(1e-3)
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2, 3\); nothing broadcasts"):
        one_update(O.sgd(0.1), jnp.ones((2, 3)), jnp.ones(3))
    np.testing.assert_array_equal(lo.apply_updates(jnp.arange(3), jnp.full(3, 0.9)), jnp.arange(3))


def test_constant_and_schedule_share_a_tree():  # O17
    structures = {jax.tree.structure(O.adam(rate).init(1.0)) for rate in (1e-3, lambda t: 1e-3, jnp.float32(1e-3))}
    assert len(structures) == 1


def amsgrad_path(tx, grads):
    w, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    for g in grads:
        updates, state = tx.update(jnp.array([g]), state, w)
        w = w + updates
    return float(w[0])


def test_amsgrad_takes_the_largest_raw_moment():  # O19
    assert round(amsgrad_path(O.amsgrad(0.1), [10.0] + [0.1] * 9), 3) == -0.436


def test_rprop_is_not_a_step_late():  # O18
    assert float(one_update(O.rprop(0.1), jnp.ones(1))[0]) == np.float32(-0.1)
    tx, w = O.rprop(0.1), jnp.zeros(1)
    state = tx.init(w)
    for g in [1.0, -1.0] * 20:
        updates, state = tx.update(jnp.array([g]), state, w)
        w = w + updates
    assert float(w[0]) != 0


def test_a_norm_of_one_whatever_the_size():  # O20
    for size in (1e-30, 1e-25, 1.0, 1e20):
        for tx in (T.normalize_by_update_norm(), T.normalize()):
            np.testing.assert_allclose(global_norm(one_update(tx, jnp.full(3, size))), 1, rtol=3e-7)
    np.testing.assert_array_equal(one_update(T.normalize(), jnp.zeros(2)), 0)


def test_steps_that_do_not_count_are_finite():  # O21
    updates = one_update(O.adafactor(0.1, decay_offset=1), jnp.ones(2))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def test_scalars_and_empty_arrays_have_rows_too():  # O29
    for shape in ((), (0,), (0, 3)):
        assert one_update(O.sm3(0.1), jnp.ones(shape)).shape == shape


def test_out_of_range_and_misspelt():  # O27
    for build in (lambda: O.adam(-1.0), lambda: O.adam(0.1, b2=2.0), lambda: O.sgd(-1.0)):
        with pytest.raises(ValueError, match="must be"):
            build()
    with pytest.raises(TypeError, match="learning_rate"):
        O.adam("0.1")
    with pytest.raises(TypeError, match="valeu"):
        O.adam(1e-3).update(jnp.ones(1), O.adam(1e-3).init(jnp.ones(1)), valeu=1)


def test_updates_have_the_dtype_of_the_parameter():  # O28
    p = jnp.ones(1, jnp.bfloat16)
    for rate in (1e-3, jnp.float32(1e-3), np.float64(1e-3), lambda t: 1e-3):
        assert one_update(O.adam(rate), p).dtype == jnp.bfloat16


def test_any_hyperparameter_may_be_a_schedule():  # O30
    half = lambda step: 0.5  # noqa: E731
    for tx in (O.adam(0.1, b1=half), O.sgd(0.1, momentum=half), O.rmsprop(0.1, eps=half), T.clip_by_global_norm(half)):
        jax.jit(lambda g, tx=tx: one_update(tx, g))(jnp.ones(2))


def test_centered_variance_is_never_negative():  # T8
    tx, g = O.rmsprop(0.01, decay=0.9, centered=True), jnp.full(1, 1e3)
    state = tx.init(g)
    for _ in range(200):
        updates, state = tx.update(g, state, g)
        assert np.isfinite(updates).all()


def test_step_stays_at_the_last_int32():
    tx = O.adam(lambda step: 0.1)
    state = jax.tree.map(lambda x: jnp.full_like(x, 2**31 - 2) if x.dtype == jnp.int32 else x, tx.init(1.0))
    for _ in range(3):
        updates, state = tx.update(1.0, state, 1.0)
        assert np.isfinite(updates)
    assert int(state["scale_by_adam"].step) == 2**31 - 1
