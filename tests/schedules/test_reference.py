"""Against live optax in float64, and against Keras's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt_jax import schedules

STEPS = np.arange(60)
CASES = [
    ("constant_schedule", (0.3,), {}),
    ("linear_schedule", (1.0, 0.2, 17), {}),
    ("linear_schedule", (0.0, 1.3, 17), {"transition_begin": 5}),
    ("exponential_decay", (0.7, 7, 0.6), {}),
    ("exponential_decay", (0.7, 7, 0.6), {"staircase": True, "transition_begin": 3}),
    ("exponential_decay", (0.7, 7, 0.6), {"end_value": 0.2}),
    ("exponential_decay", (0.7, 7, 1.6), {"end_value": 2.0}),
    ("cosine_decay_schedule", (0.7, 23), {}),
    ("cosine_decay_schedule", (0.7, 23), {"alpha": 0.1, "exponent": 1.7}),
    ("warmup_cosine_decay_schedule", (0.1, 1.2, 7, 40), {}),
    ("warmup_cosine_decay_schedule", (0.1, 1.2, 7, 40), {"end_value": 0.03, "exponent": 2.0}),
    ("warmup_cosine_decay_schedule", (0.1, 1.2, 0, 40), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=[f"{n}-{a}-{k}" for n, a, k in CASES])
def test_optax(x64, name, args, kwargs):
    mine = getattr(schedules, name)(*args, **kwargs)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = [float(getattr(optax, name)(*args, **kwargs)(jnp.asarray(step))) for step in STEPS]
    np.testing.assert_allclose(mine(jnp.asarray(STEPS)), theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("staircase", [False, True])
def test_inverse_time_is_keras(x64, staircase):
    """InverseTimeDecay: initial / (1 + rate · step / decay_steps); with one step, Keras 2's `decay`."""
    x = STEPS // 4 if staircase else STEPS / 4
    mine = schedules.inverse_time_decay(0.7, 4, 0.3, staircase)(jnp.asarray(STEPS))
    np.testing.assert_allclose(mine, 0.7 / (1 + 0.3 * x), rtol=1e-12)


def test_live_keras():
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    theirs = keras.optimizers.schedules.InverseTimeDecay(0.7, 4, 0.3)
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(theirs(step)) for step in STEPS]
    np.testing.assert_allclose(schedules.inverse_time_decay(0.7, 4, 0.3)(jnp.asarray(STEPS)), expected, rtol=1e-6)


def test_exponential_range(x64):
    mine = schedules.exponential_range(1e-5, 10.0, 59)(jnp.asarray(STEPS))
    np.testing.assert_allclose(mine, np.geomspace(1e-5, 10.0, 60), rtol=1e-12)
