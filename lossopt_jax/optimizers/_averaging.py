"""Optimizers that train at one point and evaluate at an average of points."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    gpa,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_rms,
    scale_by_schedule_free,
)


@registry.register(by_name={"learning_rate": 1.0})
def schedule_free_sgd(
    learning_rate: Any = 1.0,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    weight_decay: Any = None,
    weight_lr_power: Any = 2.0,
) -> GradientTransformation:
    """Gradient descent that needs no falling rate.

    add_decayed_weights (with weight_decay) → scale_by_schedule_free

    Evaluate, save and export at `lo.transforms.schedule_free_eval_params(state, params)`.
    By name: learning_rate 1.0.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule; large, since steps are averaged.
      warmup_steps: n ≥ 0; the rate is η min(1, t/n). None for no warmup.
      b1: β in [0, 1), how near the average the gradients are taken.
      weight_decay: λ ≥ 0, multiplied by the rate, at the point of the gradient; None for none.
      weight_lr_power: p ≥ 0; a point counts as the largest rate so far to the power of p.

    Differs from: optax with warmup_steps, whose first step has a rate of 0 and a weight all the same; here as the
      reference package.
    Source: Defazio et al. 2024, arXiv:2405.15682.
    """
    warmup = 0 if warmup_steps is None else warmup_steps
    averaging = scale_by_schedule_free(learning_rate, b1, weight_lr_power, warmup_steps=warmup)
    return chain(averaging) if weight_decay is None else chain(add_decayed_weights(weight_decay), averaging)


@registry.register(by_name={"learning_rate": 0.0025})
def schedule_free_adamw(
    learning_rate: Any = 0.0025,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
) -> GradientTransformation:
    """AdamW that needs no falling rate: an average of points in place of the momentum.

    scale_by_rms → add_decayed_weights → scale_by_schedule_free

    Evaluate, save and export at `lo.transforms.schedule_free_eval_params(state, params)`.
    Use when: the length of the run is not known.  Start with warmup_steps of a few per cent of it.
    By name: learning_rate 0.0025.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      warmup_steps: n ≥ 0; the rate is η min(1, t/n). None for no warmup.
      b1: β in [0, 1), how near the average the gradients are taken.
      b2: β₂ in [0, 1), decay of the mean square; in the state as "decay".
      eps: ε ≥ 0, outside the root.
      weight_decay: λ ≥ 0, multiplied by the rate, at the point of the gradient.
      weight_lr_power: p ≥ 0; a point counts as the largest rate so far to the power of p.

    Differs from: optax and Keras with warmup_steps, see `schedule_free_sgd`.
    Source: Defazio et al. 2024, arXiv:2405.15682.
    """
    warmup = 0 if warmup_steps is None else warmup_steps
    return chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_schedule_free(learning_rate, b1, weight_lr_power, warmup_steps=warmup),
    )


@registry.register(by_name={"learning_rate": 0.001})
def gpa_adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    mu_y: Any = 0.7,
    mu_x: Any = 0.9967,
) -> GradientTransformation:
    """AdamW with generalised primal averaging: gradients between a moving average of points and the newest one.

    scale_by_adam → add_decayed_weights → scale_by_learning_rate → gpa

    Evaluate, save and export at `lo.transforms.gpa_eval_params(state, params)`.
    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate, at the point of the gradient.
      mask: where to decay, as in `adamw`.
      mu_y: μᵧ in [0, 1], how near the average the gradients are taken.
      mu_x: μₓ in [0, 1), decay of the average; 0.9934, 0.9967 and 0.9984 are like 16, 32 and 64 local steps of DiLoCo.

    Differs from: its authors' code, which shrinks z beside the step, so that a decay reaches the parameters through
      the average alone.
    Source: Defazio et al. 2025, arXiv:2512.17131.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
        gpa(mu_y, mu_x),
    )
