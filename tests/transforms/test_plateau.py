"""A rate that falls on plateaus: as live optax, torch and Keras, and where they go wrong."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
ORDER = ("patience", "cooldown", "accumulation_size", "min_scale")
GRID = [dict(zip(ORDER, row, strict=True)) for row in itertools.product((1, 2, 4), (0, 1, 3), (1, 3), (0.0, 0.2))]
TOLERANCES = [(0.1, 0.0), (0.0, 0.05), (0.05, 0.02)]


def losses(count=60, above=0.3, seed=0):
    """Noise around something that falls."""
    rng = np.random.default_rng(seed)
    return above + np.exp(-np.arange(count) / 20) * rng.uniform(0.7, 1.3, size=count)


def scales(values, grid, make=T.reduce_on_plateau, read=lambda state: lo.get_slot(state, "scale")):
    """The scale after each value, for each row of a grid of arguments that are vmapped over."""

    def one(arguments):
        tx = make(**arguments)

        def step(state, value):
            updates, state = tx.update(jnp.ones(()), state, value=value)
            return state, (updates, read(state))

        return jax.lax.scan(step, tx.init(jnp.ones(())), jnp.asarray(values))[1]

    stacked = {name: jnp.asarray([row[name] for row in grid]) for name in grid[0]}
    updates, found = jax.jit(jax.vmap(one))(stacked)
    np.testing.assert_array_equal(updates, found)
    return found


def path(values, *args, **arguments):
    """The scale after each value."""
    return scales(values, [{"factor": 0.5, **dict(zip(["patience", "rtol"], args, strict=False)), **arguments}])[0]


@pytest.mark.parametrize(("rtol", "atol"), TOLERANCES)
def test_it_is_optax_s_while_values_are_positive(x64, rtol, atol):
    def theirs(**arguments):
        return optax.contrib.reduce_on_plateau(0.7, rtol=rtol, atol=atol, **arguments)

    ours = scales(losses(), [{"factor": 0.7, "rtol": rtol, "atol": atol, **row} for row in GRID])
    assert len(np.unique(np.asarray(ours)[:, -1])) > 5
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(ours, scales(losses(), GRID, theirs, lambda state: state.scale), rtol=1e-12)


@pytest.mark.parametrize("mode", ["rel", "abs"])
def test_it_is_torch_s_whose_patience_is_one_more(x64, mode):
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    values = losses(above=0.3 if mode == "rel" else -0.6)
    grid, expected = [], []
    for patience, cooldown, least in itertools.product((0, 1, 3), (0, 1, 3), (0.0, 0.2)):
        named = {"factor": 0.7, "cooldown": cooldown}
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        peer = torch.optim.SGD([weight], 1.0)
        watch = torch.optim.lr_scheduler.ReduceLROnPlateau(
            peer, patience=patience, threshold=0.05, threshold_mode=mode, min_lr=least, eps=0.0, **named
        )
        rates = []
        for value in values:
            watch.step(value)
            rates.append(peer.param_groups[0]["lr"])
        expected.append(rates)
        tolerance = {"rtol": 0.05 * (mode == "rel"), "atol": 0.05 * (mode == "abs")}
        grid.append({"patience": patience + 1, "min_scale": least, **tolerance, **named})
    np.testing.assert_allclose(scales(values, grid), expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_it_is_keras_s_whose_cooldown_is_one_less():
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    values, grid, expected = losses(above=-0.6), [], []
    for patience, cooldown, least in itertools.product((0, 1, 3), (0, 1, 3), (0.0, 0.2)):
        watch = keras.callbacks.ReduceLROnPlateau(
            "loss", 0.5, patience, mode="min", min_delta=0.05, cooldown=cooldown, min_lr=least
        )
        watch.set_model(SimpleNamespace(optimizer=keras.optimizers.SGD(1.0)))
        watch.on_train_begin()
        rates = []
        for epoch, value in enumerate(values):
            watch.on_epoch_end(epoch, {"loss": value})
            rates.append(float(watch.model.optimizer.learning_rate.value))
        expected.append(rates)
        own = {"patience": patience, "cooldown": max(cooldown - 1, 0), "min_scale": least}
        grid.append({"factor": 0.5, "rtol": 0.0, "atol": 0.05, **own})
    np.testing.assert_array_equal(scales(values, grid), np.float32(expected))


# ------------------------------------------------------------------------------------------------ where they go wrong


def optax_scales(values, patience, **arguments):
    tx = optax.contrib.reduce_on_plateau(0.5, patience, **arguments)
    state, found, step = tx.init(jnp.ones(())), [], jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):
        for value in values:
            _, state = step(jnp.ones(()), state, value=value)
            found.append(float(state.scale))
    return found


def test_negative_values_reduce():  # NUMERICS O22, T6
    np.testing.assert_array_equal(path([-1.0] * 6, 2), [1, 1, 0.5, 0.5, 0.25, 0.25])
    assert optax_scales([-1.0] * 6, 2) == [1] * 6
    falling = -np.arange(1.0, 8.0)
    np.testing.assert_array_equal(path(falling, 1), 1)


def test_what_is_not_finite_is_bad_and_never_the_best():  # NUMERICS K14
    np.testing.assert_array_equal(path([np.nan, 1.0, 0.5, 0.25], 2), 1)
    np.testing.assert_array_equal(path([1.0, np.nan, np.inf, -np.inf, 0.9, 0.8], 3), [1, 1, 1, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(path([np.nan] * 4, 2), [1, 0.5, 0.5, 0.25])


def test_nan_leaves_no_trace_in_a_mean():
    tx = T.reduce_on_plateau(0.5, 1, accumulation_size=3)
    state, step = tx.init(jnp.ones(())), jax.jit(tx.update)
    for value, mean in [(2.0, 2.0), (np.nan, 2.0), (3.0, 0.0), (np.nan, 0.0), (np.nan, 0.0)]:
        _, state = step(jnp.ones(()), state, value=value)
        assert float(lo.get_slot(state, "avg_value")) == mean
    assert float(lo.get_slot(state, "best_value")) == 2.5
    assert float(lo.get_slot(state, "scale")) == 1
    _, state = step(jnp.ones(()), state, value=np.nan)
    assert float(lo.get_slot(state, "scale")) == 0.5
    # optax: one NaN makes the whole mean one that did not improve
    assert optax_scales([2.0, 2.0, np.nan, 1.0], 1, accumulation_size=2) == [1, 1, 1, 0.5]
    np.testing.assert_array_equal(path([2.0, 2.0, np.nan, 1.0], 1, accumulation_size=2), 1)


def test_a_mean_does_not_overflow():
    values = [3e38, -3e38, 3e38, 3e38, 2e38, 2e38]
    tx = T.reduce_on_plateau(0.5, 1, accumulation_size=2)
    state = tx.init(jnp.ones(()))
    for value in values:
        _, state = tx.update(jnp.ones(()), state, value=value)
    assert float(lo.get_slot(state, "best_value")) == 0


def test_patience_zero_is_one_and_never_punishes_an_improvement():
    falling = [4.0, 3.0, 2.0]
    np.testing.assert_array_equal(path(falling, 0), 1)
    np.testing.assert_array_equal(path([1.0] * 3, 0), path([1.0] * 3, 1))
    assert optax_scales(falling, 0) == [0.5, 0.25, 0.125]


def test_a_relative_tolerance_of_one():
    np.testing.assert_array_equal(path([1.0, -0.1, -1.0, -1.0, -1.0], 2, 1.0), [1, 1, 1, 1, 0.5])
    assert optax_scales([1.0, -0.1, -1.0], 2, rtol=1.0) == [1, 0.5, 0.5]


def test_no_tolerance_is_any_improvement():
    np.testing.assert_array_equal(path([1.0, np.nextafter(np.float32(1), 0), 1.0, 1.0], 2, 0.0), [1, 1, 1, 0.5])


# --------------------------------------------------------------------------------------------------------- in company


def test_it_multiplies_a_schedule():  # NUMERICS K22
    def rate(step):
        return 0.1 / (1 + step)

    tx = lo.chain(O.sgd(rate), T.reduce_on_plateau(0.5, 2))
    state, step = tx.init(jnp.ones(())), jax.jit(tx.update)
    for t, scale in enumerate([1, 1, 0.5, 0.5, 0.25]):
        update, state = step(jnp.ones(()), state, value=1.0)
        np.testing.assert_allclose(update, -scale * 0.1 / (1 + t), rtol=1e-6)
    np.testing.assert_allclose(lo.get_hyperparams(state)["learning_rate"], 0.1 / 5, rtol=1e-6)


def test_patience_is_a_hyperparameter_like_any_other():
    tx = T.reduce_on_plateau(0.5, 10)
    state, step = tx.init(jnp.ones(())), jax.jit(tx.update)
    for _ in range(3):
        _, state = step(jnp.ones(()), state, value=1.0)
    _, state = step(jnp.ones(()), lo.set_hyperparams(state, patience=3, factor=0.25), value=1.0)
    assert float(lo.get_slot(state, "scale")) == 0.25
    assert step._cache_size() == 1


def test_a_skipped_step_is_not_looked_at():
    tx = T.apply_if_finite(T.reduce_on_plateau(0.5, 2))
    state = tx.init(jnp.ones(()))
    for g, value in [(1.0, 1.0), (np.nan, np.nan), (1.0, 1.0), (np.nan, 5.0)]:
        _, state = tx.update(jnp.float32(g), state, value=value)
    assert int(lo.get_slot(state, "plateau_count")) == 1


def test_it_is_part_of_the_program_of_a_leaf(one_device):
    tx = lo.chain(O.adamw(1e-3), T.reduce_on_plateau(0.5, 1))
    params = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * 2
    state = jax.eval_shape(tx.init, params)
    program = lo.compile_update(tx).lower(params, state, params, value=jnp.float32(1.0)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.01 * 4 * 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1.0}, r"factor must be in \(0, 1\)"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\)"),
        ({"patience": -1}, "patience must be ≥ 0"),
        ({"rtol": 1.1}, r"rtol must be in \[0, 1\]"),
        ({"atol": -0.1}, "atol must be ≥ 0"),
        ({"cooldown": -1}, "cooldown must be ≥ 0"),
        ({"accumulation_size": 0}, "accumulation_size must be ≥ 1"),
        ({"min_scale": 2.0}, r"min_scale must be in \[0, 1\]"),
    ],
)
def test_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"reduce_on_plateau: {message}"):
        T.reduce_on_plateau(**arguments)


def test_the_loss_is_asked_for():
    tx = T.reduce_on_plateau()
    with pytest.raises(TypeError, match="reduce_on_plateau: value must be given to update"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))
