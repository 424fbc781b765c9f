"""Only steps that the newest gradient agrees with."""

from typing import Annotated

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, Scalar, is_complex, map_arrays
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import apart


@registry.register()
@wrapper()
def cautious(run, updates, slots, t, *, min_fraction: Annotated[Scalar, NONNEGATIVE] = 1e-3, flip_sign: bool = False):
    """Drop the elements of an update that go against the gradient, and make up for them with the rest.

        k = [sign(u) = sign(g) ≠ 0]
        u ← u k / max(mean(k), f),  the mean over the array

    Args:
      inner: what makes u; without a rate, such as scale_by_adam. Rate and weight decay belong behind.
      min_fraction: f ≥ 0, which bounds how much the rest may be enlarged.
      flip_sign: True for an inner that ends in −η, such as adam.

    Lift: wrapper.
    Source: Liang et al. 2024, arXiv:2411.16085, algorithm 1, with the floor under the mean of its authors' AdamW.
    """
    steps, inner = run(updates)

    def agreed(u: jax.Array, g: jax.Array) -> jax.Array:
        # signs, since a product of tiny numbers is 0
        keep = jnp.sign(u) * jnp.sign(g) == (-1 if flip_sign else 1)
        share = jnp.sum(keep, dtype=jnp.int32).astype(u.dtype) / max(keep.size, 1)
        share = jnp.maximum(share, min_fraction.astype(u.dtype))
        return jnp.where(keep, u / jnp.where(share > 0, share, 1), 0)

    return map_arrays(lambda u, g: apart(agreed, u, g) if is_complex(u) else agreed(u, g), steps, updates), inner, {}
