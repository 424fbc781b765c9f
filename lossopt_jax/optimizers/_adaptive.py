"""Optimizers with one rate per parameter."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_adam,
    scale_by_amsgrad,
    scale_by_learning_rate,
    scale_by_rms,
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


@registry.register(by_name={"learning_rate": 0.001})
def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam: the mean gradient over its root mean square.

    scale_by_adam → scale_by_learning_rate

    Use when: a first try at almost anything.  By name: learning_rate 0.001.
    Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      nesterov: look one step ahead.

    Differs from: Keras, whose ε is ε √(1−β₂ᵗ) here.
    Source: Kingma & Ba 2015, arXiv:1412.6980.
    """
    return chain(scale_by_adam(b1, b2, eps, eps_root, nesterov), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def amsgrad(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0
) -> GradientTransformation:
    """Adam whose second moment never falls.

    scale_by_amsgrad → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.

    Differs from: optax, see `scale_by_amsgrad`.
    Source: Reddi, Kale & Kumar 2018, arXiv:1904.09237.
    """
    return chain(scale_by_amsgrad(b1, b2, eps, eps_root), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay.

    scale_by_adam → add_decayed_weights → scale_by_learning_rate

    Use when: the default for transformers.  Start at learning_rate 3e-4, weight_decay 0.1.  By name: 0.001.
    Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0; multiplied by learning_rate, as in torch and optax, not as in the paper.
      mask: where to decay: a tree of bools, or a function of the parameters that returns one.
      nesterov: look one step ahead.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
