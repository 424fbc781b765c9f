"""Projections: optax's and Keras's where those are right, a definition where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers


def tree_of(seed, scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {"a": (scale * rng.normal(size=(3, 4))).astype(dtype), "b": [(scale * rng.normal(size=5)).astype(dtype)]}


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


NORMAL = tree_of(9)
LOW, HIGH = jax.tree.map(lambda x: -abs(x), NORMAL), jax.tree.map(lambda x: abs(x) / 2, NORMAL)
CALLS = {
    "non_negative": [()],
    "box": [(-0.3, 0.5), (LOW, HIGH)],
    "hypercube": [(), (0.4,)],
    "simplex": [(), (2.5,)],
    "l1_sphere": [(), (2.5,)],
    "l1_ball": [(), (2.5,), (1e3,)],
    "l2_sphere": [(), (2.5,)],
    "l2_ball": [(), (2.5,), (1e3,)],
    "linf_ball": [(), (0.5,)],
    "hyperplane": [(NORMAL, 0.7)],
    "halfspace": [(NORMAL, 0.7), (NORMAL, -3.0)],
    "vector": [(NORMAL,)],
}
calls = pytest.mark.parametrize(
    ("name", "args"),
    [(name, args) for name, rows in CALLS.items() for args in rows],
    ids=[f"{name}-{i}" for name, rows in CALLS.items() for i in range(len(rows))],
)


def ours(name):
    return getattr(T, f"projection_{name}")


def by_optax(name, tree, args):
    """With numbers as trees where optax does not take numbers; its hypercube takes no tree."""
    if name == "hypercube":
        name, args = "box", (0.0, *(args or (1.0,)))
    if name == "box" and isinstance(args[0], float):
        args = [jax.tree.map(lambda x, b=b: np.full_like(x, b), tree) for b in args]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return getattr(optax.projections, f"projection_{name}")(tree, *args)


@calls
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_optax_s(name, args, seed, x64):
    tree = tree_of(seed)
    expected = by_optax(name, tree, args)
    found = ours(name)(tree, *args)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-12, atol=1e-13)


@calls
def test_twice_is_once_and_jit_and_vmap_change_nothing(name, args, x64):
    tree, project = jax.tree.map(jnp.asarray, tree_of(0)), lambda x: ours(name)(x, *args)
    once = project(tree)
    np.testing.assert_allclose(flat(project(once)), flat(once), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(flat(jax.jit(project)(tree)), flat(once), rtol=1e-12, atol=1e-13)
    many = jax.tree.map(lambda a, b: jnp.stack([a, b]), tree, jax.tree.map(jnp.asarray, tree_of(1)))
    second = jax.tree.map(lambda x: x[1], jax.vmap(project)(many))
    np.testing.assert_allclose(flat(second), flat(project(tree_of(1))), rtol=1e-12, atol=1e-13)


@calls
def test_gradients_are_finite_differences(name, args, x64):
    check_grads(lambda x: ours(name)(x, *args), (jax.tree.map(jnp.asarray, tree_of(0)),), 1, rtol=1e-5)


@calls
def test_half_precision_none_and_empty_leaves(name, args):
    def like(tree):
        return {"w": jnp.asarray(tree["a"], jnp.bfloat16), "n": None, "z": jnp.zeros((0, 2))}

    args = [like(arg) if isinstance(arg, dict) else arg for arg in args]
    found = ours(name)(like(tree_of(0)), *args)
    assert found["n"] is None
    assert (found["w"].dtype, found["z"].shape) == (jnp.bfloat16, (0, 2))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), like(tree_of(0)))
    wide_args = [jax.tree.map(lambda x: x.astype(jnp.float32), arg) if isinstance(arg, dict) else arg for arg in args]
    expected = ours(name)(wide, *wide_args)["w"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(found["w"]), np.float32(expected))


def test_nothing_at_all():
    for name, rows in CALLS.items():
        if not isinstance((*rows[0], 0)[0], dict):
            assert ours(name)({}, *rows[0]) == {}


# ------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e8, 1e30])
def test_the_simplex_holds_for_a_million_elements(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=10**6) * scale, jnp.float32)
    for point in (T.projection_simplex(x), T.projection_simplex(x, 7.5) / 7.5):
        assert np.all(point >= 0)
        assert abs(np.sum(np.asarray(point, np.float64)) - 1) < 1e-6
    again = T.projection_simplex(T.projection_simplex(x))
    np.testing.assert_allclose(again, T.projection_simplex(x), atol=2e-7)


def exact_simplex(x, scale):
    """By sorting, in float64."""
    ordered = np.sort(x)[::-1]
    taus = (np.cumsum(ordered) - scale) / np.arange(1, len(x) + 1)
    return np.maximum(x - taus[np.flatnonzero(ordered > taus)[-1]], 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e8])
def test_the_simplex_by_sorting(seed, spread):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=1000) * spread).round(int(rng.integers(0, 4))).astype(np.float32)
    found = T.projection_simplex(jnp.asarray(x), 2.0)
    np.testing.assert_allclose(found, exact_simplex(x.astype(np.float64), 2.0), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30])
def test_huge_and_tiny_vectors_keep_their_direction(scale):
    x = jnp.array([3.0, -4.0, 0.0]) * scale
    for project in (T.projection_l2_sphere, T.projection_unit_norm):
        np.testing.assert_allclose(project(x), [0.6, -0.8, 0], rtol=1e-6)
    np.testing.assert_allclose(np.float64(T.projection_vector(x, x / scale)) / scale, [3, -4, 0], rtol=1e-5)
    np.testing.assert_allclose(np.float64(T.projection_vector(x / scale, x)), [3, -4, 0], rtol=1e-5)
    np.testing.assert_allclose(np.sum(np.abs(T.projection_l1_sphere(x))), 1, rtol=1e-6)
    for project, order in ((T.projection_l2_ball, 2), (T.projection_l1_ball, 1)):
        if scale < 1:
            np.testing.assert_array_equal(project(x), x)
        else:
            np.testing.assert_allclose(np.linalg.norm(project(x), order), 1, rtol=1e-6)


def test_what_has_no_direction():
    zero = jnp.zeros(4)
    np.testing.assert_array_equal(T.projection_l2_sphere(zero), 0)
    np.testing.assert_array_equal(jax.jacobian(T.projection_l2_sphere)(zero), 0)
    np.testing.assert_allclose(T.projection_l1_sphere(zero), 0.25)
    np.testing.assert_array_equal(T.projection_hyperplane(jnp.ones(4), zero, 3.0), 1)
    np.testing.assert_array_equal(T.projection_vector(jnp.ones(4), zero), 0)
    for name in ("simplex", "l1_sphere", "l1_ball", "l2_sphere", "l2_ball", "linf_ball", "hypercube"):
        np.testing.assert_array_equal(ours(name)(jnp.array([1.0, -2.0]), 0.0), 0)


@pytest.mark.parametrize("name", ["simplex", "l1_sphere", "l2_sphere", "l2_ball", "l1_ball", "non_negative", "box"])
def test_nan_is_seen(name):
    args = (-1.0, 1.0) if name == "box" else ()
    assert np.isnan(ours(name)(jnp.array([jnp.nan, 0.5, 1.0]), *args)[0])


# ---------------------------------------------------------------------------------------------------------- Keras


KERAS = {
    "unit_norm": ("UnitNorm", {}),
    "max_norm": ("MaxNorm", {"max_value": 1.2}),
    "min_max_norm": ("MinMaxNorm", {"min_value": 0.9, "max_value": 1.5, "rate": 0.7}),
    "non_negative": ("NonNeg", {}),
}


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_it_is_keras_s(name, axis):
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    constraint, options = KERAS[name]
    axes = {} if name == "non_negative" else {"axis": axis}
    x = jnp.asarray(tree_of(3, dtype=np.float32)["a"])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = getattr(keras.constraints, constraint)(**options, **axes)(x)
    np.testing.assert_allclose(ours(name)(x, **options, **axes), expected, rtol=2e-6)


# ------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_stay_in_the_set(dtype):
    tx = lo.chain(O.sgd(0.5), T.project_params(T.projection_simplex))
    params = {"w": jnp.full(4, 0.25, dtype), "n": None}
    state, step = tx.init(params), lo.compile_update(tx)
    for seed in range(5):
        g = {"w": jax.random.normal(jax.random.key(seed), (4,), dtype), "n": None}
        params, state = step(params, state, g)
        assert np.all(params["w"] >= 0)
        assert abs(np.sum(np.asarray(params["w"], np.float64)) - 1) < 4 * jnp.finfo(dtype).eps


def test_projected_gradient_descent_is_optax_s():
    target = jnp.array([0.9, 0.6, -0.2])
    mine = lo.chain(O.sgd(0.1), T.project_params(T.projection_l2_ball))
    w, theirs, state = jnp.zeros(3), jnp.zeros(3), mine.init(jnp.zeros(3))
    for _ in range(20):
        updates, state = mine.update(2 * (w - target), state, w)
        w = lo.apply_updates(w, updates)
        theirs = optax.projections.projection_l2_ball(theirs - 0.2 * (theirs - target))
    np.testing.assert_allclose(w, theirs, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(w), 1, rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: T.projection_simplex(x, -1.0), ValueError, "projection_simplex: scale must be ≥ 0"),
        (lambda x: T.projection_l2_ball(x, jnp.nan), ValueError, "projection_l2_ball: scale must"),
        (lambda x: T.projection_linf_ball(x, -1.0), ValueError, "projection_linf_ball: scale must be ≥ 0"),
        (lambda x: T.projection_box(x, 1.0, 0.0), ValueError, "lower must be ≤ upper"),
        (lambda x: T.projection_box(x, x[:1], x), ValueError, r"lower at '' must have shape \(3,\), got \(1,\)"),
        (lambda x: T.projection_hyperplane({"w": x}, {"v": x}, 1.0), ValueError, "a must have the tree"),
        (lambda x: T.projection_simplex(jnp.arange(3)), TypeError, "must be a real floating array, got int32"),
        (lambda x: T.projection_l2_ball(x.astype(complex)), TypeError, "must be a real floating array, got complex64"),
        (lambda x: T.projection_unit_norm(x, 1), ValueError, "axis"),
        (lambda x: T.projection_min_max_norm(x, 2.0, 1.0), ValueError, "min_value must be ≤ max_value"),
        (lambda x: T.project_params(3), TypeError, "projection must be callable"),
        (
            lambda x: lo.chain(T.project_params(lambda x: x[:1])).update(x, T.project_params(len).init(x), x),
            (ValueError, TypeError),
            "must",
        ),
    ],
)
def test_bad_calls_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(jnp.ones(3))
