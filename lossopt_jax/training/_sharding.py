"""Where an optimizer's state lies among devices: as its parameters do, or cut further."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lossopt_jax._core import HOST_MEMORY, complaint, dtype_of, is_array_like, is_tracer, leaf_paths, none_is_leaf
from lossopt_jax.transforms import Extent
from lossopt_jax.transforms._base import as_transformation
from lossopt_jax.transforms._sharding import Run, state_runs

_NAME = "state_sharding"


def _spread(shardings: Any, params: Any) -> list[Any]:
    """One sharding or None per leaf, from a tree prefix of them."""
    try:
        spread = jax.tree.broadcast(shardings, params, is_leaf=none_is_leaf)
    except ValueError:
        got, remedy = jax.tree.structure(shardings), "give one for all, or one per leaf or subtree"
        raise ValueError(complaint(_NAME, "shardings", "be a prefix of the parameters' tree", got, remedy)) from None
    return jax.tree.leaves(spread, is_leaf=none_is_leaf)


def _seen(path: str, leaf: Any, given: Any) -> Any:
    """What is known of where a leaf lies: a NamedSharding, a device, or None."""
    if given is not None and not isinstance(given, NamedSharding):
        raise TypeError(complaint(_NAME, "shardings", "hold NamedShardings or None", f"{given!r} at {path!r}"))
    known = given or (None if is_tracer(leaf) else getattr(leaf, "sharding", None))
    if known is None or isinstance(known, NamedSharding):
        return known
    if len(known.device_set) > 1:
        where, remedy = f"the parameter at {path!r}", "say how it lies by shardings"
        raise ValueError(complaint(_NAME, where, "have a NamedSharding", f"{known}", remedy))
    return next(iter(known.device_set))


def _placed(params: Any, shardings: Any) -> tuple[Any, Mesh | AbstractMesh]:
    """The shapes of the parameters with the sharding of each, and the mesh for what belongs to all of them."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
    each = zip(leaf_paths(params), leaves, _spread(shardings, params), strict=True)
    seen = [_seen(path, leaf, given) if is_array_like(leaf) else None for path, leaf, given in each]
    meshes = [known.mesh for known in seen if isinstance(known, NamedSharding)]
    if not meshes:
        meshes = [Mesh(np.array([known]), ("device",)) for known in seen if known is not None]
    if not meshes:
        remedy = "pass arrays, or shapes and shardings=NamedSharding(mesh, PartitionSpec(…))"
        raise ValueError(complaint(_NAME, "params", "say where they lie", "shapes without a sharding", remedy))
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def place(leaf: Any, known: Any) -> Any:
        if not is_array_like(leaf):
            return leaf
        sharding = known if isinstance(known, NamedSharding) else everywhere
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype_of(leaf), sharding=sharding)

    return treedef.unflatten([place(leaf, known) for leaf, known in zip(leaves, seen, strict=True)]), meshes[0]


