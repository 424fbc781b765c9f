"""The blocked loop for CPUs: the same values, in place, whatever reads what."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax._core import dependencies
from lossopt_jax.kernels import cut_of, in_blocks

SIZE = 1 << 18


def descend(updated, read):
    p, m = updated
    m = 0.9 * m + read[0]
    return p - 0.1 * m, m


def swap(updated, read):
    p, m = updated
    return m + read[0], p


def copied(updated, read):
    return updated[0] + jnp.sign(updated[1]) * read[0], updated[1]


BODIES = {body.__name__: body for body in (descend, swap, copied)}


def some(shape=(SIZE,)):
    draw = np.random.default_rng(3).normal
    return tuple(jnp.asarray(draw(size=shape), jnp.float32) for _ in range(3))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("shape", [(SIZE,), (29 * 64, 512), (3, 5, 2**15)])
def test_is_the_body_on_whole_arrays(body, shape):
    *updated, read = some(shape)
    new, done = jax.jit(lambda *a: in_blocks(body, a[:2], a[2:], cut_of(a[0].size)))(*updated, read)
    assert bool(done)
    for left, right in zip(new, body(tuple(updated), (read,)), strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_in_place_whatever_reads_what(body):
    """`swap` has no order in which neither update overwrites what the other reads."""
    step = jax.jit(
        lambda p, m, g: in_blocks(body, (p, m), (g,), cut_of(p.size))[0],
        donate_argnums=(0, 1),
        compiler_options=lo.cpu_compiler_options(),
    )
    program = step.lower(*some()).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 5 * 4 * 2**15
    assert not re.findall(rf"f32\[{SIZE}\]\S* copy\(", program.as_text())


def test_block_lengths_divide():
    for size in (2**17, 50257 * 512, 3 * 3 * 512 * 512, 2048 * 1000):
        length = cut_of(size).length
        assert size % length == 0
        assert 2**13 < length <= 2**15
    assert [cut_of(size) for size in (0, 1, 2**17 - 1, 2**31, 1_000_003)] == [None] * 5


def test_rows_stay_whole():
    """A running sum along rows is right by blocks only if no row is cut."""
    p, _, g = some((560, 300))

    def body(updated, read):
        return (jnp.cumsum(updated[0], -1) + read[0],)

    cut = cut_of(p.size, row=300)
    assert cut.length == 300 * cut.rows
    (new,), done = jax.jit(lambda p, g: in_blocks(body, (p,), (g,), cut))(p, g)
    assert bool(done)
    np.testing.assert_allclose(new, body((p,), (g,))[0], rtol=1e-5, atol=1e-5)
    assert cut_of(2**18, row=2**18) is None


def test_dependencies_look_through_jit():
    @jax.jit
    def inner(a, b, c):
        return jnp.sin(a) + c, b

    def outer(x, y, z):
        first, second = inner(x, y, 1.0)
        return first, second * z, jnp.zeros(3), x

    x = jnp.ones(3)
    assert dependencies(outer, x, x, x) == [{0}, {1, 2}, set(), {0}]
