"""Training parameters of low precision. Both wrappers are outermost: they decide the value that will be stored."""

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, compute_dtype, dtype_of, is_complex, map_arrays, random_bits
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


def _difference(stored: jax.Array, parameter: jax.Array) -> jax.Array:
    return as_compute(stored) - as_compute(parameter)


@registry.register()
@wrapper(needs=("params",), flags=("outermost",), master=Slot(fill=as_compute, exact=True))
def master_weights(run, updates, slots, t, params):
    """Train a float32 copy of the parameters and store its rounding.

        W ← W + inner(g; W)
        u = round(W) − w,      so that w + u = round(W)

    Parameters that are float32 or better are their own master: the copy holds the same bits.

    Slots: master (1 × parameters, float32 or better).  Lift: wrapper, outermost.
    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.1.
    """
    steps, inner = run(updates, slots.master)
    master = map_arrays(jnp.add, slots.master, steps)
    emitted = map_arrays(lambda u, w, p: _difference(w.astype(dtype_of(p)), p), updates, master, params)
    return emitted, inner, {"master": master}


def _round_real(value: jax.Array, dtype: jnp.dtype, bits: jax.Array) -> jax.Array:
    """To one of the two neighbours in `dtype`, the nearer one with the larger probability: E = value.

    Adding random bits below the last one kept carries into it with a probability of what is cut off. Subnormals of
    float16 have a fixed spacing instead.
    """
    info = jnp.finfo(dtype)
    cut = jnp.uint32(jnp.finfo(jnp.float32).nmant - info.nmant)
    dropped = (jnp.uint32(1) << cut) - jnp.uint32(1)
    carried = jax.lax.bitcast_convert_type(value, jnp.uint32) + (bits & dropped)
    rounded = jax.lax.bitcast_convert_type(carried & ~dropped, jnp.float32)
    if info.minexp > jnp.finfo(jnp.float32).minexp:
        spacing = 2.0 ** (info.minexp - info.nmant)
        uniform = (bits >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
        rounded = jnp.where(jnp.abs(value) < 2.0**info.minexp, jnp.floor(value / spacing + uniform) * spacing, rounded)
    return jnp.where(jnp.isfinite(value), rounded, value).astype(dtype)


def round_stochastically(value: jax.Array, dtype: jnp.dtype, seed: jax.Array) -> jax.Array:
    """Round an array to a narrower dtype without bias, with bits that depend on seed and index alone."""
    if compute_dtype(dtype) == dtype:
        return value.astype(dtype)
    return _round_real(value, dtype, random_bits(seed, value.shape))


@registry.register()
@wrapper(needs=("params", "key"), flags=("outermost",))
def stochastic_rounding(run, updates, slots, t, params, seeds):
    """Round new parameters up or down at random, so that steps below half a unit are not lost.

        W = w + inner(g; w)
        u = q − w,      q a neighbour of W in the parameter's dtype, E[q] = W

    The random bits are a hash of seed, step, the leaf's path and the element's index: the same under any sharding,
    in any group, and after a resume. Parameters of float32 or better are left to round as usual.

    Args:
      seed: an integer in [0, 2³²).

    Slots: seed (one uint32).  Lift: wrapper, outermost.
    Source: Gupta et al. 2015, arXiv:1502.02551.
    """
    steps, inner = run(updates)

    def emit(step: jax.Array, parameter: jax.Array, seed: jax.Array) -> jax.Array:
        if is_complex(parameter):
            return step
        target = as_compute(parameter) + step
        return _difference(round_stochastically(target, dtype_of(parameter), seed), parameter)

    return map_arrays(emit, steps, params, seeds), inner, {}
