"""What averages of the parameters leave alone, where they are read, and the two by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS

T, O = lo.transforms, lo.optimizers


def run(tx, params, gradients):
    state, step = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = step(g, state, params)
        params = lo.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("wrap", [lambda tx: T.ema_params(tx, 0.5), T.swa], ids=["ema_params", "swa"])
def test_training_goes_on_as_ever(wrap):
    start, gradients = {"w": jnp.ones(3), "n": None}, [{"w": jnp.full(3, g), "n": None} for g in (0.1, -0.2, 0.3)]
    params, state = run(wrap(O.adam(0.1)), start, gradients)
    expected, inner = run(O.adam(0.1), start, gradients)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.inner, inner)
    assert T.averaged_params(state, params)["n"] is None


def test_the_average_is_of_what_is_stored():
    params, state = run(T.swa(O.sgd(1.0)), jnp.ones(1, jnp.bfloat16), [jnp.full(1, 2.0**-12, jnp.bfloat16)] * 4)
    assert lo.get_slot(state, "average").dtype == jnp.float32
    np.testing.assert_array_equal(lo.get_slot(state, "average"), 1.0)  # every step was rounded away
    assert T.averaged_params(state, params).dtype == jnp.bfloat16


def test_a_skipped_step_makes_no_point():
    tx = T.apply_if_finite(T.swa(O.sgd(1.0)))
    params, state = run(tx, jnp.zeros(1), [jnp.ones(1), jnp.full(1, jnp.nan), jnp.ones(1)])
    np.testing.assert_allclose(T.averaged_params(state, params), [-1.5])


def test_it_is_read_wherever_it_stands():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2), "c": jnp.zeros(2)}
    groups = {"slow": T.swa(O.sgd(1.0)), "fast": T.ema_params(O.sgd(2.0), 0.5), "rest": O.sgd(1.0)}
    tx = lo.chain(T.clip(9.0), lo.partition(groups, {"a": "slow", "b": "fast", "c": "rest"}))
    params, state = run(tx, params, [jax.tree.map(jnp.ones_like, params)] * 2)
    average = T.averaged_params(state, params)
    np.testing.assert_allclose(average["a"], -1.5)
    np.testing.assert_allclose(average["b"], -2 * (2 * 2 + 1) / 3, rtol=1e-6)
    np.testing.assert_array_equal(average["c"], params["c"])


def test_compile_update_makes_no_copies(one_device):
    tx = T.ema_params(O.adamw(1e-3), 0.99)
    params = [jnp.ones((1024, 1024))] * 2
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, tx.init(params), params))
    temporaries = lo.compile_update(tx).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    if CPU_FUSES_SUMS:
        assert temporaries < 0.01 * 4 * 2 * 1024 * 1024


def test_no_buffer_is_shared():
    params = {"w": jnp.ones(3)}
    for tx in (T.ema_params(O.sgd(0.1), 0.5), T.swa(O.sgd(0.1))):
        assert (
            lo.get_slot(tx.init(params), "average")["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
        )
    for new in (T.incremental_update(params, params, 1.0), T.periodic_update(params, params, 1, 1)):
        assert new["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize("step_size", [0.0, 0.25, 1.0])
def test_incremental_update_is_optax_s(step_size):
    new, old = ({"a": jnp.array([x, 2 * x]), "b": jnp.float32(x)} for x in (1.0, -3.0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        T.incremental_update(new, old, step_size),
        optax.incremental_update(new, old, step_size),
    )


def test_incremental_update_keeps_the_old_dtype():
    moved = T.incremental_update(jnp.float32(1.0), jnp.bfloat16(0.0), 0.5)
    assert (moved.dtype, float(moved)) == (jnp.bfloat16, 0.5)
    assert T.incremental_update(None, None, 0.5) is None


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_periodic_update_is_optax_s(steps):
    new, old = jnp.ones(2), jnp.zeros(2)
    expected = optax.periodic_update(new, old, jnp.int32(steps), 3)
    np.testing.assert_array_equal(jax.jit(T.periodic_update, static_argnums=3)(new, old, steps, 3), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: T.incremental_update(x, x, 1.5), r"step_size must be in \[0, 1\]"),
        (lambda x: T.incremental_update({"w": x}, {"w": x[:1]}, 0.5), r"old_tensors at 'w' must have shape \(3,\)"),
        (lambda x: T.periodic_update({"w": x}, {"v": x}, 1, 1), "must have the tree"),
        (lambda x: T.periodic_update(x, x, 1, 0), "update_period must be"),
        (lambda x: T.ema_params(O.sgd(0.1), 1.5), "decay must be"),
        (lambda x: T.ema_params(O.sgd(0.1), 0.5, every=0), "every must be"),
        (lambda x: T.swa(O.sgd(0.1), -1), "start must be"),
        (lambda x: T.averaged_params(O.sgd(0.1).init(x), x), "must hold one ema_params or swa"),
        (lambda x: T.averaged_params(T.swa(T.swa(O.sgd(0.1))).init(x), x), "must hold one ema_params or swa"),
        (lambda x: T.averaged_params(T.swa(O.sgd(0.1)).init(x), [x]), "must have the tree of the state"),
    ],
)
def test_bad_calls_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones(3))
