"""Laws that every transform and every optimizer keeps; one row per registered name."""

import inspect
import pickle
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rows import OPTIMIZERS, TRANSFORMS, advance, by_rank, extras, lifts, matrices, refuses_complex

import lossopt_jax as lo
from lossopt_jax._core import RANGES
from lossopt_jax.transforms import Hyperparameter

T, O = lo.transforms, lo.optimizers
ROWS = TRANSFORMS | OPTIMIZERS
FREE = {
    "apply_updates",
    "by_path",
    "compile_update",
    "debias",
    "elementwise",
    "get_hyperparams",
    "get_slot",
    "global_norm",
    "inject_hyperparams",
}
FREE |= {"bias_correction", "leafwise", "microbatch", "set_hyperparams", "treewise", "wrapper"}
FREE |= {f"projection_{kind}" for kind in ("box", "halfspace", "hypercube", "hyperplane", "l1_ball", "l1_sphere")}
FREE |= {f"projection_{kind}" for kind in ("l2_ball", "l2_sphere", "linf_ball", "max_norm", "min_max_norm")}
FREE |= {f"projection_{kind}" for kind in ("non_negative", "simplex", "unit_norm", "vector")}
FREE |= {"safe_increment", "safe_int32_increment", "safe_norm", "safe_root_mean_squares", "tree_map_params"}
FREE |= {"per_example_global_norm_clip", "per_example_layer_norm_clip", "unitwise_clip", "unitwise_norm"}
FREE |= {"averaged_params", "incremental_update", "periodic_update"}
FREE |= {"fisher_diag", "hessian_diag", "hvp", "make_perturbed_fun", "multi_normal", "scale_gradient"}
FREE |= {"base_hungarian_algorithm", "hungarian_algorithm", "matrix_inverse_pth_root", "nnls", "power_iteration"}
FREE |= {"flatten", "map_stacked", "orthogonalize_via_newton_schulz", "polar_express_coefficients"}
FREE |= {"get_measurements", "init_empty_state", "measure_with_ema", "with_extra_args_support"}
FREE |= {"gpa_eval_params", "schedule_free_eval_params", "value_and_grad_from_state"}

# A chain keeps what its members keep, so the quick round looks at the rules alone, as do the laws `of_rules`.
rows = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if name in OPTIMIZERS else []) for name, row in ROWS.items()],
    ids=ROWS,
)
turned = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] if name in OPTIMIZERS else [], id=name)
        for name, row in ROWS.items()
        if row.knob is not None
    ],
)
of_rules = pytest.mark.parametrize("row", TRANSFORMS.values(), ids=TRANSFORMS)


def random(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def pair(**leaves):
    """Parameters and gradients: a leaf is given as (shape, dtype), or as the two themselves in a list."""
    both = {
        name: leaf if isinstance(leaf, list) else [random(*leaf, seed=2 * i), random(*leaf, seed=2 * i + 1)]
        for i, (name, leaf) in enumerate(leaves.items())
    }
    return tuple({name: two[k] for name, two in both.items()} for k in (0, 1))


FLOAT0 = np.zeros((2,), jax.dtypes.float0)
TREES = {
    "float32": pair(w=((3, 4),), b=((4,),)),
    "bfloat16": pair(w=((3, 4), jnp.bfloat16), b=((4,), jnp.bfloat16)),
    "float16": pair(w=((3, 4), jnp.float16), b=((4,), jnp.float16)),
    "mixed": pair(w=((3, 4), jnp.bfloat16), b=((4,),), c=((2, 2), jnp.float16)),
    "half_parameters": pair(w=[random((3, 4), jnp.bfloat16), random((3, 4))]),
    "half_gradients": pair(w=[random((3, 4)), random((3, 4), jnp.bfloat16)]),
    "scalar": pair(s=((),), w=((2, 2),)),
    "zero_size": pair(z=((0, 3),), w=((2, 2),)),
    "none": pair(w=((2, 2),), n=[None, None], frozen=[random((3,)), None]),
    "integer": pair(w=((2, 2),), i=[jnp.arange(2), FLOAT0], k=[jnp.arange(2), jnp.arange(2)]),
    "complex": pair(w=((2, 2), jnp.complex64), b=((3,),)),
    "python_float": pair(f=[1.5, 0.5], w=((2, 2),)),
    "numpy": pair(w=[np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)]),
    "empty": ({}, {}),
}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
PLAIN = TREES["float32"]


def types(tree):
    def of(leaf):
        return jnp.shape(leaf), jnp.result_type(leaf), getattr(leaf, "weak_type", False)

    return jax.tree.map(of, tree)


def equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def close(left, right, ulps=2):
    """Within some ulps of the largest element of each leaf; the same types."""
    assert types(left) == types(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.size and np.issubdtype(a.dtype, np.inexact):
            scale = max(np.abs(a).max(), np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=ulps * np.finfo(a.dtype).eps * scale)


def steps(tx, params, grads, count=3, state=None):
    state = tx.init(params) if state is None else state
    for _ in range(count):
        updates, state = advance(tx, grads, state, params)
        params = lo.apply_updates(params, updates)
    return params, state


def schedule_of(row):
    return lambda step: row.value


def complex_is_refused(row, tree):
    """A rule that sees where a leaf ends has no complex form, and says so at init."""
    return refuses_complex(row.build(row.value)) and any(map(jnp.iscomplexobj, jax.tree.leaves(tree)))


def slots_of(tx):
    own = list(tx.rule.slots.values()) if hasattr(tx, "rule") else []
    return own + [slot for member in tx._members() for slot in slots_of(member)]


def other_value(row):
    """The knob's, if there is one."""
    return {} if row.knob is None else {row.knob: row.other}


def without(row, *names):
    return row not in [ROWS[name] for name in names]


# ---------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(("room", "table"), [(T, TRANSFORMS), (O, OPTIMIZERS)], ids=["transforms", "optimizers"])
def test_registry_is_exports_is_table(room, table):
    functions = {n for n, f in vars(room).items() if inspect.isfunction(f)}
    assert set(room.registry) == set(table) == functions - FREE


def test_without_a_knob_there_is_no_hyperparameter():
    for name, row in ROWS.items():
        assert row.knob or not lo.get_hyperparams(row.build(None).init(PLAIN[0])), name


@turned
def test_knob_is_a_hyperparameter(row):
    tx = row.build(row.value)
    hypers = lo.get_hyperparams(tx.init(PLAIN[0]))
    found = [value for key, value in hypers.items() if key.split("/")[-1] == row.knob]
    assert found
    assert float(found[0]) == np.float32(row.value)


# ---------------------------------------------------------------------------------------------- types of the state


@rows
@trees
def test_types_are_a_fixed_point(row, tree):
    params, grads = tree
    tx = row.build(row.value)
    if complex_is_refused(row, params):
        with pytest.raises(TypeError, match=r"the parameter at 'w' must be real"):
            tx.init(params)
        return
    start = jax.eval_shape(tx.init, params)
    updates, state = jax.eval_shape(partial(advance, tx), grads, start, params)
    assert types(state) == types(start)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    for name, update in updates.items():
        if grads[name] is not None and jnp.issubdtype(jnp.result_type(params[name]), jnp.inexact):
            assert update.dtype == jnp.result_type(params[name])
            assert not update.weak_type


@rows
@pytest.mark.parametrize("name", ["float32", "none", "integer", "zero_size", "empty"])
def test_types_hold_where_it_runs(row, name):
    params, grads = TREES[name]
    tx = row.build(row.value)
    state = start = tx.init(params)
    for _ in range(2):
        updates, state = advance(tx, grads, state, params)
        assert types(state) == types(start)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    for name, update in updates.items():
        trained = grads[name] is not None and jnp.issubdtype(jnp.result_type(params[name]), jnp.inexact)
        if not trained:
            assert update is grads[name] or not np.any(update)
        else:
            assert update.dtype == jnp.result_type(params[name])
            assert not update.weak_type
            assert np.isfinite(np.asarray(update, np.complex64)).all()
    assert types(lo.apply_updates(params, updates)) == {
        name: of if not isinstance(params[name], float) else (*of[:2], False) for name, of in types(params).items()
    }


@rows
@trees
def test_slots_are_at_least_float32(row, tree):
    if complex_is_refused(row, tree):
        return
    tx = row.build(row.value)
    asked = {jnp.result_type(p) for p in jax.tree.leaves(tree[0]) if any(s.dtype == "param" for s in slots_of(tx))}
    for leaf in jax.tree.leaves(tx.init(tree[0])):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_, jnp.uint32, jnp.complex64, *asked)
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type


@rows
@trees
def test_eval_shape_and_abstract_init(row, tree):
    if complex_is_refused(row, tree):
        return
    tx = row.build(row.value)
    shapes = jax.eval_shape(tx.init, tree[0])
    assert types(shapes) == types(tx.init(tree[0]))
    if not any(callable(slot.fill) for slot in slots_of(tx)):  # whose first value is no shape
        abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), tree[0])
        assert types(tx.init(abstract)) == types(shapes)


@turned
def test_constant_and_schedule_give_one_state_and_the_same_bits(row):
    if not without(row, "scale_by_schedule"):
        pytest.skip("takes schedules only")
    params, grads = PLAIN
    one, other = (steps(row.build(value), params, grads) for value in (row.value, schedule_of(row)))
    equal(one, other)
    assert types(one) == types(other)


