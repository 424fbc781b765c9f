"""The loop: every example counted once, the same on the device and batch by batch, and honest about failure."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear, weights

import lossopt_jax as lo


def program_of(optimizer="adam(0.05)", loss="mse", metrics=("mae",), model=linear):
    return lo.compile(model, optimizer=optimizer, loss=loss, metrics=list(metrics))


def fitted(program, data, params=None, **options):
    state = program.init(weights(3, 1) if params is None else params)
    return program.fit(state, data, **{"progress": False, **options})


def test_it_learns_a_line(line):
    state, history = fitted(program_of(), line, epochs=60, batch_size=10)
    assert history["loss"][-1] < 1e-3
    np.testing.assert_allclose(state.params["w"][:, 0], [1.0, -2.0, 0.5], atol=0.05)


def test_history_is_lists_of_floats_in_order(line):
    _, history = fitted(program_of(), line, epochs=3, validation_split=0.2)
    expected = ["loss", "mean_absolute_error", "val_loss", "val_mean_absolute_error", "learning_rate"]
    assert list(history) == expected
    assert all(len(values) == 3 and all(type(v) is float for v in values) for values in history.values())
    assert history.stopped is None


@pytest.mark.parametrize("batch_size", [7, 10, 50, 64])
def test_a_ragged_batch_counts_every_example_once(line, batch_size):
    """At rate 0 the epoch's loss is the mean over all examples, whatever the batches."""
    program = program_of("sgd(0.0)")
    state, history = fitted(program, line, epochs=1, batch_size=batch_size)
    exact = program.evaluate(state, line)
    assert history["loss"][0] == pytest.approx(exact["loss"], rel=1e-5)
    assert history["mean_absolute_error"][0] == pytest.approx(exact["mean_absolute_error"], rel=1e-5)


def test_a_ragged_batch_trains_on_its_examples_alone(line):
    """Five examples in batches of 3: the second step's gradient is the mean over two."""
    x, y = (part[:5] for part in line)
    program = program_of("sgd(0.1)", metrics=())
    state, _ = fitted(program, (x, y), epochs=1, batch_size=3, shuffle=False)
    params = weights(3, 1)
    for rows in (slice(0, 3), slice(3, 5)):
        grads = jax.grad(lambda p, rows=rows: jnp.mean((linear(p, x[rows]) - y[rows]) ** 2))(params)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)


@pytest.mark.parametrize("size", [48, 50])
def test_batches_and_arrays_agree(line, size):
    x, y = (part[:size] for part in line)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, size, 8)]
    on_device = fitted(program_of(), (x, y), epochs=3, batch_size=8, shuffle=False)
    one_by_one = fitted(program_of(), batches, epochs=3)
    np.testing.assert_allclose(on_device[0].params["w"], one_by_one[0].params["w"], rtol=1e-4)
    np.testing.assert_allclose(on_device[1]["loss"], one_by_one[1]["loss"], rtol=1e-4)


def test_the_seed_decides(line):
    runs = [fitted(program_of(), line, epochs=2, batch_size=8, seed=seed)[1]["loss"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_two_epochs_are_one_and_one_more(line):
    program = program_of()
    whole, _ = fitted(program, line, epochs=2, batch_size=8)
    half, _ = fitted(program, line, epochs=1, batch_size=8)
    resumed, _ = program.fit(half, line, epochs=1, batch_size=8, progress=False)
    assert np.array_equal(whole.params["w"], resumed.params["w"])


def test_fit_keeps_the_state_it_is_given(line):
    program = program_of()
    state = program.init(weights(3, 1))
    program.fit(state, line, epochs=1, progress=False)
    assert np.array_equal(state.params["w"], weights(3, 1)["w"])


def test_validation_split_takes_the_last_examples(line):
    x, y = line
    program = program_of("sgd(0.0)")
    state, split = fitted(program, line, epochs=1, validation_split=0.2)
    assert split["val_loss"][0] == pytest.approx(program.evaluate(state, (x[40:], y[40:]))["loss"], rel=1e-5)
    _, given = fitted(program, (x[:40], y[:40]), epochs=1, validation_data=(x[40:], y[40:]))
    assert given["val_loss"] == split["val_loss"]
    _, batches = fitted(program, (x[:40], y[:40]), epochs=1, validation_data=[(x[40:46], y[40:46]), (x[46:], y[46:])])
    assert batches["val_loss"] == pytest.approx(split["val_loss"], rel=1e-5)


def test_a_second_fit_compiles_nothing(line):
    traces = []

    def counted(params, x):
        traces.append(1)
        return linear(params, x)

    program = program_of(model=counted)
    state = program.init(weights(3, 1))
    program.fit(state, line, epochs=2, progress=False)
    before = len(traces)
    program.fit(state, line, epochs=3, seed=1, progress=False)
    assert len(traces) == before


def test_a_schedule_shows_in_the_history(line):
    rate = lo.schedules.linear_schedule(0.1, 0.0, 10)
    _, history = fitted(program_of(lo.optimizers.sgd(rate)), line, epochs=3, batch_size=10)
    np.testing.assert_allclose(history["learning_rate"], [0.06, 0.01, 0.0], atol=1e-7)


@pytest.mark.parametrize("as_batches", [False, True])
def test_a_bad_example_stops_the_run_and_is_explained(line, as_batches):
    x, y = line
    x = x.copy()
    x[33] = np.nan
    data = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 50, 10)] if as_batches else (x, y)
    with pytest.warns(RuntimeWarning, match=r"step 4 of epoch 1 with learning_rate 0\.05.*lower learning rate"):
        state, history = fitted(program_of(), data, epochs=5, batch_size=10, shuffle=False)
    assert "gradient norm" in history.stopped
    assert int(state.step) == 3
    good = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 30, 10)]
    expected, _ = fitted(program_of(), good, epochs=1)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)


