"""Optimizers that leave out the steps which the newest gradient is against."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    cautious,
    chain,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_lion,
)


@registry.register("c_adamw", by_name={"learning_rate": 0.001})
def cautious_adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    min_fraction: Any = 1e-3,
) -> GradientTransformation:
    """AdamW without the elements of a step that go against the gradient.

    cautious of scale_by_adam → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate; nothing of it is left out.
      mask: where to decay, as in `adamw`.
      nesterov: look one step ahead.
      min_fraction: f ≥ 0; what is left of an array is enlarged by at most 1/f.

    Source: Liang et al. 2024, arXiv:2411.16085.
    """
    return chain(
        cautious(scale_by_adam(b1, b2, eps, eps_root, nesterov), min_fraction),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@registry.register("c_lion", by_name={"learning_rate": 1e-4})
def cautious_lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 1e-3,
    mask: Any = None,
    *,
    min_fraction: Any = 1e-3,
) -> GradientTransformation:
    """Lion without the elements of a step that go against the gradient.

    cautious of scale_by_lion → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.0001.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), how much of the average counts in the step.
      b2: β₂ in [0, 1), how long the average remembers.
      weight_decay: λ ≥ 0, multiplied by learning_rate; nothing of it is left out.
      mask: where to decay, as in `adamw`.
      min_fraction: f ≥ 0; what is left of an array is enlarged by at most 1/f.

    Differs from: its authors' Lion, which enlarges by size / (1 + number of elements left) without a floor.
    Source: Liang et al. 2024, arXiv:2411.16085; Chen et al. 2023, arXiv:2302.06675.
    """
    return chain(
        cautious(scale_by_lion(b1, b2), min_fraction),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