def _ways(mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _spec(run: Run, sharding: NamedSharding, zero: tuple[str, ...]) -> PartitionSpec:
    """Each axis is cut as that of the parameter along which it runs, where it can be; and one by `zero`."""
    mesh, shape = sharding.mesh, run.parameter.shape
    cuts = [_names(entry) for entry in (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))]
    own: list[tuple[str, ...]] = []
    for size, axis in zip(run.shape, run.axes, strict=True):
        cut = () if isinstance(axis, Extent) else cuts[axis]
        taken = {name for names in own for name in names}
        own.append(() if taken & {*cut} or size % _ways(mesh, cut) else cut)
    if zero and run.whole and not {*zero} & {name for cut in cuts for name in cut}:
        ways = _ways(mesh, zero)
        free = [
            place
            for place, axis in enumerate(run.axes)
            if not isinstance(axis, Extent)
            and not cuts[axis]
            and all(other[place] and other[place] % ways == 0 for other in run.beside)
        ]
        if free:
            own[max(free, key=lambda place: shape[run.axes[place]])] = zero
    entries = [cut[0] if len(cut) == 1 else cut or None for cut in own]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def state_sharding(
    tx: Any, params: Any, shardings: Any = None, *, zero_axis: str | tuple[str, ...] | None = None
) -> Any:
    """Where the state of an optimizer belongs: a `NamedSharding` for each array that `tx.init(params)` makes.

    What a rule remembers of a leaf is cut as its parameter is, along those axes of the parameter along which it runs,
    as the rule declares: moments whole, factors along their rows or columns, histories behind their own axis, codes and
    scales of `compress_state` along the axes of what they encode, where shards come out equal. What belongs to no axis
    (steps, hyperparameters, estimates, the groups of `pack_small`) lies on every device. In a state of another library
    an array under the path of a parameter and of its shape is cut as that. What rests in the memory of the host
    (`offload_state`) has that `memory_kind`.

    `jax.jit(tx.init)` alone puts a new state anywhere, since XLA sees no parameter in zeros:

        shardings = lo.training.state_sharding(tx, params)
        state = jax.jit(tx.init, out_shardings=shardings)(params)

    The same tree says where a checkpoint is to be restored.

    ZeRO-1: with the mesh axis along which the batch is cut as `zero_axis`, every slot as large as its parameter is cut
    along it too, and each device updates its part. A step must then be told to put the parameters together again:
    `lo.compile_update(tx, out_shardings=(param_shardings, shardings))`, or `jax.lax.with_sharding_constraint` on what
    it returns.

    Args:
      tx: any transform, another library's included.
      params: arrays, which lie where they belong, or anything with shape, dtype and perhaps sharding. A leaf that says
        nothing or lies on one device is taken to be on every one of the mesh.
      shardings: NamedShardings (None: see `params`), a tree prefix of `params`; they win over what the leaves say.
      zero_axis: a mesh axis or a tuple of several, for the largest axis of a slot that the parameter's sharding leaves
        whole and that they divide, the first of equal ones. A slot without one, or whose parameter is cut along
        `zero_axis` already, stays as it is.

    Returns:
      A tree of the structure of `jax.eval_shape(tx.init, params)`. Nothing is allocated.

    Raises:
      ValueError: nothing says where the parameters lie, a sharding without names for axes, a tree that does not fit, or
        a `zero_axis` that a mesh lacks.
      TypeError: `tx` is no transform, or something else than a NamedSharding.

    Example:
      >>> import jax, lossopt_jax as lo
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
      >>> params = {"w": jax.ShapeDtypeStruct((64, 32), "float32", sharding=NamedSharding(mesh, P(None, "model")))}
      >>> tx = lo.optimizers.adam(1e-3)
      >>> tuple(lo.get_slot(lo.training.state_sharding(tx, params), "mu")["w"].spec)
      (None, 'model')
      >>> tuple(lo.get_slot(lo.training.state_sharding(tx, params, zero_axis="data"), "mu")["w"].spec)
      ('data', 'model')

    Source: ZeRO stage 1: Rajbhandari et al. 2020, arXiv:1910.02054.
    """
    tx = as_transformation(_NAME, tx)
    placed, mesh = _placed(params, shardings)
    zero = _names(zero_axis)
    for leaf in jax.tree.leaves(placed):
        known = getattr(leaf, "sharding", None)
        missing = [name for name in zero if known is not None and name not in known.mesh.axis_names]
        if missing:
            must = f"be among the mesh's axes {list(known.mesh.axis_names)}"
            raise ValueError(complaint(_NAME, "zero_axis", must, repr(missing[0])))

    def of(run: Run) -> NamedSharding:
        own = getattr(run.parameter, "sharding", None)
        spec = PartitionSpec() if own is None else _spec(run, own, zero)
        kind = HOST_MEMORY if run.offloaded else None
        return NamedSharding(mesh if own is None else own.mesh, spec, memory_kind=kind)

    return jax.tree.map(of, state_runs(tx, placed))
