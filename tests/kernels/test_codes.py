"""Codes of 8 and 4 bits against the papers' tables; bfloat16 without bias."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax.kernels import Codes, compressed, encode, load, loaded, store

decoded = jax.jit(load)
CODES = {"int8": (8, False), "int8 nonnegative": (8, True), "int4": (4, False), "int4 nonnegative": (4, True)}
codes = pytest.mark.parametrize(("bits", "nonnegative"), CODES.values(), ids=CODES)
BLOCK = {8: 256, 4: 128}


def table(bits, nonnegative):
    """The papers' maps, by code."""
    if bits == 4 and nonnegative:
        return (np.arange(16) + 1) / 16
    powers, finer = {8: 7, 4: 3}[bits], int(nonnegative)
    positive = [
        10.0 ** (i - powers + 1) * (0.1 + 0.9 * (k + 0.5) / 2 ** (i + finer))
        for i in range(powers)
        for k in range(2 ** (i + finer))
    ]
    return np.array([0, *positive, 1] if nonnegative else [0, *positive, 1, *(-x for x in positive)])


def nearest(x, values):
    order = np.argsort(values)
    middles = (values[order][1:] + values[order][:-1]) / 2
    return order[np.searchsorted(middles, x)]


def oracle(x, bits, nonnegative):
    """What a row of numbers is after encoding and decoding, in float64."""
    after, values = np.empty(x.shape), table(bits, nonnegative)
    for start in range(0, x.shape[-1], BLOCK[bits]):
        block = np.s_[..., start : start + BLOCK[bits]]
        scale = np.abs(x[block]).max(-1, keepdims=True)
        kept = values[nearest(x[block] / np.where(scale > 0, scale, 1), values)]
        if bits == 8 and nonnegative:
            kept = np.where((x[block] > 0) & (kept == 0), values[1], kept)
        after[block] = kept * scale
    return after


