"""A bad step leaves no trace, is counted, and costs little."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS

T, O = lo.transforms, lo.optimizers
GUARDS = {
    "apply_if_finite": T.apply_if_finite,
    "skip_large_updates": lambda inner: T.skip_large_updates(inner, 100.0),
    "dynamic_loss_scale": lambda inner: T.dynamic_loss_scale(inner, 1.0),
    "skip_spikes": lambda inner: T.skip_spikes(inner, 1e3, window=2),
}
guards = pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
BAD = [np.nan, np.inf, -np.inf]


def run(tx, gradients, start=(1.0, 2.0)):
    params = jnp.array(start)
    state, step = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = step(jnp.array(g), state, params)
        params = lo.apply_updates(params, updates)
    return params, state


@guards
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_step_leaves_no_trace(guard, bad):
    inner = lo.chain(T.trace(0.9), O.adamw(lambda step: 0.1 / (1 + step)))
    good = [[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]]
    expected, expected_state = run(inner, good)
    params, state = run(guard(inner), [good[0], [bad, 1.0], good[1], [1.0, bad], [bad, bad], good[2]])
    np.testing.assert_array_equal(params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected_state)
    assert (int(state.step), int(lo.get_slot(state, "bad_steps")), int(lo.get_slot(state, "bad_in_a_row"))) == (
        6,
        3,
        0,
    )


@pytest.mark.parametrize("patience", [0, 1, 2, 5])
def test_apply_if_finite_is_optax_s(patience):
    gradients = [[0.1, 0.2], [np.nan, 1.0], [0.3, 0.1], *[[np.inf, 1.0]] * 4, [0.1, 0.1]]
    params, state = run(T.apply_if_finite(O.sgd(0.1), patience), gradients)
    expected, theirs = run(optax.apply_if_finite(optax.sgd(0.1), patience), gradients)
    np.testing.assert_array_equal(params, expected)
    assert int(lo.get_slot(state, "bad_steps")) == int(theirs.total_notfinite)


def test_skip_large_updates_at_the_bound():
    tx = T.skip_large_updates(O.sgd(1.0), 5.0)
    params, state = run(tx, [[3.0, 4.0], [3.0, 4.001], [3e20, 4e20], [0.0, 1.0]])
    np.testing.assert_array_equal(params, [-2, -3])
    assert int(lo.get_slot(state, "bad_steps")) == 2
    raised = lo.set_hyperparams(state, max_norm=10.0)
    updates, _ = tx.update(jnp.array([6.0, 8.0]), raised, params)
    np.testing.assert_array_equal(updates, [-6, -8])


def test_a_spike_is_skipped_and_a_new_level_let_through():
    tx = T.skip_spikes(O.sgd(1.0), 10.0, window=3)
    lengths = [5.0, 1.0, 2.0, 1.0, 50.0, 1.0, np.nan, 1.0, *[1e30] * 3]
    taken, params, state = [], jnp.zeros(()), tx.init(jnp.zeros(()))
    for length in lengths:
        updates, state = tx.update(jnp.float32(length), state, params)
        taken.append(bool(updates != 0))
    assert taken == [*[True] * 4, False, True, False, True, False, False, True]
    assert int(lo.get_slot(state, "bad_steps")) == 4


def test_dynamic_loss_scale_is_torch_s():
    """The scale after each of some good and bad steps, and the parameters."""
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    finite = [True] * 5 + [False, False, True, False] + [True] * 7
    tx, params = T.dynamic_loss_scale(O.sgd(0.1), 8.0, growth_interval=3, min_scale=2.0**-40), jnp.array([1.0, 2.0])
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    peer = torch.optim.SGD([weight], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    scaler.scale(torch.ones(()))  # which makes its state
    state = tx.init(params)
    for good in finite:
        g = (jnp.array([0.5, -0.25]) if good else jnp.array([jnp.nan, 1.0])) * lo.get_slot(state, "scale")
        updates, state = tx.update(g, state, params)
        params = lo.apply_updates(params, updates)
        weight.grad = torch.tensor(np.asarray(g))
        scaler.step(peer)
        scaler.update()
        assert float(lo.get_slot(state, "scale")) == scaler.get_scale()
        np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-7)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_dynamic_loss_scale_is_keras_s():
    """The scale after each of some good and bad steps, and the parameters."""
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    tx, params = T.dynamic_loss_scale(O.sgd(0.1), 8.0, growth_interval=3, min_scale=2.0**-40), jnp.array([1.0, 2.0])
    variable = keras.Variable(np.array([1.0, 2.0]), dtype="float32")
    peer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 8.0, dynamic_growth_steps=3)
    peer.build([variable])
    place = [v.name for v in peer.variables].index("dynamic_scale")
    state, theirs, weights = tx.init(params), [v.value for v in peer.variables], [variable.value]
    update, apply = jax.jit(tx.update), jax.jit(peer.stateless_apply)
    for good in [True] * 5 + [False, False, True, False] + [True] * 7:
        g = (jnp.array([0.5, -0.25]) if good else jnp.array([jnp.nan, 1.0])) * lo.get_slot(state, "scale")
        updates, state = update(g, state, params)
        params = lo.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            weights, theirs = apply(theirs, [g], weights)
        assert float(lo.get_slot(state, "scale")) == float(theirs[place])
        np.testing.assert_allclose(params, weights[0], rtol=1e-7)


@pytest.mark.parametrize("clips", [{}, {"global_clipnorm": 0.5}], ids=["plain", "clip"])
def test_a_fixed_loss_scale_is_a_scale_in_front(clips):
    """Keras's `loss_scale_factor`, which it takes out before it clips."""
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    clip = [T.clip_by_global_norm(bound) for bound in clips.values()]
    tx, params = lo.chain(T.scale(1 / 1024), *clip, O.sgd(0.1, momentum=0.9)), jnp.array([1.0, 2.0])
    variable = keras.Variable(np.array([1.0, 2.0]), dtype="float32")
    peer = keras.optimizers.SGD(0.1, 0.9, loss_scale_factor=1024.0, **clips)
    state = tx.init(params)
    for g in ([0.5, -0.25], [2.0, 1.0], [-0.1, 0.0]):
        g = jnp.array(g) * 1024
        updates, state = tx.update(g, state, params)
        params = lo.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            peer.apply([g], [variable])
        np.testing.assert_allclose(params, np.asarray(variable.value), rtol=1e-6)


