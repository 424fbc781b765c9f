"""Gradient descent and its momenta."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import GradientTransformation, chain, scale_by_learning_rate, trace


@registry.register("momentum", by_name={"learning_rate": 0.01})
def sgd(learning_rate: Any, momentum: Any = None, nesterov: bool = False) -> GradientTransformation:
    """Stochastic gradient descent, with momentum if asked.

    trace (with momentum) → scale_by_learning_rate

    Use when: the baseline; with momentum 0.9 for convolutional networks.  By name: learning_rate 0.01.
    Memory: none, or 1 × parameters with momentum.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      momentum: μ in [0, 1), or None for none.
      nesterov: look one step ahead.

    Raises:
      ValueError: nesterov without momentum, or a value out of range.

    Differs from: Keras, whose velocity holds the rate of the step that filled it (equal at a constant rate).
    Source: Robbins & Monro 1951; Polyak 1964; Nesterov 1983; Sutskever et al. 2013.
    """
    if momentum is None:
        if nesterov:
            raise ValueError("sgd: nesterov must have momentum, got None; pass momentum=0.9")
        return chain(scale_by_learning_rate(learning_rate))
    return chain(trace(momentum, nesterov), scale_by_learning_rate(learning_rate))
