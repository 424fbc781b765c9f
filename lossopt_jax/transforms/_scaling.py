"""Factors and additions without memory."""

from typing import Any

import jax.numpy as jnp

from lossopt_jax._core import Scalar, as_compute, complaint
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._chain import chain
from lossopt_jax.transforms._groups import masked
from lossopt_jax.transforms._lift import elementwise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


@registry.register()
@elementwise()
def scale(g, slots, t, *, step_size: Scalar):
    """Multiply by a number: u = s g.

    Args:
      step_size: s, any real number.

    Lift: elementwise.
    """
    return step_size * g, {}


@registry.register()
@elementwise()
def scale_by_learning_rate(g, slots, t, *, learning_rate: Scalar, flip_sign: bool = True):
    """Multiply by −η, which turns a gradient into a step downhill.

        u = −η g,  or η g without flip_sign

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; in the state as "learning_rate".
      flip_sign: False to climb.

    Lift: elementwise.
    """
    return (-learning_rate if flip_sign else learning_rate) * g, {}


@registry.register()
def scale_by_schedule(step_size_fn: Any) -> GradientTransformation:
    """Multiply by a schedule: u = s(step) g, step = 0 at the first update. The sign is the schedule's.

    Args:
      step_size_fn: step (int32) → number; in the state as "step_size".

    Raises:
      TypeError: no callable.

    Lift: elementwise.
    """
    if not callable(step_size_fn):
        raise TypeError(complaint("scale_by_schedule", "step_size_fn", "be callable", f"{step_size_fn!r}", "use scale"))
    return scale(step_size_fn)


@registry.register()
@elementwise(needs=("params",))
def keep_params_nonnegative(g, slots, t, p):
    """Let no parameter fall below zero: u = max(g, −w). The last member of a chain.

    A parameter that is negative goes to 0 at once. NaN stays NaN.

    Needs the parameters.  Lift: elementwise.
    """
    return jnp.maximum(g, -p), {}


@elementwise(needs=("params",))
def _add_decayed_weights(g, slots, t, p, *, weight_decay: Scalar = 0.0):
    """Add a multiple of the parameter."""
    return g + weight_decay * p, {}


@registry.register()
def add_decayed_weights(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    """Add λ times the parameters: u = g + λ w.

    Behind an adaptive rule this is decoupled weight decay (AdamW), in front of it L2 regularisation.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: where to decay, as in `masked`; None for everywhere. A function of the parameters, never a schedule.

    Needs the parameters.  Lift: elementwise.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    decay = _add_decayed_weights(weight_decay)
    return decay if mask is None else masked(decay, mask)


@elementwise(needs=("params",))
def _add_cautious_weight_decay(g, slots, t, p, *, weight_decay: Scalar = 0.0):
    """Add a multiple of the parameter where that agrees with the update."""
    return g + jnp.where(jnp.sign(g) * jnp.sign(p) >= 0, weight_decay, 0) * p, {}


@registry.register()
def add_cautious_weight_decay(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    """Decay where the update does not enlarge a weight: u = g + λ w [g w ≥ 0].

    Per element, in place of `add_decayed_weights`, behind the rule and before its rate: g is what will be subtracted.
    The minimum of the loss stays where it is, while decay everywhere moves it.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: where to decay, as in `masked`; None for everywhere. A function of the parameters, never a schedule.

    Needs the parameters.  Lift: elementwise.
    Source: Chen et al. 2025, arXiv:2510.12402, algorithm 1.
    """
    decay = _add_cautious_weight_decay(weight_decay)
    return decay if mask is None else masked(decay, mask)


@registry.register()
def maximize(optimizer: Any) -> GradientTransformation:
    """Climb instead of descend: the optimizer gets −g.

    As torch's maximize=True. The loss is the caller's to negate where an optimizer asks for `value=`, `grad=` or
    `value_fn=`.

    Args:
      optimizer: a transform that descends.
    """
    return chain(scale(-1.0), optimizer)


@elementwise(needs=("params",))
def _add_independent_weight_decay(u, slots, t, p, *, weight_decay: Scalar = 0.0):
    """Subtract a multiple of the parameter."""
    return u - weight_decay * p, {}


@registry.register()
def add_independent_weight_decay(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    """Decay whatever the learning rate is: u = g − λ w, behind the rate. The last member of a chain.

    The rate then changes how far a step goes and not where decay and gradient balance; let λ follow the same schedule
    relative to its peak if it shall end with it.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: where to decay, as in `masked`; None for everywhere. A function of the parameters, never a schedule.

    Needs the parameters.  Lift: elementwise.
    Source: Wortsman et al. 2023, arXiv:2309.14322, section 3.2.3; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    decay = _add_independent_weight_decay(weight_decay)
    return decay if mask is None else masked(decay, mask)


@elementwise(needs=("params",), initial=Slot(fill=as_compute, exact=True))
def _add_decay_to_initial(g, slots, t, p, *, weight_decay: Scalar = 0.0):
    """Add a multiple of the way from the initial parameter."""
    return g + weight_decay * (p - slots.initial), {}


@registry.register()
def add_decay_to_initial(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    """Decay towards where training began instead of zero, for fine-tuning: u = g + λ (w − w₀).

    Behind an adaptive rule and before its rate, as `add_decayed_weights`.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: where to decay, as in `masked`; None for everywhere. A function of the parameters, never a schedule.

    Slots: initial (1 × parameters).  Needs the parameters.  Lift: elementwise.
    Source: Li et al. 2018, arXiv:1802.01483, equation 3 (there as a penalty).
    """
    decay = _add_decay_to_initial(weight_decay)
    return decay if mask is None else masked(decay, mask)
