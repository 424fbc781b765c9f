"""Every schedule: the same value for every kind of step, exact at its ends, and a well-behaved object."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax import schedules

# name: (arguments, value at step 0, value at the end, step of the end)
TABLE = {
    "constant_schedule": ({"value": 0.3}, 0.3, 0.3, 0),
    "linear_schedule": ({"init_value": 1.0, "end_value": 0.2, "transition_steps": 17}, 1.0, 0.2, 17),
    "exponential_decay": (
        {"init_value": 1.0, "transition_steps": 5, "decay_rate": 0.5, "end_value": 0.1},
        1.0,
        0.1,
        40,
    ),
    "cosine_decay_schedule": ({"init_value": 1.0, "decay_steps": 13, "alpha": 0.25}, 1.0, 0.25, 13),
    "warmup_cosine_decay_schedule": (
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 4, "decay_steps": 20, "end_value": 0.05},
        0.1,
        0.05,
        20,
    ),
    "inverse_time_decay": ({"init_value": 1.0, "transition_steps": 3, "decay_rate": 0.5}, 1.0, None, None),
    "exponential_range": ({"low": 1e-5, "high": 10.0, "steps": 21}, 1e-5, 10.0, 21),
}
DURATIONS = ("transition_steps", "decay_steps", "steps", "warmup_steps")


def make(name):
    return schedules.registry[name](**TABLE[name][0])


every = pytest.mark.parametrize("name", list(TABLE))


def test_registry_is_exports_is_table():
    exported = {name for name, value in vars(schedules).items() if inspect.isfunction(value)}
    assert set(schedules.registry) == exported == set(TABLE)


@every
def test_ends(name):
    _, first, last, end = TABLE[name]
    schedule = make(name)
    np.testing.assert_array_equal(schedule(0), np.float32(first))
    if end is not None:
        np.testing.assert_array_equal(schedule(end), np.float32(last))
        np.testing.assert_array_equal(schedule(10**9), np.float32(last))
    assert np.isfinite(schedule(10**9))


@every
def test_every_kind_of_step(name):
    schedule = make(name)
    for step in (0, 1, 7, 30):
        kinds = [step, np.int64(step), np.int32(step), jnp.int32(step), jnp.uint8(step)]
        values = [schedule(kind) for kind in kinds] + [jax.jit(schedule)(step)]
        assert {(v.dtype, v.shape, v.weak_type) for v in values} == {(jnp.float32.dtype, (), False)}
        np.testing.assert_allclose(values, values[0], rtol=1e-6)


@every
def test_steps_in_an_array(name):
    schedule, steps = make(name), jnp.arange(30)
    one_by_one = jnp.stack([schedule(step) for step in range(30)])
    np.testing.assert_allclose(schedule(steps), one_by_one, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), one_by_one, rtol=1e-6)


@every
def test_float64_under_x64(name, x64):
    assert make(name)(3).dtype == jnp.float64


@every
def test_durations_may_be_traced(name):
    arguments = TABLE[name][0]
    own = [key for key in DURATIONS if key in arguments]
    for key in own:
        values = jnp.array([arguments[key], arguments[key] + 3])

        def at_five(n, key=key):
            return schedules.registry[name](**(arguments | {key: n}))(5)

        expected = [at_five(int(n)) for n in values]
        np.testing.assert_allclose(jax.vmap(at_five)(values), expected, rtol=1e-6)


@every
def test_numbers_may_be_traced(name):
    numbers = {k: v for k, v in TABLE[name][0].items() if isinstance(v, float)}
    rest = {k: v for k, v in TABLE[name][0].items() if k not in numbers}
    value = jax.jit(lambda numbers: schedules.registry[name](**rest, **numbers)(5))(numbers)
    np.testing.assert_allclose(value, make(name)(5), rtol=1e-6)


@every
def test_objects(name):
    schedule = make(name)
    assert schedule == make(name)
    assert hash(schedule) == hash(make(name))
    assert schedule != schedules.constant_schedule(7.0)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert repr(schedule).startswith(f"{name}(")


@pytest.mark.parametrize(
    "name", ["linear_schedule", "cosine_decay_schedule", "exponential_decay", "inverse_time_decay"]
)
def test_falling(name):
    assert (np.diff(make(name)(jnp.arange(50))) <= 0).all()


def test_one_ulp_at_large_steps():
    """Integer differences first: at 2²⁴ and beyond a float32 count would stand still."""
    schedule = schedules.linear_schedule(0.0, 1.0, 1000, transition_begin=2**30)
    exact = np.arange(1000) / 1000
    values = np.asarray(schedule(2**30 + jnp.arange(1000)), np.float64)
    np.testing.assert_allclose(values, exact, rtol=1.2e-7)
    long = schedules.linear_schedule(0.0, 1.0, 10**8)
    steps = np.arange(1, 10**8, 999_983)
    np.testing.assert_allclose(np.asarray(long(jnp.asarray(steps)), np.float64), steps / 1e8, rtol=1.8e-7)


def test_a_traced_duration_of_zero_gives_the_end():
    values = jax.vmap(lambda n: schedules.linear_schedule(0.0, 1.0, n)(0))(jnp.array([0, 10]))
    assert values.tolist() == [1.0, 0.0]


def test_a_rate_of_zero_is_honoured():
    assert [float(schedules.exponential_decay(1.0, 5, 0.0)(s)) for s in (0, 1, 5)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: schedules.linear_schedule(0.0, 1.0, 0), ValueError, "transition_steps must be ≥ 1"),
        (lambda: schedules.linear_schedule(0.0, 1.0, 10, -1), ValueError, "transition_begin must be ≥ 0"),
        (lambda: schedules.linear_schedule(0.0, 1.0, 1.5), ValueError, "whole number"),
        (lambda: schedules.linear_schedule(0.0, "1", 10), TypeError, "end_value"),
        (lambda: schedules.linear_schedule(0.0, 1.0), TypeError, "transition_steps"),
        (lambda: schedules.exponential_decay(1.0, 10, -0.5), ValueError, "decay_rate must be ≥ 0"),
        (lambda: schedules.cosine_decay_schedule(1.0, 2**31), ValueError, "int32"),
        (lambda: schedules.warmup_cosine_decay_schedule(0.0, 1.0, 10, 10), ValueError, "decay_steps"),
        (lambda: schedules.exponential_range(0.0, 1.0, 10), ValueError, "low must be > 0"),
        (lambda: schedules.constant_schedule(jnp.ones(3)), ValueError, "scalar"),
        (lambda: jax.jit(lambda n: schedules.linear_schedule(0.0, 1.0, n)(0))(3.0), TypeError, "whole number"),
    ],
)
def test_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_in_an_optimizer():
    tx = lo.optimizers.sgd(schedules.linear_schedule(1.0, 0.0, 4))
    state, rates = tx.init(jnp.zeros(())), []
    for _ in range(5):
        updates, state = tx.update(jnp.ones(()), state)
        rates.append(-float(updates))
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.0]
