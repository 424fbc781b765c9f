"""Any elementwise function in one pass over memory, in place, as a Pallas kernel for TPU and (through Triton) GPU.

    pallas_elementwise(body, (p, m, v), (g,), (t, learning_rate))  →  new (p, m, v) in the memory of the old

The body is traced once on the shape of a block, and what it computes from scalars alone (bias corrections, schedules)
is taken out: that runs once, in XLA, and only its results enter the kernel, as scalars. TPU kernels could not do it,
having no transcendental functions of scalars, and GPU kernels would do it once per block.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import bind_equation, complaint, pallas_modules

Arrays = tuple[jax.Array, ...]
Body = Callable[[Arrays, Arrays, Arrays], Arrays]

# What Mosaic (TPU) and Triton (GPU) can hold, and what they cannot lower in some version of jax from 0.7.2.
_DTYPES = {
    "tpu": {"float32", "bfloat16", "int8", "int32", "uint32"},
    "gpu": {"float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32"},
}
_UNKNOWN = {
    "tpu": {"expm1", "cbrt", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc"}
    | {"lgamma", "digamma", "reduce_precision"},
    "gpu": {"erf", "erfc", "lgamma", "digamma", "reduce_precision", "is_finite", "round"},
}
_MOST_ARRAYS = 16
_LARGEST = 2**31 - 1  # elements that a 32-bit index reaches

_LANES = 128  # of a TPU's vector registers; rows come in eights, in 32s for one-byte dtypes
_TPU_BLOCK = 2**16  # elements: long enough copies to hide their start, short enough code
_TPU_BYTES = 6 * 2**20  # of fast memory for the blocks, out of 16 MiB; intermediate values need some too
_GPU_BLOCK = 2**10  # elements of one program of 4 warps: 8 a thread, two 16-byte loads of float32


def declines(updated: Sequence[Any], read: Sequence[Any], platform: str | None = None) -> bool:
    """Whether the kernel is not for these arrays: then XLA's own fusions are as good, or the only way.

    It declines dtypes that the platform's kernels do not hold (float64, complex, bool, 4 bits; float16 on TPU), shapes
    that differ, more than 16 arrays, more elements than 32 bits count, arrays smaller than one block, which a kernel of
    their own would only slow down, and on TPU shapes that XLA would not keep in row-major order, whose every array
    would be copied on its way in and out. Under a tracer nobody can see how an array is sharded: a kernel runs on one
    device, so whoever calls it on sharded arrays must do so inside `shard_map`.
    """
    arrays, platform = [*updated, *read], _named(platform)
    size = math.prod(arrays[0].shape) if updated else 0
    return (
        not _TPU_BLOCK <= size <= _LARGEST
        or len(arrays) > _MOST_ARRAYS
        or any(array.shape != arrays[0].shape for array in arrays)
        or any(jnp.dtype(array.dtype).name not in _DTYPES[platform] for array in arrays)
        or (platform == "tpu" and not _row_major(arrays[0].shape))
    )


def _row_major(shape: tuple[int, ...]) -> bool:
    """Whether XLA for TPU keeps an array in row-major order: if no other two axes fill its tiles better than the last.

    XLA states no such rule; it was read off what the compiler does with some forty shapes.
    """
    if len(shape) < 2:
        return shape == () or shape[0] % (8 * _LANES) == 0

    def filled(rows: int, lanes: int) -> float:
        high = _up(rows, 8) if rows > 4 else 4 if rows == 3 else rows  # tiles of 1, 2, 4 or 8 rows
        return rows * lanes / (high * _up(lanes, _LANES))

    return filled(*shape[-2:]) >= max(itertools.starmap(filled, itertools.permutations(shape, 2)))


def _named(platform: str | None) -> str:
    """The platform whose kernel is meant; on a CPU, where kernels are only interpreted, a TPU's."""
    return "gpu" if (platform or jax.default_backend()) == "gpu" else "tpu"


def pallas_elementwise(
    body: Body, updated: Arrays, read: Arrays, scalars: Arrays, *, interpret: bool = False, platform: str | None = None
) -> Arrays:
    """body(updated, read, scalars) in one pass over memory, the results in the place of `updated`.

    Nothing is padded or copied to make blocks fit. For TPU the arrays keep their last two axes, since there any other
    view of a tiled array is a copy, and Pallas masks what sticks out; for GPU they are flat, and the last block's loads
    and stores are masked. A body with an operation that the platform's Pallas lacks (the cube root, on TPU) is left to
    XLA.

    Args:
      body: (updated, read, scalars) → new arrays, one for each of `updated`, of its dtype. No operation across
        elements: it sees blocks. Arrays that it closes over must be 0-d.
      updated: arrays of one shape (any rank, any size ≥ 1), replaced.
      read: arrays of the same shape, only read.
      scalars: 0-d arrays.
      interpret: run block by block as plain JAX, on any platform.
      platform: whose kernel to build, "tpu" or "gpu"; None for the default backend's.

    Raises:
      TypeError: the body returned another number of arrays, another shape or another dtype.
    """
    platform = _named(platform)
    view, block, call = {"tpu": _tpu_call, "gpu": _gpu_call}[platform](updated, read)
    parts = [jax.ShapeDtypeStruct(block, array.dtype) for array in (*updated, *read)]
    split = _split(body, parts[: len(updated)], parts[len(updated) :], scalars)
    if not interpret and _UNKNOWN[platform] & split.primitives:
        return tuple(body(updated, read, scalars))
    arrays = [array.reshape(view) for array in (*updated, *read)]
    new = call(split.of_blocks, _stored(split.values), arrays, len(updated), interpret)
    return tuple(out.reshape(old.shape) for out, old in zip(new, updated, strict=True))