# ------------------------------------------------------------------------------------------------------- one trace


@rows
def test_one_trace_for_two_steps_and_two_rates(row):
    (params, grads), tx, traced = PLAIN, row.build(row.value), []

    @jax.jit
    def step(state):
        traced.append(1)
        return advance(tx, grads, state, params)[1]

    state = step(step(tx.init(params)))
    step(lo.set_hyperparams(state, **other_value(row)))
    assert len(traced) == 1


def test_leaves_of_one_signature_share_a_trace():
    traced = []

    @T.elementwise()
    def noted(g, slots, t):
        traced.append(1)
        return g, {}

    tx = noted()
    leaves = [jnp.full((7,), float(i)) for i in range(20)]
    tx.update(leaves, tx.init(leaves), leaves)
    assert len(traced) == 1


@rows
def test_construction_under_jit_with_a_traced_value(row):
    params, grads = PLAIN
    run = jax.jit(lambda value: steps(row.build(value), params, grads))
    close(
        run(row.value), steps(row.build(row.value), params, grads), ulps=4 * row.magnifies
    )  # one program for three steps


@pytest.mark.slow
@turned
def test_vmap_over_a_hyperparameter_is_a_loop(row):
    params, grads = PLAIN
    values = jnp.array([row.value, row.other])
    many = jax.vmap(lambda value: steps(row.build(value), params, grads))(values)
    for k, value in enumerate((row.value, row.other)):
        close(jax.tree.map(lambda leaf, k=k: leaf[k], many), steps(row.build(value), params, grads))


@pytest.mark.slow
@of_rules
def test_vmap_over_the_state_is_a_loop(row):
    (params, grads), tx = PLAIN, row.build(row.value)
    states = [tx.init(params), lo.set_hyperparams(tx.init(params), **other_value(row))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    many = jax.vmap(lambda state: advance(tx, grads, state, params))(stacked)
    for k, state in enumerate(states):
        close(jax.tree.map(lambda leaf, k=k: leaf[k], many), advance(tx, grads, state, params))


@pytest.mark.once
@of_rules
@pytest.mark.parametrize("tree", [TREES["float32"], TREES["mixed"]], ids=["float32", "mixed"])
def test_jit_is_eager_within_an_ulp(row, tree):
    params, grads = tree
    tx = row.build(row.value)
    run = partial(advance, tx)
    close(jax.jit(run)(grads, tx.init(params), params), run(grads, tx.init(params), params), ulps=1)


@of_rules
def test_runs_in_a_scan(row):
    (params, grads), tx = TREES["mixed"], row.build(row.value)

    def step(carry, _):
        params, state = carry
        updates, state = advance(tx, grads, state, params)
        return (lo.apply_updates(params, updates), state), None

    after, _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
    close(after, steps(tx, params, grads), ulps=4)


# ---------------------------------------------------------------------------------------------- memory and devices


@rows
def test_nothing_is_shared_and_all_may_be_donated(row):
    params, grads = jax.tree.map(jnp.array, TREES["mixed"])
    tx = row.build(row.value)
    state = tx.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, grads, state))]
    assert len(set(pointers)) == len(pointers)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = advance(tx, grads, state, params)
        return lo.apply_updates(params, updates), state

    first = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    step(*first)


@of_rules
def test_eager_update_shares_no_buffer_with_the_gradient(row):
    params, grads = jax.tree.map(jnp.array, PLAIN)
    tx = row.build(row.value)
    _, state = advance(tx, grads, tx.init(params), params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, grads, state))]
    assert len(set(pointers)) == len(pointers)


def on_eight(tree):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*["d"][: x.ndim]))), tree)


def frozen(row, name):
    return name == "b" and not without(row, "freeze", "selective_transform")


@of_rules
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_sharding_is_kept_and_changes_nothing(row, wrap):
    params, grads = pair(w=((8, 4),), b=((16,), jnp.bfloat16))
    sharded, sharded_grads = on_eight((params, grads))
    tx = row.build(row.value)
    start = tx.init(sharded)
    updates, state = wrap(partial(advance, tx))(sharded_grads, start, sharded)
    after = wrap(lo.apply_updates)(sharded, updates)
    for name, like in sharded.items():
        # the zeros of a leaf that is not trained are a constant, which lies nowhere yet
        for leaf in (after[name], *([updates[name]] if not frozen(row, name) else [])):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        if len(like.sharding.device_set) == 1:  # a slot of the whole tree
            assert leaf.sharding.is_fully_replicated
        else:
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        assert leaf.shape not in ((8, 4), (16,)) or not leaf.sharding.is_fully_replicated
    expected, expected_state = advance(tx, grads, tx.init(params), params)
    close((after, state), (lo.apply_updates(params, expected), expected_state), ulps=4)  # sums in another order


