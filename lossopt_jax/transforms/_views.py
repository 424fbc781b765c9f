"""Transforms that see the tree of parameters in another form: complex leaves as pairs, or all leaves as one vector."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lossopt_jax._core import complaint, dtype_of, is_complex, is_trainable, leaf_paths, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, as_member
from lossopt_jax.transforms._registry import registry


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Viewed(GradientTransformation):
    """An inner transform that is given every tree in another form; its state and its name are the inner one's."""

    inner: GradientTransformation

    @property
    def name(self) -> str:
        return self.inner.name

    def _members(self) -> tuple[GradientTransformation, ...]:
        return (self.inner,)

    def _there(self, tree: Any, params: Any) -> Any:
        raise NotImplementedError

    def _back(self, tree: Any, params: Any) -> Any:
        raise NotImplementedError

    def _init(self, params: Any) -> Any:
        return self.inner._init(self._there(params, params))

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        like = updates if params is None else params
        met = None if params is None else self._there(params, like)
        extra = dict(extra)
        if extra.get("grad") is not None:
            extra["grad"] = self._there(extra["grad"], like)
        if extra.get("value_fn") is not None:
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda seen: value_fn(self._back(seen, like))
        flow, state = self.inner._run(self._there(updates, like), state, met, extra)
        return self._back(flow, like), state


class RealAndImaginary(NamedTuple):
    """The parts of a complex leaf."""

    real: Any
    imaginary: Any


def _parts(leaf: Any) -> RealAndImaginary:
    if not isinstance(leaf, jax.Array | np.ndarray | complex | np.generic):  # the shape of one
        part = jax.ShapeDtypeStruct(leaf.shape, jnp.finfo(leaf.dtype).dtype, sharding=getattr(leaf, "sharding", None))
        return RealAndImaginary(part, part)
    return RealAndImaginary(jnp.real(leaf), jnp.imag(leaf))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SplitRealAndImaginary(Viewed):
    """Complex leaves as pairs."""

    def _there(self, tree: Any, params: Any) -> Any:
        def of(leaf: Any) -> Any:
            return _parts(leaf) if is_trainable(leaf) and is_complex(leaf) else leaf

        return jax.tree.map(of, tree, is_leaf=none_is_leaf)

    def _back(self, tree: Any, params: Any) -> Any:
        def is_whole(node: Any) -> bool:
            return node is None or isinstance(node, RealAndImaginary)

        def of(node: Any) -> Any:
            return lax.complex(*node) if isinstance(node, RealAndImaginary) else node

        return jax.tree.map(of, tree, is_leaf=is_whole)

    def __repr__(self) -> str:
        return f"split_real_and_imaginary({self.inner!r})"


@registry.register()
def split_real_and_imaginary(inner: Any) -> GradientTransformation:
    """Run a transform on the real and the imaginary part of each complex leaf as two leaves.

    Rules of one array without operations across elements, and those that see all leaves at once, do so by themselves.
    This is for those that see where a leaf ends, which refuse complex ones: factored moments, trust ratios, matrices.
    `get_slot(state, "mu")` has a pair (real, imaginary) where a parameter is complex, and paths inside end in them.

    Args:
      inner: any transform.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx = lo.transforms.split_real_and_imaginary(lo.transforms.scale_by_muon())
      >>> params = {"w": jnp.eye(2, dtype="complex64")}
      >>> lo.get_slot(tx.init(params), "mu")["w"].imaginary.shape
      (2, 2)
    """
    return SplitRealAndImaginary(as_member("split_real_and_imaginary", inner))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Flatten(Viewed):
    """All leaves as one vector per dtype."""

    def _there(self, tree: Any, params: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
        vectors: dict[str, list[Any]] = {}
        for index, (leaf, given) in enumerate(zip(leaves, treedef.flatten_up_to(tree), strict=True)):
            if not is_trainable(leaf):
                continue
            if given is None:
                path, remedy = leaf_paths(params)[index], "freeze it around flatten, or pass zeros"
                raise ValueError(complaint("flatten", f"the gradient at {path!r}", "be an array", None, remedy))
            vectors.setdefault(str(dtype_of(leaf)), []).append(given)
        return {name: _end_to_end(parts) for name, parts in vectors.items()}

    def _back(self, tree: Any, params: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
        start = dict.fromkeys(tree, 0)

        def of(leaf: Any) -> Any:
            if not is_trainable(leaf):
                return None
            name, size = str(dtype_of(leaf)), math.prod(jnp.shape(leaf))
            start[name] += size
            return lax.slice_in_dim(tree[name], start[name] - size, start[name]).reshape(jnp.shape(leaf))

        return treedef.unflatten(list(map(of, leaves)))

    def __repr__(self) -> str:
        return f"flatten({self.inner!r})"


def _end_to_end(parts: list[Any]) -> Any:
    if isinstance(parts[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((sum(math.prod(part.shape) for part in parts),), parts[0].dtype)
    return jnp.concatenate([jnp.ravel(part) for part in parts])


def flatten(inner: Any) -> GradientTransformation:
    """Run a transform on all leaves of one dtype as a single vector.

    What a rule means of one array, such as a trust ratio or a block's root mean square, it then means of the whole
    network. That costs two copies of the gradients in every step and gathers what was sharded: to save kernels for many
    small leaves, `pack_small` keeps slots packed instead, and `compile_update` needs neither.

    Args:
      inner: a transform that does not look at paths or shapes.

    Raises:
      ValueError: a leaf without a gradient, which has no place of its own in the vector.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx = lo.transforms.flatten(lo.optimizers.adam(0.1))
      >>> lo.get_slot(tx.init({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}), "mu")["float32"].shape
      (9,)

    Differs from: optax, which promotes all leaves to one dtype.
    """
    return Flatten(as_member("flatten", inner))
