"""Nothing, zeros, functions of one's own, sums of updates, and transforms that run in some steps only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import in_even_steps

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
BAD = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1.0])
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16), "none": None}
GRADS = jax.tree.map(lambda p: (0.5 * p).astype(p.dtype) if p.dtype == jnp.float32 else p, PARAMS)


def run(tx, gradients, params, **extra):
    """All steps in one compiled scan: the last parameters and state, and every update."""

    def step(carry, given):
        params, state = carry
        updates, state = tx.update(given[0], state, params, **given[1])
        return (lo.apply_updates(params, updates), state), updates

    carry, updates = jax.jit(lambda *given: jax.lax.scan(step, (params, tx.init(params)), given))(
        jnp.asarray(gradients), extra
    )
    return *carry, updates


# ---------------------------------------------------------------------------------------------------- without memory


def test_identity_and_zeros():
    same, _ = T.identity().update(BAD, T.identity().init(BAD), BAD)
    np.testing.assert_array_equal(same, BAD)
    zeros, _ = T.set_to_zero().update(BAD, T.set_to_zero().init(BAD), BAD)
    np.testing.assert_array_equal(zeros, 0.0)
    assert not np.signbit(zeros).any()


@pytest.mark.usefixtures("one_device")
def test_what_becomes_zero_is_not_computed():
    tx, x = T.set_to_zero(), jnp.ones((64, 64))
    state = tx.init(x)
    program = jax.jit(lambda x: tx.update(jnp.sin(x) @ x, state, x)[0]).lower(x).compile()
    assert not {"dot", "sine"} & set(program.as_text().replace("(", " ").split())


def test_zeros_in_a_group_leave_the_other_one_pass_over_memory():
    tx = lo.partition({"trained": O.adamw(0.1), "frozen": T.set_to_zero()}, {"a": "trained", "b": "frozen"})
    params = {"a": jnp.ones(3), "b": jnp.full(2, 2.0)}
    assert [len(met) for met in tx._met_by(params)] == [3, 1]
    after, _ = lo.compile_update(tx)(jax.tree.map(jnp.copy, params), tx.init(params), {"a": jnp.ones(3), "b": BAD[:2]})
    np.testing.assert_array_equal(after["b"], params["b"])
    assert np.all(after["a"] < 1)


def test_a_function_sees_what_is_trained_in_float32():
    seen = []

    def f(updates, params):
        seen.append((updates, params))
        return jax.tree.map(lambda u, p: np.float64(2) * u + p, updates, params)  # mixed dtypes are its own business

    tx = T.stateless(f)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    ((u, p),) = seen
    assert {x.dtype for x in jax.tree.leaves((u, p))} == {np.dtype("float32")}
    assert (u["none"], p["none"], updates["none"]) == (None, None, None)
    assert {name: x.dtype for name, x in updates.items() if name != "none"} == {"w": jnp.float32, "b": jnp.bfloat16}
    np.testing.assert_array_equal(updates["w"], 2 * GRADS["w"] + PARAMS["w"])
    frozen, _ = tx.update({**GRADS, "b": None}, tx.init(PARAMS), PARAMS)
    assert frozen["b"] is None


def test_params_are_optional_for_a_function():
    tx = T.stateless(lambda updates, params: updates if params is None else 1 / 0)
    assert float(tx.update(2.0, tx.init(1.0))[0]) == 2.0
    tx = T.stateless_with_tree_map(lambda u, p: 3 * u if p is None else 1 / 0)
    assert float(tx.update(2.0, tx.init(1.0))[0]) == 6.0


def test_a_function_may_return_numbers_of_any_real_dtype():
    tx = lo.chain(T.stateless_with_tree_map(lambda u, p: u > 0.1), T.scale(0.5))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_array_equal(updates["w"], np.where(np.asarray(GRADS["w"]) > 0.1, 0.5, 0.0))


TREES = {
    "a leaf too few": (lambda u, p: {"w": u["w"]}, ValueError, r"must have the tree that it is given.*'b'"),
    "a leaf too many": (lambda u, p: u | {"c": 1.0}, ValueError, "an unexpected leaf at 'c'"),
    "no tree": (lambda u, p: 0.0, ValueError, "must have the tree that it is given"),
    "shape": (lambda u, p: u | {"b": u["b"][:2]}, ValueError, r"at 'b' must have shape \(3,\), got \(2,\)"),
    "broadcast": (lambda u, p: u | {"w": jnp.ones(())}, ValueError, r"at 'w' must have shape \(2, 3\), got \(\)"),
    "None": (lambda u, p: u | {"w": None}, ValueError, r"at 'w' must have shape \(2, 3\), got None"),
    "text": (lambda u, p: u | {"w": "text"}, ValueError, r"at 'w' must have shape \(2, 3\), got 'text'"),
    "complex": (lambda u, p: u | {"w": 1j * u["w"]}, TypeError, "at 'w' must be real like its gradient, got complex64"),
}


@pytest.mark.parametrize(("f", "error", "message"), TREES.values(), ids=TREES)
def test_what_a_function_must_not_return(f, error, message):
    tx = T.stateless(f)
    with pytest.raises(error, match=f"^stateless: what the function returns.*{message}"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda u, p: u[0], ValueError, r"at '[bw]' must have shape"),
        (lambda u, p: [u], ValueError, "an unexpected leaf at|nothing at"),
        (lambda u, p: None, ValueError, "got None"),
        (lambda u, p: u + 1j, TypeError, "at '[bw]' must be real"),
    ],
)
def test_what_a_function_of_one_array_must_not_return(f, error, message):
    tx = T.stateless_with_tree_map(f)
    with pytest.raises(error, match=f"^stateless_with_tree_map: what the function returns.*({message})"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


def test_what_a_function_raises_comes_through_and_says_where():
    tx = T.stateless_with_tree_map(lambda u, p: u.reshape(3, 2) if u.ndim > 1 else u)
    with pytest.raises(ValueError, match="shape"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)

    def refuse(u, p):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        T.stateless_with_tree_map(refuse).update({"deep": {"w": 1.0}}, T.stateless(refuse).init(1.0))
    assert raised.value.__notes__ == ["in the function of stateless_with_tree_map, at 'deep/w'"]
    with pytest.raises(TypeError, match=r"stateless: f must be callable, got 0\.1"):
        T.stateless(0.1)


def test_extra_arguments_are_taken_and_typos_refused():
    for tx in (T.with_extra_args_support(optax.scale(-0.5)), T.with_extra_args_support(O.sgd(0.5))):
        assert float(tx.update(1.0, tx.init(0.0), 0.0, value=1.0, key=None)[0]) == -0.5
        with pytest.raises(TypeError, match=r"keywords must be among value, .*got 'valeu'"):
            tx.update(1.0, tx.init(0.0), 0.0, valeu=1.0)
    tx = O.sgd(0.5)
    assert T.with_extra_args_support(tx) is tx
    with pytest.raises(TypeError, match="with_extra_args_support: members must have init and update"):
        T.with_extra_args_support("sgd")


def test_an_empty_state_is_optax_s():
    assert T.init_empty_state(PARAMS) == optax.EmptyState() == ()
    tx = lo.chain(optax.GradientTransformation(T.init_empty_state, lambda g, state, params=None: (2 * g, state)))
    assert float(tx.update(1.0, tx.init(0.0), 0.0)[0]) == 2.0


# ------------------------------------------------------------------------------------------------------ apply_every


def test_a_bad_gradient_spoils_its_own_sum_only():
    gradients = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0, np.inf, 8.0, 9.0, 1.0])[:, None]
    _, state, updates = run(T.apply_every(2), gradients, jnp.zeros(1))
    np.testing.assert_array_equal(updates[:, 0], [0, 3, 0, np.nan, 0, 11, 0, np.inf, 0, 10])
    assert int(lo.get_slot(state, "mini_step")) == 0
    with jax.numpy_dtype_promotion("standard"):
        _, _, theirs = run(optax.apply_every(2), gradients, jnp.zeros(1))
    assert np.isnan(theirs[3:]).all()  # O9


def test_sums_of_steps_are_not_steps_of_means():
    gradients = np.linspace(1, 2, 6)[:, None]
    summed, _, _ = run(lo.chain(O.adam(0.1), T.apply_every(3)), gradients, jnp.zeros(1))
    plain, _, _ = run(O.adam(0.1), gradients, jnp.zeros(1))
    averaged, _, _ = run(T.multi_steps(O.adam(0.1), 3), gradients, jnp.zeros(1))
    np.testing.assert_allclose(summed, plain, rtol=1e-6)
    np.testing.assert_allclose(averaged, plain / 3, rtol=0.02)


def test_another_k_counts_from_then_on():
    tx, x = T.apply_every(3), jnp.ones(())
    update, state, seen = jax.jit(tx.update), tx.init(x), []
    for k in (3, 3, 2, 2, 2, 1, 1):
        u, state = update(x, lo.set_hyperparams(state, k=k))
        seen.append(float(u))
    assert seen == [0, 0, 3, 0, 2, 1, 1]
    for bad in (0, 0.5, np.nan):
        with pytest.raises(ValueError, match="apply_every: k must be"):
            T.apply_every(bad)


# ------------------------------------------------------------------------------------------------------- conditions

CONDITIONAL = {"conditionally_mask": T.conditionally_mask, "conditionally_transform": T.conditionally_transform}
conditional = pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL)
GOOD = np.array([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]], np.float32)


def bad_in_odd_steps(k):
    """Good gradients in even steps, and in the others what must not be seen inside."""
    return np.stack([row for i in range(k) for row in (GOOD[i], [np.nan, [np.inf, 1.0, -np.inf][i]])])


@conditional
def test_a_step_left_out_leaves_no_trace_inside(make):
    inner = lo.chain(T.trace(0.9), O.adam(lambda step: 0.1 / (1 + step)))
    gradients = bad_in_odd_steps(3)
    _, state, updates = run(make(inner, in_even_steps), gradients, jnp.ones(2))
    _, expected, plain = run(inner, GOOD, jnp.ones(2))
    np.testing.assert_array_equal(updates[::2], plain)
    np.testing.assert_array_equal(updates[1::2], 0 if make is T.conditionally_mask else gradients[1::2])
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected)
    assert int(state.step) == 6


@conditional
def test_what_is_left_out_is_not_computed(make):
    ran = []

    def noted(u, p):
        jax.debug.callback(lambda: ran.append(1))
        return u

    run(make(T.stateless_with_tree_map(noted), lambda step: step == 3), np.ones((5, 2), np.float32), jnp.ones(2))
    jax.effects_barrier()
    assert len(ran) == 1


@conditional
def test_every_run_of_a_vmap_decides_for_itself(make):
    tx = make(O.sgd(0.5), lambda step, value: value > 0, forward_extra_args=True)
    state, grads = jax.vmap(tx.init)(jnp.ones((2, 1))), jnp.array([[2.0], [jnp.nan]])
    updates, _ = jax.vmap(lambda g, s, v: tx.update(g, s, value=v))(grads, state, jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(updates, [[-1], [0 if make is T.conditionally_mask else np.nan]])


@conditional
def test_a_condition_in_compile_update_and_inside_a_guard(make):
    tx = T.apply_if_finite(make(O.adam(0.1), in_even_steps))
    params, state, step = jnp.ones(2), tx.init(jnp.ones(2)), lo.compile_update(tx)
    expected, there, update = params, state, jax.jit(tx.update)
    for g in ([0.1, 0.2], [0.3, 0.1], [np.nan, 0.0], [0.2, 0.1]):
        updates, there = update(jnp.array(g), there, expected)
        expected = lo.apply_updates(expected, updates)
        params, state = step(jnp.copy(params), jax.tree.map(jnp.copy, state), jnp.array(g))
    np.testing.assert_allclose(params, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, there)
    assert [int(count) for count in (state.step, state.inner.step, lo.get_slot(state, "bad_steps"))] == [4, 3, 1]


@pytest.mark.usefixtures("one_device")
def test_a_mask_in_compile_update_writes_nothing_down():
    tx, params = T.conditionally_mask(O.adamw(0.1), in_even_steps), jnp.ones((512, 512))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, tx.init(params), params))
    compiled = lo.compile_update(tx).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * params.nbytes


@conditional
def test_a_condition_gets_the_step_and_what_it_asks_for(make):
    seen = []

    def condition(step, value, mine=0.0):
        seen.append((step.dtype, step.shape, value, mine))
        return step % 2  # an integer will do

    tx = make(O.sgd(1.0), condition, forward_extra_args=True)
    state = tx.init(1.0)
    off = 0.0 if make is T.conditionally_mask else 3.0
    for k, expected in enumerate((off, -3.0, off)):
        updates, state = tx.update(3.0, state, 1.0, value=k, grad=3.0, key=None, mine=7.0)
        assert float(updates) == expected
    assert seen == [(jnp.int32, (), k, 7.0) for k in range(3)]
    with pytest.raises(TypeError, match="got 'mien'"):
        tx.update(3.0, state, 1.0, value=1.0, mien=7.0)
    with pytest.raises(TypeError, match="got 'mine'"):
        make(O.sgd(1.0), lambda step, mine=0.0: True).update(3.0, state, 1.0, mine=7.0)
    plain = make(O.sgd(1.0), lambda step, **extra: not extra)
    assert float(plain.update(3.0, plain.init(1.0), 1.0, value=1.0)[0]) == -3.0


@conditional
def test_either_library_s_condition_around_the_other_s_rule(make):
    theirs = getattr(optax, make.rule.name)
    gradients = np.concatenate([GOOD, GOOD])
    ours, _, _ = run(make(optax.adam(0.1), in_even_steps), gradients, jnp.ones(2))
    inside, _, _ = run(optax.chain(optax.clip(0.4), make(O.adam(0.1), in_even_steps)), gradients, jnp.ones(2))
    with jax.numpy_dtype_promotion("standard"):
        expected, _, _ = run(theirs(optax.adam(0.1), in_even_steps), gradients, jnp.ones(2))
        around, _, _ = run(theirs(O.adam(0.1), in_even_steps), gradients, jnp.ones(2))
        clipped, _, _ = run(
            optax.chain(optax.clip(0.4), theirs(optax.adam(0.1), in_even_steps)), gradients, jnp.ones(2)
        )
    for mine, peer in ((ours, expected), (around, expected), (inside, clipped)):
        np.testing.assert_allclose(mine, peer, rtol=1e-5)


@conditional
@pytest.mark.parametrize("bad", [None, "yes", 0.5, np.ones(2, bool), jnp.float32(1)], ids=str)
def test_a_condition_must_return_one_bool(make, bad):
    tx = make(O.sgd(1.0), lambda step: bad)
    with pytest.raises(TypeError, match=rf"{make.rule.name}: what should_transform_fn returns must be"):
        tx.update(1.0, tx.init(1.0))


@conditional
def test_a_condition_is_a_function(make):
    with pytest.raises(TypeError, match="should_transform_fn must be callable, got True"):
        make(O.sgd(1.0), True)
    with pytest.raises(ValueError, match="must be outermost"):
        make(lo.master_weights(O.sgd(1.0)), in_even_steps)


# ------------------------------------------------------------------------------------------------- extra arguments

COMPOSED = {
    "chain": lambda tx: lo.chain(T.clip(1.0), tx),
    "partition": lambda tx: lo.partition({"all": tx}, "all"),
    "masked": lambda tx: lo.masked(tx, True),
    "guard": T.apply_if_finite,
    "multi_steps": lambda tx: T.multi_steps(tx, 1),
    "condition": lambda tx: T.conditionally_mask(tx, in_even_steps),
    "optax inside": lambda tx: lo.chain(optax.clip(1.0), tx),
    "master weights": lo.master_weights,
    "pack_small": lo.pack_small,
    "compile_update": lambda tx: tx,
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_misspelt_extra_argument_is_refused_through_any_composition(name):
    tx, x = COMPOSED[name](O.polyak_sgd() if name != "pack_small" else O.sgd(0.1)), jnp.ones(2)
    state = tx.init(x)
    update = lo.compile_update(tx) if name == "compile_update" else tx.update
    with pytest.raises(TypeError, match=r"keywords must be among value, .*got 'valeu'"):
        update(x, state, x, value=1.0, valeu=1.0)
