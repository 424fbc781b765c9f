"""Sharpness-aware minimisation against optax and the paper, in both of its forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import RATE, Case, agree, check, falling, flat, numpy_path, optax_path, parametrize, path_of, tree

import lossopt_jax as lo

T, O, C = lo.transforms, lo.optimizers, optax.contrib


def waves(params):
    """A loss with curvature and a minimum: Σ sin w + w²/2."""
    return sum(jnp.sum(jnp.sin(p) + p * p / 2) for p in jax.tree.leaves(params))


def with_loss(step, params, grads):
    return {"value_fn": waves}


def with_gradient(step, params, grads):
    return {"grad_fn": lambda params, _: jax.grad(waves)(params)}


def visible(tx):
    """Compiled: the choice between climb and step would be, at every call."""
    return path_of(SimpleNamespace(init=tx.init, update=jax.jit(tx.update)))


def opaque(tx):
    return path_of(tx, extra=with_loss)


def climber(room, rho=0.5, momentum=None):
    """The same in either library."""
    ours = room is lo
    normalize, sgd = (T.normalize, O.sgd) if ours else (C.normalize, optax.sgd)
    return (lo if ours else optax).chain(normalize(), sgd(rho, momentum))


def both(make_ours, make_theirs, hidden=False, **arguments):
    """A case of live optax: the optimizers of either library, and the same arguments."""
    rho = {"momentum": arguments.pop("momentum", None)}
    arguments["opaque_mode"] = hidden
    return Case(
        "optax",
        lambda: T.sam(make_ours(), climber(lo, **rho), **arguments),
        lambda: optax_path(
            lambda: C.sam(make_theirs(), climber(optax, **rho), **arguments), with_gradient if hidden else None
        ),
        run=opaque if hidden else visible,
    )


def the_paper_s(rate, rho):
    """Algorithm 1: w ← w − η ∇L(w + ρ g/‖g‖)."""

    def start(w):
        def move(g, t):
            nonlocal w
            worse = w + rho * g / np.sqrt(np.sum(g * g))
            w = w - rate * (np.cos(worse) + worse)
            return w

        return move

    return start


SGD = (lambda: O.sgd(RATE), lambda: optax.sgd(RATE))
ADAM = (lambda: O.adamw(falling, 0.8, 0.9, 0.02), lambda: optax.adamw(falling, 0.8, 0.9, 0.02))
CASES = {
    "sam": [
        both(*SGD),
        both(*ADAM, sync_period=3, momentum=0.7),
        both(*ADAM, sync_period=3, momentum=0.7, reset_state=False),
        both(*SGD, hidden=True),
        both(*ADAM, hidden=True, sync_period=1),
        both(*ADAM, hidden=True, sync_period=4, momentum=0.7),
        both(*ADAM, hidden=True, sync_period=4, momentum=0.7, reset_state=False),
        Case(
            "NumPy",
            lambda: T.sam(O.sgd(RATE), climber(lo, 0.3), opaque_mode=True),
            lambda: numpy_path(the_paper_s(RATE, 0.3)),
            run=opaque,
        ),
    ],
    "normalize": [Case("optax", lambda: T.normalize(), lambda: optax_path(C.normalize))],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


def descend(tx, params, calls):
    """Every call with the gradient at the parameters."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(waves)(params), state, params, value_fn=waves)
        return lo.apply_updates(params, updates), state

    state, points = tx.init(params), []
    for _ in range(calls):
        params, state = step(params, state)
        points.append(flat(params))
    return np.stack(points)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_two_forms_are_one_method(x64, k):
    params = jax.tree.map(jnp.asarray, tree(0))
    plain, hidden = (T.sam(O.adam(RATE), climber(lo), k, opaque_mode=mode) for mode in (False, True))
    agree(descend(plain, params, 4 * k)[k - 1 :: k], descend(hidden, params, 4))


def test_without_a_climb_it_is_the_optimizer(x64):
    """optax's transparent form steps from the point before, from the second step on."""
    alone = path_of(O.adam(RATE))
    agree(visible(T.sam(O.adam(RATE), climber(lo), sync_period=1)), alone)
    theirs = optax_path(lambda: C.sam(optax.adam(RATE), climber(optax), sync_period=1))
    assert np.abs(theirs[0] - alone[0]).max() < 1e-12 < 1e-2 < np.abs(theirs - alone).max()


