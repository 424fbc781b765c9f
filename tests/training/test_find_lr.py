"""The range test finds the rates it should, from one compiled program."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear, weights

import lossopt_jax as lo


def ranged(data, optimizer="sgd", **options):
    program = lo.compile(linear, optimizer=optimizer, loss="mse")
    return lo.training.find_lr(program, program.init(weights(3, 1)), data, **options)


def test_it_stops_where_descent_diverges(line):
    """Gradient descent on a quadratic diverges at 2/λmax; the sweep ends soon after it."""
    x, _ = line
    features = np.concatenate([x, np.ones((50, 1))], axis=1)
    limit = 2 / np.linalg.eigvalsh(2 * features.T @ features / 50)[-1]
    result = ranged(line, batch_size=50, steps=200, high=100.0)
    assert result.diverged
    assert limit < result.rates[-1] < 10 * limit
    assert all(rate < 1.5 * limit for rate in result.suggestions.values())


def test_the_rates_are_exponential(line):
    result = ranged(line, low=1e-5, high=1e-2, steps=50)
    assert not result.diverged
    np.testing.assert_allclose(result.rates, np.geomspace(1e-5, 1e-2, 50), rtol=1e-5)


def test_the_average_is_debiased(line):
    result = ranged(line, low=1e-9, high=1e-8, smoothing=0.9, batch_size=50)
    np.testing.assert_allclose(result.losses, result.raw, rtol=1e-4)


def test_the_suggested_rate_trains(line):
    rate = ranged(line, optimizer="adam").suggestion
    program = lo.compile(linear, optimizer=lo.optimizers.adam(rate), loss="mse")
    _, history = program.fit(program.init(weights(3, 1)), line, epochs=60, progress=False)
    assert history["loss"][-1] < 0.05 * history["loss"][0]


def test_the_state_is_kept_and_a_second_test_compiles_nothing(line):
    traces = []

    def counted(params, x):
        traces.append(1)
        return linear(params, x)

    program = lo.compile(counted, optimizer="adam", loss="mse")
    state = program.init(weights(3, 1))
    first = lo.training.find_lr(program, state, line)
    before = len(traces)
    second = lo.training.find_lr(program, state, line, low=1e-5, high=1.0)
    assert len(traces) == before
    assert first.rates[0] != second.rates[0]
    assert np.array_equal(state.params["w"], weights(3, 1)["w"])


def test_every_group_gets_the_rate(line):
    groups = lo.partition({"a": lo.optimizers.sgd(0.0), "b": lo.optimizers.sgd(0.0)}, {"w": "a", "b": "b"})
    assert ranged(line, optimizer=groups, batch_size=50, high=100.0).diverged


def test_suggestions_of_a_known_curve():
    """Flat at 1 to 1e-4, down to 0 at 1e-2, flat to 1e-1, then up."""
    rates = np.geomspace(1e-6, 1.0, 61)
    curve = np.interp(np.log10(rates), [-6, -4, -2, -1, 0], [1, 1, 0, 0, 5])
    found = lo.training.RangeTest(rates, curve, curve, lo.training.suggest(rates, curve), True).suggestions
    assert 1e-4 <= found["steep"] <= 1e-2
    assert 1e-3 <= found["valley"] <= 1e-2
    assert found["minimum"] == pytest.approx(1e-3, rel=0.1)
    assert 1e-2 <= found["slide"] <= 1e-1


def test_plot(line):
    axes = ranged(line).plot()
    assert axes.get_xscale() == "log"
    axes.figure.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 0.1}, "low < high"),
        ({"low": 0.0}, "low < high"),
        ({"steps": 3}, "steps"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"divergence": 1.0}, "divergence"),
    ],
)
def test_refused(line, options, message):
    with pytest.raises(ValueError, match=message):
        ranged(line, **options)


def test_without_a_rate_in_the_state(line):
    with pytest.raises(ValueError, match="learning_rate"):
        ranged(line, optimizer=optax.sgd(0.1))


def test_a_loss_that_starts_bad_is_said(line):
    x, y = line
    with pytest.raises(ValueError, match="finite at the lowest rate"):
        ranged((x * jnp.nan, y))