def test_dynamic_loss_scale_stays_within_bounds():
    tx = T.dynamic_loss_scale(O.sgd(0.1), 2.0, growth_interval=1, min_scale=1.0, max_scale=8.0)
    assert float(lo.get_slot(run(tx, [[1.0, 1.0]] * 5)[1], "scale")) == 8
    assert float(lo.get_slot(run(tx, [[np.inf, 1.0]] * 5)[1], "scale")) == 1


def test_float16_trains_where_its_gradients_would_vanish():
    """Gradients below float16's smallest number arrive scaled only."""

    def trained(tx, scale_of):
        params = {"w": jnp.ones(4, jnp.float16)}
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            scale = scale_of(state)

            def loss(p):
                return jnp.sum((p["w"] * jnp.float16(1e-4)) ** 2) * scale.astype(jnp.float16)

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return lo.apply_updates(params, updates), state

        for _ in range(20):
            params, state = step(params, state)
        return float(jnp.max(params["w"]))

    rate = 2e6
    plain = trained(O.sgd(rate), lambda state: jnp.ones(()))
    scaled = trained(T.dynamic_loss_scale(O.sgd(rate)), lambda state: lo.get_slot(state, "scale"))
    exact = (1 - rate * 2e-8) ** 20
    assert abs(scaled - exact) < 0.02 < abs(plain - exact)


@guards
def test_a_guard_belongs_around_the_whole(guard):
    with pytest.raises(ValueError, match="must see the whole tree"):
        lo.masked(guard(O.sgd(0.1)), lambda params: True)


@guards
def test_vmapped_runs_skip_each_for_itself(guard):
    tx = guard(O.adam(0.1))
    params = jnp.ones((3, 2))
    state = jax.vmap(tx.init)(params)
    grads = jnp.array([[0.1, 0.2], [jnp.nan, 0.1], [0.3, 0.1]])
    updates, state = jax.vmap(tx.update)(grads, state, params)
    np.testing.assert_array_equal(updates[1], 0)
    assert np.all(updates[np.array([0, 2])] != 0)
    np.testing.assert_array_equal(lo.get_slot(state, "bad_steps"), [0, 1, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: T.apply_if_finite(O.sgd(0.1), -1),
        lambda: T.skip_large_updates(O.sgd(0.1), 0.0),
        lambda: T.dynamic_loss_scale(O.sgd(0.1), 0.0),
        lambda: T.dynamic_loss_scale(O.sgd(0.1), growth_interval=0),
        lambda: T.skip_spikes(O.sgd(0.1), 0.0),
        lambda: T.skip_spikes(O.sgd(0.1), 2.0, 1.5),
        lambda: T.clip_by_norm_quantile(0.5, 0),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match=r"must be (≥|>|an integer|in)"):
        make()


def shapes_of(*trees):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), trees)


