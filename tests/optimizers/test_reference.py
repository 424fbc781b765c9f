"""Fifteen steps in float64 on a random tree: against live optax and torch, and against NumPy where neither is right."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo
from lossopt_jax import optimizers

STEPS, RATE = 15, 0.07


def tree(seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(4, 3)), "deep": {"b": rng.normal(size=5), "s": rng.normal(size=())}}


def gradients():
    """Gradients of very different sizes, some of them zero."""
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        scale = jax.tree.map(lambda p: 10.0 ** rng.integers(-3, 2, size=p.shape), tree(0))
        yield jax.tree.map(lambda p, s: s * p * (rng.random() > 0.1), tree(100 + step), scale)


def path_of(tx, apply=lo.apply_updates):
    params = jax.tree.map(jnp.asarray, tree(0))
    state, points = tx.init(params), []
    for grads in gradients():
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = apply(params, updates)
        points.append(np.concatenate([np.ravel(p) for p in jax.tree.leaves(params)]))
    return np.stack(points)


def optax_path(make):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return path_of(make(), optax.apply_updates)


def torch_path(make):
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    params = [torch.tensor(p, requires_grad=True) for p in jax.tree.leaves(tree(0))]
    optimizer, points = make(torch.optim, params), []
    for grads in gradients():
        for p, g in zip(params, jax.tree.leaves(grads), strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        points.append(np.concatenate([p.detach().numpy().ravel() for p in params]))
    return np.stack(points)


def agree(mine, theirs):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12 * max(1, np.abs(theirs).max()))


def falling(step):
    return 0.1 / (1.0 + step)


MATRICES = {"w": True, "deep": {"b": False, "s": False}}
OPTAX = {
    "sgd": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.7, "nesterov": True},
    ],
    "rmsprop": [
        {},
        {"decay": 0.7, "eps": 0.02},
        {"decay": 0.7, "eps": 0.02, "eps_in_sqrt": False},
        {"initial_scale": 0.3, "centered": True, "eps": 0.02},
        {"centered": True, "momentum": 0.8, "eps": 0.02},
        {"momentum": 0.8, "nesterov": True},
        {"bias_correction": True, "eps": 0.02},
        {"bias_correction": True, "centered": True, "eps": 0.02},
    ],
    "adam": [
        {},
        {"b1": 0.6, "b2": 0.8, "eps": 0.03},
        {"eps_root": 0.02, "eps": 0.0},
        {"nesterov": True, "b1": 0.8, "eps": 0.03},
    ],
    "adamw": [
        {},
        {"weight_decay": 0.3, "b1": 0.6, "b2": 0.8, "eps": 0.03},
        {"weight_decay": 0.3, "mask": MATRICES},
        {"weight_decay": 0.3, "mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params)},
        {"weight_decay": 0.3, "nesterov": True, "eps_root": 0.02},
    ],
}
CASES = [(name, arguments) for name, rows in OPTAX.items() for arguments in rows]


def test_every_optimizer_has_a_reference():
    assert set(optimizers.registry) == {*OPTAX, "amsgrad"}
    assert set(optimizers.registry) == {n for n, v in vars(optimizers).items() if inspect.isfunction(v)}


@pytest.mark.parametrize("rate", [RATE, falling], ids=["constant", "schedule"])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{name}-{sorted(a)}" for name, a in CASES])
def test_optax(x64, name, arguments, rate):
    mine = path_of(getattr(optimizers, name)(rate, **arguments))
    agree(mine, optax_path(lambda: getattr(optax, name)(rate, **arguments)))
    if rate is RATE:
        agree(path_of(getattr(optimizers, name)(jnp.asarray(rate), **arguments)), mine)


TORCH = {
    "sgd": (optimizers.sgd(RATE), lambda o, p: o.SGD(p, RATE)),
    "momentum": (optimizers.sgd(RATE, 0.8), lambda o, p: o.SGD(p, RATE, momentum=0.8)),
    "nesterov": (optimizers.sgd(RATE, 0.8, True), lambda o, p: o.SGD(p, RATE, momentum=0.8, nesterov=True)),
    "L2": (
        lo.chain(lo.transforms.add_decayed_weights(0.2), optimizers.sgd(RATE, 0.8)),
        lambda o, p: o.SGD(p, RATE, momentum=0.8, weight_decay=0.2),
    ),
    "rmsprop": (
        optimizers.rmsprop(RATE, 0.8, 0.02, eps_in_sqrt=False),
        lambda o, p: o.RMSprop(p, RATE, alpha=0.8, eps=0.02),
    ),
    "rmsprop-centered-momentum": (
        optimizers.rmsprop(RATE, 0.8, 0.02, eps_in_sqrt=False, centered=True, momentum=0.7),
        lambda o, p: o.RMSprop(p, RATE, alpha=0.8, eps=0.02, centered=True, momentum=0.7),
    ),
    "adam": (optimizers.adam(RATE, 0.8, 0.9, 0.02), lambda o, p: o.Adam(p, RATE, (0.8, 0.9), 0.02)),
    "amsgrad": (
        optimizers.amsgrad(RATE, 0.8, 0.6, 0.02),
        lambda o, p: o.Adam(p, RATE, (0.8, 0.6), 0.02, amsgrad=True),
    ),
    "adamw": (
        optimizers.adamw(RATE, 0.8, 0.9, 0.02, weight_decay=0.3),
        lambda o, p: o.AdamW(p, RATE, (0.8, 0.9), 0.02, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", list(TORCH))
def test_torch(x64, name):
    mine, theirs = TORCH[name]
    agree(path_of(mine), torch_path(theirs))


def test_amsgrad_is_the_paper_s(x64):
    """Algorithm 2 with Adam's corrections: the largest raw second moment, then corrected."""
    b1, b2, eps, eps_root = 0.8, 0.6, 0.02, 0.01
    w = np.concatenate([np.ravel(p) for p in jax.tree.leaves(tree(0))])
    m, v, largest, points = 0 * w, 0 * w, 0 * w, []
    for t, grads in enumerate(gradients(), start=1):
        g = np.concatenate([np.ravel(p) for p in jax.tree.leaves(grads)])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        largest = np.maximum(largest, v)
        w = w - RATE * (m / (1 - b1**t)) / (np.sqrt(largest / (1 - b2**t) + eps_root) + eps)
        points.append(w)
    agree(path_of(optimizers.amsgrad(RATE, b1, b2, eps, eps_root)), np.stack(points))


