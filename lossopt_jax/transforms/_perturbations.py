"""Derivatives of functions that have none: their means under noise."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    COUNT,
    POSITIVE,
    as_compute,
    as_default_float,
    check_real_leaves,
    check_scalar,
    complaint,
    compute_dtype,
    dtype_of,
    standard_promotion,
    widest_float,
)
from lossopt_jax.transforms._distributions import Gumbel
from lossopt_jax.transforms._microbatching import microbatch

_NAME = "make_perturbed_fun"
_GUMBEL = Gumbel()


def _score(noise: Any, z: list[jax.Array], x: list[jax.Array], sigma: jax.Array, dtype: Any) -> jax.Array:
    """Log p(y | x, σ) at y = x + σz held fixed, of which only derivatives matter.

    As a function of z, whose value is known: (y − x)/σ would lose the digits of z that y has no room for.
    """
    held = jax.lax.stop_gradient
    total = jnp.zeros((), dtype)
    for draw, centre in zip(z, x, strict=True):
        scale = sigma.astype(centre.dtype)
        seen = held(scale) / scale * draw - (centre - held(centre)) / scale
        with standard_promotion():
            log_prob = noise.log_prob(seen)
        total += jnp.sum(log_prob).astype(dtype) - draw.size * jnp.log(scale).astype(dtype)
    return total


def make_perturbed_fun(
    fun: Callable[[Any], Any],
    num_samples: int = 1000,
    sigma: Any = 0.1,
    noise: Any = _GUMBEL,
    use_baseline: bool = True,
    *,
    batch_size: int | None = None,
) -> Callable[[Any, Any], Any]:
    """Smooth a function by noise, so that it has derivatives: for choices, sorting, ranking, shortest paths.

        F(x) = E f(x + σz) ≈ (1/n) Σᵢ f(yᵢ),      yᵢ = x + σzᵢ
        ∇F(x) ≈ (1/n) Σᵢ (f(yᵢ) − f(x)) ∇ₓ log p(yᵢ | x, σ)

    Value and derivatives of any order, forward and reverse, in x and in σ, are unbiased estimates from values of f
    alone, from the same n samples. Their error falls as 1/√n, and grows as 1/σᵏ in the k-th derivative.

    Args:
      fun: f, from a tree of real floating arrays to a tree of arrays; it need have no derivative.
      num_samples: n ≥ 1.
      sigma: σ > 0, a number or a traced one.
      noise: p, with `sample(key, sample_shape, dtype)` and `log_prob(z)`, which must have a derivative: `Gumbel()`,
        `Normal()`. Each element gets a draw of its own.
      use_baseline: take f(x) away in the derivatives: the same mean, less variance, one more f.
      batch_size: samples at once; None for all. A derivative then evaluates f again, in bounded memory.

    Returns:
      (key, x) → F(x), a tree like that of f: floating and complex arrays in f's dtype, the means of integers and
      booleans in float32, or float64 where x is. The same key gives the same samples.

    Raises:
      TypeError: noise without the two methods, a fun that is no function, an x that is not real and floating.
      ValueError: num_samples, sigma or batch_size out of range.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> choose = lambda x: jax.nn.one_hot(jnp.argmax(x), 3)
      >>> soft = lo.transforms.make_perturbed_fun(choose, 10_000, sigma=1.0)
      >>> x = jnp.array([1.0, 0.0, 2.0])
      >>> bool(jnp.allclose(soft(jax.random.key(0), x), jax.nn.softmax(x), atol=0.02))
      True

    Differs from: optax, whose samples for a key are these, in that z keeps its digits where x ≫ σ, that the derivative
      in sigma is right, and that noise and products are float32 where x is of half precision.
    Source: Berthet et al. 2020, arXiv:2002.08676, section 3; Foerster et al. 2018, arXiv:1802.05098,
      for derivatives of any order.
    """
    check_scalar(_NAME, "num_samples", num_samples, within=COUNT)
    check_scalar(_NAME, "sigma", sigma, within=POSITIVE)
    if batch_size is not None:
        check_scalar(_NAME, "batch_size", batch_size, within=COUNT)
    if not callable(fun):
        raise TypeError(complaint(_NAME, "fun", "be a function", f"{fun!r}"))
    if not (callable(getattr(noise, "sample", None)) and callable(getattr(noise, "log_prob", None))):
        raise TypeError(
            complaint(_NAME, "noise", "have sample and log_prob", f"{noise!r}", "pass Gumbel() or Normal()")
        )

    @functools.wraps(fun)
    def perturbed(key: Any, inputs: Any) -> Any:
        check_real_leaves(_NAME, inputs, "pass None for what is not to be perturbed")
        given, treedef = jax.tree.flatten(inputs)
        x, held = [as_compute(leaf) for leaf in given], jax.lax.stop_gradient
        dtype, scale = widest_float(leaf.dtype for leaf in x), as_default_float(sigma)

        def at(points: list[jax.Array]) -> Any:
            own = [held(point).astype(dtype_of(leaf)) for point, leaf in zip(points, given, strict=True)]
            with standard_promotion():
                return jax.tree.map(jnp.asarray, fun(treedef.unflatten(own)))

        def wide(value: jax.Array) -> jax.Array:
            inexact = jnp.issubdtype(value.dtype, jnp.inexact)
            return value.astype(compute_dtype(value.dtype) if inexact else dtype)

        centre = at(x) if use_baseline else jax.eval_shape(at, x)

        def one(key: jax.Array) -> Any:
            keys = jax.random.split(key, len(x))
            z = [noise.sample(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, x, strict=True)]
            score = _score(noise, z, x, scale, dtype)
            # zero, with the derivatives of p(y)/p(y held): all that x does to the law of y, to any order
            change = jnp.expm1(score - held(score))

            def leaf_of(value: jax.Array, base: jax.Array) -> jax.Array:
                value = wide(value)
                return value + change.astype(value.dtype) * (value - wide(base) if use_baseline else value)

            points = [leaf + scale.astype(leaf.dtype) * draw for leaf, draw in zip(x, z, strict=True)]
            return jax.tree.map(leaf_of, at(points), centre)

        def mean(keys: jax.Array) -> Any:
            return jax.tree.map(lambda values: jnp.mean(values, axis=0), jax.vmap(one)(keys))

        if batch_size is not None:
            mean = microbatch(jax.checkpoint(mean), 0, batch_size, "mean")
        means = mean(jax.random.split(key, num_samples))

        def narrow(value: jax.Array, base: Any) -> jax.Array:
            return value.astype(base.dtype) if jnp.issubdtype(base.dtype, jnp.inexact) else value

        return jax.tree.map(narrow, means, centre)

    return perturbed
