"""Both ways with optax, and in the loops of flax and Equinox."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) / 6, "b": jnp.ones(3)}


def run(tx, steps=6, **extra):
    """Where parameters end; optax needs the standard promotion of dtypes."""
    params = jax.tree.map(lambda p: p.astype(jnp.result_type(float)), PARAMS)
    state = tx.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: jnp.cos((3.0 + s) * p), params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])


def close(a, b):
    """In float64, where optax's bias correction loses nothing."""
    assert a.dtype == jnp.float64
    np.testing.assert_allclose(a, b, rtol=1e-12)


MIXED = {
    "ours inside optax.chain": lambda: optax.chain(optax.clip(0.5), lo.transforms.scale_by_adam(), optax.scale(-0.1)),
    "ours last in optax.chain": lambda: optax.chain(optax.clip(0.5), optax.scale_by_adam(), lo.optimizers.sgd(0.1)),
    "optax's inside lo.chain": lambda: lo.chain(optax.clip(0.5), lo.transforms.scale_by_adam(), optax.scale(-0.1)),
    "optax's alone inside lo.chain": lambda: lo.chain(optax.chain(optax.clip(0.5), optax.adam(0.1))),
    "to_optax": lambda: optax.chain(optax.clip(0.5), lo.interop.to_optax(lo.optimizers.adam(0.1))),
    "ours alone": lambda: lo.chain(lo.transforms.clip(0.5), lo.optimizers.adam(0.1)),
}


@pytest.mark.parametrize("name", list(MIXED))
def test_mixed_is_pure(x64, name):
    close(run(MIXED[name]()), run(optax.chain(optax.clip(0.5), optax.adam(0.1))))


def test_optax_s_masked_and_partition_take_ours(x64):
    mask = {"w": True, "b": False}
    close(run(optax.masked(lo.optimizers.adam(0.1), mask)), run(optax.masked(optax.adam(0.1), mask)))
    labels = {"w": "a", "b": "b"}
    ours = optax.partition({"a": lo.optimizers.adam(0.1), "b": lo.optimizers.sgd(0.2)}, labels)
    theirs = optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.2)}, labels)
    close(run(ours), run(theirs))


def test_our_masked_and_partition_take_optax_s(x64):
    labels = {"w": "a", "b": "b"}
    ours = lo.partition({"a": optax.adam(0.1), "b": optax.sgd(0.2)}, labels)
    close(run(ours), run(optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.2)}, labels)))
    mask = {"w": True, "b": False}
    close(run(lo.masked(optax.adam(0.1), mask)), run(optax.masked(optax.adam(0.1), mask)))


def test_hyperparameters_are_found_inside_optax():
    tx = optax.chain(optax.clip(1.0), lo.optimizers.adam(0.1))
    state = lo.set_hyperparams(tx.init(PARAMS), learning_rate=0.25)
    assert float(lo.get_hyperparams(state)["learning_rate"]) == 0.25


@lo.transforms.treewise(needs=("value",))
def by_value(g, slots, t, value):
    """Multiply by the loss."""
    return [value * x for x in g], {}


def test_values_pass_through_to_optax():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    tx = optax.chain(optax.identity(), lo.interop.to_optax(by_value()))
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value=jnp.float32(3.0))
    assert float(updates["b"][0]) == 3.0
    dropped = optax.chain(optax.identity(), by_value())
    with pytest.raises(TypeError, match="to_optax"):
        dropped.update(grads, dropped.init(PARAMS), PARAMS, value=jnp.float32(3.0))


def test_a_foreign_member_gets_the_arguments_it_takes(x64):
    polyak = lo.chain(optax.polyak_sgd(max_learning_rate=0.1), lo.transforms.scale(1.0))
    close(run(polyak, value=jnp.float32(2.0)), run(optax.polyak_sgd(max_learning_rate=0.1), value=jnp.float32(2.0)))


def test_optax_s_tree_utilities_find_our_slots():
    state = lo.optimizers.adam(0.1).init(PARAMS)
    assert jnp.array_equal(lo.get_slot(state, "mu")["w"], jnp.zeros((2, 3)))
    restored = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_flax_serialization_round_trip():
    serialization = pytest.importorskip("flax.serialization", reason="flax is in the extra 'test'")
    tx = lo.stochastic_rounding(lo.chain(lo.transforms.clip_by_global_norm(1.0), lo.optimizers.adam(0.1)))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    back = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("through", [lambda tx: tx, lo.interop.to_optax], ids=["as it is", "to_optax"])
def test_flax_nnx(through):
    nnx = pytest.importorskip("flax.nnx", reason="flax is in the extra 'test'")
    x = jnp.linspace(-1, 1, 32)[:, None]
    y = 2 * x + 1

    def trained(tx):
        model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
            optimizer.update(model, grads)
            return loss

        losses = [float(step(model, optimizer)) for _ in range(60)]
        return losses, model.kernel[...]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours, kernel = trained(through(lo.optimizers.adam(0.1)))
        _, expected = trained(optax.adam(0.1))
    np.testing.assert_allclose(kernel, expected, rtol=1e-4)
    assert ours[-1] < 0.01 * ours[0]


def test_flax_train_state():
    train_state = pytest.importorskip("flax.training.train_state", reason="flax is in the extra 'test'")
    state = train_state.TrainState.create(apply_fn=lambda p, x: x, params=PARAMS, tx=lo.optimizers.adam(0.1))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, PARAMS))
    np.testing.assert_allclose(state.params["b"], 0.9, rtol=1e-5)


@pytest.fixture
def mlp():
    eqx = pytest.importorskip("equinox", reason="equinox is in the extra 'test'")
    with jax.numpy_rank_promotion("allow"):
        return eqx, eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(0))


def test_equinox_with_an_unfiltered_model(mlp):
    """The model itself as params: activation functions are leaves, and have no gradient."""
    eqx, model = mlp
    x = jax.random.normal(jax.random.key(1), (64, 2))
    y = jnp.sum(x, axis=1, keepdims=True)
    tx = lo.chain(lo.transforms.clip_by_global_norm(1.0), lo.optimizers.adamw(0.01))
    step = lo.compile_update(tx)

    @eqx.filter_value_and_grad
    def loss_of(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01))
    plain, compiled, theirs = model, jax.tree.map(lambda p: jnp.copy(p) if eqx.is_array(p) else p, model), model
    states = tx.init(model), tx.init(model), reference.init(eqx.filter(model, eqx.is_array))
    for _ in range(10):
        _, grads = loss_of(plain, x, y)
        updates, state = tx.update(grads, states[0], plain)
        plain = lo.apply_updates(plain, updates)
        _, grads = loss_of(compiled, x, y)
        compiled, state_2 = step(compiled, states[1], grads)
        _, grads = loss_of(theirs, x, y)
        with jax.numpy_dtype_promotion("standard"):
            updates, state_3 = reference.update(grads, states[2], eqx.filter(theirs, eqx.is_array))
        theirs = eqx.apply_updates(theirs, updates)
        states = state, state_2, state_3
    for a, b, c in zip(*(jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (plain, compiled, theirs)), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert plain.activation is model.activation
    assert compiled.activation is model.activation


def test_equinox_s_apply_updates_takes_ours(mlp):
    eqx, model = mlp
    tx = lo.optimizers.sgd(0.1)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved = eqx.apply_updates(model, updates)
    np.testing.assert_allclose(moved.layers[0].bias, model.layers[0].bias - 0.1, rtol=1e-6)