SCHEDULED = {
    "momentum": (optimizers.sgd, {"momentum": lambda step: 0.9 - 0.05 * step}),
    "decay": (optimizers.rmsprop, {"decay": lambda step: 0.5 + 0.02 * step}),
    "weight_decay": (optimizers.adamw, {"weight_decay": lambda step: 0.1 * step}),
    "eps": (optimizers.adam, {"eps": lambda step: 0.1 / (1.0 + step)}),
}


@pytest.mark.parametrize("name", list(SCHEDULED))
def test_any_hyperparameter_may_follow_a_schedule(x64, name):
    """The same as setting it by hand before every step, a schedule being read at the number of updates made."""
    make, arguments = SCHEDULED[name]
    schedule = arguments[name]
    key = "decay" if name == "momentum" else name
    by_hand = make(RATE, **{name: 0.3})
    params = jax.tree.map(jnp.asarray, tree(0))
    state, points = by_hand.init(params), []
    for step, grads in enumerate(gradients()):
        state = lo.set_hyperparams(state, **{key: schedule(float(step))})
        updates, state = by_hand.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = lo.apply_updates(params, updates)
        points.append(np.concatenate([np.ravel(p) for p in jax.tree.leaves(params)]))
    agree(path_of(make(RATE, **arguments)), np.stack(points))


@pytest.mark.parametrize("name", list(optimizers.registry))
def test_descent(name):
    """Each one finds the bottom of a badly scaled bowl from its customary arguments and a sensible rate."""
    rate = {"sgd": 0.05}.get(name, 0.1)
    tx = optimizers.registry[name](rate)
    scale = jnp.array([1.0, 30.0])

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(lambda p: jnp.sum(scale * (p - 1.0) ** 2) / 2)(params), state, params)
        return (lo.apply_updates(params, updates), state), None

    start = jnp.array([3.0, -2.0])
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=400))((start, tx.init(start)))
    np.testing.assert_allclose(params, [1.0, 1.0], atol=0.1)
