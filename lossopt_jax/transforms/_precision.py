"""Training parameters of low precision. The wrappers are outermost: they decide the value that will be stored."""

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, compute_dtype, dtype_of, is_complex, map_arrays
from lossopt_jax.kernels import round_stochastically
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


def _difference(stored: jax.Array, parameter: jax.Array) -> jax.Array:
    return as_compute(stored) - as_compute(parameter)


def nearest(value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Round to the nearest number of a dtype, and stay in compute dtype.

    XLA may leave out a conversion there and back, as "excess precision"; this it keeps.
    """
    if compute_dtype(dtype) == dtype:
        return value
    info = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(value, info.nexp, info.nmant)
    if info.minexp > jnp.finfo(value.dtype).minexp:  # which flushes subnormals
        spacing = 2.0 ** (info.minexp - info.nmant)
        rounded = jnp.where(jnp.abs(value) < 2.0**info.minexp, jnp.round(value / spacing) * spacing, rounded)
    return rounded


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


def _low_word(parameter: jax.Array) -> jax.Array | None:
    return None if compute_dtype(parameter.dtype) == parameter.dtype else jnp.zeros_like(parameter)


@registry.register()
@wrapper(needs=("params",), flags=("outermost",), low=Slot(fill=_low_word, dtype="param", exact=True))
def kahan(run, updates, slots, t, params):
    """Keep what rounding a parameter cuts off, and add it to the next step: about twice the mantissa.

        y = c + inner(g; w + c)
        u = round(y),  w⁺ = round(w + u)
        c ← round(y − (w⁺ − w))

    The steps of `master_weights` for the memory of one more parameter: 4 bytes in bfloat16 where those take 6. w + c
    has some 16 bits, so that steps down to 2⁻¹⁶ of a parameter count. Parameters of float32 or better are left to round
    as usual.

    Slots: low (c, 1 × parameters of half precision, in their dtype).  Lift: wrapper, outermost.
    Source: Zamirai et al. 2020, arXiv:2010.06192, algorithm 1, with sums in float32.
    """
    steps, inner = run(updates, map_arrays(lambda p, c: as_compute(p) + as_compute(c), params, slots.low))
    wanted = map_arrays(lambda u, c: u + as_compute(c), steps, slots.low)
    emitted = map_arrays(lambda y, p: nearest(y, dtype_of(p)), wanted, params)

    def cut_off(c: jax.Array, y: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
        old = as_compute(p)
        new = nearest(old + u, dtype_of(p))
        return jnp.where(jnp.isfinite(new), y - (new - old), 0).astype(c.dtype)

    return emitted, inner, {"low": map_arrays(cut_off, slots.low, wanted, emitted, params)}