def test_a_rate_far_too_high_stops_with_finite_parameters(line):
    with pytest.warns(RuntimeWarning, match="must stay finite"):
        state, _ = fitted(program_of("sgd(1e12)"), line, epochs=20, batch_size=10)
    assert np.isfinite(state.params["w"]).all()


def test_callbacks_see_every_epoch_and_may_stop(line):
    seen = []

    def callback(epoch, logs, state):
        seen.append((epoch, logs["loss"], int(state.step)))
        return epoch == 1

    _, history = fitted(program_of(), line, epochs=9, batch_size=10, callbacks=[callback])
    assert [epoch for epoch, _, _ in seen] == [0, 1]
    assert [loss for _, loss, _ in seen] == history["loss"]
    assert seen[-1][2] == 10


def test_trees_and_lists_are_data(line):
    x, y = line
    program = program_of(model=lambda p, x: linear(p, x["features"]))
    _, tree = fitted(program, ({"features": x}, y), epochs=2)
    _, array = fitted(program_of(), (x, y), epochs=2)
    _, lists = fitted(program_of(), (x.tolist(), y.tolist()), epochs=2)
    np.testing.assert_allclose(tree["loss"], array["loss"], rtol=1e-6)
    np.testing.assert_allclose(lists["loss"], array["loss"], rtol=1e-6)


def test_predict_in_batches_is_predict_at_once(line):
    program = program_of()
    state = program.init(weights(3, 1))
    np.testing.assert_allclose(
        program.predict(state, line[0], batch_size=7), linear(state.params, line[0]), rtol=1e-5, atol=1e-6
    )


def test_evaluate_does_not_depend_on_the_batch_size(line):
    program = program_of()
    state = program.init(weights(3, 1))
    figures = [program.evaluate(state, line, batch_size=size)["loss"] for size in (1, 7, 50, 99)]
    np.testing.assert_allclose(figures, figures[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ((np.zeros((0, 3)), np.zeros((0, 1))), {}, ValueError, "at least one example"),
        ((np.zeros((4, 3)), np.zeros((5, 1))), {}, ValueError, "same number of examples"),
        ((np.zeros((4, 3)), np.zeros(4)), {}, ValueError, "mean_squared_error"),
        ((np.array([["a"]] * 4), np.zeros((4, 1))), {}, TypeError, "numbers"),
        (np.zeros((4, 3)), {}, TypeError, "pair"),
        (3, {}, TypeError, "pair"),
        (iter(()), {}, ValueError, "at least one batch"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"batch_size": 0}, ValueError, "batch_size must be ≥ 1"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"batch_size": 1.5}, TypeError, "batch_size"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"epochs": -1}, ValueError, "epochs"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"validation_split": 1.0}, ValueError, "validation_split"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"validation_split": 0.1}, ValueError, "both sides"),
        ((np.zeros((4, 3)), np.zeros((4, 1))), {"progress": "loud"}, ValueError, "progress"),
    ],
)
def test_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        fitted(program_of(), data, **options)


def test_a_generator_that_is_spent_is_an_error(line):
    with pytest.raises(ValueError, match="iterated again"):
        fitted(program_of(), (batch for batch in [line]), epochs=2)


def test_lines(line, capsys):
    fitted(program_of(), line, epochs=2, batch_size=10, progress="lines")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[1].startswith("Epoch 2/2 - 5 steps - ")
    assert "loss: " in printed[1]


def test_silence(line, capfd):
    fitted(program_of(), line, epochs=2, progress=False)
    assert capfd.readouterr() == ("", "")


def test_bar(line, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted(program_of(), line, epochs=2, progress="bar")
    assert "2/2" in capfd.readouterr().err
