"""Tree functions: optax's in float64, and the edges where optax's are wrong."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import lossopt_jax as lo

tree, T, O = lo.tree, lo.transforms, lo.optimizers


def tree_of(seed, complex_too=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    made = {"a": rng.normal(size=(3, 4)), "b": [rng.normal(size=5), {"c": rng.normal(size=())}]}
    if complex_too:
        made["z"] = rng.normal(size=4) + 1j * rng.normal(size=4)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if np.isrealobj(x) else None), made)


def as_optax(name, *args, **options):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return getattr(optax.tree, name)(*args, **options)


def assert_same(mine, theirs, tolerance=1e-14):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        if isinstance(b, np.dtype):
            assert a == b
            continue
        assert jnp.result_type(a) == jnp.result_type(b) or not hasattr(b, "dtype")
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# Of every function: calls on trees x, y, z, some of them complex; none that is not here.
CALLS = {
    "add": [lambda f, x, y, z: f(x, y), lambda f, x, y, z: f(x, y, z)],
    "sub": [lambda f, x, y, z: f(x, y)],
    "mul": [lambda f, x, y, z: f(x, y)],
    "div": [lambda f, x, y, z: f(x, y)],
    "scale": [lambda f, x, y, z: f(0.7, x), lambda f, x, y, z: f(jnp.asarray(0.7), x), lambda f, x, y, z: f(0.7j, x)],
    "add_scale": [lambda f, x, y, z: f(x, -0.3, y), lambda f, x, y, z: f(x, 0.3j, y)],
    "vdot": [lambda f, x, y, z: f(x, y), lambda f, x, y, z: f(x, jax.tree.map(jnp.real, y))],
    "sum": [lambda f, x, y, z: f(x), lambda f, x, y, z: f(x, associative_reduction=True)],
    "max": [lambda f, x, y, z: f(jax.tree.map(jnp.real, x))],
    "min": [lambda f, x, y, z: f(jax.tree.map(jnp.real, x))],
    "size": [lambda f, x, y, z: f(x)],
    "conj": [lambda f, x, y, z: f(x)],
    "real": [lambda f, x, y, z: f(x)],
    "norm": [
        lambda f, x, y, z, ord=ord, squared=squared: f(x, ord, squared)
        for ord in (None, 2, 1, math.inf, "inf", "infinity")
        for squared in (False, True)
    ],
    "batch_shape": [lambda f, x, y, z: f(x), lambda f, x, y, z: f(x, (2, 3))],
    "zeros_like": [lambda f, x, y, z: f(x), lambda f, x, y, z: f(x, jnp.bfloat16)],
    "ones_like": [lambda f, x, y, z: f(x), lambda f, x, y, z: f(x, jnp.int32)],
    "full_like": [lambda f, x, y, z: f(x, 0.3), lambda f, x, y, z: f(x, 0.3, jnp.float32)],
    "clip": [
        lambda f, x, y, z, b=bounds: f(jax.tree.map(jnp.real, x), *b) for bounds in ((-0.3, 0.5), (0.1,), (None, 0.1))
    ],
    "cast": [lambda f, x, y, z: f(jax.tree.map(jnp.real, x), jnp.bfloat16), lambda f, x, y, z: f(x, None)],
    "cast_like": [lambda f, x, y, z: f(jax.tree.map(jnp.real, x), jax.tree.map(lambda x: jnp.ones(2, jnp.int32), x))],
    "dtype": [
        lambda f, x, y, z: f({"a": x["a"]}),
        lambda f, x, y, z: f([]),
        *(
            lambda f, x, y, z, how=how: f({"a": x["a"], "b": jnp.ones(2, jnp.bfloat16)}, how)
            for how in ("promote", "highest", "lowest")
        ),
        lambda f, x, y, z: f([jnp.ones(2, jnp.int32), jnp.ones(2, jnp.uint32)], "promote"),
    ],
    "where": [lambda f, x, y, z: f(True, x, y), lambda f, x, y, z: f(jnp.asarray(False), x, y)],
    "allclose": [
        lambda f, x, y, z: f(x, y),
        lambda f, x, y, z: f(x, jax.tree.map(lambda x: x * (1 + 1e-6), x)),
        lambda f, x, y, z: f(x, jax.tree.map(lambda x: x * (1 + 1e-6), x), rtol=1e-7),
        lambda f, x, y, z: f([jnp.nan], [jnp.nan], equal_nan=True),
        lambda f, x, y, z: f([jnp.nan], [jnp.nan]),
    ],
    "random_like": [
        lambda f, x, y, z: f(jax.random.key(3), x),
        lambda f, x, y, z: f(jax.random.key(3), x, jax.random.rademacher, jnp.int32),
    ],
    "split_key_like": [lambda f, x, y, z: jax.tree.map(jax.random.key_data, f(jax.random.key(3), x))],
    "unwrap_random_key_data": [lambda f, x, y, z: f({"key": jax.random.key(3), "x": x})],
    "update_moment": [lambda f, x, y, z, k=k: f(x, y, 0.9, k) for k in (1, 2, 3)],
    "update_moment_per_elem_norm": [lambda f, x, y, z, k=k: f(x, jax.tree.map(jnp.real, y), 0.9, k) for k in (2, 4)],
    "update_infinity_moment": [lambda f, x, y, z: f(x, jax.tree.map(jnp.abs, y), 0.9, 1e-3)],
    "bias_correction": [lambda f, x, y, z: f(x, 0.9, jnp.asarray(3))],
    "get": [
        lambda f, x, y, z: f(x, "c"),
        lambda f, x, y, z: f(x, "no"),
        lambda f, x, y, z: f(x, "no", 3.0),
        lambda f, x, y, z: f(optax.adam(0.1).init(y), "mu"),
        lambda f, x, y, z: f(optax.adam(0.1).init(y), "ScaleByAdamState"),
        lambda f, x, y, z: f(
            optax.inject_hyperparams(optax.sgd)(lambda t: 1 / (t + 1)).init(y["a"]),
            "learning_rate",
            filtering=lambda path, value: isinstance(value, jax.Array),
        ),
    ],
    "get_all_with_path": [
        lambda f, x, y, z: [
            (jax.tree_util.keystr(path), value)
            for path, value in f(optax.chain(optax.adam(0.1), optax.adam(0.2)).init(y), "mu")
        ],
    ],
    "set": [
        lambda f, x, y, z: f(x, c=jnp.ones(3)),
        lambda f, x, y, z: f(x, a=z, z=y),
        lambda f, x, y, z: f(optax.adam(0.1).init(y), mu=x, count=jnp.asarray(7)),
        lambda f, x, y, z: f(optax.chain(optax.adam(0.1), optax.trace(0.9)).init(y), ScaleByAdamState=(x, z)),
        lambda f, x, y, z: f(
            optax.inject_hyperparams(optax.sgd)(lambda t: 1 / (t + 1)).init(y["a"]),
            lambda path, value: isinstance(value, jax.Array),
            learning_rate=jnp.asarray(0.3),
        ),
    ],
}
calls = pytest.mark.parametrize(
    ("name", "call"),
    [(name, call) for name, rows in CALLS.items() for call in rows],
    ids=[f"{name}-{number}" for name, rows in CALLS.items() for number in range(len(rows))],
)


@calls
@pytest.mark.usefixtures("x64")
def test_the_same_as_optax_in_float64(name, call):
    x, y, z = (tree_of(seed, complex_too=True) for seed in range(3))
    mine = call(getattr(tree, name), x, y, z)
    theirs = call(functools.partial(as_optax, name), x, y, z)
    as_text = "get_all" in name and ([path for path, _ in mine], [path for path, _ in theirs])
    assert not as_text or [p.replace("'", "") for p in as_text[0]] == [p.replace("'", "") for p in as_text[1]]
    assert_same([v for _, v in mine] if as_text else mine, [v for _, v in theirs] if as_text else theirs)


def test_every_function_of_optax_is_here_and_in_the_table():
    theirs = {name for name in vars(optax.tree) if not name.startswith("_") and callable(vars(optax.tree)[name])}
    mine = {name for name in vars(tree) if not name.startswith("_") and callable(vars(tree)[name])} - {"NamedTupleKey"}
    assert mine == theirs == CALLS.keys() | {"map_params"}


HALF = [jnp.bfloat16, jnp.float16]
half = pytest.mark.parametrize("dtype", HALF)
X = {"a": jnp.linspace(-1, 1, 7, dtype=jnp.float32), "none": None}


@half
def test_half_precision_is_rounded_once_and_stays(dtype):
    x, y, z = ({"a": (X["a"] * k).astype(dtype), "none": None} for k in (1.0, 0.77, 0.013))
    wide = [np.asarray(t["a"], np.float64) for t in (x, y, z)]

    def check(got, expected):
        assert got["none"] is None
        assert got["a"].dtype == dtype
        np.testing.assert_array_equal(np.asarray(got["a"]), np.asarray(expected.astype(np.float32)).astype(dtype))

    check(tree.add(x, y, z), wide[0] + wide[1] + wide[2])
    check(tree.scale(0.1, x), np.float32(0.1) * wide[0].astype(np.float32))
    check(tree.scale(jnp.float32(0.1), x), np.float32(0.1) * wide[0].astype(np.float32))
    check(tree.add_scale(x, 0.1, y), wide[0].astype(np.float32) + np.float32(0.1) * wide[1].astype(np.float32))
    check(tree.bias_correction(x, 0.9, 1), wide[0] / 0.1)
    check(tree.update_moment(x, y, 0.5, 2), 0.5 * wide[0] ** 2 + 0.5 * wide[1])
    check(tree.clip(x, jnp.float32(-0.5), 0.5), np.clip(wide[0], -0.5, 0.5))
    assert tree.allclose(x, x)
    assert not tree.allclose(x, tree.scale(1.01, x))


@pytest.mark.parametrize("dtype", [*HALF, jnp.float32])
def test_reductions_neither_overflow_nor_vanish_nor_lose_digits(dtype):
    big, small = (8e4, 1e-7) if dtype == jnp.float16 else (1e30, 1e-30)
    many = {"a": jnp.full((1000,), min(big, 6e4), dtype), "b": [jnp.full((24,), min(big, 6e4), dtype), None]}
    tiny = {"a": jnp.full((1024,), small, dtype)}
    for t, value in ((many, many["a"][0]), (tiny, tiny["a"][0])):
        value = float(value)
        norm = tree.norm(t)
        assert norm.dtype == jnp.float32
        np.testing.assert_allclose(norm, 32 * value, rtol=1e-6)
        np.testing.assert_allclose(tree.norm(t, 1), 1024 * value, rtol=1e-6)
        np.testing.assert_allclose(tree.norm(t, math.inf), value, rtol=1e-6)
        np.testing.assert_allclose(tree.sum(t), 1024 * value, rtol=1e-6)
    np.testing.assert_allclose(tree.vdot(many, tree.div(many, many)), 1024 * float(many["a"][0]), rtol=1e-6)


def test_an_inner_product_that_fits_is_finite_and_has_its_gradient():
    x = {"a": jnp.array([2.0**64, 2.0**50]), "b": jnp.array([2.0**64])}
    y = {"a": jnp.array([2.0**64, 2.0**60]), "b": jnp.array([-(2.0**64)])}
    assert tree.vdot(x, y) == 2.0**110
    assert tree.vdot(x, x) == jnp.inf
    slope = jax.grad(tree.vdot)(x, y)
    assert_same(slope, y, 1e-6)
    assert_same(jax.grad(tree.vdot, 1)(x, y), x, 1e-6)
    assert jnp.isnan(tree.vdot([jnp.array([jnp.nan])], [jnp.array([1.0])]))
    assert tree.vdot([jnp.array([jnp.inf])], [jnp.array([1.0])]) == jnp.inf
    assert_same(jax.jit(tree.vdot)(x, y), tree.vdot(x, y))


@pytest.mark.usefixtures("x64")
def test_gradients_of_reductions():
    x, y = tree_of(0), tree_of(1)
    check_grads(jax.jit(tree.vdot), (x, y), 2, ["rev"], rtol=1e-6)
    for ord in (None, 1, math.inf):
        check_grads(jax.jit(lambda x, ord=ord: tree.norm(x, ord)), (x,), 1, ["rev"], rtol=1e-5)
    zero = tree.zeros_like(x)
    assert_same(jax.grad(tree.norm)(zero), zero)
    assert_same(jax.grad(lambda x: tree.norm(x, squared=True))(zero), zero)
    z = tree_of(2, complex_too=True)
    check_grads(jax.jit(lambda x: tree.vdot(x, z).real), (x | {"z": jnp.ones(4)},), 1, ["rev"], rtol=1e-6)


def test_integers_are_exact_among_themselves():
    big = {"n": jnp.array([2**24 + 1, 1]), "m": jnp.array([True, True])}
    assert tree.sum(big) == 2**24 + 4
    assert tree.vdot({"n": big["n"]}, {"n": jnp.array([1, 1])}) == 2**24 + 2
    assert tree.max({"n": big["n"]}).dtype == jnp.int32
    assert tree.norm({"n": jnp.array([-3, 4]), "none": None}) == 5
    assert tree.norm({"n": jnp.array([-3, 4])}, 1) == 7
    assert tree.sum([jnp.array([1, 2]), jnp.array([0.5])]) == 3.5
    np.testing.assert_array_equal(tree.clip([jnp.array([-3, 0, 3])], -1.5, 1.5)[0], [-1, 0, 1])
    np.testing.assert_array_equal(tree.clip([jnp.array([-3, 0, 3])], -math.inf, 1)[0], [-3, 0, 1])
    assert tree.scale(0.5, [jnp.array([3])])[0] == 1.5
    assert tree.scale(2, [jnp.array([3])])[0].dtype == jnp.int32


@pytest.mark.parametrize("empty", [{}, [], None, {"a": None}, {"a": jnp.zeros((0, 3))}])
def test_trees_without_elements(empty):
    assert tree.sum(empty) == tree.norm(empty) == tree.vdot(empty, empty) == tree.size(empty) == 0
    assert tree.norm(empty, 1) == tree.norm(empty, math.inf) == 0
    assert tree.max(empty) == -math.inf
    assert tree.min(empty) == math.inf
    assert tree.allclose(empty, empty)
    for same in (tree.add(empty, empty), tree.scale(2.0, empty), tree.random_like(jax.random.key(0), empty)):
        assert_same(same, empty)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_extreme_keeps_a_nan(compiled):
    run = jax.jit if compiled else lambda f: f
    for position in (0, 3000, 9999):
        x = {"a": jnp.zeros(10000).at[position].set(jnp.nan), "b": jnp.ones(3), "n": jnp.array([1])}
        assert all(jnp.isnan(run(f)(x)) for f in (tree.max, tree.min, lambda x: tree.norm(x, math.inf), tree.norm))


def test_none_in_the_first_tree_is_none():
    x, y = {"a": jnp.ones(2), "b": None}, {"a": jnp.ones(2), "b": jnp.ones(3)}
    for got in (tree.add(x, y), tree.add_scale(x, 2.0, y), tree.update_moment(x, y, 0.9, 2), tree.where(True, x, y)):
        assert got["b"] is None
        assert got["a"].shape == (2,)


COMPLAINTS = {
    "structure": (lambda: tree.add({"a": 1.0, "b": {"c": 1.0}}, {"a": 1.0}), ValueError, "tree.add: .*'b/c'"),
    "none": (lambda: tree.sub({"a": jnp.ones(2)}, {"a": None}), ValueError, "tree.sub: trees at 'a'"),
    "subtree": (lambda: tree.mul({"a": jnp.ones(2)}, {"a": [1.0]}), ValueError, "tree.mul: trees at 'a'"),
    "shape": (lambda: tree.vdot([jnp.ones(2)], [jnp.ones(3)]), ValueError, "tree.vdot: leaves must have one shape"),
    "broadcast": (lambda: tree.add([jnp.ones((3, 1))], [jnp.ones((1, 3))]), ValueError, "tree.add: leaves must have"),
    "scalar": (lambda: tree.scale(jnp.ones(2), [1.0]), ValueError, "tree.scale: scalar must be a scalar"),
    "order": (lambda: tree.norm([1.0], 3), ValueError, "tree.norm: ord must be"),
    "mixed": (lambda: tree.dtype({"n": None, "a": 1.0, "b": 1}), ValueError, "tree.dtype: the leaf at 'b' must be"),
    "handler": (lambda: tree.dtype([1.0], "high"), ValueError, "tree.dtype: mixed_dtype_handler must be among"),
    "unordered": (
        lambda: tree.dtype([jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float16)], "highest"),
        ValueError,
        "tree.dtype: leaves must promote",
    ),
    "several": (lambda: tree.get({"x": {"a": 1}, "y": {"a": 2}}, "a"), KeyError, r"tree.get: .*\['x/a', 'y/a'\]"),
    "unknown": (lambda: tree.set({"x": {"a": 1}}, b=2), KeyError, r"tree.set: keys must name a part, .*\['a', 'x'\]"),
}


@pytest.mark.parametrize("make", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(make):
    call, kind, match = make
    with pytest.raises(kind, match=match):
        call()


def test_what_jax_complains_about_names_the_path():
    with pytest.raises(TypeError) as found:
        tree.add({"a": 1.0, "b": {"c": "text"}}, {"a": 1.0, "b": {"c": 1.0}})
    assert found.value.__notes__ == ["tree.add: in the leaf at 'b/c'"]


class Pair(NamedTuple):
    left: object
    mu: object


def test_keys_in_lists_beside_a_replaced_one_are_replaced():
    new = tree.set({"a": 1, "b": [{"a": 2}, (3, {"a": 4})]}, a=0)
    assert new == {"a": 0, "b": [{"a": 0}, (3, {"a": 0})]}


def test_states_of_ours_are_searched_and_set():
    params = {"w": jnp.ones((2, 3)), "mu": None}
    tx = lo.partition(
        {"x": lo.chain(T.clip_by_global_norm(1.0, per_group=True), O.adam(0.1)), "y": O.sgd(0.2)},
        lambda p: jax.tree.map(lambda _: "x", p),
    )
    state = Pair(tx.init(params), 7)
    rates = tree.get_all_with_path(state, "learning_rate")
    assert [float(v) for _, v in rates] == [np.float32(0.1), np.float32(0.2)]
    assert tree.get(state, "x/scale_by_learning_rate/hyperparams/learning_rate") == np.float32(0.1)
    assert tree.get(state, "slots/nu")["w"].shape == (2, 3)
    assert str(tree.get_all_with_path(state, "slots")[0][0][0]) == "Pair.left"
    new = tree.set(state, **{"slots/nu": {"w": jnp.ones((2, 3)), "mu": None}, "b1": 0.5})
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert tree.get(new, "slots/nu")["w"][0, 0] == 1
    assert lo.get_hyperparams(new)["x/b1"] == 0.5
    assert tree.get(new, "Pair", filtering=lambda path, value: not path).mu == 7


# ---------------------------------------------------------------------------------------------- map_params


PARAMS = {"w": jnp.ones((2, 64)), "b": [jnp.ones(3)], "none": None}
SPECS = {"w": "w", "b": ["b"], "none": "none"}
THEIRS = {
    "adam": optax.adam(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.adam(optax.linear_schedule(1, 0, 9))),
    "ema": optax.chain(optax.ema(0.9), optax.scale(0.1)),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("inside", [False, True])
def test_states_of_optax_are_mapped_as_by_optax(name, inside):
    theirs = THEIRS[name]
    state, specs = theirs.init(PARAMS), {"w": "w", "b": ["b"], "none": None}

    def call(function, tx, state):
        return function(tx, lambda _, spec: spec, state, specs, transform_non_params=lambda x: "other")

    expected = call(optax.tree.map_params, theirs, state)
    assert call(tree.map_params, theirs, state) == expected
    assert call(tree.map_params, theirs.init, state) == expected
    if inside:
        tx = lo.chain(lo.masked(theirs, lambda p: jax.tree.map(lambda _: True, p)), O.sgd(0.1))
        found = call(tree.map_params, tx, tx.init(PARAMS))
        assert jax.tree.leaves(expected) == [x for x in jax.tree.leaves(found)[: len(jax.tree.leaves(expected))]]


def labels(params):
    return {"w": "x", "b": ["y"], "none": "y"}


OURS = {
    "adam": (O.adam(0.1), {"mu": SPECS, "nu": SPECS}),
    "chain": (lo.chain(T.clip_by_global_norm(1.0), O.sgd(0.1, momentum=0.9)), {"trace": SPECS}),
    "masked": (lo.masked(O.adam(0.1), "w"), {"mu": SPECS | {"b": [None]}}),
    "partition": (
        lo.partition({"x": O.adam(0.1), "y": O.sgd(0.1, momentum=0.9)}, labels),
        {"mu": SPECS | {"b": [None]}, "trace": SPECS | {"w": None}},
    ),
    "wrapper": (T.lookahead(O.adam(0.1), 5, 0.5), {"mu": SPECS, "slow": SPECS}),
    "factored": (T.scale_by_factored_rms(min_dim_size_to_factor=2), {}),
    "packed": (lo.pack_small(O.adam(0.1), 100), {}),
    "compressed": (lo.compress_state(O.adam(0.1), "bfloat16"), {}),
    "offloaded": (lo.offload_state(O.adam(0.1)), {"mu": SPECS}),
}


@pytest.mark.parametrize("name", OURS)
def test_slots_of_the_parameters_shape_are_mapped_and_nothing_else(name):
    tx, slots = OURS[name]
    state = tx.init(PARAMS)
    seen = []

    def note(x, spec):
        seen.append((x.shape, spec))
        return spec

    specs = tree.map_params(tx, note, state, SPECS, transform_non_params=lambda x: 0)
    for slot, expected in slots.items():
        expected = expected | {"none": None}
        assert tree.get(specs, f"slots/{slot}") == expected
    assert set(seen) <= {((2, 64), "w"), ((3,), "b")}
    assert all(x in (0, "w", "b") for x in jax.tree.leaves(specs))
    assert jax.tree.structure(tree.map_params(tx, lambda x: x + 1, state)) == jax.tree.structure(state)
    unmapped = tree.map_params(tx, lambda x: x, state)
    assert all(a is b for a, b in zip(jax.tree.leaves(unmapped), jax.tree.leaves(state), strict=True))


def test_map_params_is_also_called_tree_map_params():
    assert T.tree_map_params is tree.map_params
