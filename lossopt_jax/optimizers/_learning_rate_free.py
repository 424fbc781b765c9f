"""Optimizers that find their rate themselves.

`learning_rate` multiplies what they find: leave it at 1, or give a schedule that is 1 at its highest. Those that
measure how far the parameters have come (dog, prodigy) begin with steps of a millionth, which half precision rounds
away: train bfloat16 parameters inside `master_weights`.
"""

from typing import Any, Literal

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_cocob,
    scale_by_dadapt_adamw,
    scale_by_dog,
    scale_by_dowg,
    scale_by_learning_rate,
    scale_by_prodigy,
)


@registry.register(by_name={"learning_rate": 1.0})
def dog(
    learning_rate: Any = 1.0,
    init_step: tuple[Literal["heuristic", "distance", "learning_rate"], Any] = ("heuristic", 1e-6),
    eps: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
) -> GradientTransformation:
    """Gradient descent by distance over gradients.

    add_decayed_weights (with weight_decay) → scale_by_dog → scale_by_learning_rate

    Use when: fine-tuning without a rate to tune, evaluating an average of the points.  By name: learning_rate 1.
    Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      init_step: how to start, see `scale_by_dog`; ("heuristic", 1e-4) for models with batch normalisation.
      eps: ε ≥ 0.
      weight_decay: λ ≥ 0, added to the gradient; None for none.
      mask: where to decay: a tree of bools, or a function of the parameters that returns one.

    Differs from: optax, see `scale_by_dog`.
    Source: Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.
    """
    rule = chain(scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))
    return rule if weight_decay is None else chain(add_decayed_weights(weight_decay, mask), rule)


@registry.register(by_name={"learning_rate": 1.0})
def dowg(
    learning_rate: Any = 1.0,
    init_estim_sq_dist: Any = None,
    eps: Any = 1e-4,
    weight_decay: Any = None,
    mask: Any = None,
) -> GradientTransformation:
    """Gradient descent by distance over weighted gradients.

    add_decayed_weights (with weight_decay) → scale_by_dowg → scale_by_learning_rate

    By name: learning_rate 1.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      init_estim_sq_dist: > 0, a first guess of the squared distance to the solution; None for ε.
      eps: ε > 0.
      weight_decay: λ ≥ 0, added to the gradient; None for none.
      mask: where to decay: a tree of bools, or a function of the parameters that returns one.

    Differs from: optax, see `scale_by_dowg`.
    Source: Khaled, Mishchenko & Jin 2023, arXiv:2305.16284.
    """
    rule = chain(scale_by_dowg(init_estim_sq_dist, eps), scale_by_learning_rate(learning_rate))
    return rule if weight_decay is None else chain(add_decayed_weights(weight_decay, mask), rule)


@registry.register(by_name={"learning_rate": 1.0})
def prodigy(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    *,
    bias_correction: bool = True,
) -> GradientTransformation:
    """AdamW that estimates its rate, fast.

    scale_by_prodigy

    Use when: AdamW without a rate to tune; with a schedule that falls from 1 to 0.  By name: learning_rate 1.
    Memory: 4 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      betas: (β₁, β₂), each in [0, 1); in the state as "b1" and "b2".
      beta3: β₃ in [0, 1), None for √β₂; in the state as "b3".
      eps: ε ≥ 0.
      estim_lr0: d₀ > 0, the first estimate of the rate.
      estim_lr_coef: c ≥ 0, what the estimate is multiplied by; the argument to tune if any.
      weight_decay: λ ≥ 0, decoupled; multiplied by learning_rate and by the estimate.
      safeguard_warmup: True for a warm-up that starts near 0.
      bias_correction: False as the reference package by default.

    Differs from: optax and the reference package, see `scale_by_prodigy`.
    Source: Mishchenko & Defazio 2023, arXiv:2306.06101.
    """
    b1, b2 = betas
    return chain(
        scale_by_prodigy(
            learning_rate,
            b1,
            b2,
            beta3,
            eps,
            estim_lr0,
            estim_lr_coef,
            weight_decay,
            safeguard_warmup,
            bias_correction,
        )
    )


@registry.register("dadaptation", by_name={"learning_rate": 1.0})
def dadapt_adamw(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    weight_decay: Any = 0.0,
) -> GradientTransformation:
    """AdamW that estimates its rate by D-Adaptation.

    scale_by_dadapt_adamw

    By name: learning_rate 1.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      betas: (β₁, β₂), each in [0, 1); in the state as "b1" and "b2".
      eps: ε ≥ 0.
      estim_lr0: d₀ > 0, the first estimate of the rate.
      weight_decay: λ ≥ 0, decoupled; multiplied by learning_rate and by the estimate.

    Differs from: optax, see `scale_by_dadapt_adamw`.
    Source: Defazio & Mishchenko 2023, arXiv:2301.07733.
    """
    b1, b2 = betas
    return chain(scale_by_dadapt_adamw(learning_rate, b1, b2, eps, estim_lr0, weight_decay))


@registry.register(by_name={"learning_rate": 1.0})
def cocob(
    learning_rate: Any = 1.0, alpha: Any = 100.0, eps: Any = 1e-8, weight_decay: Any = 0.0, mask: Any = None
) -> GradientTransformation:
    """Coin betting on every parameter.

    add_decayed_weights → scale_by_learning_rate → scale_by_cocob

    By name: learning_rate 1.  Memory: 5 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; it multiplies the gradients, so that only its changes
        count.
      alpha: α > 0; the first step of every parameter is 1/α.
      eps: ε ≥ 0, the least scale of a gradient.
      weight_decay: λ ≥ 0, added to the gradient.
      mask: where to decay: a tree of bools, or a function of the parameters that returns one.

    Source: Orabona & Tommasi 2017, arXiv:1705.07795.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
