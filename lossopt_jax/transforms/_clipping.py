"""Bounds on gradients."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    NONNEGATIVE,
    POSITIVE,
    Scalar,
    as_compute,
    axes_of,
    complaint,
    is_complex,
    is_trainable,
    widest_float,
)
from lossopt_jax.kernels import norm
from lossopt_jax.transforms._lift import elementwise, leafwise, treewise
from lossopt_jax.transforms._registry import registry


def global_norm(updates: Any) -> jax.Array:
    """The Euclidean norm of all elements of a tree, as if it were one vector.

        ‖g‖ = √ Σ |g|²

    Taken in float32 (float64 where a leaf is), from lowered or raised elements where their squares would overflow or
    vanish, so the result is finite and accurate wherever it fits. No leaves: 0. A NaN or an infinity stays one. The
    gradient is g/‖g‖, and 0 at 0.

    Args:
      updates: a tree of floating or complex arrays; None and other leaves do not count.

    Returns:
      [], float32 or float64.

    Differs from: optax, which squares in the leaf's dtype (1000 bfloat16 leaves of four ones give 32 for 63.2).
    Source: Blue 1978, doi:10.1145/355769.355771, for the three sums.
    """
    return length([leaf for leaf in jax.tree.leaves(updates) if is_trainable(leaf)])


def length(arrays: list[Any]) -> jax.Array:
    """The Euclidean norm of some arrays, integers too, as if they were one vector; see `global_norm`."""
    leaves = [as_compute(x) for x in arrays]
    parts = [part for x in leaves for part in ((jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,)) if part.size]
    dtype = widest_float(part.dtype for part in parts)
    return norm(*(x if x.dtype == dtype else x.astype(dtype) for x in parts)) if parts else jnp.zeros((), dtype)


def root_mean_square(x: jax.Array) -> jax.Array:
    """‖x‖ / √size of one array, 0 without elements."""
    return global_norm(x) / max(x.size, 1) ** 0.5


@registry.register()
@elementwise()
def clip(g, slots, t, *, max_delta: Scalar):
    """Limit every element: u = min(max(g, −c), c). NaN stays NaN.

    Args:
      max_delta: c ≥ 0.

    Lift: elementwise.
    """
    return jnp.clip(g, -max_delta, max_delta), {}


def _excess(whole, g, slots, t, *, threshold):
    return jnp.maximum(1, whole.root_mean_square(g) / threshold), {}


@registry.register()
@leafwise(measure=_excess)
def clip_by_block_rms(g, slots, t, excess, *, threshold: Annotated[Scalar, POSITIVE]):
    """Limit the root mean square of every array: u = g / max(1, rms(g)/d).

    Args:
      threshold: d > 0.

    Lift: leafwise.
    Source: Shazeer & Stern 2018, arXiv:1804.04235, section 6.
    """
    return g / excess, {}


def beyond(most: jax.Array, norm: jax.Array) -> jax.Array:
    """‖g‖ where it is above c, and 0 where there is nothing to shrink or it is not finite."""
    return jnp.where(jnp.isfinite(norm) & (norm > most), norm, 0)


def shrunk(g: jax.Array, most: jax.Array, norm: jax.Array) -> jax.Array:
    """g c / ‖g‖ for a norm that is `beyond` c, and exactly g for 0.

    In two steps where the factor alone is below all normal numbers. (c (g / ‖g‖) would not do: XLA makes it g (1/‖g‖).)
    """
    shrink = norm > 0
    norm, lowest = jnp.where(shrink, norm, 1), jnp.asarray(2.0 ** -(jnp.finfo(g.dtype).maxexp * 3 // 4), g.dtype)
    first = jnp.where((norm > 1) & (most / norm < lowest), lowest, 1)
    return jnp.where(shrink, most / (norm * first), 1) * (first * g)


def _array_beyond(whole, g, slots, t, *, max_norm):
    return beyond(max_norm, whole.norm(g)), {}


@registry.register()
@leafwise(measure=_array_beyond)
def clip_by_norm(g, slots, t, norm, *, max_norm: Scalar):
    """Scale every array down to a norm: u = g · min(1, c / ‖g‖), ‖g‖ of that array alone.

    The array stays exactly as it is where its norm is within c, and where that is not finite. c = 0 gives zeros.

    Args:
      max_norm: c ≥ 0.

    Lift: leafwise.
    Differs from: optax, which has none; Keras 3's `clipnorm`, the same but for infinite and tiny norms; Keras 2's,
      which is `clip_by_global_norm`.
    """
    return shrunk(g, max_norm, norm), {}


def _unit_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which one unit's weights lie, in kernels whose last axis counts the outputs."""
    if sum(length > 1 for length in shape) <= 1:
        return tuple(range(len(shape)))
    return (0,) if len(shape) <= 3 else tuple(range(len(shape) - 1))