ELEMENTWISE = {
    name: row
    for name, row in ROWS.items()
    if name not in ("masked", "offload_state", "partition") and lifts(row.build(row.value)) == {"elementwise"}
}


@pytest.mark.parametrize("row", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise_may_be_permuted_and_cut(row):
    tx, x, g = row.build(row.value), random((32,)), random((32,), seed=1)

    def run(x, g):
        state = tx.init(x)
        for _ in range(3):  # the loss is that of the whole, which no order of sums may change
            updates, state = tx.update(g, state, x, grad=g, value=1.5)
            x = lo.apply_updates(x, updates)
        return x, state

    whole = run(x, g)
    order = np.random.default_rng(2).permutation(32)

    def cut(tree, where):
        return jax.tree.map(lambda leaf: leaf[where] if leaf.ndim else leaf, tree)

    for where in (order, np.s_[:16], np.s_[16:]):
        equal(run(x[where], g[where]), cut(whole, where))


def test_elementwise_rows_are_found():
    assert {"sgd", "adam", "amsgrad", "rmsprop", "scale_by_stddev", "trace", "clip"} <= set(ELEMENTWISE)
    assert "clip_by_global_norm" not in ELEMENTWISE


# --------------------------------------------------------------------------------------------- dtypes and extremes


@turned
def test_update_has_the_dtype_of_its_parameter_whatever_the_value(row):
    params, grads = TREES["mixed"]
    for value in (np.float64, np.float32, jnp.float32, jnp.bfloat16, np.array, float):
        tx = row.build(value(row.value))
        updates, _ = jax.eval_shape(partial(advance, tx), grads, tx.init(params), params)
        assert types(updates) == types(params)


@rows
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=["float16", "bfloat16", "float32"])
def test_zero_tiny_and_huge_gradients_give_finite_updates(row, dtype):
    info = jnp.finfo(dtype)
    huge = min(float(info.max), 1e18) / 4
    extremes = [0.0, float(info.tiny), -1e-5, huge, -huge]
    for grads in [jnp.full((2, 5), g, dtype) for g in extremes] + [jnp.array([extremes] * 2, dtype)]:
        tx, params = row.build(row.value), jnp.zeros((2, 5), dtype)
        state = tx.init(params)
        for _ in range(1 if row.unbounded else 3):
            updates, state = advance(tx, grads, state, params)
            assert np.isfinite(np.asarray(updates, np.float32)).all()
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


@rows
def test_nothing_moves_for_zero_gradients(row):
    if row.restless:
        pytest.skip("it says so")
    params = jnp.zeros((3, 3))
    tx = row.build(row.value)
    updates, _ = advance(tx, jnp.zeros((3, 3)), tx.init(params), params)
    assert not np.any(updates)


@rows
def test_complex_is_the_run_on_real_pairs(row):
    tx = row.build(row.value)
    if refuses_complex(tx):
        pytest.skip("refused, see the types")
    z, g = (jax.lax.complex(random((3, 3), seed=seed), random((3, 3), seed=seed + 1)) for seed in (0, 2))

    def real_pair(x):
        return {"re": x.real, "im": x.imag}

    w, _ = steps(tx, z, g)
    x, _ = steps(tx, real_pair(z), real_pair(g))
    np.testing.assert_allclose(w, jax.lax.complex(x["re"], x["im"]), rtol=1e-6)


def test_params_are_optional_where_no_rule_needs_them():
    tx, g = lo.chain(T.clip_by_global_norm(1.0), O.adam(0.1)), random((4,), jnp.bfloat16)
    updates, _ = tx.update(g, tx.init(g))
    assert updates.dtype == jnp.bfloat16
    with pytest.raises(TypeError, match=r"add_decayed_weights: params must be given to update"):
        O.adamw(0.1).update(g, O.adamw(0.1).init(g))


# ------------------------------------------------------------------------------------------------------ static errors


@rows
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"w": np.ones((3, 3), np.float32), "b": np.ones(4, np.float32)}, ValueError, r"'w' must have shape \(3, 4\)"),
        ({"w": np.ones((3, 4), np.float32)}, ValueError, "'b'"),
        ({"w": np.ones((3, 4), np.float32), "b": "text"}, TypeError, "'b'"),
        ({"w": np.ones((3, 4), np.complex64), "b": None}, TypeError, "'w' must be real"),
        ({"w": np.ones((3, 4), np.int32), "b": None}, TypeError, "'w' must be floating"),
    ],
    ids=["shape", "tree", "text", "complex", "integer"],
)
def test_a_wrong_gradient_is_named_by_its_path(row, grads, error, message):
    tx = row.build(row.value)
    state = tx.init(PLAIN[0])
    for update in (tx.update,) if isinstance(grads.get("b"), str) else (tx.update, jax.jit(tx.update)):
        with pytest.raises(error, match=message):
            update(grads, state, PLAIN[0])