# ----- the body, taken apart


class _Split(NamedTuple):
    """The values that depend on scalars alone, the function of (blocks, stored values) → new blocks, and its words."""

    values: list[jax.Array]
    primitives: set[str]
    of_blocks: Callable[[list[jax.Array], list[jax.Array]], list[jax.Array]]


def _split(body: Body, updated: list[Any], read: list[Any], scalars: Arrays) -> _Split:
    count = len(updated)

    def flat(blocks: list[Any], scalars: Arrays) -> list[Any]:
        new = body(tuple(blocks[:count]), tuple(blocks[count:]), scalars)
        _check(new, updated)
        return list(new)

    traced = jax.make_jaxpr(flat)([*updated, *read], scalars)
    inlined = jax.make_jaxpr(lambda *arguments: _inline(traced.jaxpr, traced.consts, arguments))(*traced.in_avals)
    jaxpr = inlined.jaxpr
    blocks, rest = jaxpr.invars[: len(updated) + len(read)], jaxpr.invars[len(updated) + len(read) :]

    known = {*jaxpr.constvars, *rest}
    early, late = [], []
    for eqn in jaxpr.eqns:
        scalar = all(_known(atom, known) for atom in eqn.invars) and all(var.aval.shape == () for var in eqn.outvars)
        (early if scalar else late).append(eqn)
        known.update(eqn.outvars if scalar else ())
    wanted = [atom for eqn in late for atom in eqn.invars] + list(jaxpr.outvars)
    needed = list(dict.fromkeys(atom for atom in wanted if not _literal(atom) and atom in known))

    held = dict(zip((*jaxpr.constvars, *rest), (*inlined.consts, *scalars), strict=True))
    values = [jnp.asarray(value) for value in _read(needed, _evaluate(early, held))]
    dtypes = [value.dtype for value in values]

    def of_blocks(given: list[jax.Array], stored: list[jax.Array]) -> list[jax.Array]:
        held = dict(zip(needed, map(_restored, stored, dtypes), strict=True)) | dict(zip(blocks, given, strict=True))
        return _read(jaxpr.outvars, _evaluate(late, held))

    return _Split(values, set(_primitives(late)), of_blocks)


def _check(new: Any, updated: list[Any]) -> None:
    expected = [f"{array.dtype}{list(array.shape)}" for array in updated]
    got = [f"{array.dtype}{list(array.shape)}" for array in new]
    if got != expected:
        raise TypeError(complaint("pallas_elementwise", "the body", f"return {expected}", got))


def _primitives(eqns: Sequence[Any]) -> Iterator[str]:
    """The names of all primitives in some equations and in the functions that those call."""
    for eqn in eqns:
        yield eqn.primitive.name
        for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=lambda x: not isinstance(x, tuple | list)):
            jaxpr = getattr(inner, "jaxpr", inner)
            yield from _primitives(getattr(jaxpr, "eqns", ()))


def _literal(atom: Any) -> bool:
    return hasattr(atom, "val")  # the class itself takes a thirtieth of a second to import


def _known(atom: Any, known: set[Any]) -> bool:
    return _literal(atom) or atom in known


def _read(atoms: Sequence[Any], held: dict[Any, Any]) -> list[Any]:
    return [atom.val if _literal(atom) else held[atom] for atom in atoms]


def _evaluate(eqns: Sequence[Any], held: dict[Any, Any]) -> dict[Any, Any]:
    """All values after some equations."""
    held = dict(held)
    for eqn in eqns:
        held.update(zip(eqn.outvars, _bind(eqn, _read(eqn.invars, held)), strict=True))
    return held


def _bind(eqn: Any, inputs: list[Any]) -> list[Any]:
    if eqn.primitive.name == "jit":
        inner = eqn.params["jaxpr"]
        return _inline(inner.jaxpr, inner.consts, inputs)
    if eqn.primitive.name == "round" and eqn.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return [_round(*inputs)]
    return bind_equation(eqn, inputs)


def _round(x: jax.Array) -> jax.Array:
    """To the nearest integer, halves to the even one: Triton has no word for it."""
    below = jnp.floor(x)
    over = x - below
    even = 2 * jnp.floor((below + 1) * 0.5)
    return jnp.where(over < 0.5, below, jnp.where(over > 0.5, below + 1, even))


