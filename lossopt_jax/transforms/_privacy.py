"""Gradients that say little about any one example."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    NONNEGATIVE,
    Scalar,
    as_compute,
    complaint,
    dtype_of,
    is_complex,
    is_trainable,
    leaf_paths,
    none_is_leaf,
    random_normal,
)
from lossopt_jax.transforms._clipping import beyond, global_norm, shrunk
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry


def summed_examples(arrays: list[jax.Array], most: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Σᵢ fᵢ gᵢ over the first axis, and of each example whether fᵢ < 1, where 0 stands for what is not finite."""
    norms = jax.vmap(global_norm)(arrays)
    most, finite = most.astype(norms.dtype), jnp.isfinite(norms)
    longer = beyond(most, norms)

    def total(x: jax.Array) -> jax.Array:
        usable, norm = (jnp.reshape(v, (-1,) + (1,) * (x.ndim - 1)) for v in (finite, longer.astype(x.dtype)))
        return jnp.sum(jnp.where(usable, shrunk(x, most.astype(x.dtype), norm), 0), axis=0)

    return list(map(total, arrays)), (longer > 0) | ~finite


def _examples(where: str, grads: Any) -> None:
    """Refuse leaves without an axis of examples, all of one length."""
    paths, leaves = leaf_paths(grads), jax.tree.leaves(grads, is_leaf=none_is_leaf)
    shapes = {path: jnp.shape(x) for path, x in zip(paths, leaves, strict=True) if x is not None}
    lengths = [shape[:1] for shape in shapes.values()]
    for (path, shape), length in zip(shapes.items(), lengths, strict=True):
        if not shape or length != lengths[0]:
            must = "have an axis of examples in front, as long as the others'"
            raise ValueError(complaint(where, f"the gradient at {path!r}", must, f"shape {shape}"))


def _clipped(leaves: list[Any], most: Any) -> tuple[list[jax.Array], jax.Array]:
    """`summed_examples` of leaves of any dtype, in their own; integers become floats."""
    arrays = [as_compute(x) for x in leaves]
    parts = [part for x in arrays for part in ((jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,))]
    sums, clipped = summed_examples(parts, jnp.asarray(most))
    left = iter(sums)
    totals = [jax.lax.complex(next(left), next(left)) if is_complex(x) else next(left) for x in arrays]
    kept = [total.astype(dtype_of(x)) if is_trainable(x) else total for total, x in zip(totals, leaves, strict=True)]
    return kept, jnp.sum(clipped, dtype=jnp.int32)


def per_example_global_norm_clip(grads: Any, l2_norm_clip: Any) -> tuple[Any, jax.Array]:
    """The sum of clipped gradients, one per example, and how many were clipped.

        s = Σᵢ gᵢ min(1, C / ‖gᵢ‖),      ‖gᵢ‖ over all leaves

    Norms and sums run in float32 (float64 where a leaf is); an example that is not finite counts as 0, and as clipped.

    Args:
      grads: a tree of arrays with an axis of examples in front; None stays None.
      l2_norm_clip: C ≥ 0.

    Returns:
      (s, int32): the sums have no such axis, and the dtypes of the gradients.

    Raises:
      ValueError: a gradient without the axis, or with another length than the others, by its path.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.transforms.per_example_global_norm_clip([jnp.array([[0.0, 6.0, 8.0], [0.0, 0.5, 0.0]])], 5.0)
      ([Array([0. , 3.5, 4. ], dtype=float32)], Array(1, dtype=int32))

    Differs from: optax, where one example that is not finite makes all sums NaN.
    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """
    _examples("per_example_global_norm_clip", grads)
    leaves, treedef = jax.tree.flatten(grads)
    if not leaves:
        return grads, jnp.zeros((), jnp.int32)
    sums, count = _clipped(leaves, l2_norm_clip)
    return treedef.unflatten(sums), count


def per_example_layer_norm_clip(grads: Any, global_l2_norm_clip: Any, uniform: bool = True) -> tuple[Any, Any]:
    """The sum of gradients, one per example, clipped leaf by leaf, and how many were clipped of each leaf.

        s = Σᵢ gᵢ min(1, Cₖ / ‖gᵢ‖),      ‖gᵢ‖ of leaf k alone
        Cₖ = C √(1/K),  or C √(Dₖ/D) if not uniform

    There are K leaves, and leaf k has Dₖ of the D numbers of an example. See `per_example_global_norm_clip`.

    Args:
      grads: a tree of arrays with an axis of examples in front; None stays None.
      global_l2_norm_clip: C ≥ 0.
      uniform: the same bound for every leaf.

    Returns:
      (s, a tree of int32).

    Source: McMahan et al. 2018, arXiv:1710.06963, section 3.
    """
    _examples("per_example_layer_norm_clip", grads)
    leaves, treedef = jax.tree.flatten(grads)
    sizes = [math.prod(jnp.shape(x)[1:]) for x in leaves]
    shares = [1 / len(leaves) if uniform else size / max(sum(sizes), 1) for size in sizes]
    found = [_clipped([x], global_l2_norm_clip * share**0.5) for x, share in zip(leaves, shares, strict=True)]
    return treedef.unflatten([total for (total,), _ in found]), treedef.unflatten([count for _, count in found])


@registry.register()
@treewise(needs=("key",), flags=("per_example",))
def differentially_private_aggregate(
    g,
    slots,
    t,
    seeds,
    *,
    l2_norm_clip: Annotated[Scalar, NONNEGATIVE],
    noise_multiplier: Annotated[Scalar, NONNEGATIVE],
):
    """The mean of clipped gradients, one per example, plus noise.

        fᵢ = min(1, C / ‖gᵢ‖),      ‖gᵢ‖ over all leaves; 0 where it is not finite
        u = (Σᵢ fᵢ gᵢ + σ C z) / B,      z ~ N(0, 1)

    Gradients have an axis of B examples in front, as `jax.vmap(jax.grad(loss), (None, 0))(params, batch)` returns
    them; updates do not. So it begins a chain, and that chain stands in no other transform; nothing may average or
    accumulate gradients before it.

    The noise is a hash of seed, step, the leaf's path and the element's index. Whoever may look for weaknesses must
    not know the seed, of which there are 2³²: this is noise for training and for research, not for an adversary.

    Args:
      l2_norm_clip: C ≥ 0, the most that one example may weigh.
      noise_multiplier: σ ≥ 0, the noise of the sum in units of C.
      seed: an integer in [0, 2³²).

    Raises:
      ValueError: a gradient without the axis, or with another B than the others.

    Slots: seed (one uint32).  Lift: treewise, first in a chain.
    Differs from: optax in the noise; and in that an example with an infinity or a NaN counts as 0 instead of making
      all parameters NaN, which would betray it.
    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """
    if not g:
        return [], {}
    clipped, _ = summed_examples(g, l2_norm_clip)
    deviation, batch = noise_multiplier * l2_norm_clip, max(g[0].shape[0], 1)

    def noisy_mean(total: jax.Array, seed: jax.Array) -> jax.Array:
        return (total + deviation.astype(total.dtype) * random_normal(seed, total.shape, total.dtype)) / batch

    return [noisy_mean(total, seed) for total, seed in zip(clipped, seeds, strict=True)], {}