@pytest.mark.parametrize("mode", [False, True], ids=["transparent", "opaque"])
def test_zero_gradients_change_nothing_and_do_not_last(mode):
    tx = T.sam(O.sgd(0.1), climber(lo), opaque_mode=mode)
    params = jnp.zeros(3)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(jnp.zeros(3), state, params, value_fn=lambda p: 0.0)
        np.testing.assert_array_equal(updates, 0)
    for _ in range(2):
        updates, state = tx.update(jnp.ones(3), state, params, value_fn=jnp.sum)
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def test_parameters_return_to_where_the_climb_began():
    """Exactly: what the stored parameters lost on their way up does not matter."""
    tx = T.sam(O.sgd(0.5), T.scale(-3.0))
    step, params = lo.compile_update(tx), jnp.array([1.0, 2.0, 100.0], jnp.bfloat16)
    state = tx.init(params)
    for g in (jnp.array([0.25, 100.0, 1.0], jnp.bfloat16), jnp.ones(3, jnp.bfloat16)):
        params, state = step(params, state, g)
    np.testing.assert_array_equal(params, jnp.array([0.5, 1.5, 99.5], jnp.bfloat16))


TREES = {
    "float32": {"w": jnp.ones((2, 3)), "b": jnp.arange(3.0)},
    "mixed": {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.arange(3.0), "i": jnp.arange(2), "n": None},
    "complex": {"w": jnp.ones((2, 2)), "z": jnp.array([1 + 2j, 3 - 1j], jnp.complex64)},
}


def half_square(params):
    """½ Σ |w|² of the floating leaves."""
    leaves = [p for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.inexact)]
    return sum(jnp.sum(jnp.abs(p.astype(jnp.result_type(p, jnp.float32))) ** 2) for p in leaves) / 2


@pytest.mark.parametrize("name", TREES)
def test_the_opaque_form_keeps_types_and_runs_under_jit_and_scan(name):
    """On ½|w|² the gradient is w: uphill to (1 + ρ/‖w‖) w, then down by η times that."""
    params = TREES[name]
    grads = jax.tree.map(lambda p: p if jnp.issubdtype(p.dtype, jnp.inexact) else None, params)
    tx = T.sam(O.sgd(0.1), climber(lo), opaque_mode=True)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params, value_fn=half_square)
        return (lo.apply_updates(params, updates), state), updates

    state = tx.init(params)
    (_, after), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=2))((params, state))
    updates, eager = tx.update(grads, state, params, value_fn=half_square)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, eager) == jax.tree.map(jnp.shape, state)
    grown = 1 + 0.5 / float(T.global_norm(grads))
    for name, gradient in grads.items():
        if gradient is None:
            assert updates[name] is None
        else:
            assert updates[name].dtype == params[name].dtype
            np.testing.assert_allclose(
                np.asarray(updates[name], np.complex64), -0.1 * grown * np.asarray(gradient, np.complex64), rtol=1e-2
            )


def test_gradients_of_the_climb_are_averaged_over_an_axis():
    """Two devices with half of the batch each take the step of one with all of it."""
    batch, params = jnp.array([1.0, 5.0]), jnp.array(0.5)

    def loss(p, x):
        return jnp.sin(x * p) * x

    def step(axis, value_fn):
        tx = T.sam(O.sgd(0.1), climber(lo), opaque_mode=True, batch_axis_name=axis)
        gradient = jax.grad(value_fn)(params)
        gradient = gradient if axis is None else jax.lax.pmean(gradient, axis)
        return tx.update(gradient, tx.init(params), params, value_fn=value_fn)[0]

    shares = jax.vmap(lambda x: step("devices", lambda p: loss(p, x)), axis_name="devices")(batch)
    np.testing.assert_allclose(shares, step(None, lambda p: jnp.mean(loss(p, batch))), rtol=1e-6)


def test_in_a_chain_of_optax_s():
    tx = T.sam(O.sgd(0.1), climber(lo), opaque_mode=True)
    chained = optax.chain(optax.clip(10.0), lo.interop.to_optax(tx))
    params = jnp.array([1.0, -2.0])
    alone, _ = tx.update(params, tx.init(params), params, value_fn=waves)
    updates, _ = chained.update(params, chained.init(params), params, value_fn=waves)
    np.testing.assert_array_equal(updates, alone)


def test_what_is_missing_or_out_of_range_is_named():
    tx, params = T.sam(O.sgd(0.1), climber(lo), opaque_mode=True), jnp.ones(2)
    with pytest.raises(TypeError, match=r"value_fn must be given to update.*value_fn="):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="params must be given"):
        tx.update(params, tx.init(params), value_fn=waves)
    with pytest.raises(ValueError, match=r"sam: batch_axis_name must be None, got 'i'"):
        T.sam(O.sgd(0.1), climber(lo), batch_axis_name="i")
    with pytest.raises(ValueError, match="sync_period must be an integer ≥ 1"):
        T.sam(O.sgd(0.1), climber(lo), sync_period=0)
    with pytest.raises(ValueError, match="normalize_by_update_norm must see the whole tree"):
        lo.masked(T.sam(O.sgd(0.1), climber(lo)), True)
    lo.masked(T.sam(O.sgd(0.1), lo.chain(T.normalize(per_group=True), O.sgd(0.1))), True)
