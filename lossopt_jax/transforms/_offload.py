"""The memory of rules in the memory of the host."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    COUNT,
    check_scalar,
    complaint,
    in_device_memory,
    in_host_memory,
    keeps_host_memory,
)
from lossopt_jax.transforms._base import GradientTransformation, as_transformation
from lossopt_jax.transforms._registry import registry


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OffloadState(GradientTransformation):
    """The inner transform, whose state rests in the memory of the host; the state is the inner one's."""

    inner: GradientTransformation
    min_leaf_size: int

    @property
    def name(self) -> str:
        return "offload_state"

    @property
    def _flags(self) -> frozenset[str]:
        # nothing may choose between two states of it, which would be arithmetic in the memory of the host
        return self.inner._flags & {"per_example"} | {"outermost"}

    def _members(self) -> tuple[GradientTransformation, ...]:
        return (self.inner,)

    def __repr__(self) -> str:
        return f"offload_state({self.inner!r}, {self.min_leaf_size})"

    def moves(self, size: int) -> bool:
        """Whether an array of so many elements rests on the host."""
        return size >= self.min_leaf_size and keeps_host_memory()

    def fetched(self, state: Any) -> Any:
        """The state where it can be calculated with, each array by itself."""
        return jax.tree.map(lambda x: in_device_memory(x) if self.moves(jnp.size(x)) else x, state)

    def sent(self, state: Any) -> Any:
        """The state where it rests."""
        return jax.tree.map(lambda x: in_host_memory(x) if self.moves(jnp.size(x)) else x, state)

    def _settled(self, state: Any) -> Any:
        return self.sent(state)

    def _init(self, params: Any) -> Any:
        return self.sent(self.inner._init(params))

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        updates, state = self.inner._run(updates, self.fetched(state), params, extra)
        return updates, self.sent(state)


@registry.register()
def offload_state(inner: Any, min_leaf_size: int = 1 << 16) -> GradientTransformation:
    """Keep what rules remember in the memory of the host, and bring it to the device for each step.

        x = fetch(stored);  u, x = rule(g, x);  stored = send(x)

    Every large array of the state crosses by itself, there and back, inside the program that updates it: under `jit`
    XLA may move some while it calculates with others. Outside of `jit` the whole state is on the device during an
    update. Names and paths in the state are those of `inner`, and so are checkpoints and, bit for bit on CPUs, the
    numbers.

        tx = lo.offload_state(lo.optimizers.adamw(1e-3))
        step = lo.compile_update(tx)

    `get_slot`, `averaged_params` and their like bring what they return to the device.

    JAX commits all that a program returns to its device if an array on the host is among it. Parameters that were not
    committed make the second step compile anew; `jax.device_put(params, device)` and `jax.jit(tx.init)` spare that.

    It is for devices whose memory is not the host's, with a memory of the kind "pinned_host" (GPU, TPU). Where programs
    of JAX's default backend leave nothing in such a memory it changes nothing, without a word: `memory_kind` of an
    array's sharding says where it lies. Tried on CPUs alone, where jax 0.7.2 leaves nothing there and 0.10 and 0.12 do;
    neither the speed nor the memory of an accelerator was measured.

    `jax.jit(tx.init)` loses the sharding as ever; with `out_shardings=lo.training.state_sharding(tx, params)`, which
    knows what rests on the host, it does not. A state restored from a checkpoint belongs there too:
    `jax.device_put(state, shardings)`. `compile_update` and what `lo.compile` makes send it by themselves, but a `scan`
    refuses to carry what goes in from one memory and comes out in the other, and XLA:CPU ends the process if another
    program is given it as donated memory.

    Args:
      inner: any transform; also one that is outermost.
      min_leaf_size: an integer ≥ 1, in elements as they are stored; smaller arrays stay on the device, since each
        transfer has its latency.

    Raises:
      ValueError: `inner` is offloaded already, or this one is put inside another transform: it must be outermost.
    """
    check_scalar("offload_state", "min_leaf_size", min_leaf_size, within=COUNT)
    tx = as_transformation("offload_state", inner)
    if isinstance(tx, OffloadState):
        raise ValueError(complaint("offload_state", "inner", "not be offloaded already", f"{tx!r}", "wrap it once"))
    return OffloadState(tx, int(min_leaf_size))
