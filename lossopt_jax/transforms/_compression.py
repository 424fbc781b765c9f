"""The memory of rules in fewer bits."""

import dataclasses
from typing import Any

from lossopt_jax._core import complaint
from lossopt_jax.transforms._base import GradientTransformation, as_transformation
from lossopt_jax.transforms._chain import Chain
from lossopt_jax.transforms._groups import Masked, Partition
from lossopt_jax.transforms._lift import RuleTransformation, WrapperTransformation
from lossopt_jax.transforms._offload import OffloadState
from lossopt_jax.transforms._packing import PackSmall
from lossopt_jax.transforms._registry import registry

_KINDS = ("bfloat16", "int8", "int4")


def _storing(tx: GradientTransformation, kind: str) -> GradientTransformation:
    """The same composition, of rules that keep their slots so."""
    if isinstance(tx, RuleTransformation | WrapperTransformation) and any(
        slot.compressible for slot in tx.rule.slots.values()
    ):
        tx = dataclasses.replace(tx, storage=kind)
    if isinstance(tx, Chain | WrapperTransformation):
        return dataclasses.replace(tx, members=tuple(_storing(member, kind) for member in tx.members))
    if isinstance(tx, Masked | OffloadState | PackSmall):
        return dataclasses.replace(tx, inner=_storing(tx.inner, kind))
    if isinstance(tx, Partition):
        return dataclasses.replace(tx, groups=tuple((label, _storing(member, kind)) for label, member in tx.groups))
    return tx


@registry.register()
def compress_state(inner: Any, kind: str = "int8") -> GradientTransformation:
    """Keep what rules remember in fewer bits: "bfloat16", "int8" or "int4".

        x = decode(stored);  u, x = rule(g, x);  stored = encode(x)

    In every step, in float32, and leaf by leaf; the update is that of the new x before it is encoded. What is
    returned is `inner` itself with rules that store so: names, hyperparameters, wrappers and their decisions are as
    they were, and a step that a guard skips leaves every bit as it is. `get_slot` decodes.

        bfloat16    2 bytes             rounded up or down at random, E = x, by a hash of rule, slot, the leaf's path,
                                        step and index: slow averages do not stall
        int8        1 + 4/256 bytes     a dynamic code relative to the largest |x| in 256 elements of the last axis
        int4        ½ + 4/128 bytes     the same by 128; a nonnegative slot in sixteenths, without 0

    The code is for slots of their parameter's shape in float32. Others stay as they are: those declared exact, those
    of less than 4096 elements or with a last axis shorter than an eighth of a block, of complex or float64 parameters,
    in groups of `pack_small`, and everything of another library's. A block in which something is not finite is NaN. No
    positive value of a nonnegative slot is kept as 0. Blocks depend on the shape alone, so that values do not depend on
    the sharding; where a shard's part of the last axis is no multiple of a block, the largest of each is communicated.

    `compile_update` on a CPU decodes and encodes large float32 leaves by blocks, without temporaries: by whole rows
    where the last axis is no multiple of 256 (int4: 128). A leaf that no length from 8,193 to 32,768 divides so is
    decoded whole.

    Args:
      inner: any transform; also one that is outermost.
      kind: "bfloat16", "int8" or "int4".

    Raises:
      ValueError: another kind, or `inner` is compressed already.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> params = jnp.ones((512, 256))
      >>> tx = lo.compress_state(lo.optimizers.adam(0.1), "int8")
      >>> round(sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params))) / params.size, 2)
      2.03
      >>> lo.get_slot(tx.init(params), "mu").dtype
      dtype('float32')

    Differs from: bitsandbytes and torchao, whose blocks run over the flattened array.
    Source: Dettmers et al. 2022, arXiv:2110.02861; Li et al. 2023, arXiv:2309.01507; bfloat16: Gupta et al. 2015,
      arXiv:1502.02551.
    """
    if kind not in _KINDS:
        raise ValueError(complaint("compress_state", "kind", f"be among {list(_KINDS)}", repr(kind)))
    tx = as_transformation("compress_state", inner)
    _check_plain(tx)
    return _storing(tx, kind)


def _check_plain(tx: GradientTransformation) -> None:
    if getattr(tx, "storage", None) is not None:
        remedy = "compress each member once"
        raise ValueError(complaint("compress_state", "inner", "not be compressed already", f"{tx!r}", remedy))
    for member in tx._members():
        _check_plain(member)
