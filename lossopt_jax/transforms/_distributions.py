"""Distributions to draw from and to differentiate: noise around a point."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, check_real_leaves, complaint, widest_float

_LOG_ROOT_TWO_PI = math.log(2 * math.pi) / 2


@dataclasses.dataclass(frozen=True)
class Normal:
    """The normal distribution of mean 0 and variance 1.

        log p(z) = −z²/2 − ½ log 2π

    Differs from: optax, whose `log_prob` leaves out the constant, which no derivative sees.
    """

    def sample(self, key: Any, sample_shape: Sequence[int] = (), dtype: Any = float) -> jax.Array:
        """Draw an array of independent values.

        Args:
          key: a JAX key.
          sample_shape: its shape.
          dtype: its dtype, floating; float for JAX's default.
        """
        return jax.random.normal(key, tuple(sample_shape), dtype)

    def log_prob(self, inputs: Any) -> jax.Array:
        """The logarithm of the density at each element, in float32, or float64 where the input is."""
        z = as_compute(inputs)
        return -z * z / 2 - _LOG_ROOT_TWO_PI


@dataclasses.dataclass(frozen=True)
class Gumbel:
    """The Gumbel distribution of mode 0 and scale 1: mean 0.5772, variance π²/6.

        log p(z) = −z − exp(−z)

    The largest of x + σz lies at i with the probability softmax(x/σ)ᵢ.
    """

    def sample(self, key: Any, sample_shape: Sequence[int] = (), dtype: Any = float) -> jax.Array:
        """As `Normal.sample`."""
        return jax.random.gumbel(key, tuple(sample_shape), dtype)

    def log_prob(self, inputs: Any) -> jax.Array:
        """As `Normal.log_prob`."""
        z = as_compute(inputs)
        return -z - jnp.exp(-z)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MultiNormal:
    """Independent normal values, each with its own mean and scale; a pytree of the two arrays. See `multi_normal`."""

    loc: jax.Array
    log_scale: jax.Array

    @property
    def params(self) -> list[jax.Array]:
        """Means and logarithms of scales, as they were given."""
        return [self.loc, self.log_scale]

    def _spread(self) -> tuple[jax.Array, jax.Array]:
        """Both in one shape and dtype."""
        shape = jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.log_scale))
        arrays = [as_compute(x) for x in self.params]
        dtype = widest_float(x.dtype for x in arrays)
        loc, log_scale = (jnp.broadcast_to(x.astype(dtype), shape) for x in arrays)
        return loc, log_scale

    def sample(self, shape: Sequence[int], key: Any) -> jax.Array:
        """Draw vectors: μ + exp(s) z, differentiable in μ and s.

        Args:
          shape: how many.
          key: a JAX key.

        Returns:
          [*shape, *the shape of the parameters], in float32, or float64 where a parameter is.
        """
        loc, log_scale = self._spread()
        whole = (*shape, *loc.shape)
        z = jax.random.normal(key, whole, loc.dtype)
        return jnp.broadcast_to(loc, whole) + jnp.broadcast_to(jnp.exp(log_scale), whole) * z

    def log_prob(self, x: Any) -> jax.Array:
        """The logarithm of the density, summed over the axes of the parameters.

        Args:
          x: [..., *the shape of the parameters], real.

        Returns:
          [...], in float32, or float64 where x or a parameter is.

        Raises:
          ValueError: x does not end with the shape of the parameters.
        """
        loc, log_scale = self._spread()
        leading = jnp.ndim(x) - loc.ndim
        if leading < 0 or jnp.shape(x)[leading:] != loc.shape:
            raise ValueError(complaint("multi_normal.log_prob", "x", f"have the shape (…, *{loc.shape})", jnp.shape(x)))
        x = as_compute(x)
        dtype = widest_float((x.dtype, loc.dtype))
        loc, log_scale = (jnp.broadcast_to(value.astype(dtype), x.shape) for value in (loc, log_scale))
        half = jnp.exp(-log_scale / 2)  # twice: the whole leaves float32 at s = −88
        z = (x.astype(dtype) - loc) * half * half
        return jnp.sum(-z * z / 2 - log_scale - _LOG_ROOT_TWO_PI, axis=tuple(range(leading, x.ndim)))


def multi_normal(loc: Any, log_scale: Any) -> MultiNormal:
    """Independent normal values with means μ and scales exp(s): a multivariate normal of diagonal covariance.

        x = μ + exp(s) z,      log p(x) = Σᵢ −(xᵢ − μᵢ)²/(2 exp(2sᵢ)) − sᵢ − ½ log 2π

    Args:
      loc: μ, a real array of any shape.
      log_scale: s, the logarithm of the standard deviation. The shapes of both are broadcast to one.

    Returns:
      An object with `sample(shape, key)`, `log_prob(x)`, `log_scale` and `params`, which is [μ, s]; a pytree.

    Raises:
      ValueError: shapes that cannot be broadcast.
      TypeError: no real floating array.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> noise = lo.transforms.multi_normal(jnp.zeros(3), jnp.full(3, -1.0))
      >>> noise.sample((2,), jax.random.key(0)).shape
      (2, 3)
      >>> noise.log_prob(jnp.zeros((2, 3)))
      Array([0.24318, 0.24318], dtype=float32)

    Differs from: optax, whose `log_prob` is NaN for log_scale ≤ −44 in float32, and spreads an x of fewer axes over
      all parameters.
    """
    arrays = {"loc": loc, "log_scale": log_scale}
    check_real_leaves("multi_normal", arrays, "pass floating arrays")
    try:
        jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(log_scale))
    except ValueError:
        must, got = "have shapes that broadcast", f"{jnp.shape(loc)} and {jnp.shape(log_scale)}"
        raise ValueError(complaint("multi_normal", "loc and log_scale", must, got)) from None
    return MultiNormal(jnp.asarray(loc), jnp.asarray(log_scale))