@rows
def test_unknown_keywords_are_refused_and_known_ones_ignored(row):
    (params, grads), tx = PLAIN, row.build(row.value)
    tx.update(grads, tx.init(params), params, value=1.0, grad=grads, value_fn=len, key=None, loss=1.0)
    with pytest.raises(TypeError, match=r"keywords must be among value, .*got 'valeu'"):
        tx.update(grads, tx.init(params), params, valeu=1.0)


@turned
def test_a_hyperparameter_that_is_no_number_is_refused(row):
    if without(row, "scale_by_schedule"):
        for bad in ("0.1", True, None, 1j, [0.1]):
            with pytest.raises(TypeError, match=row.knob):
                row.build(bad)


@turned
def test_a_hyperparameter_that_is_nan_or_no_scalar_is_refused(row):
    if without(row, "scale_by_schedule"):
        for bad in (np.nan, jnp.ones(2), np.ones((1,))):
            with pytest.raises(ValueError, match=row.knob):
                row.build(bad)


OUT_OF_RANGE = {
    "negative rate": lambda: O.sgd(-0.1),
    "infinite rate": lambda: O.adam(np.inf),
    "b1": lambda: O.adam(0.1, b1=1.0),
    "b2": lambda: O.adamw(0.1, b2=2),
    "eps": lambda: O.adam(0.1, eps=-1e-8),
    "eps_root": lambda: O.amsgrad(0.1, eps_root=jnp.float32(-1.0)),
    "decay": lambda: O.rmsprop(0.1, decay=1.5),
    "momentum": lambda: O.sgd(0.1, momentum=1.0),
    "weight_decay": lambda: O.adamw(0.1, weight_decay=-1.0),
    "max_delta": lambda: T.clip(-1.0),
    "max_norm": lambda: T.clip_by_global_norm(-1.0),
    "seed": lambda: lo.stochastic_rounding(O.sgd(0.1), seed=-1),
    "initial_scale": lambda: O.rmsprop(0.1, initial_scale=-1.0),
    "nesterov without momentum": lambda: O.sgd(0.1, nesterov=True),
    "nesterov without momentum in rmsprop": lambda: O.rmsprop(0.1, nesterov=True),
    "set": lambda: lo.set_hyperparams(O.sgd(0.1).init(1.0), learning_rate=-1.0),
}


