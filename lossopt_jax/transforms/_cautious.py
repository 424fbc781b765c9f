"""Only steps that the newest gradient agrees with."""

from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import Scalar, is_complex, map_arrays
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import apart


@registry.register()
@wrapper()
def cautious(run, updates, slots, t, *, min_fraction: Scalar = 1e-3, flip_sign: bool = False):
    """Drop the elements of an update that go against the gradient, and make up for them with the rest.

        k = [u g > 0]
        u ← u k / max(mean(k), f),  the mean over the array

    Args:
      inner: what makes u; without a rate, such as scale_by_adam. The rate belongs behind.
      min_fraction: f > 0, how few survivors may be enlarged.
      flip_sign: True for an inner that ends in −η, such as adam.

    Lift: wrapper.
    Source: Liang et al. 2024, arXiv:2411.16085, algorithm 1, with its authors' floor under the mean.
    """
    steps, inner = run(updates)

    def agreed(u: jax.Array, g: jax.Array) -> Any:
        keep = ((u * g < 0) if flip_sign else (u * g > 0)).astype(u.dtype)
        share = jnp.sum(keep) / max(keep.size, 1)
        return u * keep / jnp.maximum(share, min_fraction.astype(u.dtype))

    return map_arrays(lambda u, g: apart(agreed, u, g) if is_complex(u) else agreed(u, g), steps, updates), inner, {}
