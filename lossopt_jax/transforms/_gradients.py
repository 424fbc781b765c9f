"""Gradients changed before a rule sees them: repaired, centred, noisy, optimistic, with less variance."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    NONNEGATIVE,
    Scalar,
    as_compute,
    as_default_float,
    axes_of,
    check_scalar,
    concrete,
    is_trainable,
    map_arrays,
    random_normal,
)
from lossopt_jax.transforms._clipping import beyond, global_norm, shrunk
from lossopt_jax.transforms._lift import elementwise, leafwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@elementwise()
def zero_nans(g, slots, t, *, infinities: bool = False):
    """Replace NaNs by 0: the elements that are known go on. Infinities stay, unless asked.

    Args:
      infinities: replace ±∞ too.

    Lift: elementwise.
    Differs from: optax, which keeps a flag per array in its state.
    """
    return jnp.where(jnp.isfinite(g) if infinities else ~jnp.isnan(g), g, 0), {}


def _mean_of(whole, g, slots, t, *, axis):
    if g.ndim < 2:
        return jnp.zeros((), g.dtype), {}
    axes = tuple(range(1, g.ndim)) if axis is None else axes_of("centralize", axis, g.ndim)
    return whole.mean(g, axes, keepdims=True), {}


@registry.register()
@leafwise(measure=_mean_of)
def centralize(g, slots, t, mean, *, axis: int | tuple[int, ...] | None = None):
    """Take the mean away from every array of two axes and more: u = g − mean(g). Vectors stay as they are.

    Args:
      axis: along which to average; None for all but the first. The paper's means run over all that one output is made
        from: `axis=0` for a dense kernel (inputs, outputs), `(0, 1, 2)` for a convolution's (height, width, inputs,
        outputs).

    Raises:
      ValueError: an axis that an array of two axes and more lacks.

    Lift: leafwise.
    Source: Yong et al. 2020, arXiv:2004.01461, equation 1.
    """
    return g - mean, {}


@registry.register()
@leafwise(needs=("key",))
def add_noise(g, slots, t, seed, *, eta: Annotated[Scalar, NONNEGATIVE], gamma: Scalar):
    """Add Gaussian noise that fades.

        u = g + √(η / t^γ) n,      n of N(0, 1)

    The noise is a hash of seed, step, the leaf's path and the element's index: the same under any sharding, in any
    group, and after a resume.

    Args:
      eta: η ≥ 0, the variance at t = 1.
      gamma: γ, how fast the variance falls.
      seed: an integer in [0, 2³²).

    Slots: seed (one uint32).  Lift: leafwise.
    Source: Neelakantan et al. 2015, arXiv:1511.06807.
    """
    return g + jnp.sqrt(eta / t**gamma) * random_normal(seed, g.shape, g.dtype), {}


@registry.register()
@elementwise(before=Slot(exact=True))
def scale_by_optimistic_gradient(g, slots, t, *, alpha: Scalar = 1.0, beta: Scalar = 1.0):
    """Expect the next gradient to change as the last one did.

        u = α g + β (g − g₋),      g₋ = g at t = 1

    Args:
      alpha: α.
      beta: β, the strength of optimism.

    Slots: before (1 × parameters).  Lift: elementwise.
    Source: Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511.
    """
    return alpha * g + beta * jnp.where(t > 1, g - slots.before, 0), {"before": g}


@registry.register()
@elementwise(before=Slot(exact=True))
def scale_by_optimistic_learning_rate(g, slots, t, *, learning_rate: Scalar, optimism: Annotated[Scalar, NONNEGATIVE]):
    """Multiply by −η, with an optimism that is a rate of its own.

        u = −η g − o (g − g₋),      g₋ = g at t = 1

    Args:
      learning_rate: η ≥ 0.
      optimism: o ≥ 0; as `scale_by_optimistic_gradient` where it is η.

    Slots: before (1 × parameters).  Lift: elementwise.
    Source: Daskalakis et al. 2018, arXiv:1711.00141.
    """
    return -learning_rate * g - optimism * jnp.where(t > 1, g - slots.before, 0), {"before": g}


@registry.register()
@leafwise(before=Slot(exact=True))
def correct_by_previous_gradient(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.95,
    gamma: Annotated[Scalar, NONNEGATIVE] = 0.025,
    max_norm: Scalar = 1.0,
):
    """Reduce a gradient's variance by its difference from the one before, as MARS does.

        c = g + γ β₁/(1−β₁) (g − g₋),      g₋ = 0 at t = 1
        u = c min(1, n/‖c‖),      ‖c‖ of the array

    Args:
      b1: β₁ in [0, 1), that of the rule behind.
      gamma: γ ≥ 0, how much of the correction to take.
      max_norm: n ≥ 0.

    Slots: before (1 × parameters).  Lift: leafwise.
    Source: Yuan et al. 2024, arXiv:2411.10438, algorithm 2 with the gradient of the step before, and its authors'
      code.
    """
    corrected = g + gamma * b1 / (1 - b1) * (g - slots.before)
    return shrunk(corrected, max_norm, beyond(max_norm, global_norm(corrected))), {"before": g}


@jax.custom_jvp
def _passed_on(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x


@_passed_on.defjvp
def _scaled_tangent(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> Any:
    x, scale = primals
    wide = as_compute(tangents[0])
    return _passed_on(x, scale), jnp.where(scale == 0, 0, scale.astype(wide.dtype) * wide).astype(x.dtype)


def scale_gradient(inputs: Any, scale: Any) -> Any:
    """Pass values on as they are, and their derivatives multiplied by a number.

        y = x,      ∂y/∂x = s

    For a part of a model that is to learn slower, or against the rest (s < 0). In forward and in reverse mode, to any
    order; the product is taken in float32 or better.

    Args:
      inputs: x, a tree; only floating and complex arrays have derivatives to scale.
      scale: s, a real number, which may be traced. 0 gives 0, whatever the derivative; `scale` has none of its own.

    Returns:
      The same values in the same tree.

    Raises:
      TypeError: a scale that is no real number.
      ValueError: a scale that is an array with axes, or NaN.

    Example:
      >>> import jax, lossopt_jax as lo
      >>> jax.grad(lambda x: lo.transforms.scale_gradient(x, -0.5) ** 2)(3.0)
      Array(-3., dtype=float32, weak_type=True)

    Differs from: optax, which has no forward mode and no traced scale.
    """
    check_scalar("scale_gradient", "scale", scale)
    if concrete(scale) and scale == 0:
        return jax.lax.stop_gradient(inputs)
    factor = as_default_float(scale)
    return map_arrays(lambda x: _passed_on(jnp.asarray(x), factor) if is_trainable(x) else x, inputs)
