"""Optimizers that compute each point anew from a sum of gradients."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import GradientTransformation, add_decayed_weights, chain, scale_by_ftrl, scale_by_madgrad


@registry.register(by_name={"learning_rate": 0.01})
def madgrad(
    learning_rate: Any, momentum: Any = 0.9, weight_decay: Any = 0.0, eps: Any = 1e-6
) -> GradientTransformation:
    """Dual averaging from the starting point, divided by a cube root.

    add_decayed_weights → scale_by_madgrad

    By name: learning_rate 0.01.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      momentum: μ in [0, 1).
      weight_decay: λ ≥ 0, added to the gradient (L2).
      eps: ε > 0.

    Source: Defazio & Jelassi 2021, arXiv:2101.11075.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))


@registry.register(by_name={"learning_rate": 0.001})
def ftrl(
    learning_rate: Any,
    learning_rate_power: Any = -0.5,
    initial_accumulator_value: float = 0.1,
    l1_regularization_strength: Any = 0.0,
    l2_regularization_strength: Any = 0.0,
    l2_shrinkage_regularization_strength: Any = 0.0,
    beta: Any = 0.0,
) -> GradientTransformation:
    """Follow the regularised leader: weights that are exactly 0 where they do not pay.

    scale_by_ftrl

    Use when: large sparse linear models.  By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; nothing moves while it is 0.
      learning_rate_power: p ≤ 0.
      initial_accumulator_value: > 0.
      l1_regularization_strength: ≥ 0.
      l2_regularization_strength: ≥ 0.
      l2_shrinkage_regularization_strength: ≥ 0, L2 on the gradient alone.
      beta: ≥ 0.

    Source: McMahan et al. 2013, "Ad click prediction", in Keras's form.
    """
    return chain(
        scale_by_ftrl(
            learning_rate,
            learning_rate_power,
            initial_accumulator_value,
            l1_regularization_strength,
            l2_regularization_strength,
            l2_shrinkage_regularization_strength,
            beta,
        )
    )
