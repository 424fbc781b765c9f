"""Optimizers that keep a gradient's sign."""

from typing import Any, Literal

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    ema,
    scale,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_rprop,
    scale_by_sign,
)


@registry.register("sign_descent", by_name={"learning_rate": 1e-4})
def sign_sgd(learning_rate: Any) -> GradientTransformation:
    """Steps of one size in the direction of the gradient's signs.

    scale_by_sign → scale_by_learning_rate

    By name: learning_rate 0.0001.  Memory: none.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.

    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 1e-4})
def signum(learning_rate: Any, beta: Any = 0.9) -> GradientTransformation:
    """The sign of the mean gradient.

    ema → scale_by_sign → scale_by_learning_rate

    By name: learning_rate 0.0001.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      beta: β in [0, 1), decay of the mean; in the state as "decay".

    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """
    return chain(ema(beta, debias=False), scale_by_sign(), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 1e-4})
def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 1e-3,
    mask: Any = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
) -> GradientTransformation:
    """The sign of one moving average while another is kept, with decoupled decay.

    scale_by_lion → add_decayed_weights → scale_by_learning_rate

    Use when: batches are large. Start at a rate 3 to 10 times below Adam's and a decay as much above.
    By name: learning_rate 0.0001.  Memory: 1 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), how much of the average counts in the step.
      b2: β₂ in [0, 1), how long the average remembers.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      mode: "hard" for signs; "smooth" and "refined" as in `scale_by_lion`.

    Differs from: Keras, which does not decay unless asked.
    Source: Chen et al. 2023, arXiv:2302.06675.
    """
    return chain(
        scale_by_lion(b1, b2, mode), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )


@registry.register(by_name={"learning_rate": 0.01})
def rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
) -> GradientTransformation:
    """Steps that grow while the sign of the gradient stays and shrink where it changes.

    scale_by_rprop → scale(−1)

    Use when: gradients are of the full batch.  By name: learning_rate 0.01.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, the first step of every element; a change of it scales every step.
      eta_minus: in (0, 1), the factor where the sign changes.
      eta_plus: above 1, the factor where it stays.
      min_step_size: > 0.
      max_step_size: > 0.

    Differs from: optax, see `scale_by_rprop`.
    Source: Riedmiller & Braun 1993, in torch's form.
    """
    return chain(scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0))
