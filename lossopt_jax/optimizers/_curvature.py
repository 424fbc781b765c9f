"""Optimizers that look at the curvature of the loss."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_learning_rate,
    scale_by_sophia,
)


@registry.register(by_name={"learning_rate": 0.0003})
def sophia(
    learning_rate: Any,
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: int = 10,
    *,
    seed: int = 0,
) -> GradientTransformation:
    """Momentum over the diagonal of the Hessian, within bounds: Sophia-H.

    scale_by_sophia → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.0003.  Memory: 2 × parameters; about two more gradients every update_interval steps.
    Needs `value_fn=`, the loss as a function of the parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1), per estimate of the Hessian.
      eps: ε > 0, what the divisor is at least.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      weight_decay_mask: where to decay: a tree of bools, or a function of the parameters that returns one.
      gamma: γ ≥ 0; larger for smaller, less often bounded steps.
      clip_threshold: the bound on an element, > 0; math.inf for none.
      update_interval: steps between two estimates, ≥ 1.
      seed: of the estimates' random signs.

    Differs from: optax in the words only, see `scale_by_sophia`.
    Source: Liu et al. 2023, arXiv:2305.14342.
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, seed=seed),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
