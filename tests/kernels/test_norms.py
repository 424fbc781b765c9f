"""Norms of what is made on the way: right at every scale, in blocks and whole, and nothing written down."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS, sums_in_one_loop
from lossopt_jax.kernels import cut_of, each_anew, in_blocks, norm, norms_of
from lossopt_jax.kernels._norms import _norm_by_need

SIZE = 1 << 18
SHAPE = (512, 512)
ways = pytest.mark.parametrize("cut", [None, cut_of(SIZE)], ids=["whole", "blocks"])

fusing = pytest.mark.skipif(not CPU_FUSES_SUMS, reason="XLA:CPU fuses sums from jax 0.10")


def some(seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), jnp.float32)


def made(arrays, scale):
    x, y = arrays
    return [scale * x, x - y, y]


def exact(x):
    return np.sqrt(np.sum(np.square(np.asarray(x, np.float64))))


@ways
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 3e-42, 1e15, 0.0])
def test_right_at_every_scale(cut, scale):
    x, y = some(), some(4)
    found, _ = jax.jit(lambda *arrays: norms_of(made, arrays, jnp.float32(scale), cut))(x, y)
    expected = [exact(np.asarray(scale * x)), exact(np.asarray(x) - np.asarray(y)), exact(y)]
    np.testing.assert_allclose(found, expected, rtol=2e-6 if scale > 1e-40 or scale == 0 else 1e-5)


@ways
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(cut, bad):
    x, y = some().at[7, 11].set(bad), some(4)
    found, _ = jax.jit(lambda *arrays: norms_of(made, arrays, jnp.float32(1), cut))(x, y)
    assert np.isfinite(found[2])
    np.testing.assert_array_equal(found[:2], np.abs(bad))


@ways
def test_constants_of_the_program_do_not_regroup(cut):
    """XLA makes c²x² of (cx)² where x is a constant."""
    zeros, ones = jnp.zeros(SHAPE), jnp.full(SHAPE, 1e30)
    found, _ = jax.jit(lambda: norms_of(lambda arrays, _: list(arrays), (zeros, ones), None, cut))()
    np.testing.assert_allclose(found, [0, 512e30], rtol=1e-6)


@ways
@pytest.mark.usefixtures("one_device")
def test_nothing_is_written_down(cut):
    def f(x, y):
        return norms_of(made, (x, y), jnp.float32(2), cut)[0]

    program = jax.jit(f, compiler_options=lo.cpu_compiler_options()).lower(some(), some()).compile()
    # blocks add up in arrays of one block, of each of three sums and again where they are no use
    whole = (0.01 if CPU_FUSES_SUMS else 0.08) * 4 * SIZE  # before jax 0.10, three sums of each row of 128
    assert program.memory_analysis().temp_size_in_bytes <= (whole if cut is None else 7 * 4 * cut.length)


@fusing
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 0.0])
@pytest.mark.parametrize("large", [0, 2])
def test_many_arrays_have_one_norm(join, scale, large):
    draw = np.random.default_rng(5).normal
    shapes = [(3,), (4, 5), (), (0,), (64,)] * 9 + [SHAPE] * large
    parts = [jnp.asarray(scale * draw(size=shape), jnp.float32) for shape in shapes]
    found = jax.jit(partial(_norm_by_need, join=join))(*parts)
    expected = np.hypot.reduce([exact(x) for x in parts])
    np.testing.assert_allclose(found, expected, rtol=3e-6)
    np.testing.assert_allclose(jax.jit(norm)(*parts), expected, rtol=3e-6)


@pytest.mark.usefixtures("one_device")
def test_sums_in_one_loop_keep_their_last_bits():
    x = jnp.full(30_000_001, 0.1)
    found = jax.jit(lambda x: sums_in_one_loop(x, 2 * x))(x)
    np.testing.assert_allclose(found, np.float64(np.float32(0.1)) * x.size * np.array([1, 2]), rtol=1e-5)


@fusing
def test_each_anew_shares_nothing():
    def sum_along(axis, x):
        return jnp.sum(x * x, axis)

    def f(x):
        return each_anew([lambda x: sum_along(0, x), lambda x: sum_along(1, x)], x)

    program = jax.jit(f).lower(some()).compile()
    assert not re.findall(r"ENTRY.* = f32\[512,512\]\S* (?:fusion|multiply)\(", program.as_text(), re.DOTALL)
    assert program.memory_analysis().temp_size_in_bytes <= 0.02 * 4 * SIZE
    for axis, found in enumerate(jax.jit(f)(some())):
        np.testing.assert_allclose(found, np.sum(np.square(np.asarray(some(), np.float64)), axis), rtol=2e-6)


def test_done_is_known_when_the_loop_has_run():
    _, done = jax.jit(lambda x, y: norms_of(made, (x, y), jnp.float32(1), cut_of(SIZE)))(some(), some())
    assert bool(done)
    _, done = jax.jit(lambda x, y: in_blocks(lambda a, b: (a[0] + b[0],), (x,), (y,), cut_of(SIZE)))(some(), some())
    assert bool(done)
