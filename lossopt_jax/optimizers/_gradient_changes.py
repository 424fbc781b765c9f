"""Optimizers that change a gradient, or look at how it changed, before they use it."""

from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    add_noise,
    chain,
    correct_by_previous_gradient,
    ema,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_optimistic_gradient,
    scale_by_optimistic_learning_rate,
    scale_by_sign,
)


@registry.register("mars", by_name={"learning_rate": 0.003})
def mars_adamw(
    learning_rate: Any,
    b1: Any = 0.95,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    gamma: Any = 0.025,
    max_norm: Any = 1.0,
) -> GradientTransformation:
    """AdamW on gradients of reduced variance.

    correct_by_previous_gradient → scale_by_adam → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.003.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean; setting it acts on the correction too.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      gamma: γ ≥ 0, how much of the correction to take.
      max_norm: largest norm of the corrected gradient of an array.

    Differs from: its authors' code, which trains everything but matrices by AdamW unless asked; `partition` does that.
    Source: Yuan et al. 2024, arXiv:2411.10438.
    """
    return chain(
        correct_by_previous_gradient(b1, gamma, max_norm),
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@registry.register(by_name={"learning_rate": 1e-4})
def mars_lion(
    learning_rate: Any,
    b1: Any = 0.95,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    gamma: Any = 0.025,
    max_norm: Any = 1.0,
) -> GradientTransformation:
    """The sign of the mean of gradients of reduced variance.

    correct_by_previous_gradient → ema → scale_by_sign → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.0001, as Lion's.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean, there in the state as "decay", and in the correction.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      gamma: γ ≥ 0, how much of the correction to take.
      max_norm: largest norm of the corrected gradient of an array.

    Differs from: its authors' code, as `mars_adamw`.
    Source: Yuan et al. 2024, arXiv:2411.10438.
    """
    return chain(
        correct_by_previous_gradient(b1, gamma, max_norm),
        ema(b1, debias=False),
        scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@registry.register(by_name={"learning_rate": 0.01})
def optimistic_gradient_descent(learning_rate: Any, alpha: Any = 1.0, beta: Any = 1.0) -> GradientTransformation:
    """Gradient descent that expects the next gradient to change as the last one did.

    scale_by_optimistic_gradient → scale_by_learning_rate

    Use when: two players minimise and maximise, where gradient descent goes round in circles.
    By name: learning_rate 0.01.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      alpha: α, of the gradient.
      beta: β, of its change.

    Source: Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def optimistic_adam(
    learning_rate: Any,
    optimism: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam that expects its direction to change as it did last, by a rate of its own.

    scale_by_adam → scale_by_optimistic_learning_rate

    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      optimism: o ≥ 0, of the change of the direction; None for learning_rate, which is then `optimistic_adam_v2`.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      nesterov: look one step ahead.

    Differs from: optax, which takes no schedule here.
    Source: Daskalakis et al. 2018, arXiv:1711.00141.
    """
    if optimism is None:
        return optimistic_adam_v2(learning_rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov)
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov)
    return chain(direction, scale_by_optimistic_learning_rate(learning_rate, optimism))


@registry.register(by_name={"learning_rate": 0.001})
def optimistic_adam_v2(
    learning_rate: Any,
    *,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam that expects its direction to change as it did last.

    scale_by_adam → scale_by_optimistic_gradient → scale_by_learning_rate

    Use when: two players minimise and maximise, as in adversarial training.
    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      alpha: α, of the direction.
      beta: β, of its change.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      nesterov: look one step ahead.

    Source: Daskalakis et al. 2018, arXiv:1711.00141.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )


@registry.register(by_name={"learning_rate": 0.01})
def noisy_sgd(learning_rate: Any, eta: Any = 0.01, gamma: Any = 0.55, *, seed: int = 0) -> GradientTransformation:
    """Gradient descent on gradients with fading Gaussian noise.

    add_noise → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: none.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      eta: the variance of the noise at the first step, ≥ 0.
      gamma: γ; at step t the variance is eta / t^γ.
      seed: an integer in [0, 2³²), in place of optax's key.

    Source: Neelakantan et al. 2015, arXiv:1511.06807.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(learning_rate))
