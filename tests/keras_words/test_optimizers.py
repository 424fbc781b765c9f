"""Keras 2's steps, in float64: against a transcription of its formulas, live torch, and live Keras where it agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.keras import optimizers

STEPS = 15


def gradients(seed=0):
    """A few steps of gradients of very different sizes."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-3, 2, size=(4, 3)) for _ in range(STEPS)]


def ours(optimizer, start):
    params = jnp.asarray(start)
    state = optimizer.init(params)
    path = []
    for g in gradients():
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = lo.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.stack(path)


def keras2_sgd(w, lr=0.01, momentum=0.0, decay=0.0, nesterov=False):
    v = np.zeros_like(w)
    for t, g in enumerate(gradients()):
        rate = lr / (1 + decay * t)
        v = momentum * v - rate * g
        w = w + momentum * v - rate * g if nesterov else w + v
        yield w


def keras2_rmsprop(w, lr=0.001, rho=0.9, epsilon=1e-7, decay=0.0):
    a = np.zeros_like(w)
    for t, g in enumerate(gradients()):
        a = rho * a + (1 - rho) * g**2
        w = w - lr / (1 + decay * t) * g / (np.sqrt(a) + epsilon)
        yield w


def keras2_adam(w, lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, decay=0.0, amsgrad=False):
    m, v, largest = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients()):
        rate = lr / (1 + decay * t) * np.sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        largest = np.maximum(largest, v)
        w = w - rate * m / (np.sqrt(largest if amsgrad else v) + epsilon)
        yield w


CASES = [
    (optimizers.SGD, keras2_sgd, {}),
    (optimizers.SGD, keras2_sgd, {"lr": 0.1, "momentum": 0.9}),
    (optimizers.SGD, keras2_sgd, {"lr": 0.1, "momentum": 0.9, "decay": 0.3}),
    (optimizers.SGD, keras2_sgd, {"lr": 0.1, "momentum": 0.9, "decay": 1e-6, "nesterov": True}),
    (optimizers.SGD, keras2_sgd, {"lr": 0.1, "decay": 0.3, "nesterov": True}),
    (optimizers.RMSprop, keras2_rmsprop, {}),
    (optimizers.RMSprop, keras2_rmsprop, {"lr": 0.1, "rho": 0.7, "epsilon": 0.03, "decay": 0.2}),
    (optimizers.Adam, keras2_adam, {}),
    (optimizers.Adam, keras2_adam, {"lr": 0.1, "beta_1": 0.7, "beta_2": 0.9, "epsilon": 0.03, "decay": 0.2}),
    (optimizers.Adam, keras2_adam, {"lr": 0.1, "amsgrad": True, "beta_2": 0.5, "epsilon": 0.03}),
]


@pytest.mark.parametrize(
    ("make", "transcription", "arguments"), CASES, ids=[f"{make.__name__}-{args}" for make, _, args in CASES]
)
def test_keras_2(x64, make, transcription, arguments):
    start = np.random.default_rng(9).normal(size=(4, 3))
    expected = np.stack(list(transcription(start, **arguments)))
    np.testing.assert_allclose(ours(make(**arguments), start), expected, rtol=0, atol=1e-12)
    other = {"learning_rate" if name == "lr" else name: value for name, value in arguments.items()}
    np.testing.assert_array_equal(ours(make(**other), start), ours(make(**arguments), start))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (optimizers.RMSprop(0.05, rho=0.8, epsilon=1e-3), lambda t, w: t.optim.RMSprop(w, 0.05, alpha=0.8, eps=1e-3)),
        (optimizers.SGD(0.05, momentum=0.8), lambda t, w: t.optim.SGD(w, 0.05, momentum=0.8)),
        (
            optimizers.SGD(0.05, momentum=0.8, nesterov=True),
            lambda t, w: t.optim.SGD(w, 0.05, momentum=0.8, nesterov=True),
        ),
    ],
    ids=["RMSprop", "SGD", "nesterov"],
)
def test_torch(x64, mine, theirs):
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    start = np.random.default_rng(9).normal(size=(4, 3))
    w = torch.tensor(start, requires_grad=True)
    optimizer = theirs(torch, [w])
    path = []
    for g in gradients():
        w.grad = torch.tensor(g)
        optimizer.step()
        path.append(w.detach().numpy().copy())
    np.testing.assert_allclose(ours(mine, start), np.stack(path), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_live_keras_in_float32(name):
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    arguments = {"SGD": {"momentum": 0.9, "nesterov": True}, "Adam": {"amsgrad": True}}[name]
    start = np.random.default_rng(9).normal(size=(4, 3)).astype(np.float32)
    variable = keras.Variable(start)
    theirs = getattr(keras.optimizers, name)(learning_rate=0.05, **arguments)
    with jax.numpy_dtype_promotion("standard"):
        for g in gradients():
            theirs.apply([jnp.asarray(g, jnp.float32)], [variable])
    mine = getattr(optimizers, name)(learning_rate=0.05, **arguments)
    state, params = mine.init(start), jnp.asarray(start)
    for g in gradients():
        updates, state = mine.update(jnp.asarray(g, jnp.float32), state, params)
        params = lo.apply_updates(params, updates)
    np.testing.assert_allclose(params, np.asarray(variable.value), rtol=2e-5, atol=2e-6)


def test_clipnorm_is_global_then_clipvalue():
    tx = optimizers.SGD(lr=1.0, clipnorm=1.0, clipvalue=0.5)
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["a"], [-3 / 13, -4 / 13], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-0.5], rtol=1e-6)


def test_a_schedule_decays_too(x64):
    tx = optimizers.SGD(lr=lo.schedules.linear_schedule(1.0, 0.0, 10), decay=1.0)
    state, rates = tx.init(jnp.zeros(())), []
    for _ in range(4):
        updates, state = tx.update(jnp.ones(()), state)
        rates.append(-float(updates))
    np.testing.assert_allclose(rates, [1.0, 0.9 / 2, 0.8 / 3, 0.7 / 4], rtol=1e-12)


@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.RMSprop, optimizers.Adam])
def test_the_rate_is_in_the_state(make):
    state = make(lr=0.25).init(jnp.zeros(3))
    assert float(lo.get_hyperparams(state)["learning_rate"]) == 0.25


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (optimizers.SGD, {"lr": -1.0}, ValueError, "learning_rate"),
        (optimizers.SGD, {"lr": 0.1, "learning_rate": 0.1}, TypeError, "given once"),
        (optimizers.SGD, {"decay": -0.1}, ValueError, "decay"),
        (optimizers.SGD, {"momentum": 1.5}, ValueError, "decay|momentum"),
        (optimizers.RMSprop, {"rho": 1.0}, ValueError, "decay"),
        (optimizers.Adam, {"epsilon": -1.0}, ValueError, "eps"),
        (optimizers.Adam, {"lr": "fast"}, TypeError, "learning_rate"),
    ],
)
def test_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)
