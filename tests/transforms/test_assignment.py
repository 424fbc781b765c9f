"""Assignments cost what SciPy's cost, whatever the shape, dtype and range; ties may be broken in another way."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

import lossopt_jax as lo

T = lo.transforms
SEEDS = 4
WIDE, TALL = (9, 24), (24, 9)  # few shapes: each is a program to compile
KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "far from 0": lambda rng, shape: -1e4 - 1e3 * rng.random(shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape),
    "long paths": lambda rng, shape: np.outer(np.arange(shape[0]), np.arange(shape[1])),
    "all scales": lambda rng, shape: np.exp(8 * rng.normal(size=shape)),
    "penalties": lambda rng, shape: np.where(rng.random(shape) < 0.3, 1e8, rng.normal(size=shape)),
    "near the largest": lambda rng, shape: rng.uniform(-3e38, 3e38, shape),
    "tiny": lambda rng, shape: 1e-30 * rng.normal(size=shape),
    "prices": lambda rng, shape: (
        rng.integers(0, 10**5, (shape[0], 1)) + rng.integers(0, 10**5, (1, shape[1])) + rng.integers(0, 30, shape)
    ),
    "constant": lambda rng, shape: np.full(shape, 3.0),
}
KINDS |= {  # of which the last leave no assignment
    f"{part:.0%} forbidden": lambda rng, shape, part=part: np.where(
        rng.random(shape) < part, np.inf, rng.normal(size=shape)
    )
    for part in (0.2, 0.6, 0.9, 1.0)
}


def least(cost):
    try:
        pairs = linear_sum_assignment(cost)
    except ValueError:
        assert np.isinf(cost).any()
        return np.inf
    return cost[pairs].sum()


def check(cost, i, j, slack=0.0):
    i, j, cost = np.asarray(i), np.asarray(j), np.asarray(cost, np.float64)
    assert len(i) == len(j) == min(cost.shape)
    assert np.all(np.diff(i) > 0)
    assert len(set(j)) == len(j)
    assert np.all((i >= 0) & (i < cost.shape[0]) & (j >= 0) & (j < cost.shape[1]))
    expected = least(cost)
    if np.isfinite(expected):
        assert cost[i, j].sum() <= expected + slack * np.abs(cost[i, j]).sum()
    else:
        assert cost[i, j].sum() == expected


@pytest.mark.parametrize("shape", [(1, 1), (24, 24), WIDE, TALL], ids=str)
def test_it_costs_what_scipy_s_costs(shape):
    costs = [
        make(np.random.default_rng(seed), shape).astype(np.float32)
        for seed, make in itertools.product(range(SEEDS), KINDS.values())
    ]
    for cost, i, j in zip(costs, *jax.jit(jax.vmap(T.hungarian_algorithm))(np.stack(costs)), strict=True):
        check(cost, i, j, slack=2**-22)


def test_float64(x64):
    near = lambda rng, shape: 1 + 1e-12 * rng.integers(0, 99, shape)  # noqa: E731
    costs = np.stack([make(np.random.default_rng(5), WIDE) for make in (near, *KINDS.values())])
    for cost, i, j in zip(costs, *jax.vmap(T.hungarian_algorithm)(jnp.asarray(costs)), strict=True):
        check(cost, i, j, slack=2**-50)


@pytest.mark.parametrize(("name", "shape"), [("hungarian_algorithm", TALL), ("base_hungarian_algorithm", WIDE)])
def test_it_finds_the_pairs_of_optax(name, shape):
    cost = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        i, j = getattr(optax.assignment, name)(cost)
    order = np.argsort(i)
    found = getattr(T, name)(cost)
    np.testing.assert_array_equal(found, [i[order], j[order]])
    assert [x.dtype for x in found] == [i.dtype, j.dtype]


# ----------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16"])
def test_dtypes(dtype):
    rng = np.random.default_rng(0)
    if "int" in dtype:
        info = np.iinfo(dtype)
        base = info.max - 500 if info.bits == 32 else info.min
        cost = (base + rng.integers(0, min(500, int(info.max) - int(info.min)), WIDE)).astype(dtype)
    else:
        cost = jnp.asarray(rng.normal(size=WIDE) > 0.3 if dtype == "bool" else rng.normal(size=WIDE), dtype)
    check(np.asarray(cost, np.float64), *T.hungarian_algorithm(jnp.asarray(cost)))
    check(np.asarray(cost, np.float64).T, *T.hungarian_algorithm(jnp.asarray(cost).T))


def test_the_whole_range_of_integers():
    cost = np.random.default_rng(0).integers(-(2**31), 2**31, WIDE).astype(np.int32)
    cost[0, :2], cost[1, :2] = (-(2**31), 2**31 - 1), (2**31 - 1, -(2**31))
    check(cost, *T.hungarian_algorithm(jnp.asarray(cost)))


# ------------------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_has_no_cost_is_seen_in_the_sum(bad):
    cost = np.random.default_rng(0).normal(size=WIDE).astype(np.float32)
    cost[3, 2] = bad
    for c in (cost, cost.T):
        total = c[tuple(np.asarray(T.hungarian_algorithm(jnp.asarray(c))))].sum()
        np.testing.assert_array_equal(total, bad)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_at_all(shape):
    for found in T.hungarian_algorithm(jnp.zeros(shape)):
        assert found.shape == (0,)
        assert jnp.issubdtype(found.dtype, jnp.integer)


def test_gradients_flow_through_the_costs_that_are_paid(key):
    cost = jax.random.normal(key, WIDE)

    @jax.jit
    def paid(cost):
        i, j = T.hungarian_algorithm(cost)
        return jnp.sum(cost[i, j])

    i, j = T.hungarian_algorithm(cost)
    np.testing.assert_array_equal(jax.grad(paid)(cost), jnp.zeros(WIDE).at[i, j].set(1))
    assert jax.eval_shape(T.hungarian_algorithm, cost)[1].shape == (9,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_large_ones(kind):
    cost = KINDS[kind](np.random.default_rng(0), (200, 256)).astype(np.float32)
    check(cost, *T.hungarian_algorithm(jnp.asarray(cost)), slack=2**-22)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        (jnp.ones(3), ValueError, "hungarian_algorithm: cost_matrix must be a matrix, got shape"),
        (jnp.ones((2, 3, 3)), ValueError, "vmap over a batch"),
        (jnp.ones((2, 2), complex), TypeError, "cost_matrix must be real, got complex64"),
        ([[1.0]], TypeError, "cost_matrix must be an array"),
    ],
)
def test_bad_calls_are_refused(cost, error, message):
    with pytest.raises(error, match=message):
        T.base_hungarian_algorithm(cost)