def some(shape, nonnegative, seed=0):
    """Numbers of very different sizes."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 10.0 ** rng.integers(-7, 3, size=shape)).astype(np.float32)
    return np.abs(x) if nonnegative else x


def unpacked(kept):
    data = np.asarray(kept.codes)
    if kept.bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)[..., : kept.shape[-1]]


def test_tables_are_the_known_ones():
    assert [len(table(*code)) for code in CODES.values()] == [256, 256, 16, 16]
    assert sorted(table(4, False))[8:] == pytest.approx([0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0])
    assert min(x for x in table(8, False) if x > 0) == pytest.approx(5.5e-7)
    assert table(8, True)[1] == pytest.approx(3.25e-7)


@codes
def test_every_code_decodes_to_its_value(bits, nonnegative):
    every = np.arange(256, dtype=np.uint8)
    data = every if bits == 8 else np.tile(every, 2)
    scales = jnp.full(len(data) * 8 // bits // BLOCK[bits], 2.0)
    got = np.asarray(decoded(Codes(jnp.asarray(data), scales, bits, nonnegative, 0)))
    halves = every if bits == 8 else np.tile(np.stack([every & 15, every >> 4], -1).ravel(), 2)
    np.testing.assert_allclose(got, 2 * table(bits, nonnegative)[halves], rtol=1e-6)


@codes
def test_nearest_value_everywhere(bits, nonnegative):
    values = table(bits, nonnegative)
    ordered = np.sort(values)
    middles = (ordered[1:] + ordered[:-1]) / 2
    x = np.concatenate([values, middles * (1 - 1e-5), middles * (1 + 1e-5), some(2000, nonnegative) / 1e4])
    x = x.clip(0 if nonnegative else -1, 1).astype(np.float32)
    rows = np.stack([x, np.ones_like(x)], -1).repeat([1, BLOCK[bits] - 1], axis=-1)  # a block each, of scale 1
    got = np.asarray(decoded(encode(jnp.asarray(rows), bits, nonnegative)))[:, 0]
    expected = values[nearest(x, values)]
    if bits == 8 and nonnegative:
        expected = np.where(x > 0, np.maximum(expected, values[1]), expected)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@codes
@pytest.mark.parametrize("shape", [(3, 512), (700,), (2, 3, 129), (1, 1)])
def test_blocks_of_the_last_axis(bits, nonnegative, shape):
    x = some(shape, nonnegative)
    kept = encode(jnp.asarray(x), bits, nonnegative)
    assert kept.shape == shape
    assert kept.codes.dtype == jnp.uint8
    assert kept.codes.shape == (*shape[:-1], shape[-1] if bits == 8 else -(-shape[-1] // 2))
    assert (kept.scales.dtype, kept.scales.shape) == (jnp.float32, (*shape[:-1], -(-shape[-1] // BLOCK[bits])))
    np.testing.assert_allclose(decoded(kept), oracle(x.astype(np.float64), bits, nonnegative), rtol=1e-6)
    again = jax.jit(store)(decoded(kept) * 2, kept)
    assert jax.tree.structure(again) == jax.tree.structure(kept)


@codes
def test_zeros_are_exact_and_the_largest_too(bits, nonnegative):
    assert not np.any(decoded(encode(jnp.zeros((3, 300)), bits, nonnegative)))
    x = some((9, BLOCK[bits]), True)
    largest = np.arange(9), x.argmax(-1)
    np.testing.assert_array_equal(np.asarray(decoded(encode(jnp.asarray(x), bits, nonnegative)))[largest], x[largest])


@pytest.mark.parametrize("bits", [8, 4])
def test_no_positive_second_moment_becomes_zero(bits):
    x = jnp.asarray(np.float32([1e-30, 1e-12, 1e-6, 0.0] * 32 + [1.0] * 128))
    after = np.asarray(decoded(encode(x, bits, True)))
    assert np.all(after[x > 0] > 0)
    if bits == 8:
        assert not np.any(after[x == 0])


@codes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_anything_not_finite_is_nan_and_no_other(bits, nonnegative, bad):
    x = some((2 * BLOCK[bits], 3 * BLOCK[bits]), nonnegative)
    for row in range(len(x)):  # at every place of its block
        x[row, BLOCK[bits] + row % BLOCK[bits]] = bad
    after = np.asarray(decoded(encode(x, bits, nonnegative)))
    assert np.isnan(after[:, BLOCK[bits] : 2 * BLOCK[bits]]).all()
    assert np.isfinite(after[:, : BLOCK[bits]]).all()
    assert np.isfinite(after[:, 2 * BLOCK[bits] :]).all()


@codes
@pytest.mark.parametrize("size", [1e30, 1e-30, 3e-36, 3e38])
def test_any_size_of_numbers(bits, nonnegative, size):
    x = np.linspace(0 if nonnegative else -1, 1, BLOCK[bits])
    after = np.asarray(decoded(encode(jnp.asarray(np.float32(size * x)), bits, nonnegative)), np.float64)
    np.testing.assert_allclose(after / size, oracle(x, bits, nonnegative), atol=1e-5)


@codes
def test_relative_error_is_the_tables(bits, nonnegative):
    x = np.random.default_rng(5).normal(size=(64, 1024))
    x = np.float32(np.square(x) if nonnegative else x)
    ours, theirs = (
        np.sqrt(np.mean((after - x) ** 2) / np.mean(np.square(x)))
        for after in (np.asarray(decoded(encode(jnp.asarray(x), bits, nonnegative))), oracle(x, bits, nonnegative))
    )
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours < {(8, False): 0.02, (8, True): 0.01, (4, False): 0.2, (4, True): 0.2}[bits, nonnegative]


@codes
def test_vmap_is_a_loop_and_pickle_keeps_all(bits, nonnegative):
    x = jnp.asarray(some((3, 4, 300), nonnegative))
    many = jax.vmap(lambda x: encode(x, bits, nonnegative))(x)
    np.testing.assert_allclose(jax.vmap(load)(many), decoded(encode(x, bits, nonnegative)), rtol=1e-6)
    other = pickle.loads(pickle.dumps(many))
    assert jax.tree.structure(other) == jax.tree.structure(many)
    assert [np.asarray(leaf).dtype for leaf in jax.tree.leaves(other)] == [np.uint8, np.float32]


def test_what_would_not_pay_stays():
    def kept(shape, kind, dtype=jnp.float32):
        return type(compressed(jnp.zeros(shape, dtype), kind, False, "w")).__name__

    for kind, name in (("int8", "Codes"), ("int4", "Codes"), ("bfloat16", "Rounded")):
        assert kept((64, 64), kind) == name
        assert kept((63, 65), kind) == "ArrayImpl"
        assert kept((64, 64), kind, jnp.complex64) == "ArrayImpl"
    assert kept((1024, 31), "int8") == "ArrayImpl"
    assert kept((1024, 32), "int8") == "Codes"
    assert kept((1024, 63), "int4") == "ArrayImpl"
    assert kept((1024, 64), "int4") == "Codes"


def test_bfloat16_keeps_the_mean_and_never_the_same_bits():
    x = jnp.full((64, 64), 1 + 2.0**-10)
    first = compressed(jnp.zeros((64, 64)), "bfloat16", True, "mu/w")
    other = compressed(jnp.zeros((64, 64)), "bfloat16", True, "nu/w")
    rounds, seen = first, []
    for _ in range(16):
        rounds = store(x, rounds)
        seen.append(np.asarray(load(rounds)))
    assert {float(v) for v in np.unique(seen)} == {1.0, 1 + 2.0**-7}
    share = np.mean(np.stack(seen) > 1)
    assert abs(share - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 2**16)
    assert len({s.tobytes() for s in [*seen, np.asarray(load(store(x, other)))]}) == 17


def test_a_tree_is_loaded_at_once():
    tree = {"a": encode(jnp.ones((2, 256)), 8), "b": jnp.ones(3), "n": None}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), loaded(tree)) == {
        "a": ((2, 256), jnp.float32),
        "b": ((3,), jnp.float32),
        "n": None,
    }
