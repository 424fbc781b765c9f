"""Optimizers with one rate per parameter."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_adadelta,
    scale_by_learning_rate,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
    trace,
)


@registry.register(by_name={"learning_rate": 0.001})
def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Gradient descent on gradients of unit root mean square.

    scale_by_rms (scale_by_stddev if centered) → scale_by_learning_rate → trace (with momentum)

    By name: learning_rate 0.001.  Memory: 1 × parameters, + 1 if centered, + 1 with momentum.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      decay: ρ in [0, 1).
      eps: ε ≥ 0.
      initial_scale: second moment before the first step.
      eps_in_sqrt: √(v + ε) as optax and Keras 3; False for √v + ε as torch and Keras 2.
      centered: divide by the standard deviation.
      momentum: μ in [0, 1), or None.
      nesterov: look one step ahead in the momentum.
      bias_correction: correct the start of the averages.

    Raises:
      ValueError: nesterov without momentum, or a value out of range.

    Differs from: torch in eps_in_sqrt, and where the rate changes: there it is applied behind the momentum.
    Source: Tieleman & Hinton 2012, lecture 6.5; Graves 2013, arXiv:1308.0850.
    """
    if nesterov and momentum is None:
        raise ValueError("rmsprop: nesterov must have momentum, got None; pass momentum=0.9")
    rule = scale_by_stddev if centered else scale_by_rms
    parts = [rule(decay, eps, initial_scale, eps_in_sqrt, bias_correction), scale_by_learning_rate(learning_rate)]
    return chain(*parts) if momentum is None else chain(*parts, trace(momentum, nesterov))


@registry.register(by_name={"learning_rate": 0.01})
def adagrad(
    learning_rate: Any,
    initial_accumulator_value: float = 0.1,
    eps: Any = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> GradientTransformation:
    """Gradient descent on gradients divided by the root of the sum of all their squares.

    scale_by_rss → scale_by_learning_rate

    Use when: features are sparse.  By name: learning_rate 0.01.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      initial_accumulator_value: the sum before the first step, ≥ 0; 0 in torch and Keras 2.
      eps: ε ≥ 0.
      eps_in_sqrt: √(v + ε) as optax and Keras 3; False for √v + ε as torch and Keras 2.

    Source: Duchi, Hazan & Singer 2011, JMLR 12.
    """
    rule = scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 1.0})
def adadelta(
    learning_rate: Any = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> GradientTransformation:
    """Steps of the size of earlier steps.

    add_decayed_weights → scale_by_adadelta → scale_by_learning_rate

    By name: learning_rate 1.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; 1 in the paper.
      rho: ρ in [0, 1).
      eps: ε > 0; its root is the size of the first steps.
      weight_decay: λ ≥ 0, added to the gradient (L2).
      weight_decay_mask: where to decay, as in `adamw`.

    Source: Zeiler 2012, arXiv:1212.5701.
    """
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    return chain(decay, scale_by_adadelta(rho, eps), scale_by_learning_rate(learning_rate))