@guards
@pytest.mark.parametrize("by", ["jit", "compile_update"])
def test_a_guard_writes_nothing_down(guard, by, one_device):
    """No copy of a slot and no array of updates, in a user's own jit without options as in `compile_update`."""
    tx = guard(O.adamw(1e-3))
    params = [jnp.ones((1024, 1024))] * 2

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return lo.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1)) if by == "jit" else lo.compile_update(tx)
    compiled = step.lower(*shapes_of(params, tx.init(params), params)).compile()
    most = 0.01 if CPU_FUSES_SUMS else 0.03  # the norm's three sums of each row of 128
    assert compiled.memory_analysis().temp_size_in_bytes < most * 4 * 2 * 1024 * 1024
    assert not re.search(r"= f32\[1024,1024\]\S* copy\(", compiled.as_text())


@T.elementwise(same=T.Slot(), twin=T.Slot(), still=T.Slot(fill=3.0), constant=T.Slot(), sign=T.Slot())
def awkward(g, slots, t):
    """One value in two slots and in the update, one slot as it was, one that forgets what it was."""
    same = slots.same + g
    changed = {"same": same, "twin": same, "still": slots.still, "constant": jnp.full_like(g, 2.0)}
    return same, changed | {"sign": jnp.sign(g) + slots.twin}


@T.treewise(total=T.Slot(per="tree"))
def summed(gradients, slots, t):
    total = slots.total + sum(jnp.sum(g) for g in gradients)
    return [total * g for g in gradients], {"total": total}


@pytest.mark.parametrize(
    "inner",
    [
        *(awkward(), summed(), O.lion(0.1), O.lamb(0.1), T.lookahead(O.adam(0.1), 2, 0.5), O.schedule_free_sgd(0.1)),
        *(lo.partition({"a": O.adafactor(0.1), "b": O.sgd(0.1, 0.9)}, ["a", "b"]), lo.pack_small(O.adamw(0.1))),
        *(optax.adam(0.1), optax.MultiSteps(optax.lion(0.1), 2), lo.chain(optax.trace(0.9), O.nadam(0.1))),
    ],
    ids=lambda tx: getattr(tx, "name", type(tx).__name__),
)
def test_whatever_is_inside_a_bad_step_leaves_it(inner):
    tx = T.apply_if_finite(inner)
    params = [jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.ones(5)]
    grads = [[jnp.full_like(p, scale) for p in params] for scale in (0.1, -0.3, 0.2)]
    bad = [params[0].at[1, 2].set(jnp.nan), params[1]]

    def end(tx, sequence):
        p, state, step = params, tx.init(params), jax.jit(tx.update)
        for g in sequence:
            updates, state = step(g, state, p)
            p = lo.apply_updates(p, updates)
        return p, state

    expected = end(tx, grads)
    found = end(tx, [bad, grads[0], bad, bad, grads[1], grads[2], bad])
    plain = end(lo.chain(inner), grads)
    for a, b, c in zip(*map(jax.tree.leaves, (expected[0], found[0], plain[0])), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, expected[1].inner, found[1].inner)


def test_a_guarded_step_has_a_gradient():
    tx, start = T.apply_if_finite(O.sgd(0.1)), jnp.array([1.0, 2.0])

    def after(scale):
        updates, _ = tx.update(scale * jnp.ones(2), tx.init(start), start)
        return jnp.sum(start + updates)

    np.testing.assert_allclose(jax.grad(after)(3.0), -0.2, rtol=1e-6)


def test_leaves_of_one_signature_share_a_trace_inside_a_guard():
    traced = []

    @T.elementwise(mu=T.Slot())
    def noted(g, slots, t):
        traced.append(1)
        return g, {"mu": slots.mu + g}

    tx = T.apply_if_finite(noted())
    leaves = [jnp.full((7,), float(i)) for i in range(20)]
    jax.jit(tx.update)(leaves, tx.init(leaves), leaves)
    assert len(traced) == 1