def _inline(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate with every inner `jit` written out, so that its scalars can be told from its arrays."""
    held = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    return _read(jaxpr.outvars, _evaluate(jaxpr.eqns, held))


def _stored(values: list[jax.Array]) -> list[jax.Array]:
    """Scalars as a TPU's scalar memory holds them: 32 bits wide, no bool."""
    return [value.astype(jnp.float32 if jnp.issubdtype(value.dtype, jnp.floating) else jnp.int32) for value in values]


def _restored(stored: jax.Array, dtype: Any) -> jax.Array:
    return stored != 0 if jnp.issubdtype(dtype, jnp.bool_) else stored.astype(dtype)


# ----- the two kernels


def _below(limit: int) -> int:
    """The largest power of two up to a limit ≥ 1."""
    return 1 << (limit.bit_length() - 1)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _tpu_view(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Three axes: the last two as they are, which is how memory is tiled, and all before them."""
    if len(shape) == 1 and shape[0] % (8 * _LANES) == 0:  # tiles of a vector are tiles of such a matrix
        return 1, shape[0] // _LANES, _LANES
    *leading, rows, lanes = (1, 1, *shape)
    return math.prod(leading), rows, lanes


def _tpu_block(view: tuple[int, int, int], bytes_per_element: int) -> tuple[int, int, int]:
    """A block's shape: lanes first, then rows, then leading axes, each whole or a power of two that tiles divide."""
    budget = min(_TPU_BLOCK, _below(_TPU_BYTES // bytes_per_element))
    leading, rows, lanes = view
    lanes = min(lanes, budget // _up(min(rows, 64), 32))
    rows = min(rows, _below(budget // _up(lanes, _LANES)))
    return min(leading, _below(max(1, budget // (_up(rows, 32) * _up(lanes, _LANES))))), rows, lanes


def _tpu_call(updated: Arrays, read: Arrays) -> tuple[tuple[int, ...], tuple[int, ...], Callable[..., Any]]:
    pl, tpu = pallas_modules("tpu")
    view = _tpu_view(updated[0].shape)
    # every block is there twice, so that the next one is copied while this one is worked on
    block = _tpu_block(view, 2 * sum(array.dtype.itemsize for array in (*updated, *updated, *read)))

    def call(function: Any, stored: list[jax.Array], arrays: list[jax.Array], count: int, interpret: bool) -> Any:
        def kernel(*refs: Any) -> None:
            scalars, ins, outs = _parted(refs, len(stored), len(arrays))
            new = function([ref[...] for ref in ins], [ref[0, 0] for ref in scalars])
            for ref, value in zip(outs, new, strict=True):
                ref[...] = value

        spec = pl.BlockSpec(block, lambda i, j, k: (i, j, k))
        return pl.pallas_call(
            kernel,
            tuple(jax.ShapeDtypeStruct(view, array.dtype) for array in arrays[:count]),
            grid=tuple(map(pl.cdiv, view, block)),
            in_specs=[pl.BlockSpec(memory_space=tpu.SMEM)] * len(stored) + [spec] * len(arrays),
            out_specs=(spec,) * count,
            input_output_aliases={len(stored) + index: index for index in range(count)},
            compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",) * 3),
            interpret=interpret,
            name="elementwise",
        )(*(value.reshape(1, 1) for value in stored), *arrays)

    return view, block, call


def _gpu_call(updated: Arrays, read: Arrays) -> tuple[tuple[int, ...], tuple[int, ...], Callable[..., Any]]:
    pl, gpu = pallas_modules("gpu")
    size = math.prod(updated[0].shape)
    block = min(_GPU_BLOCK, 2 * _below(size))

    def call(function: Any, stored: list[jax.Array], arrays: list[jax.Array], count: int, interpret: bool) -> Any:
        def kernel(*refs: Any) -> None:
            scalars, ins, outs = _parted(refs, len(stored), len(arrays))
            start = pl.program_id(0) * block
            here = pl.ds(start, block)
            # what the mask leaves out is undefined, worked on and never stored
            mask = None if size % block == 0 else start + jnp.arange(block, dtype=jnp.int32) < size
            new = function([gpu.load(ref.at[here], mask=mask) for ref in ins], [ref[0] for ref in scalars])
            for ref, value in zip(outs, new, strict=True):
                gpu.store(ref.at[here], value, mask=mask)

        return pl.pallas_call(
            kernel,
            tuple(jax.ShapeDtypeStruct((size,), array.dtype) for array in arrays[:count]),
            grid=(pl.cdiv(size, block),),
            input_output_aliases={len(stored) + index: index for index in range(count)},
            compiler_params=gpu.CompilerParams(num_warps=4),
            interpret=interpret,
            name="elementwise",
        )(*(value.reshape(1) for value in stored), *arrays)

    return (size,), (block,), call


def _parted(refs: Sequence[Any], scalars: int, arrays: int) -> tuple[Any, Any, Any]:
    """References to scalars, to what is read and to what is written."""
    return refs[:scalars], refs[scalars : scalars + arrays], refs[scalars + arrays :]
