"""Moving averages of trees, for whoever writes an update by hand: in float32 or better, in the moment's dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, as_default_float, dtype_of, is_complex
from lossopt_jax.transforms import _averages
from lossopt_jax.transforms.tree._arithmetic import over_leaves


def _averaged(where: str, new: Any, updates: Any, moments: Any) -> Any:
    """`new(update, moment)` in compute dtype, as a moment of the old one's dtype."""

    def leaf(g: Any, moment: Any) -> Any:
        made = new(as_compute(g), as_compute(moment))
        return made if made.dtype == dtype_of(moment) else made.astype(dtype_of(moment))

    return over_leaves(where, leaf, updates, moments)


def update_moment(updates: Any, moments: Any, decay: Any, order: Any) -> Any:
    """The moving average of a power.

        m ← β m + (1−β) gᵏ

    Args:
      updates: the tree of g; None gives None.
      moments: the tree of m, whose dtypes the result has.
      decay: β.
      order: k.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.update_moment({"w": jnp.array(3.0)}, {"w": jnp.array(1.0)}, decay=0.5, order=2)
      {'w': Array(5., dtype=float32)}

    Differs from: optax, whose result takes the gradient's dtype where that is wider.
    """
    return _averaged("tree.update_moment", lambda g, m: (1 - decay) * g**order + decay * m, updates, moments)


def update_moment_per_elem_norm(updates: Any, moments: Any, decay: Any, order: Any) -> Any:
    """The moving average of a power of absolute values, for complex leaves; else that of `update_moment`.

    m ← β m + (1−β) |g|ᵏ,      gᵏ where g is real
    """

    def power(g: jax.Array) -> jax.Array:
        if not is_complex(g):
            return g**order
        square = jnp.square(jnp.real(g)) + jnp.square(jnp.imag(g))
        return square if order == 2 else square ** (order / 2)

    name = "tree.update_moment_per_elem_norm"
    return _averaged(name, lambda g, m: (1 - decay) * power(g) + decay * m, updates, moments)


def update_infinity_moment(updates: Any, moments: Any, decay: Any, eps: Any) -> Any:
    """The decaying maximum of absolute values.

    u ← max(|g| + ε, β u)
    """

    def largest(g: jax.Array, u: jax.Array) -> jax.Array:
        now, before = jnp.abs(g) + eps, decay * u
        return jnp.where(now < before, before, now)  # NaN passes

    return _averaged("tree.update_infinity_moment", largest, updates, moments)


def bias_correction(moment: Any, decay: Any, count: Any) -> Any:
    """What a moving average from zero has seen: m / (1 − βᵗ), every leaf in its dtype.

    Args:
      moment: the tree of m.
      decay: β in [0, 1).
      count: t ≥ 1, the values so far.

    Differs from: optax, whose 1 − βᵗ loses up to 1.5e-3 in float32, and which rounds it to a leaf of half precision.
    """
    held = _averages.bias_correction(as_default_float(decay), as_default_float(count))

    def corrected(m: Any) -> jax.Array:
        wide = as_compute(m)
        return (wide / held.astype(wide.dtype)).astype(dtype_of(m))

    return over_leaves("tree.bias_correction", corrected, moment)