def powers_of_two(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """What brings the largest absolute value along some axes, which stay, to where squares neither overflow nor vanish.

    1 where it is there.
    """
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    exponent = jnp.finfo(x.dtype).maxexp
    middle, shift = 2.0 ** (exponent // 4), 2.0 ** (exponent * 5 // 8)
    scale = jnp.where(largest > middle, 1 / shift, jnp.where(largest < 1 / middle, shift, 1))
    return jax.lax.stop_gradient(scale.astype(largest.dtype))


def length_of_units(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The Euclidean norm along some axes, which stay with length 1, finite wherever it fits; its gradient is 0 at 0."""
    scale = powers_of_two(x, axes)
    parts = (jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,)
    total = sum(jnp.sum(jnp.square(scale * part), axes, keepdims=True) for part in parts)
    return jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total))) * (1 / scale)


def unitwise_norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm of every unit, in the place of each of its elements.

    Taken in float32 (float64 where the array is), and finite wherever it fits.

    Args:
      x: [...], floating, complex or integer.
      axis: the axes along which the elements of a unit lie; None for those of `adaptive_grad_clip`.

    Returns:
      float32 or float64, of the shape of `x`.

    Differs from: optax, whose squares overflow and vanish, and which takes five axes at most.
    """
    x = as_compute(x)
    axes = _unit_of(x.shape) if axis is None else axes_of("unitwise_norm", axis, x.ndim)
    return jnp.broadcast_to(length_of_units(x, axes), x.shape)


def unitwise_clip(g_norm: jax.Array, max_norm: jax.Array, grad: jax.Array, div_eps: Any = 1e-6) -> jax.Array:
    """Scale every unit of a gradient down to a norm: u = g · min(1, c / max(‖g‖, ε)).

    A unit stays exactly as it is where its norm is below c or not finite.

    Args:
      g_norm: ‖g‖ of each element's unit, as `unitwise_norm` returns it.
      max_norm: c, of the same shape.
      grad: g, floating or complex, of the same shape; the result has its dtype.
      div_eps: ε ≥ 0, what a norm counts as at least.

    Raises:
      ValueError: shapes that differ.
    """
    shapes = [jnp.shape(x) for x in (g_norm, max_norm, grad)]
    if len(set(shapes)) > 1:
        raise ValueError(complaint("unitwise_clip", "g_norm, max_norm and grad", "have one shape", f"{shapes}"))
    g = as_compute(grad)
    norms, most, least = (jnp.asarray(x).astype(jnp.finfo(g.dtype).dtype) for x in (g_norm, max_norm, div_eps))
    longer = beyond(most, norms)
    longer = jnp.where(longer > 0, jnp.maximum(longer, least), 0)
    parts = [shrunk(part, most, longer) for part in ((jnp.real(g), jnp.imag(g)) if is_complex(g) else (g,))]
    return (jax.lax.complex(*parts) if is_complex(g) else parts[0]).astype(grad.dtype)


@registry.register()
@leafwise(needs=("params",))
def adaptive_grad_clip(
    g,
    slots,
    t,
    p,
    *,
    clipping: Annotated[Scalar, NONNEGATIVE],
    eps: Annotated[Scalar, NONNEGATIVE] = 1e-3,
    axis: int | tuple[int, ...] | None = None,
):
    """Keep every unit's gradient small beside its weights (AGC).

        u = g · min(1, c max(‖w‖, ε) / ‖g‖),      norms over one unit

    A unit is a vector as a whole, also one with further axes of length 1; a column of a matrix; in a convolution's
    kernel of rank 4 and more all that one output is made from; in rank 3, as in attention heads, what lies along the
    first axis. A unit whose gradient is not finite stays as it is.

    Args:
      clipping: c ≥ 0, 0.01 to 0.16 in the paper.
      eps: ε ≥ 0, what a unit's norm counts as at least, so that zeros can move.
      axis: the axes along which the weights of a unit lie, in arrays of two axes and more; None for the above.

    Raises:
      ValueError: an axis that an array of two axes and more lacks.

    Needs the parameters.  Lift: leafwise.
    Differs from: optax, whose squares overflow and vanish, and which gives NaN where a gradient is infinite.
    Source: Brock et al. 2021, arXiv:2102.06171, equation 3.
    """
    axes = _unit_of(g.shape) if axis is None or g.ndim < 2 else axes_of("adaptive_grad_clip", axis, g.ndim)
    most = clipping * jnp.maximum(length_of_units(p, axes), eps)
    return shrunk(g, most, beyond(most, length_of_units(g, axes))), {}


def _tree_beyond(gradients, t, *, max_norm, per_group):
    return beyond(max_norm, global_norm(gradients).astype(max_norm.dtype))


@registry.register()
@treewise(measure=_tree_beyond, flags=("global_statistic",))
def clip_by_global_norm(g, slots, t, norm, *, max_norm: Scalar, per_group: bool = False):
    """Scale the whole tree down to a norm.

        u = g · min(1, c / ‖g‖),      ‖g‖ over all leaves

    One float32 norm, which divides the gradient where that is used. The tree stays exactly as it is where its norm is
    within c, and where that is not finite, since then no factor helps (a guard such as the train step's must skip the
    step). c = 0 gives zeros.

    Args:
      max_norm: c ≥ 0.
      per_group: say True to clip by the norm of a group inside `partition` or `masked`; refused there otherwise.

    Lift: treewise.
    Differs from: optax in half precision and for huge, tiny and infinite gradients (see `global_norm`); torch adds
      1e-6 to the norm.
    Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """
    return shrunk(g, max_norm, norm), {}
