"""Hyperparameters that follow from what training sees, and those of another library's optimizers in the state."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import agree, falling, optax_path, path_of, with_value

import lossopt_jax as lo
from lossopt_jax.keras import optimizers as keras_words

T, O = lo.transforms, lo.optimizers
inject = T.inject_hyperparams


class Cautious(optax.schedules.StatefulSchedule):
    """A rate that is halved whenever the loss rises, for either library."""

    def __init__(self, start=0.1):
        self.start = start

    def init(self):
        return {"rate": self.start, "last": jnp.inf, "rises": 0}

    def update(self, state, *, value=None, **extra):
        worse = value > state["last"]
        rate = jnp.where(worse, state["rate"] / 2, state["rate"])
        return {"rate": rate, "last": value, "rises": state["rises"] + worse}

    def __call__(self, state, *, value=None, **extra):
        # what is seen now counts at once, and there is nothing to see at init
        return state["rate"] if value is None else state["rate"] / (1 + value)


OURS = {
    "sgd": lambda: O.sgd(Cautious(), momentum=0.9),
    "adam": lambda: O.adam(0.1, b1=Cautious(0.9), b2=falling),
    "clip": lambda: lo.chain(T.clip_by_global_norm(Cautious(2.0)), O.sgd(0.1)),
}
THEIRS = {
    "sgd": lambda: optax.inject_hyperparams(optax.sgd)(Cautious(), momentum=0.9),
    "adam": lambda: optax.inject_hyperparams(optax.adam)(0.1, b1=Cautious(0.9), b2=falling),
    "clip": lambda: optax.chain(optax.inject_hyperparams(optax.clip_by_global_norm)(Cautious(2.0)), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OURS)
def test_it_is_optax_s(x64, name):
    agree(path_of(OURS[name](), extra=with_value), optax_path(THEIRS[name], with_value))


def run(tx, values, state=None):
    """(the rate in each step, the last state)."""
    params = grads = jnp.ones(3)
    state = tx.init(params) if state is None else state
    step, rates = jax.jit(tx.update), []
    for value in values:
        _, state = step(grads, state, params, value=value)
        rates.append(float(lo.get_hyperparams(state)["learning_rate"]))
    assert step._cache_size() == 1
    return rates, state


def memory(state):
    return state["scale_by_learning_rate"].hyperparams["learning_rate"].memory


def test_its_state_is_strongly_typed_and_its_own():
    shared = Cautious(jnp.asarray(0.1))  # one buffer for both
    tx = lo.named_chain(*((name, T.scale_by_learning_rate(shared)) for name in "ab"))
    state = tx.init(jnp.ones(3))
    held = state["a"].hyperparams["learning_rate"].memory
    assert {name: leaf.dtype for name, leaf in held.items()} == {
        "rate": jnp.float32,
        "last": jnp.float32,
        "rises": jnp.int32,
    }
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    step = lo.compile_update(tx)  # which donates all of it
    for _ in range(2):
        _, state = step(jnp.ones(3), state, jnp.ones(3), value=1.0)
    assert step.jitted._cache_size() == 1


def test_it_runs_in_a_scan_and_under_vmap():
    tx, values = O.sgd(Cautious(), momentum=0.9), jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])

    def rates(values):
        def step(state, value):
            _, state = tx.update(jnp.ones(()), state, value=value)
            return state, lo.get_hyperparams(state)["learning_rate"]

        return jax.lax.scan(step, tx.init(jnp.ones(())), values)[1]

    found = jax.jit(jax.vmap(rates))(values)
    np.testing.assert_allclose(found, [[0.05, 0.1 / 3, 0.05 / 4], [0.025, 0.1 / 3, 0.05]], rtol=1e-6)


def test_pinned_its_state_goes_on():
    tx = O.sgd(Cautious(), momentum=0.9)
    _, state = run(tx, [1.0])
    state = lo.set_hyperparams(state, learning_rate=7.0)
    rates, state = run(tx, [2.0, 3.0], state=state)
    assert rates == [7.0, 7.0]
    assert int(memory(state)["rises"]) == 2
    rates, _ = run(tx, [0.0], state=lo.set_hyperparams(state, learning_rate=None))
    np.testing.assert_allclose(rates, 0.1 / 4)


@pytest.mark.parametrize("by", ["update", "compile_update"])
def test_a_skipped_step_leaves_its_state(by):
    tx = T.apply_if_finite(O.sgd(Cautious(), momentum=0.9))
    params = {"w": jnp.ones((400, 400)), "b": jnp.ones(3)}  # one in blocks, one not
    state, step = tx.init(params), lo.compile_update(tx) if by == "compile_update" else None
    for value, g in [(1.0, 1.0), (9.0, np.nan), (2.0, 1.0)]:
        grads = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        if step:
            params, state = step(params, state, grads, value=value)
        else:
            _, state = tx.update(grads, state, params, value=value)
    assert int(memory(state.inner)["rises"]) == 1
    assert float(memory(state.inner)["last"]) == 2


def test_a_clip_measures_with_it_in_a_program(one_device):
    tx = lo.chain(T.clip_by_global_norm(Cautious(2.0)), O.adam(0.1))
    params, plain = (jnp.ones((400, 400)) for _ in range(2))
    state, plain_state, step = tx.init(params), tx.init(params), lo.compile_update(tx)
    for value in (1.0, 2.0, 0.5):
        grads = jnp.full((400, 400), value)
        params, state = step(params, state, grads, value=value)
        updates, plain_state = tx.update(grads, plain_state, plain, value=value)
        plain = lo.apply_updates(plain, updates)
    np.testing.assert_allclose(params, plain, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(plain_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


class Growing(lo.schedules.StatefulSchedule):
    """Whose state becomes something else."""

    def __init__(self, grow):
        self.grow = grow

    def init(self):
        return (jnp.zeros(2),)

    def update(self, state):
        return self.grow(state)

    def __call__(self, state):
        return 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: O.sgd(Growing(lambda s: (s[0], s[0]))),
            "the state of the schedule of learning_rate must keep its tree",
        ),
        (
            lambda: O.sgd(Growing(lambda s: (s[0][:1],))),
            "the state of the schedule of learning_rate must keep the shapes",
        ),
        (lambda: T.scale_by_prodigy(b2=Cautious()), "scale_by_prodigy: b2 must be a function of the step"),
        (lambda: keras_words.SGD(Cautious(), decay=0.1), "the rate beside decay must be a function of the step"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    def once():
        tx = make()
        tx.update(1.0, tx.init(1.0), 1.0)

    with pytest.raises(TypeError, match=message):
        once()


# ------------------------------------------------------------------------------------------------- inject_hyperparams


def test_our_own_factories_have_them_already():
    assert inject(O.adamw)(1e-3, b1=falling) == O.adamw(1e-3, b1=falling)
    assert inject(T.scale_by_schedule)(falling) == T.scale_by_schedule(falling)
    assert inspect.signature(inject(O.adamw)) == inspect.signature(O.adamw)

    def own(learning_rate, decay):
        return lo.chain(T.scale_by_adam(), O.sgd(learning_rate * decay))

    assert inject(own)(0.5, 0.5) == own(0.5, 0.5)


FOREIGN = {
    "sgd": lambda make: make(optax.sgd)(falling, momentum=0.9),
    "adamw": lambda make: make(optax.adamw)(
        0.1, b1=Cautious(0.9), eps=lambda step: 1e-3 / (1 + step), weight_decay=0.1
    ),
    "rmsprop": lambda make: make(optax.rmsprop)(Cautious(), decay=0.8, initial_scale=0.5),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_injected_is_as_optax_injects(x64, name):
    ours, theirs = FOREIGN[name](inject), lambda: FOREIGN[name](optax.inject_hyperparams)
    agree(path_of(ours, extra=with_value), optax_path(theirs, with_value))
    agree(
        path_of(lo.chain(ours, T.scale(0.5)), extra=with_value),
        path_of(lo.chain(theirs(), T.scale(0.5)), extra=with_value),
    )


def test_they_are_read_written_pinned_and_released_without_a_recompile():
    tx = inject(optax.sgd)(falling)
    rates, state = run(tx, [1.0, 1.0])
    np.testing.assert_allclose(rates, [0.1, 0.05])
    rates, state = run(tx, [1.0], state=lo.set_hyperparams(state, learning_rate=7.0))
    assert rates == [7.0]
    rates, _ = run(tx, [1.0], state=lo.set_hyperparams(state, learning_rate=None))
    np.testing.assert_allclose(rates, 0.1 / 4)
    updates, _ = tx.update(1.0, lo.set_hyperparams(tx.init(1.0), learning_rate=0.25), 1.0)
    assert float(updates) == -0.25


def test_half_precision_keeps_its_betas_and_its_types():  # NUMERICS O4
    params = jnp.ones(3, jnp.bfloat16)
    tx = inject(optax.adam)(1e-3)
    start = tx.init(params)
    assert float(lo.get_hyperparams(start)["b2"]) == np.float32(0.999)

    def step(state, _):
        updates, state = tx.update(params, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, start, length=3)
    np.testing.assert_allclose(np.asarray(updates, np.float32), -1e-3, rtol=0.01)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, start)
    assert (
        inject(optax.adam, hyperparam_dtype=jnp.bfloat16)(1e-3).update(params, start, params)[0].dtype == jnp.bfloat16
    )


def test_a_mask_is_no_schedule():  # NUMERICS O5
    tx = inject(optax.adamw)(1.0, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    params = {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose([updates["w"][0, 0], updates["b"][0]], [-0.1, 0.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda make: make(optax.adafactor)(1e-3),
        lambda make: make(optax.scale_by_lbfgs)(memory_size=3),
        lambda make: make(optax.adam)(1e-3, mu_dtype=jnp.bfloat16),
    ],
)
def test_whole_numbers_and_dtypes_are_no_hyperparameters(make):  # NUMERICS O30
    tx, params = make(inject), jnp.ones((4, 4))
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)(params, state, params)
    assert np.isfinite(np.asarray(updates)).all()


def branching(learning_rate, power):
    return optax.sgd(learning_rate) if power > 0 else optax.adam(learning_rate)


def test_what_cannot_be_injected_is_refused():
    with pytest.raises(ValueError, match="inject_hyperparams: static_args must be among"):
        inject(optax.sgd, static_args="rate")
    state = inject(branching)(0.1, 1.0).init(1.0)
    with pytest.raises(TypeError, match=r"a decision of branching .*; name it in static_args"):
        jax.jit(inject(branching)(0.1, 1.0).update)(1.0, state, 1.0)
    jax.jit(inject(branching, static_args="power")(0.1, 1.0).update)(
        1.0, inject(branching, "power")(0.1, 1.0).init(1.0), 1.0
    )
    for mixed in (lambda rate: lo.chain(O.sgd(rate), optax.adam(rate)), lambda rate: optax.chain(O.sgd(rate))):
        with pytest.raises(TypeError, match="inner_factory must use one library's transforms"):
            inject(mixed)(0.1).init(1.0)
    tx = inject(optax.sgd)(0.1)
    with pytest.raises(TypeError, match="be a WrapperState"):
        tx.update(1.0, {}, 1.0)


def keeping(rate):
    """A transform whose first state is the parameters, not a copy of them."""
    return optax.GradientTransformation(lambda p: p, lambda u, s, p=None: (jax.tree.map(lambda x: -rate * x, u), s))


def test_nothing_is_shared_with_the_parameters():
    tx, params = inject(keeping)(0.5), jnp.ones(3)
    after, state = lo.compile_update(tx)(params, tx.init(params), jnp.ones(3))
    np.testing.assert_array_equal(after, 0.5)
    np.testing.assert_array_equal(state.inner, 1.0)


def test_it_prints_and_compares_and_compiles():
    tx = inject(optax.sgd)(0.5)
    assert repr(tx).startswith("inject_hyperparams(sgd)(learning_rate=0.5, momentum=None")
    assert tx == inject(optax.sgd)(0.5) != inject(optax.sgd)(0.25)
    params, _ = lo.compile_update(tx)(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))
    np.testing.assert_array_equal(params, 0.5)
