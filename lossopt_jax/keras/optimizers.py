"""Keras 2's optimizers: its names, arguments, defaults and formulas.

`lr` and `learning_rate` are one argument. `decay` divides the rate by 1 + decay · t, t = 0 at the first step.
`epsilon=None` is 1e-7. `clipnorm` limits the global norm, `clipvalue` then every element, as in Keras 2.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar, StatefulSchedule, complaint, concrete
from lossopt_jax.schedules import inverse_time_decay
from lossopt_jax.transforms import (
    GradientTransformation,
    Slot,
    bias_correction,
    chain,
    clip,
    clip_by_global_norm,
    elementwise,
    scale_by_learning_rate,
    scale_by_rms,
    trace,
)


def _rate(where: str, lr: Any, learning_rate: Any, default: float, decay: Any) -> Any:
    """The rate under either name, decayed."""
    if lr is not None and learning_rate is not None:
        raise TypeError(complaint(where, "the rate", "be given once", "lr and learning_rate", "drop one"))
    rate = next((value for value in (lr, learning_rate) if value is not None), default)
    if concrete(decay) and not 0 <= decay < math.inf:
        raise ValueError(complaint(where, "decay", "be ≥ 0 and finite", decay))
    if concrete(decay) and decay == 0:
        return rate
    if isinstance(rate, StatefulSchedule):
        remedy = "let it decay by itself"
        raise TypeError(complaint(where, "the rate beside decay", "be a function of the step", f"{rate!r}", remedy))
    if callable(rate):
        shrink = inverse_time_decay(1.0, 1, decay)
        return lambda step: rate(step) * shrink(step)
    return inverse_time_decay(rate, 1, decay)


def _clipped(clipnorm: Any, clipvalue: Any, *members: GradientTransformation) -> GradientTransformation:
    norm = [] if clipnorm is None else [clip_by_global_norm(clipnorm)]
    value = [] if clipvalue is None else [clip(clipvalue)]
    return chain(*norm, *value, *members)


def SGD(
    lr: Any = None,
    momentum: Any = 0.0,
    decay: Any = 0.0,
    nesterov: bool = False,
    *,
    learning_rate: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
) -> GradientTransformation:
    """Stochastic gradient descent as in Keras 2.

        η_t = η / (1 + decay · t)
        v ← μ v − η_t g
        w ← w + v,  or w + μ v − η_t g with nesterov

    The velocity keeps the rate of the step that filled it, unlike `lo.optimizers.sgd`; at a constant rate both agree.

    Args:
      lr: η ≥ 0, a number, array or schedule; 0.01 by default.
      momentum: μ in [0, 1).
      decay: ≥ 0.
      nesterov: look one step ahead.
      learning_rate: another name for lr.
      clipnorm: limit of the global norm, or None.
      clipvalue: limit of every element, or None.

    Raises:
      ValueError: an argument out of range.
      TypeError: lr and learning_rate both given.
    """
    rate = scale_by_learning_rate(_rate("SGD", lr, learning_rate, 0.01, decay))
    still = concrete(momentum) and not callable(momentum) and momentum == 0
    return _clipped(clipnorm, clipvalue, rate, *([] if still else [trace(momentum, nesterov)]))


def RMSprop(
    lr: Any = None,
    rho: Any = 0.9,
    epsilon: Any = None,
    decay: Any = 0.0,
    *,
    learning_rate: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
) -> GradientTransformation:
    """RMSprop as in Keras 2, with ε outside the root.

        a ← ρ a + (1−ρ) g²
        w ← w − η_t g / (√a + ε),      η_t = η / (1 + decay · t)

    Args:
      lr: η ≥ 0, a number, array or schedule; 0.001 by default.
      rho: ρ in [0, 1).
      epsilon: ε ≥ 0; None is 1e-7.
      decay: ≥ 0.
      learning_rate: another name for lr.
      clipnorm: limit of the global norm, or None.
      clipvalue: limit of every element, or None.

    Raises:
      ValueError: an argument out of range.
      TypeError: lr and learning_rate both given.
    """
    rate = scale_by_learning_rate(_rate("RMSprop", lr, learning_rate, 0.001, decay))
    return _clipped(clipnorm, clipvalue, scale_by_rms(rho, _epsilon(epsilon), eps_in_sqrt=False), rate)


def Adam(
    lr: Any = None,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = None,
    decay: Any = 0.0,
    amsgrad: bool = False,
    *,
    learning_rate: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
) -> GradientTransformation:
    """Adam as in Keras 2 and 3, whose ε is not corrected with the second moment.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) g²
        w ← w − η_t √(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε),      v^ = max(v^, v) in place of v with amsgrad

    Args:
      lr: η ≥ 0, a number, array or schedule; 0.001 by default.
      beta_1: β₁ in [0, 1).
      beta_2: β₂ in [0, 1).
      epsilon: ε ≥ 0; None is 1e-7.
      decay: ≥ 0, as in RMSprop.
      amsgrad: divide by the largest second moment so far.
      learning_rate: another name for lr.
      clipnorm: limit of the global norm, or None.
      clipvalue: limit of every element, or None.

    Raises:
      ValueError: an argument out of range.
      TypeError: lr and learning_rate both given.

    Differs from: `lo.optimizers.adam`, whose ε is larger by 1/√(1−β₂ᵗ) in these terms (31.6 times at the first step).
    """
    rate = scale_by_learning_rate(_rate("Adam", lr, learning_rate, 0.001, decay))
    rule = scale_by_amsgrad_hat if amsgrad else scale_by_adam_hat
    return _clipped(clipnorm, clipvalue, rule(beta_1, beta_2, _epsilon(epsilon)), rate)


def _epsilon(epsilon: Any) -> Any:
    return 1e-7 if epsilon is None else epsilon


def _hat(mu: jax.Array, nu: jax.Array, t: jax.Array, b1: jax.Array, b2: jax.Array, eps: jax.Array) -> jax.Array:
    return sqrt(bias_correction(b2, t)) / bias_correction(b1, t) * mu / (sqrt(nu) + eps)


@elementwise(mu=Slot(), nu=Slot(nonnegative=True))
def scale_by_adam_hat(g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-7):
    """Adam's direction in the "ε-hat" form: u = √(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε).

    Source: Kingma & Ba 2015, arXiv:1412.6980, the remark before section 2.1.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    return _hat(mu, nu, t, b1, b2, eps), {"mu": mu, "nu": nu}


@elementwise(mu=Slot(), nu=Slot(nonnegative=True), nu_max=Slot(nonnegative=True))
def scale_by_amsgrad_hat(g, slots, t, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-7):
    """The same over the largest second moment so far."""
    mu = b1 * slots.mu + (1 - b1) * g
    nu = b2 * slots.nu + (1 - b2) * g * g
    nu_max = jnp.maximum(slots.nu_max, nu)
    return _hat(mu, nu_max, t, b1, b2, eps), {"mu": mu, "nu": nu, "nu_max": nu_max}
