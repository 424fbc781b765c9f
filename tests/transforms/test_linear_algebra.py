"""Eigenpairs, inverse roots and nonnegative least squares against NumPy and SciPy in float64, mpmath, and optax."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy.optimize import nnls as scipy_nnls

import lossopt_jax as lo

T = lo.transforms
mp = mpmath.MPContext()
mp.dps = 40


def basis(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_eigenvalues(values, seed=0, dtype=np.float64):
    q = basis(len(values), seed)
    matrix = (q * np.asarray(values)) @ q.T
    return ((matrix + matrix.T) / 2).astype(dtype), q


def by_optax(name, *args, **kwargs):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return getattr(optax, name)(*args, **kwargs)


def error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


# -------------------------------------------------------------------------------------------------- power iteration

their_iterate = jax.jit(functools.partial(by_optax, "power_iteration"))


@pytest.mark.parametrize("values", [(1, -3, 0.5, 2), (4, 1, -1, 0), (1e3, 1e-3, 1, 2)])
def test_the_dominant_eigenpair(values, x64):
    matrix, q = with_eigenvalues(values)
    value, vector = T.power_iteration(matrix, num_iters=500, error_tolerance=1e-11)
    expected = values[np.argmax(np.abs(values))]
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(np.abs(vector @ q), np.abs(values) == abs(expected), atol=1e-10)
    assert np.linalg.norm(matrix @ vector - value * vector) <= 1e-11 * abs(value)
    theirs = their_iterate(matrix, num_iters=500, error_tolerance=1e-11)
    np.testing.assert_allclose(value, theirs[0], rtol=1e-12)
    np.testing.assert_allclose(vector, theirs[1], atol=1e-9)


def test_one_step_is_a_product_and_a_quotient(x64):
    matrix, start = np.random.default_rng(1).normal(size=(4, 4)), np.array([1.0, 2.0, -1.0, 3.0])
    value, vector = T.power_iteration(matrix, v0=start, num_iters=1)
    np.testing.assert_allclose(value, start @ matrix @ start / (start @ start), rtol=1e-14)
    np.testing.assert_allclose(vector, matrix @ start / np.linalg.norm(matrix @ start), rtol=1e-14)


def test_steps_end_by_the_tolerance(x64):
    matrix, _ = with_eigenvalues((1.0, 0.9, 0.1, 0.3))

    def missed(tolerance):
        _, v = T.power_iteration(matrix, error_tolerance=tolerance, num_iters=10**4)
        return np.linalg.norm(matrix @ v - (v @ matrix @ v) * v)

    for tolerance in (1e-2, 1e-4, 1e-8):
        assert 0.5 * tolerance < missed(tolerance) < tolerance


def test_where_it_starts(key, x64):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
    for given, meant in ((None, jax.random.key(0)), (jax.random.key(7), jax.random.key(7))):
        start = jax.random.uniform(meant, (4,), jnp.float64, -1, 1)
        drawn, given_start = (
            T.power_iteration(matrix, num_iters=3, **options) for options in ({"key": given}, {"v0": start, "key": key})
        )
        for x, y in zip(drawn, given_start, strict=True):
            np.testing.assert_array_equal(x, y)


def test_opposite_eigenvalues_are_told_apart(x64):
    matrix, q = with_eigenvalues((3.0, -3.0, 1.0, -2.0))
    for part in (0.6, 0.4):
        start = part * q[:, 0] + (1 - part) * q[:, 1] + 0.1 * q[:, 2] + 0.1 * q[:, 3]
        value, vector = T.power_iteration(matrix, v0=start, error_tolerance=1e-9, num_iters=500)
        np.testing.assert_allclose(value, 3 if part > 0.5 else -3, rtol=1e-9)
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-8)
    skewed = np.array([[0.0, 4.0], [1.0, 0.0]])
    value, vector = T.power_iteration(jnp.asarray(skewed), num_iters=50)
    np.testing.assert_allclose(abs(value), 2, rtol=1e-12)
    np.testing.assert_allclose(skewed @ vector, value * vector, atol=1e-12)


def test_edges_of_power_iteration():
    start = jnp.array([1.0, 2.0, -2.0])
    value, vector = T.power_iteration(jnp.zeros((3, 3)), v0=start)
    assert value == 0
    np.testing.assert_allclose(vector, start / 3, rtol=1e-6)
    np.testing.assert_array_equal(T.power_iteration(jnp.ones((3, 3)), v0=0 * start)[0], 0)
    nilpotent = jnp.diag(jnp.ones(2), 1)
    value, vector = T.power_iteration(nilpotent, v0=start)
    assert value == 0
    np.testing.assert_array_equal(nilpotent @ vector, 0)
    assert np.isnan(T.power_iteration(jnp.full((3, 3), jnp.nan), v0=start)[0])
    np.testing.assert_array_equal(T.power_iteration(jnp.array([[-2.0]]))[0], -2)
    turn = jnp.zeros((3, 3)).at[0, 1].set(-1).at[1, 0].set(1)
    assert np.abs(T.power_iteration(turn, v0=start)[0]) < 1e-6
    matrix, _ = with_eigenvalues((1.0, 0.2, -0.3), dtype=np.float32)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(T.power_iteration(matrix * np.float32(scale), v0=start)[0] / scale, 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_float32_inside(dtype):
    matrix = jnp.asarray(with_eigenvalues((1.0, 0.5, -0.5))[0], dtype)
    value, vector = T.power_iteration(matrix)
    wide, wide_vector = T.power_iteration(matrix.astype(jnp.float32))
    assert (value.dtype, vector.dtype) == (jnp.float32, dtype)
    np.testing.assert_array_equal(value, wide)
    np.testing.assert_array_equal(vector, wide_vector.astype(dtype))


def test_functions_of_trees_and_batches():
    matrices = np.stack([with_eigenvalues((2.0, 1.0, -0.5, 0.3, 0.2), seed, np.float32)[0] for seed in range(3)])
    starts = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)

    def of_tree(matrix, start):
        def product(v):
            image = matrix @ jnp.concatenate([v["a"], v["b"].reshape(-1)])
            return {"a": image[:3], "b": image[3:].reshape(2, 1)}

        value, v = T.power_iteration(product, v0={"a": start[:3], "b": start[3:].reshape(2, 1)})
        return value, jnp.concatenate([v["a"], v["b"].reshape(-1)])

    many = jax.vmap(lambda matrix, start: T.power_iteration(matrix, v0=start))(matrices, starts)
    trees = jax.jit(jax.vmap(of_tree))(matrices, starts)
    for k in range(3):
        one = T.power_iteration(matrices[k], v0=starts[k])
        for found in (many, trees):
            np.testing.assert_allclose(found[0][k], one[0], rtol=1e-6)
            np.testing.assert_allclose(found[1][k], one[1], atol=1e-5)


def test_functions_keep_dtypes():
    seen = []

    def product(v):
        seen.append(v["h"].dtype)
        return {"h": 2 * v["h"], "f": 2.0 * v["f"]}

    value, v = T.power_iteration(product, v0={"h": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2)})
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert (value.dtype, v["h"].dtype, v["f"].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, 2, rtol=1e-2)
    np.testing.assert_allclose(v["f"], 0.5, rtol=1e-2)


# ---------------------------------------------------------------------------------------------------- inverse roots


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("p", [1, slow(2), 3, slow(5), slow(8), 13])
def test_roots(p, x64):
    values = np.geomspace(1e-3, 40, 6)
    matrix, q = with_eigenvalues(values)
    for ridge in (0.0, 1e-2):
        found, off = T.matrix_inverse_pth_root(matrix, p, ridge_epsilon=ridge, error_tolerance=1e-13)
        expected = (q * (values + ridge * 40) ** (-1 / p)) @ q.T
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_array_equal(found, found.T)
        assert off < 1e-11


def test_a_root_by_mpmath(x64):
    hilbert = np.array([[1 / (i + j + 1) for j in range(4)] for i in range(4)])
    values, vectors = mp.eigsy(mp.matrix(hilbert.tolist()))
    expected = vectors * mp.diag([mp.mpf(1) / mp.cbrt(value) for value in values]) * vectors.T
    found, _ = T.matrix_inverse_pth_root(jnp.asarray(hilbert), 3, ridge_epsilon=0.0, error_tolerance=1e-14)
    assert error(found, np.array(expected.tolist(), np.float64)) < 1e-11


def roots_of_many(function, p, ridge, count=40, n=12):
    """Relative errors in float32 at a condition number of 10⁶."""
    many = np.stack([with_eigenvalues(np.geomspace(1, 1e-6, n), seed, np.float32)[0] for seed in range(count)])
    found = jax.jit(jax.vmap(lambda matrix: function(matrix, p, ridge_epsilon=ridge)[0]))(many)
    values, vectors = np.linalg.eigh(many.astype(np.float64))
    powers = (values + ridge * values[:, -1:]) ** (-1 / p)
    return [error(x, (u * power) @ u.T) for x, u, power in zip(found, vectors, powers, strict=True)]


@pytest.mark.parametrize("p", [slow(1), slow(2), 4, slow(8)])
def test_roots_of_badly_conditioned_matrices_are_no_worse_than_optax_s(p):
    ours = roots_of_many(T.matrix_inverse_pth_root, p, 1e-6)
    theirs = roots_of_many(functools.partial(by_optax, "matrix_inverse_pth_root"), p, 1e-6)
    assert np.mean(np.log(ours)) < np.mean(np.log(theirs))
    assert np.max(ours) < 2 * np.max(theirs)


def test_one_step_of_newton(x64):
    matrix, _ = with_eigenvalues((1.0, 0.3, 0.2, 0.6))
    p, ridge = 3, 1e-3
    found, off = T.matrix_inverse_pth_root(matrix, p, num_iters=1, ridge_epsilon=ridge)
    damped = matrix + ridge * np.eye(4)
    scale = 2.0 ** np.floor(np.log2(2 / min(np.linalg.norm(damped), np.abs(damped).sum(1).max())))
    factor = (4 * np.eye(4) - scale * damped) / 3
    np.testing.assert_allclose(found, scale ** (1 / 3) * factor, rtol=1e-13, atol=1e-15)
    product = np.linalg.matrix_power(factor, 3) @ (scale * damped)
    np.testing.assert_allclose(off, np.abs(product - np.eye(4)).max(), rtol=1e-12)


def test_edges_of_roots():
    found, off = T.matrix_inverse_pth_root(jnp.array([[16.0]]), 4, ridge_epsilon=0.0)
    np.testing.assert_array_equal(found, 0.5)
    assert off == 0
    found, off = T.matrix_inverse_pth_root(jnp.zeros((3, 3)), 2)
    np.testing.assert_allclose(found, 1e11 * np.eye(3), rtol=1e-5)
    assert off < 1e-5
    assert T.matrix_inverse_pth_root(jnp.diag(jnp.array([1.0, -1.0, 0.5])), 2)[1] > 0.1
    for bad in (jnp.nan, jnp.inf):
        found, off = T.matrix_inverse_pth_root(jnp.full((3, 3), bad), 2)
        assert np.all(np.isnan(found))
        assert not np.isfinite(off)
    for scale in (1e-20, 1e20):
        found, _ = T.matrix_inverse_pth_root(scale * jnp.diag(jnp.array([1.0, 4.0, 0.25])), 2, ridge_epsilon=0.0)
        np.testing.assert_allclose(found * scale**0.5, np.diag([1, 0.5, 2]), atol=1e-5)
    half = jnp.diag(jnp.array([1.0, 4.0, 0.25], jnp.bfloat16))
    found, off = T.matrix_inverse_pth_root(half, 2)
    assert (found.dtype, off.dtype) == (jnp.bfloat16, jnp.float32)


# --------------------------------------------------------------------------------------- nonnegative least squares

solve = jax.jit(T.nnls)
each = jax.jit(jax.vmap(lambda a, b: T.nnls(a, b, 300)))


def problem(kind, seed, shape):
    rng = np.random.default_rng(seed)
    (m, n), a = shape, rng.normal(size=shape)
    if kind == "positive":
        a = np.abs(a)
    if kind == "scales":
        a = a * np.exp(6 * rng.normal(size=n))
    if kind == "parallel":
        a = np.abs(a @ np.abs(rng.normal(size=(n, n))))
    if kind == "twins":
        a[:, n // 2 :] = a[:, : n - n // 2]
    if kind == "zero columns":
        a[:, ::3] = 0
    if kind == "hilbert":
        a = 1 / (np.arange(m)[:, None] + np.arange(n) + 1.0)
    return a, a @ np.maximum(rng.normal(size=n), 0) * (seed % 2) + rng.normal(size=m)


PROBLEMS = ["normal", "positive", "scales", "parallel", "twins", "zero columns", "hilbert"]
SHAPES = [(20, 12), (10, 16)]


def lengths(a):
    return np.linalg.norm(a, axis=0)


@pytest.mark.parametrize("shape", [SHAPES[0], slow(SHAPES[1])], ids=str)
def test_it_is_scipy_s(shape, x64):
    drawn = [(kind, *problem(kind, seed, shape)) for kind in PROBLEMS for seed in range(6)]
    found = jax.jit(jax.vmap(lambda a, b: T.nnls(a, b, 300)))(
        *(np.stack(x) for x in list(zip(*drawn, strict=True))[1:])
    )
    for (kind, a, b), x in zip(drawn, np.asarray(found), strict=True):
        expected, least = scipy_nnls(a, b)
        assert np.all(x >= 0)
        assert np.linalg.norm(a @ x - b) <= least + 1e-13 * np.linalg.norm(b)
        if shape[0] > shape[1] and kind not in ("twins", "hilbert"):
            np.testing.assert_allclose(x * lengths(a), expected * lengths(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [SHAPES[1], slow(SHAPES[0])], ids=str)
def test_float32_meets_the_conditions_of_a_minimum(shape):
    drawn = [problem(kind, seed, shape) for kind in PROBLEMS for seed in range(6)]
    many = [np.stack(x).astype(np.float32) for x in zip(*drawn, strict=True)]
    for a, b, x in zip(*(np.asarray(x, np.float64) for x in (*many, each(*many))), strict=True):
        slopes = (b - a @ x) @ a / np.where(lengths(a) > 0, lengths(a), 1)
        scale = 1e-5 * (np.linalg.norm(b) + np.sum(x * lengths(a)))
        assert np.all(x >= 0)
        assert np.all(slopes <= scale)
        assert np.all(np.abs(slopes[x > 0]) <= scale)


@pytest.mark.slow
def test_optax_finds_the_same_given_time(x64):
    a, b = map(jnp.asarray, problem("normal", 0, (20, 12)))
    np.testing.assert_allclose(T.nnls(a, b, 100), by_optax("nnls", a, b, 2000), rtol=1e-8, atol=1e-10)
    slope = jax.grad(lambda a, b: jnp.sum(jnp.sin(T.nnls(a, b, 100))), (0, 1))(a, b)
    expected = jax.grad(lambda a, b: jnp.sum(jnp.sin(by_optax("nnls", a, b, 2000))), (0, 1))(a, b)
    for x, y in zip(slope, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_gradients_of_least_squares(x64):
    a = jnp.asarray(problem("scales", 0, (9, 5))[0])
    b = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)))
    units = lengths(np.asarray(a))
    solution = jax.jit(lambda a, b: T.nnls(a * units[None], b, 50) * units[:, None])
    check_grads(solution, (a / units[None], b), 1, modes=["rev"], rtol=1e-6)


def test_every_step_is_feasible_and_no_worse():
    a, b = (np.float32(x) for x in problem("parallel", 1, (20, 12)))
    many = np.stack([solve(a, b, most) for most in range(1, 60)])
    residuals = np.linalg.norm(np.asarray(many, np.float64) @ a.T.astype(np.float64) - b, axis=1)
    assert np.all(many >= 0)
    assert residuals[0] <= np.linalg.norm(b.astype(np.float64))
    assert np.all(np.diff(residuals) <= 1e-6 * np.linalg.norm(b))
    assert residuals[-1] <= scipy_nnls(np.float64(a), np.float64(b))[1] + 1e-6 * np.linalg.norm(b)


def test_edges_of_nonnegative_least_squares():
    a, b = (np.float32(x) for x in problem("normal", 0, (20, 12)))
    x = solve(a, b, 100)
    columns = T.nnls(a, np.stack([b, -2 * b, 0 * b], 1), 100, unroll=4, L=3.0)
    np.testing.assert_allclose(columns[:, 0], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(columns[:, 1], solve(a, -2 * b, 100), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(columns[:, 2], 0)
    np.testing.assert_array_equal(solve(np.abs(a), -np.abs(b), 100), 0)
    np.testing.assert_array_equal(solve(0 * a, b, 100), 0)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(solve(a * np.float32(scale), b, 100) * np.float32(scale), x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(solve(a, b * np.float32(scale), 100) / np.float32(scale), x, rtol=1e-4, atol=1e-6)
    for bad in (np.nan, np.inf):
        assert np.all(np.isnan(solve(np.where(a == a[0, 0], np.float32(bad), a), b, 100)))
        assert np.all(np.isnan(solve(a, np.where(b == b[0], np.float32(bad), b), 100)))
    assert T.nnls(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16), 100).dtype == jnp.bfloat16
    assert T.nnls(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b), 100).dtype == jnp.float32
    for shape, right in (((0, 3), (0,)), ((3, 0), (3,)), ((3, 2), (3, 0))):
        found = T.nnls(jnp.ones(shape), jnp.ones(right), 5)
        np.testing.assert_array_equal(found, np.zeros((shape[1], *right[1:])))


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: T.power_iteration(x[0]), ValueError, "power_iteration: matrix must be square and not empty"),
        (lambda x: T.power_iteration(x[:, :2]), ValueError, r"got shape \(3, 2\)"),
        (lambda x: T.power_iteration(x[:0, :0]), ValueError, "not empty"),
        (lambda x: T.power_iteration(x.astype(complex)), TypeError, "must be a real floating array, got complex64"),
        (lambda x: T.power_iteration(x.astype(int)), TypeError, "got int32"),
        (lambda x: T.power_iteration(x, v0=x), ValueError, r"v0 must have shape \(3,\), got \(3, 3\)"),
        (lambda x: T.power_iteration(x, v0=x[0].astype(int)), TypeError, "v0 must be a real floating array"),
        (lambda x: T.power_iteration(x, num_iters=0), ValueError, "num_iters must be an integer ≥ 1"),
        (lambda x: T.power_iteration(x, error_tolerance=-1.0), ValueError, "error_tolerance must be ≥ 0"),
        (lambda x: T.power_iteration(jnp.sin), ValueError, "v0 must be given with a function"),
        (lambda x: T.power_iteration(jnp.sin, v0={}), ValueError, "v0 must have arrays"),
        (lambda x: T.power_iteration(lambda v: v["a"], v0={"a": x}), ValueError, "must return a tree like v0"),
        (lambda x: T.power_iteration(lambda v: v[:1], v0=x), ValueError, "must return a tree like v0"),
        (
            lambda x: T.power_iteration(jnp.sin, v0={"a": x.astype(complex)}),
            TypeError,
            "v0 at 'a' must be a real floating array",
        ),
        (lambda x: T.matrix_inverse_pth_root(x[:2], 2), ValueError, "matrix_inverse_pth_root: matrix must be square"),
        (lambda x: T.matrix_inverse_pth_root(x, 0), ValueError, "p must be ≥ 1, got 0"),
        (lambda x: T.matrix_inverse_pth_root(x, 2.5), TypeError, "p must be an integer, got 2.5"),
        (lambda x: jax.jit(T.matrix_inverse_pth_root)(x, 2), TypeError, "make it a static argument"),
        (lambda x: T.matrix_inverse_pth_root(x, 2, 0), ValueError, "num_iters must be an integer ≥ 1"),
        (lambda x: T.matrix_inverse_pth_root(x, 2, 5, -1.0), ValueError, "ridge_epsilon must be ≥ 0"),
        (lambda x: T.matrix_inverse_pth_root(x, 2, 5, 0.0, -1.0), ValueError, "error_tolerance must be ≥ 0"),
        (lambda x: T.nnls(x[0], x[0], 5), ValueError, "nnls: A must be a matrix"),
        (lambda x: T.nnls(x, x[0, :2], 5), ValueError, r"b must have shape \(3,\) or \(3, k\), got \(2,\)"),
        (lambda x: T.nnls(x, x[None], 5), ValueError, "b must have shape"),
        (lambda x: T.nnls(x, x[0], 0), ValueError, "iters must be an integer ≥ 1"),
        (lambda x: T.nnls(x.astype(int), x[0], 5), TypeError, "A must be a real floating array"),
        (lambda x: T.nnls(x, x[0].astype(complex), 5), TypeError, "b must be a real floating array"),
    ],
)
def test_bad_calls_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(jnp.eye(3))
