"""Optimizers that say little about any one example."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    chain,
    differentially_private_aggregate,
    scale_by_learning_rate,
    trace,
)


@registry.register(by_name={"learning_rate": 0.01, "l2_norm_clip": 1.0, "noise_multiplier": 1.1})
def dpsgd(
    learning_rate: Any,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    seed: int = 0,
    momentum: Any = None,
    nesterov: bool = False,
) -> GradientTransformation:
    """Gradient descent on clipped gradients per example and noise.

    differentially_private_aggregate → trace (with momentum) → scale_by_learning_rate

    Takes gradients with an axis of examples in front, and stands in no other transform.
    By name: learning_rate 0.01, l2_norm_clip 1, noise_multiplier 1.1.  Memory: none, or 1 × parameters with momentum.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      l2_norm_clip: C ≥ 0, the most that one example's gradient may weigh.
      noise_multiplier: σ ≥ 0, the noise of the summed gradients in units of C.
      seed: of the noise; to be kept secret.
      momentum: μ in [0, 1), or None for none.
      nesterov: look one step ahead.

    Raises:
      ValueError: nesterov without momentum, or a value out of range.

    Differs from: optax in the noise, see `differentially_private_aggregate`.
    Source: Abadi et al. 2016, arXiv:1607.00133.
    """
    aggregate = differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed)
    if momentum is None:
        if nesterov:
            raise ValueError("dpsgd: nesterov must have momentum, got None; pass momentum=0.9")
        return chain(aggregate, scale_by_learning_rate(learning_rate))
    return chain(aggregate, trace(momentum, nesterov), scale_by_learning_rate(learning_rate))
