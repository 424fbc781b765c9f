"""Arrays kept in few bits: codes of 8 or 4 bits by blocks of the last axis, and bfloat16 rounded at random.

A dynamic code spends its bits on powers of ten first, and on an even division of each second. Numbered upwards by
n = 2ⁱ + k, the values are those of a convex piecewise linear function of n, so decoding is a maximum of a few lines and
encoding a minimum of their inverses: no table, no search, no gather.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import compute_dtype, leaf_seed, random_bits

BLOCK = {8: 256, 4: 128}
_POWERS = {8: 7, 4: 3}  # of ten, in a dynamic code
_LEAST_SIZE = 1 << 12
_NEXT_SEED = 0x9E3779B9


def _round_real(value: jax.Array, dtype: jnp.dtype, bits: jax.Array) -> jax.Array:
    """To one of the two neighbours in `dtype`, the nearer one with the larger probability: E = value.

    Adding random bits below the last one kept carries into it with a probability of what is cut off; ∞ stays, and any
    NaN, which a carry or a cut could end, is the usual one. Subnormals of float16 have a fixed spacing instead.
    """
    info = jnp.finfo(dtype)
    cut = jnp.uint32(jnp.finfo(jnp.float32).nmant - info.nmant)
    word = jax.lax.bitcast_convert_type(value, jnp.uint32)
    carried = word + (bits & ((jnp.uint32(1) << cut) - jnp.uint32(1)))
    carried = jnp.where(jnp.isnan(value), jnp.uint32(0x7FC00000), carried) >> cut
    if dtype == jnp.bfloat16:  # the upper half of a float32: no conversion, which would round once more
        return jax.lax.bitcast_convert_type(carried.astype(jnp.uint16), dtype)
    rounded = jax.lax.bitcast_convert_type(carried << cut, jnp.float32)
    if info.minexp > jnp.finfo(jnp.float32).minexp:
        spacing = 2.0 ** (info.minexp - info.nmant)
        uniform = (bits >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
        rounded = jnp.where(jnp.abs(value) < 2.0**info.minexp, jnp.floor(value / spacing + uniform) * spacing, rounded)
    return rounded.astype(dtype)


def round_stochastically(value: jax.Array, dtype: jnp.dtype, seed: jax.Array) -> jax.Array:
    """Round an array to a narrower dtype without bias, with bits that depend on seed and index alone."""
    if compute_dtype(dtype) == dtype:
        return value.astype(dtype)
    return _round_real(value, dtype, random_bits(seed, value.shape))


def _lesser(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(x < y, x, y)  # a single instruction, which a minimum that hands on NaN is not


def _greater(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(x < y, y, x)


def _code_of(x: jax.Array, bits: int, nonnegative: bool) -> jax.Array:
    """The nearest code of x in [−1, 1], as int32; not 0 for x > 0 if nonnegative."""
    a = jnp.abs(x)
    if bits == 4 and nonnegative:
        return jnp.maximum(jnp.round(a * 16).astype(jnp.int32), 1) - 1
    last, finer = _POWERS[bits] - 1, int(nonnegative)
    steep = [2.0 ** (i + finer) / 0.9 for i in range(last + 1)]
    line = functools.reduce(_lesser, [a * (slope * 10.0 ** (last - i)) + slope * 0.8 for i, slope in enumerate(steep)])
    n = line.astype(jnp.int32)
    # between the last value of one power of ten and the first of the next the middle lies a little further up, and
    # below 1 further down
    least, most = 1 << finer, 1 << (last + 1 + finer)
    middle = jnp.where(n == least, (0.8 + 10.0**last * _value_of(least, bits, finer) / 2) * least / 0.9 - least, 0.2)
    n = n - ((n & (n - 1) == 0) & (line - n.astype(line.dtype) < middle)).astype(jnp.int32)
    n = jnp.where(line >= most - 0.25, most, n)
    if nonnegative:
        return jnp.where(x > 0, jnp.maximum(n - 1, 1), 0)
    return jnp.where(x < 0, jnp.minimum(n, most - 1), n) + jnp.where((x < 0) & (n > 0), most, 0)


def _value_of(n: Any, bits: int, finer: int) -> Any:
    """The value with number n ≥ 1, of an array or a Python number."""
    last = _POWERS[bits] - 1
    tens = [10.0 ** (i - last) for i in range(last + 1)]
    lines = [(n + 0.5) * (ten * 0.9 * 2.0 ** -(i + finer)) - ten * 0.8 for i, ten in enumerate(tens)]
    return functools.reduce(_greater if isinstance(n, jax.Array) else max, lines)


def _relative(code: jax.Array, bits: int, nonnegative: bool) -> jax.Array:
    """The value of each code, in [−1, 1]."""
    c = code.astype(jnp.float32)
    if bits == 4 and nonnegative:
        return (c + 1) / 16
    most = 2.0 ** (_POWERS[bits] + int(nonnegative))
    negative = (c > most) if not nonnegative else jnp.zeros_like(c, bool)
    n = jnp.where(c > 0, c + 1, c) if nonnegative else jnp.where(negative, c - most, c)
    value = _value_of(n, bits, int(nonnegative))
    value = jnp.where(n == 0, jnp.zeros_like(value), jnp.where(n == most, jnp.ones_like(value), value))
    return jnp.where(negative, -value, value)


def _paired(code: jax.Array) -> jax.Array:
    """Two codes of four bits in a byte, the first of them low."""
    odd = code.shape[-1] % 2
    pairs = jnp.pad(code, [(0, 0)] * (code.ndim - 1) + [(0, odd)]) if odd else code
    pairs = jax.lax.bitcast_convert_type(pairs.reshape(*code.shape[:-1], -1, 2), jnp.uint16)
    return ((pairs & 15) | (pairs >> 4)).astype(jnp.uint8)


def _apart(pairs: jax.Array, last: int) -> jax.Array:
    wide = pairs.astype(jnp.uint16)
    both = jax.lax.bitcast_convert_type((wide & 15) | (wide >> 4 << 8), jnp.uint8)
    return both.reshape(*pairs.shape[:-1], -1)[..., :last]


class Stored:
    """An array as it is kept: `load()` is its value in float32, `store(value)` another one kept in the same way."""

    shape: tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("codes", "scales"), meta_fields=("bits", "nonnegative", "odd")
)
@dataclasses.dataclass(frozen=True, eq=False)
class Codes(Stored):
    """Codes relative to the largest size in each block of the last axis.

        scales [..., ⌈L/B⌉]    max |x| of each block in float32; the last block may be short
        codes  [..., L]        uint8; of 4 bits two in a byte, [..., ⌈L/2⌉]

    Nearest values, but that no positive one becomes 0 where the code is of nonnegative ones. A block of zeros is exact,
    and so is the largest value of a block, a negative one within 0.7 % (4 bits: 11 %), for which there is no code of
    its own. A block with NaN or an infinity is all NaN.

    Args:
      bits: 8 (B = 256) or 4 (B = 128).
      nonnegative: whether the code is for values ≥ 0.
      odd: 1 if the last byte holds one code only.

    Source: Dettmers et al. 2022, arXiv:2110.02861 (8 bits); Li et al. 2023, arXiv:2309.01507 (4 bits).
    """

    codes: jax.Array
    scales: jax.Array
    bits: int
    nonnegative: bool
    odd: int

    @property
    def block(self) -> int:
        return BLOCK[self.bits]

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.codes.shape[:-1], self.codes.shape[-1] * 8 // self.bits - self.odd

    def _spread(self, scales: jax.Array, last: int) -> jax.Array:
        """The scale of each element."""
        wide = jnp.broadcast_to(scales[..., None], (*scales.shape, self.block))
        return wide.reshape(*scales.shape[:-1], -1)[..., :last]

    def load(self) -> jax.Array:
        last = self.shape[-1]
        code = _apart(self.codes, last) if self.bits == 4 else self.codes
        return _relative(code, self.bits, self.nonnegative) * self._spread(self.scales, last)

    def store(self, value: jax.Array) -> "Codes":
        value, last = value.astype(jnp.float32), value.shape[-1]
        short, size = -last % self.block, jnp.abs(value)
        size = jnp.where(size < jnp.inf, size, jnp.inf)  # XLA:CPU's maximum may lose a NaN
        size = jnp.pad(size, [(0, 0)] * (size.ndim - 1) + [(0, short)]) if short else size
        size = jnp.max(size.reshape(*size.shape[:-1], -1, self.block), axis=-1)
        bounded = jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
        scales = jnp.where(size > 0, jnp.where(size < jnp.inf, bounded, jnp.nan), 0.0)
        lower = jnp.where(size > 1, 2.0**-8, 1.0)  # XLA divides by reciprocals, and that of 1e38 would vanish
        relative = value * self._spread(lower, last) * self._spread(1 / (bounded * lower), last)
        code = _code_of(relative, self.bits, self.nonnegative).astype(jnp.uint8)
        return dataclasses.replace(self, codes=_paired(code) if self.bits == 4 else code, scales=scales)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value", "seed"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class Rounded(Stored):
    """bfloat16, rounded up or down at random so that the mean is kept; `seed` (uint32) is the next rounding's."""

    value: jax.Array
    seed: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def load(self) -> jax.Array:
        return self.value.astype(jnp.float32)

    def store(self, value: jax.Array) -> "Rounded":
        value = round_stochastically(value.astype(jnp.float32), self.value.dtype, self.seed)
        return Rounded(value, self.seed + jnp.uint32(_NEXT_SEED))


