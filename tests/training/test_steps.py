"""One step: pure, guarded, in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import linear, weights

import lossopt_jax as lo


def program_of(optimizer="adam", loss="mse", metrics=(), **options):
    return lo.compile(linear, optimizer=optimizer, loss=loss, metrics=metrics, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_step_is_gradient_then_update(line):
    program, params = program_of("sgd(0.1)"), weights(3, 1)
    state, logs = program.train_step(program.init(params), line)
    x, y = (jnp.asarray(part) for part in line)
    value, grads = jax.value_and_grad(lambda p: jnp.mean((linear(p, x) - y) ** 2))(params)
    expected = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
    np.testing.assert_allclose(state.params["w"], expected["w"], rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(logs["grad_norm"], norm, rtol=1e-6)
    assert float(logs["learning_rate"]) == pytest.approx(0.1)
    assert not logs["skipped"]


def test_a_users_code_may_mix_dtypes_and_ranks(line):
    """The tests run strict; what the user wrote runs as JAX runs it by default."""
    x, y = line
    program = lo.compile(
        lambda p, x: jnp.int32(1) * x.astype(jnp.bfloat16) @ p["w"] + p["b"],
        optimizer=lo.optimizers.adam(lambda step: jnp.float32(0.1) / (1 + step)),
        loss=lambda prediction, target: jnp.sum(jnp.int8(1) * (prediction - target) ** 2, axis=-1),
    )
    _, logs = program.train_step(program.init(weights(3, 1)), (x, y))
    assert np.isfinite(logs["loss"])


def test_init_copies(line):
    program, params = program_of(), weights(3, 1)
    state = program.init(params)
    program.train_step(state, line)
    assert np.isfinite(params["w"]).all()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state.params["w"])


@pytest.mark.parametrize("use", ["train_step", "evaluate", "predict", "fit"])
def test_a_consumed_state_is_an_error(line, use):
    program = program_of()
    state = program.init(weights(3, 1))
    program.train_step(state, line)
    with pytest.raises(ValueError, match="donate=False"):
        getattr(program, use)(state, line[0] if use == "predict" else line)


def test_donate_false_keeps_the_state(line):
    program = program_of()
    state = program.init(weights(3, 1))
    first, _ = program.train_step(state, line, donate=False)
    second, _ = program.train_step(state, line, donate=False)
    assert same(first, second)


def test_inside_a_users_jit_and_scan(line):
    program = program_of()
    state = program.init(weights(3, 1))
    x, y = (jnp.asarray(part) for part in line)

    def body(state, _):
        state, logs = program.train_step(state, (x, y))
        return state, logs["loss"]

    scanned, losses = jax.jit(lambda s: jax.lax.scan(body, s, None, length=5))(state)
    stepped = program.init(weights(3, 1))
    for _ in range(5):
        stepped, logs = program.train_step(stepped, line)
    np.testing.assert_allclose(scanned.params["w"], stepped.params["w"], rtol=1e-6)
    np.testing.assert_allclose(losses[-1], logs["loss"], rtol=1e-5)


def test_vmap_over_the_rate(line):
    program = program_of("sgd")
    state = program.init(weights(3, 1))
    x, y = (jnp.asarray(part) for part in line)

    def one(rate):
        start = state._replace(opt_state=lo.set_hyperparams(state.opt_state, learning_rate=rate))
        return program.train_step(start, (x, y), donate=False)[0].params["w"]

    rates = jnp.array([0.01, 0.1, 0.5])
    together = jax.vmap(one)(rates)
    np.testing.assert_allclose(together, jnp.stack([one(rate) for rate in rates]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_leaves_the_state_alone(line, bad):
    x, y = line
    program = program_of("adam", metrics=["mae"])
    state, _ = program.train_step(program.init(weights(3, 1)), line)
    broken = x.copy()
    broken[3] = bad
    after, logs = program.train_step(state, (broken, y), donate=False)
    assert logs["skipped"]
    assert same(after.params, state.params)
    assert same(after.opt_state, state.opt_state)


def test_no_step_compiles_twice(line):
    traces = []

    def counted(params, x):
        traces.append(1)
        return linear(params, x)

    program = lo.compile(counted, optimizer="adam", loss="mse", metrics=["mae"])
    state, _ = program.train_step(program.init(weights(3, 1)), line)
    before = len(traces)
    for rate in (0.1, 0.2):
        state = state._replace(opt_state=lo.set_hyperparams(state.opt_state, learning_rate=rate))
        state, _ = program.train_step(state, line)
    assert len(traces) == before


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd(0.1, momentum=0.9)", "adam", "adamw"])
def test_the_step_updates_in_place(optimizer, blocks):
    """Every parameter and slot is its own output buffer, and nothing of their size is copied."""
    program = lo.compile(lambda p, x: x @ p, optimizer=optimizer, loss="mse")
    state = program.init(jnp.ones((256, 512)))
    batch = jnp.ones((8, 256)), jnp.ones((8, 512))
    compiled = program._donating_step.lower(state, *batch, blocks).compile()
    memory = compiled.memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= held - 64
    copies = [line for line in compiled.as_text().splitlines() if re.search(r"\bcopy\(", line)]
    assert not [line for line in copies if "256,512" in line or "131072" in line]
    assert (" while(" in compiled.as_text()) == (blocks and optimizer != "sgd")
    # beyond the gradient and the activations, nothing: one parameter's size plus the batch's rows
    assert memory.temp_size_in_bytes <= 256 * 512 * 4 + 4 * 8 * 512 * 4 + 4096


def test_figures_run_on_until_reset(line):
    x, y = line
    program = program_of("sgd(0.0)", metrics=["mae"])
    state = program.init(weights(3, 1))
    for rows in (slice(0, 20), slice(20, 50)):
        state, _ = program.train_step(state, (x[rows], y[rows]))
    read = {name: float(value) for name, value in program.read(state).items()}
    assert read == pytest.approx(program.evaluate(state, line), rel=1e-5)
    assert program.read(program.reset(state))["loss"].shape == ()


def test_a_stateful_model_gets_its_state_and_a_key(line):
    def apply(params, model_state, x, key, training):
        if training:
            return linear(params, x) + 0 * jax.random.normal(key), {"seen": model_state["seen"] + 1}
        assert key is None
        return linear(params, x), model_state

    program = lo.compile(apply, optimizer="sgd", loss="mse", stateful=True)
    state = program.init(weights(3, 1), model_state={"seen": jnp.zeros((), jnp.int32)}, seed=3)
    state, _ = program.train_step(state, line)
    state, _ = program.train_step(state, line)
    program.evaluate(state, line)
    assert int(state.model_state["seen"]) == 2


def test_integer_leaves_are_carried_along(line):
    params = weights(3, 1) | {"count": jnp.arange(3)}
    program = program_of("adam")
    state, _ = program.train_step(program.init(params), line)
    assert state.params["count"].tolist() == [0, 1, 2]


def test_complex_parameters_go_downhill():
    target = jnp.array([[1.0 - 2.0j]])

    def apply(params, x):
        error = params - target
        return x * (error * jnp.conj(error)).real

    program = lo.compile(apply, optimizer="sgd(0.1)", loss=lambda prediction, target: (prediction - target)[:, 0])
    state = program.init(jnp.zeros((1, 1), jnp.complex64))
    for _ in range(60):
        state, _ = program.train_step(state, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
    np.testing.assert_allclose(state.params, target, atol=1e-4)


def test_what_is_no_array_is_refused():
    with pytest.raises(TypeError, match="'layer/activation'"):
        program_of().init({"layer": {"activation": jax.nn.relu, "w": jnp.ones(3)}})


def watched():
    """Gradient descent that insists on agreement of the loss, its gradient and its value elsewhere."""

    @lo.transforms.treewise(needs=("params", "value", "grad", "value_fn"))
    def watch(g, slots, t, p, value, grad, value_fn):
        right = jnp.isclose(value_fn(p), value) & (value_fn([x + 1.0 for x in p]) != value)
        right &= jnp.all(jnp.stack([jnp.all(a == b) for a, b in zip(g, grad, strict=True)]))
        return [jnp.where(right, -0.1, jnp.nan) * x for x in g], {}

    return watch()


@pytest.mark.parametrize(
    "optimizer",
    ["polyak_sgd", "momo(adapt_lower_bound=True)", "momo_adam", "hypergradient_adam(multiplicative=True)", watched],
)
def test_a_rule_gets_the_loss_and_a_bad_batch_does_not_spoil_it(line, optimizer):
    x, y = line
    program = program_of(optimizer if isinstance(optimizer, str) else optimizer())
    state = program.init(weights(3, 1) | {"count": jnp.arange(3)})
    before = program.evaluate(state, line)["loss"]
    for _ in range(2):
        state, logs = program.train_step(state, line)
        assert not logs["skipped"]
    kept, logs = program.train_step(state, (x, np.full_like(y, np.nan)), donate=False)
    assert logs["skipped"]
    assert same((kept.params, kept.opt_state), (state.params, state.opt_state))
    state, _ = program.fit(kept, line, epochs=2, progress=False)
    assert program.evaluate(state, line)["loss"] < before


def test_bfloat16_parameters_train_through_master_weights(line):
    x, y = line
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), weights(3, 1))
    program = lo.compile(
        lambda p, x: linear(p, x.astype(jnp.bfloat16)),
        optimizer=lo.master_weights(lo.optimizers.adam(1e-2)),
        loss="mse",
    )
    state, history = program.fit(program.init(params), (x, y), epochs=200, progress=False)
    assert state.params["w"].dtype == jnp.bfloat16
    assert history["loss"][-1] < 0.5 * history["loss"][0]
