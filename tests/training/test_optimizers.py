"""Every optimizer by name, in a program's own train step: what it asks for, it gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import linear, weights

import lossopt_jax as lo

# What these want instead of a loss or a gradient, and how they say so.
OTHERWISE = {
    "dpsgd": (ValueError, "take one per example with jax.vmap"),
    "levenberg_marquardt": (TypeError, "must return the residuals, an array, got a scalar"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(lo.optimizers.registry))
def test_trains_by_name(name):
    x = jax.random.normal(jax.random.key(0), (32, 3))
    y = x @ jnp.array([[1.0], [-2.0], [0.5]]) + 0.1
    program = lo.compile(linear, optimizer=name, loss="mean_squared_error")
    state = program.init(weights(3, 1))
    if name in OTHERWISE:
        error, message = OTHERWISE[name]
        with pytest.raises(error, match=message):
            program.train_step(state, (x, y))
        return
    losses = []
    for _ in range(5):
        state, logs = program.train_step(state, (x, y))
        losses.append(float(logs["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