def is_stored(node: Any) -> bool:
    return isinstance(node, Stored)


def of_shape(tree: Any, shape: tuple[int, ...]) -> list[bool]:
    """For each array in a tree whether it is one of some shape, or keeps one."""
    nodes = jax.tree.leaves(tree, is_leaf=is_stored)
    return [node.shape == shape for node in nodes for _ in jax.tree.leaves(node)]


def load(leaf: Any) -> Any:
    """What a rule sees of a leaf of its memory."""
    return leaf.load() if is_stored(leaf) else leaf


def loaded(tree: Any) -> Any:
    return jax.tree.map(load, tree, is_leaf=is_stored)


def store(value: jax.Array, old: Any) -> Any:
    """A new value as the old one is kept."""
    return old.store(value) if is_stored(old) else value.astype(old.dtype)


@functools.partial(jax.jit, static_argnames=("bits", "nonnegative"))
def encode(x: jax.Array, bits: int, nonnegative: bool = False) -> Codes:
    """An array of rank ≥ 1 in codes."""
    return Codes(x, x, bits, nonnegative, x.shape[-1] % 2 if bits == 4 else 0).store(x)


def compressed(x: jax.Array, kind: str, nonnegative: bool, path: str) -> Any:
    """A new array as `kind` keeps it: "bfloat16", "int8" or "int4"; as it is where that would not pay.

    That is, if it is not of float32, has fewer than 4096 elements, or has rows so short that scales would cost more
    than an eighth of the codes.

    Args:
      x: any array.
      kind: one of the three.
      nonnegative: whether all that will ever be kept is ≥ 0.
      path: what random bits depend on besides the index.
    """
    if x.dtype != jnp.float32 or math.prod(x.shape) < _LEAST_SIZE:
        return x
    if kind == "bfloat16":
        return Rounded(x.astype(jnp.bfloat16), leaf_seed(jnp.uint32(0), jnp.uint32(0), path))
    bits = int(kind.removeprefix("int"))
    return x if x.shape[-1] * bits < 256 else encode(x, bits, nonnegative)
