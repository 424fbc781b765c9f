"""Gradients that say little about any one example."""

from typing import Annotated

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, Scalar, random_normal
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
