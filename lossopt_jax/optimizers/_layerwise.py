"""Optimizers whose steps know the size of the array they move."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    masked,
    scale_by_adam,
    scale_by_fromage,
    scale_by_learning_rate,
    scale_by_novograd,
    scale_by_trust_ratio,
    trace,
)


@registry.register(by_name={"learning_rate": 0.1})
def lars(
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """Momentum on gradients as long as their arrays.

    add_decayed_weights → scale_by_trust_ratio → scale_by_learning_rate → trace

    Use when: batches of thousands of images.  By name: learning_rate 0.1.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; inside the momentum.
      weight_decay: λ ≥ 0, added to the gradient before its norm is taken.
      weight_decay_mask: where to decay; True for everywhere.
      trust_coefficient: c ≥ 0, the length of a step in units of the array's.
      eps: ε ≥ 0, added to the gradient's norm.
      trust_ratio_mask: where to scale; True for everywhere.
      momentum: μ in [0, 1).
      nesterov: look one step ahead.

    Differs from: the paper, which divides by ‖g‖ + λ‖w‖; optax is the same.
    Source: You, Gitman & Ginsburg 2017, arXiv:1708.03888.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


@registry.register(by_name={"learning_rate": 0.001})
def lamb(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """AdamW with updates as long as their arrays.

    scale_by_adam → add_decayed_weights → scale_by_trust_ratio → scale_by_learning_rate

    Use when: batches of thousands of sentences.  By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; the length of a step in units of the array's.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, inside the ratio as in the paper.
      mask: where to decay, as in `adamw`.

    Differs from: Keras, which decays outside the ratio.
    Source: You et al. 2020, arXiv:1904.00962, algorithm 2.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


@registry.register(by_name={"learning_rate": 0.01})
def novograd(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.25,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
) -> GradientTransformation:
    """Momentum of gradients divided by a moving norm of their array.

    scale_by_novograd → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: 1 × parameters, and one number per array.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), of the momentum, a sum.
      b2: β₂ in [0, 1), of the squared norms.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, inside the momentum.

    Source: Ginsburg et al. 2019, arXiv:1905.11286.
    """
    rule = scale_by_novograd(b1, b2, eps, eps_root, weight_decay)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.01})
def fromage(learning_rate: Any, min_norm: Any = 1e-6) -> GradientTransformation:
    """Steps as long as the learning rate times their array, which never grows.

    scale_by_fromage

    By name: learning_rate 0.01.  Memory: none.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      min_norm: what a norm counts as at least, ≥ 0.

    Source: Bernstein et al. 2020, arXiv:2002.03432.
    """
    return chain(scale_by_fromage(learning_rate, min_norm))