@pytest.mark.parametrize("build", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_out_of_range_is_refused(build):
    with pytest.raises(ValueError, match=r"^\w+: \w+ must"):
        build()


RULES = {name: make for name, make in T.registry.items() if hasattr(make, "rule")}


@pytest.mark.parametrize("name", RULES)
def test_every_rate_decay_and_epsilon_has_a_range(name):
    """And a value out of it is refused at construction, by name."""
    make = RULES[name]
    parameters = inspect.signature(make).parameters.values()
    required = {p.name: O.sgd(0.1) if p.name in make.rule.members else 1 for p in parameters if p.default is p.empty}
    required |= {name: 0.5 for name in required if name in make.rule.scalars}
    for scalar, within in make.rule.scalars.items():
        allowed = within or RANGES.get(scalar)
        if allowed is None:
            assert not re.search(r"rate|decay|eps|^b\d|momentum|rho", scalar), scalar
            continue
        bad = next(value for value in (-1.0, 1.5, np.inf, np.nan) if not allowed.holds(value))
        with pytest.raises(ValueError, match=rf"^\w+: {scalar} must {re.escape(allowed.words)}, got"):
            make(**required | {scalar: bad})


WRONG_KIND = {
    "unknown argument": (lambda: T.scale_by_adam(b3=0.1), r"scale_by_adam: .*b3"),
    "missing argument": (lambda: T.clip(), "clip: .*max_delta"),
    "uncalled member": (lambda: lo.chain(O.adam), r"chain: members must have init and update.*call it"),
    "name as member": (lambda: lo.chain("adam"), "pass transforms"),
    "no schedule": (lambda: T.scale_by_schedule(0.1), "scale_by_schedule: step_size_fn must be callable"),
    "no flag": (lambda: T.scale_by_adam(nesterov=1), "scale_by_adam: nesterov must be True or False, got 1"),
    "no seed": (lambda: lo.stochastic_rounding(O.sgd(0.1), seed="zero"), "stochastic_rounding: seed must"),
    "no mapping": (lambda: lo.partition([O.sgd(0.1)], "a"), "partition: transformations must map"),
    "foreign state": (lambda: T.trace().update(1.0, ()), "trace: state must be a RuleState"),
    "chain state": (lambda: O.sgd(0.1).update(1.0, ()), "chain: state must be a dict"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_KIND.values(), ids=WRONG_KIND)
def test_the_wrong_kind_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_apply_updates_refuses_another_shape_or_tree():
    with pytest.raises(ValueError, match="shape"):
        lo.apply_updates({"w": jnp.ones(3)}, {"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="'b'"):
        lo.apply_updates({"w": 1.0, "b": 1.0}, {"w": 1.0})


def test_a_rule_that_returns_another_shape_or_slot_is_refused():
    @T.elementwise(mu=T.Slot())
    def broken(g, slots, t, *, how: str):
        return (g[None] if how == "shape" else g), (
            {"nu": g} if how == "slot" else {"mu": g[:1]} if how == "cut" else {}
        )

    for how, message in {"shape": "keep the shapes", "slot": "'nu'", "cut": "keep the shapes"}.items():
        tx = broken(how)
        with pytest.raises(TypeError, match=message):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


# --------------------------------------------------------------------------------------------- identity and printing


@rows
def test_equal_arguments_compare_hash_print_and_unpickle(row):
    if not without(row, "scale_by_schedule"):
        pytest.skip("a schedule made here does not pickle; see the next test")
    one, same, other = row.build(row.value), row.build(row.value), row.build(row.other)
    assert one == same
    assert hash(one) == hash(same)
    assert one != "one"
    assert repr(one) == repr(same)
    assert (one == other) == (repr(one) == repr(other)) == (row.knob is None)
    again = pickle.loads(pickle.dumps(one))
    assert repr(again) == repr(one)
    equal(steps(again, *PLAIN), steps(one, *PLAIN))
    state = one.init(PLAIN[0])
    equal(pickle.loads(pickle.dumps(state)), state)


def test_schedules_and_arrays_compare_by_identity():
    rate = jnp.float32(0.1)
    assert O.sgd(rate) == O.sgd(rate) != O.sgd(jnp.float32(0.1))
    assert O.sgd(abs) == O.sgd(abs) != O.sgd(len)
    assert T.scale(1) != T.scale(1.0)
    assert pickle.loads(pickle.dumps(T.scale_by_schedule(abs))) == T.scale_by_schedule(abs)


@rows
def test_unpacks_as_a_pair(row):
    init, update = row.build(row.value)
    params, grads = PLAIN
    given = extras(params, grads)
    equal(
        update(grads, init(params), params, **given), row.build(row.value).update(grads, init(params), params, **given)
    )


def test_help_shows_the_keyword_part():
    assert str(inspect.signature(T.clip_by_global_norm)).startswith("(max_norm: ")
    assert list(inspect.signature(T.scale_by_adam).parameters) == ["b1", "b2", "eps", "eps_root", "nesterov"]
    assert list(inspect.signature(T.stochastic_rounding).parameters) == ["inner", "seed"]


# -------------------------------------------------------------------------------------------------- hyperparameters


@turned
def test_hyperparameters_are_read_written_pinned_and_released(row):
    if not without(row, "scale_by_schedule"):
        pytest.skip("see test_a_pinned_schedule")
    (params, grads), tx = PLAIN, row.build(row.value)
    written = lo.set_hyperparams(tx.init(params), **{row.knob: row.other})
    assert types(written) == types(tx.init(params))
    (read,) = [v for k, v in lo.get_hyperparams(written).items() if k.split("/")[-1] == row.knob][:1]
    assert float(read) == np.float32(row.other)
    equal(steps(tx, params, grads, state=written)[0], steps(row.build(row.other), params, grads)[0])
    tree = jax.jit(lambda state, x: lo.set_hyperparams(state, **{row.knob: x}))(tx.init(params), row.other)
    equal(tree, written)
    with pytest.raises(ValueError, match="set_hyperparams: names must be among"):
        lo.set_hyperparams(tx.init(params), nonsense=1.0)
    for bad in ("0.1", True):
        with pytest.raises(TypeError, match=row.knob):
            lo.set_hyperparams(tx.init(params), **{row.knob: bad})


def test_a_pinned_schedule():
    tx = O.sgd(lambda step: 1.0 / (1 + step))
    state = tx.init(1.0)

    def rate():
        return round(float(lo.get_hyperparams(state)["learning_rate"]), 4)

    seen = [rate()]
    for pin in ("-", "-", 0.3, "-", None, "-"):
        if pin != "-":
            state = lo.set_hyperparams(state, learning_rate=pin)
        updates, state = tx.update(1.0, state, 1.0)
        assert float(updates) == -lo.get_hyperparams(state)["learning_rate"]
        seen.append(rate())
    assert seen == [1.0, 1.0, 0.5, 0.3, 0.3, 0.2, 0.1667]


def test_the_state_wins_over_the_constructor():
    state = O.sgd(0.1).init(1.0)
    assert float(O.sgd(0.5).update(1.0, state, 1.0)[0]) == np.float32(-0.1)


def test_keys_name_the_group_and_the_bare_name_sets_all():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = lo.partition({"matrix": O.adamw(0.1), "rest": O.sgd(0.2, momentum=0.9)}, by_rank)
    state = tx.init(params)
    assert {"matrix/learning_rate", "rest/learning_rate", "matrix/weight_decay", "rest/decay"} <= set(
        lo.get_hyperparams(state)
    )
    one = lo.get_hyperparams(lo.set_hyperparams(state, **{"rest/learning_rate": 0.5}))
    assert (float(one["matrix/learning_rate"]), float(one["rest/learning_rate"])) == (np.float32(0.1), 0.5)
    both = lo.get_hyperparams(lo.set_hyperparams(state, learning_rate=0.5))
    assert float(both["matrix/learning_rate"]) == float(both["rest/learning_rate"]) == 0.5


def test_a_name_that_two_rules_share_is_qualified():
    state = lo.chain(T.trace(0.5), O.rmsprop(0.1, decay=0.9, momentum=0.7)).init(1.0)
    hypers = lo.get_hyperparams(state)
    assert {k: round(float(v), 2) for k, v in hypers.items() if k.endswith("decay")} == {
        "trace/decay": 0.5,
        "scale_by_rms/decay": 0.9,
        "trace_2/decay": 0.7,
    }
    after = lo.get_hyperparams(lo.set_hyperparams(state, **{"trace_2/decay": 0.1}))
    assert float(after["trace/decay"]) == 0.5


def test_get_slot_reads_one_tree():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = lo.partition({"matrix": O.adam(0.1), "rest": O.adam(0.2)}, by_rank)
    _, state = tx.update(params, tx.init(params), params)
    mu = lo.get_slot(state, "mu")
    assert jax.tree.structure(mu) == jax.tree.structure(params)
    np.testing.assert_allclose(mu["w"], 0.1, rtol=1e-6)
    assert lo.get_slot(O.sgd(0.1, 0.9).init(params), "trace/trace")["b"].shape == (2,)
    with pytest.raises(ValueError, match=r"say one of .*scale_by_adam/nu"):
        lo.get_slot(state, "sigma")
    two = lo.chain(T.scale_by_adam(), T.scale_by_amsgrad()).init(params)
    with pytest.raises(ValueError, match="scale_by_amsgrad/mu"):
        lo.get_slot(two, "mu")
    assert lo.get_slot(two, "scale_by_amsgrad/mu")["b"].shape == (2,)


# ------------------------------------------------------------------------------------------------------ composition


def test_chains_are_flat_associative_and_keep_their_paths():
    a, b, c = T.clip(1.0), T.scale_by_adam(), T.scale_by_learning_rate(0.1)
    flat = lo.chain(a, b, c)
    assert lo.chain(a, lo.chain(b, c)) == lo.chain(lo.chain(a, b), c) == flat == lo.chain(lo.chain(flat))

    def paths(tx):
        return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tx.init({"w": 1.0}))}

    assert paths(O.adam(0.1)) <= paths(lo.chain(a, O.adam(0.1)))
    assert "['scale_by_adam'].slots['mu']['w']" in paths(O.adam(0.1))
    assert list(lo.chain(b, b, b).init(1.0)) == ["scale_by_adam", "scale_by_adam_2", "scale_by_adam_3"]
    assert lo.chain().update(1.0, {}, 1.0)[0] == 1.0


def test_a_chain_is_its_members_in_order():
    (params, grads), members = PLAIN, [T.clip(0.1), T.scale_by_adam(), T.add_decayed_weights(0.1), T.scale(-0.5)]
    flow = grads
    for tx in members:
        flow, _ = tx.update(flow, tx.init(params), params)
    tx = lo.chain(*members)
    close(tx.update(grads, tx.init(params), params)[0], flow, ulps=1)
    named = lo.named_chain(*[(f"m{i}", member) for i, member in enumerate(members)])
    equal(named.update(grads, named.init(params), params)[0], tx.update(grads, tx.init(params), params)[0])
    with pytest.raises(ValueError, match="names must differ"):
        lo.named_chain(("a", members[0]), ("a", members[1]))


def test_updates_are_not_rounded_between_members():
    tx = lo.chain(T.scale(1e-3), T.scale(1e3))
    g = jnp.asarray([1 / 3, 0.7, 123.0], jnp.float16)
    np.testing.assert_array_equal(tx.update(g, tx.init(g), g)[0], g)
    tiny = lo.chain(T.scale(1e-6), T.scale(1e6))  # 7e-7 is no normal float16
    np.testing.assert_array_equal(tiny.update(g, tiny.init(g), g)[0], g)


def test_masked_passes_raw_gradients_and_says_so():  # NUMERICS O23
    tx = lo.masked(O.sgd(0.1), {"a": True, "b": False})
    updates, _ = tx.update({"a": 1.0, "b": 1.0}, tx.init({"a": 0.0, "b": 0.0}), {"a": 0.0, "b": 0.0})
    assert {k: round(float(v), 6) for k, v in updates.items()} == {"a": -0.1, "b": 1.0}
    assert "unchanged" in lo.masked.__doc__.splitlines()[0]


def test_masks_are_prefixes_or_functions_and_own_no_slots():
    params = {"enc": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "dec": jnp.ones(3)}
    for mask in ({"enc": True, "dec": False}, lambda p: {"enc": True, "dec": False}):
        mu = lo.get_slot(lo.masked(T.scale_by_adam(), mask).init(params), "mu")
        assert mu["dec"] is None
        assert mu["enc"]["w"].shape == (2, 2)
    with pytest.raises(ValueError, match="masked: the tree must be a prefix"):
        lo.masked(O.sgd(0.1), {"nope": True}).init(params)


def test_a_mask_is_never_taken_for_a_schedule():  # NUMERICS O5
    tx = O.adamw(1.0, weight_decay=0.1, mask=matrices)
    params = {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(updates["w"][0, 0]) == np.float32(-0.1)
    assert float(updates["b"][0]) == 0.0


def test_partition_is_each_group_alone():
    params, grads = PLAIN
    tx = lo.partition({"matrix": O.adam(0.1), "rest": O.sgd(0.2)}, by_rank)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, alone in {"w": O.adam(0.1), "b": O.sgd(0.2)}.items():
        equal(updates[name], alone.update(grads[name], alone.init(params[name]), params[name])[0])
    with pytest.raises(ValueError, match=r"label of 'enc/w' must be among \['a'\], got 'z'"):
        lo.partition({"a": O.sgd(0.1)}, {"enc": {"w": "z"}}).init({"enc": {"w": 1.0}})
    assert "multi_transform" in T.registry


def test_a_label_without_parameters_is_harmless():
    tx = lo.partition(
        {"a": O.adam(0.1), "unused": lo.chain(T.clip_by_global_norm(1.0, per_group=True), O.adam(0.1))}, "a"
    )
    updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)
    assert types(state) == types(tx.init(jnp.ones(2)))


@pytest.mark.parametrize("wrap", [lambda tx: lo.chain(O.sgd(0.1), tx), lambda tx: tx], ids=["nested", "bare"])
def test_a_global_norm_refuses_a_group(wrap):  # NUMERICS O24
    for build in (lambda tx: lo.partition({"a": tx}, "a"), lambda tx: lo.masked(tx, True)):
        with pytest.raises(ValueError, match=r"clip_by_global_norm must see the whole tree.*per_group=True"):
            build(wrap(T.clip_by_global_norm(1.0)))
        build(wrap(T.clip_by_global_norm(1.0, per_group=True)))
    tx = lo.partition({k: T.clip_by_global_norm(1.0, per_group=True) for k in "xy"}, {"a": "x", "b": "y"})
    updates, _ = tx.update({"a": 5.0, "b": 5.0}, tx.init({"a": 5.0, "b": 5.0}))
    np.testing.assert_allclose(T.global_norm(updates), 2**0.5, rtol=1e-6)


OUTERMOST = {
    "kahan": T.kahan,
    "master_weights": lo.master_weights,
    "offload_state": lo.offload_state,
    "stochastic_rounding": lo.stochastic_rounding,
}


@pytest.mark.parametrize("wrapper", OUTERMOST.values(), ids=OUTERMOST)
def test_an_outermost_wrapper_refuses_to_be_inside(wrapper):
    inside = wrapper(O.sgd(0.1))
    for build in (
        lambda: lo.chain(T.clip(1.0), inside),
        lambda: lo.named_chain(("a", inside)),
        lambda: lo.masked(inside, True),
        lambda: lo.partition({"a": inside}, "a"),
        lambda: lo.master_weights(inside),
        lambda: lo.stochastic_rounding(inside),
    ):
        with pytest.raises(ValueError, match="must be outermost"):
            build()


def test_hyperparameters_are_two_leaves():
    leaf = O.sgd(0.1).init(1.0)["scale_by_learning_rate"].hyperparams["learning_rate"]
    assert isinstance(leaf, Hyperparameter)
    assert (leaf.value.dtype, leaf.pinned.dtype) == (jnp.float32, jnp.bool_)
