"""Optimizers that remember less than two numbers per parameter."""

from collections.abc import Callable
from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    clip_by_block_rms,
    ema,
    scale,
    scale_by_adam,
    scale_by_adam_mini,
    scale_by_apollo,
    scale_by_came,
    scale_by_factored_rms,
    scale_by_galore,
    scale_by_learning_rate,
    scale_by_param_block_rms,
    scale_by_sm3,
)
from lossopt_jax.transforms._factored import per_output


@registry.register(by_name={"learning_rate": 1.0})
def adafactor(
    learning_rate: Any = 1.0,
    min_dim_size_to_factor: int = 128,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    weight_decay_rate: Any = None,
    eps: Any = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> GradientTransformation:
    """Gradients over a root mean square known by rows and columns.

    scale_by_factored_rms → clip_by_block_rms → scale_by_learning_rate → scale_by_param_block_rms →
    ema (with momentum) → add_decayed_weights → scale(−1)

    By name: learning_rate 1, that is steps as long as the parameters: give it a schedule, such as the paper's
    min(0.01, 1/√t).  Memory: rows + columns, + 1 × parameters with momentum.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; 1 is optax's None.
      min_dim_size_to_factor: the least size of the second largest axis.
      decay_rate: c ≥ 0, in β = 1 − t^(−c).
      decay_offset: steps that do not count, ≥ 0.
      multiply_by_parameter_scale: measure steps in units of max(rms(w), 0.001).
      clipping_threshold: d > 0, the largest root mean square of an update; None for none.
      momentum: β₁ in [0, 1), or None.
      weight_decay_rate: λ ≥ 0, **not** multiplied by learning_rate; None for none.
      eps: ε > 0, added to squares.
      factored: False to keep whole moments.
      weight_decay_mask: where to decay, as in `adamw`.

    Differs from: torch and Keras, which factor arrays of any size along their last axes, take min(η, 1/√t), and
      multiply the decay by η; see `scale_by_factored_rms` for optax.
    Source: Shazeer & Stern 2018, arXiv:1804.04235.
    """
    members = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        members.append(clip_by_block_rms(clipping_threshold))
    members.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        members.append(scale_by_param_block_rms())
    if momentum is not None:
        members.append(ema(momentum, debias=False))
    if weight_decay_rate is not None:
        members.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*members, scale(-1.0))


@registry.register(by_name={"learning_rate": 0.1})
def sm3(learning_rate: Any, momentum: Any = 0.9) -> GradientTransformation:
    """Adagrad that remembers a maximum per row and per column.

    scale_by_sm3 → scale_by_learning_rate

    By name: learning_rate 0.1.  Memory: 1 × parameters of momentum, and one vector per axis.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      momentum: β₁ in [0, 1); in the state as "b1".

    Source: Anil, Gupta, Koren & Singer 2019, arXiv:1901.11150.
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 2e-4})
def came(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    eps: Any = 1e-30,
    eps_confidence: Any = 1e-16,
    clipping_threshold: Any = 1.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """Adafactor with a momentum that trusts what repeats itself.

    scale_by_came → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.0002.  Memory: 1 × parameters, and 2 × (rows + columns).

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), of the momentum.
      b2: β₂ in [0, 1), of the squares.
      b3: β₃ in [0, 1), of the distances.
      eps: ε > 0, added to squares.
      eps_confidence: ε′ > 0, added to distances.
      clipping_threshold: d > 0, the largest root mean square of a normalised gradient.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Luo et al. 2023, arXiv:2307.02047.
    """
    rule = scale_by_came(b1, b2, b3, eps, eps_confidence, clipping_threshold)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def adam_mini(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    shared_axes: Callable[[tuple[int, ...]], tuple[int, ...]] = per_output,
) -> GradientTransformation:
    """AdamW with one second moment per block of an array.

    scale_by_adam_mini → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 1 × parameters, and one number per block.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      shared_axes: shape → the axes along which a block runs; one block per output by default.

    Source: Zhang et al. 2024, arXiv:2406.16793.
    """
    rule = scale_by_adam_mini(b1, b2, eps, shared_axes)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.01})
def galore(
    learning_rate: Any,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    base_optimizer: Any = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """Adam on the projection of each matrix's gradient on its leading singular vectors.

    scale_by_galore → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: 2 × rank × the shorter axis + rank × the longer one, for each matrix.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      rank: r, an integer ≥ 1.
      update_proj_gap: steps between two projections, an integer ≥ 1.
      scale: α ≥ 0, of the projected updates; 0.25 in the paper.
      base_optimizer: the rule that runs on the projections; None for `scale_by_adam()`.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Zhao et al. 2024, arXiv:2403.03507.
    """
    rule = scale_by_galore(rank, update_proj_gap, scale, base_optimizer)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.01})
def apollo(
    learning_rate: Any,
    rank: int = 256,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    seed: int = 0,
) -> GradientTransformation:
    """AdamW whose rates per channel are learned from a random projection of the gradient.

    scale_by_apollo → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: 2 × rank × the longer axis, for each matrix.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      rank: r, an integer ≥ 1.
      update_proj_gap: steps between two projections, an integer ≥ 1.
      scale: α ≥ 0, whose root multiplies the steps of matrices.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      seed: of the projections, an integer in [0, 2³²).

    Source: Zhu et al. 2024, arXiv:2412.05270.
    """
    rule = scale_by_apollo(rank, update_proj_gap, scale, scale_by_adam(b1, b2, eps), seed=seed)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.01})
def apollo_mini(
    learning_rate: Any,
    update_proj_gap: int = 200,
    scale: float = 128.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    seed: int = 0,
) -> GradientTransformation:
    """AdamW with one rate per matrix, learned from one random direction: the memory of SGD.

    scale_by_apollo (rank 1, per tensor) → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: 2 × the longer axis, for each matrix.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      update_proj_gap: steps between two projections, an integer ≥ 1.
      scale: α ≥ 0, whose root multiplies the steps of matrices.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      seed: of the projections, an integer in [0, 2³²).

    Source: Zhu et al. 2024, arXiv:2412.05270, section 4.3.
    """
    rule = scale_by_apollo(1, update_proj_gap, scale, scale_by_adam(b1, b2, eps), per="tensor", seed=seed)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
