"""Gradient descent, its momenta, and its average."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_asgd,
    scale_by_learning_rate,
    trace,
)


@registry.register("momentum", by_name={"learning_rate": 0.01})
def sgd(
    learning_rate: Any, momentum: Any = None, nesterov: bool = False, *, dampening: Any = 0.0
) -> GradientTransformation:
    """Stochastic gradient descent, with momentum if asked.

    trace (with momentum) → scale_by_learning_rate

    Use when: the baseline; with momentum 0.9 for convolutional networks.  By name: learning_rate 0.01.
    Memory: none, or 1 × parameters with momentum.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      momentum: μ in [0, 1), or None for none.
      nesterov: look one step ahead.
      dampening: in [0, 1], how much less a gradient after the first counts in the momentum.

    Raises:
      ValueError: nesterov or dampening without momentum, nesterov with dampening, or a value out of range.

    Differs from: Keras, whose velocity holds the rate of the step that filled it (equal at a constant rate).
    Source: Robbins & Monro 1951; Polyak 1964; Nesterov 1983; Sutskever et al. 2013.
    """
    damped = not isinstance(dampening, int | float) or dampening != 0
    if momentum is None:
        if nesterov or damped:
            argument = "nesterov" if nesterov else "dampening"
            raise ValueError(f"sgd: {argument} must have momentum, got None; pass momentum=0.9")
        return chain(scale_by_learning_rate(learning_rate))
    if nesterov and damped:
        raise ValueError(f"sgd: dampening must be 0 with nesterov, got {dampening}; drop one of them")
    return chain(trace(momentum, nesterov, dampening), scale_by_learning_rate(learning_rate))


@registry.register("averaged_sgd", by_name={"learning_rate": 0.01})
def asgd(
    learning_rate: Any = 0.01,
    lambd: Any = 1e-4,
    alpha: Any = 0.75,
    t0: Any = 1e6,
    weight_decay: Any = 0.0,
) -> GradientTransformation:
    """Gradient descent with a falling rate, and the running mean of its points.

    add_decayed_weights → scale_by_asgd

    By name: learning_rate 0.01.  Memory: 1 × parameters. The mean is `get_slot(state, "average")`.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      lambd: λ ≥ 0, decay, multiplied by the falling rate.
      alpha: α ≥ 0, how fast the rate falls.
      t0: t₀ ≥ 0, the update after which the mean begins.
      weight_decay: ≥ 0, added to the gradient (L2).

    Source: Polyak & Juditsky 1992, in torch's form.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_asgd(learning_rate, lambd, alpha, t0))
