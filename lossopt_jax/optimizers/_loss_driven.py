"""Optimizers that set their own rate: by the loss, or by whether the last step was a good one."""

from typing import Any, Literal

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    chain,
    hypergradient,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_momo,
    scale_by_momo_adam,
    scale_by_polyak,
    trace,
)


@registry.register("sps")
def polyak_sgd(
    max_learning_rate: Any = 1.0,
    scaling: Any = 1.0,
    f_min: Any = 0.0,
    eps: Any = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransformation:
    """Gradient descent by Polyak's step: as far as the loss says.

    scale_by_polyak → scale_by_learning_rate(scaling)

    Use when: the smallest loss is known, such as 0 where a model can fit everything.  By name: max_learning_rate 1.
    Memory: none.  Needs `value=loss`, which a program's train step passes.

    Args:
      max_learning_rate: the longest step, ≥ 0, a number, an array or a schedule.
      scaling: s ≥ 0, how much of the step to take; in the state as "learning_rate".
      f_min: f*, what the loss can reach.
      eps: ε ≥ 0, added to ‖g‖².
      variant: "sps+" to stay where f < f*; "sps" climbs back.

    Raises:
      ValueError: another variant, or a value out of range.

    Differs from: optax with scaling, which applies s before the step is computed and so divides the step by s while
      max_learning_rate does not bind; here s multiplies, as its formula says.
    Source: Loizou et al. 2021, arXiv:2002.10542.
    """
    return chain(scale_by_polyak(f_min, max_learning_rate, eps, variant), scale_by_learning_rate(scaling))


@registry.register()
def momo(
    learning_rate: Any = 1.0,
    beta: Any = 0.9,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Momentum whose step follows from the loss, at most learning_rate.

    scale_by_momo

    Use when: the rate of momentum SGD is hard to choose; too large a one does little harm.  By name: learning_rate 1.
    Memory: 1 × parameters.  Needs `value=loss`, which a program's train step passes.

    Args:
      learning_rate: η ≥ 0, the longest step, a number, an array or a schedule.
      beta: β in [0, 1).
      lower_bound: below which the loss does not fall.
      weight_decay: λ ≥ 0; the whole new point is divided by 1 + ηλ.
      adapt_lower_bound: estimate the bound on the way; read it by `get_slot(state, "lower_bound")`.

    Differs from: optax with weight_decay, see `scale_by_momo`.
    Source: Schaipp et al. 2024, arXiv:2305.07583.
    """
    return chain(scale_by_momo(learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound))


@registry.register()
def momo_adam(
    learning_rate: Any = 1e-2,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Adam whose step follows from the loss, at most learning_rate.

    scale_by_momo_adam

    Use when: the rate of Adam is hard to choose; too large a one does little harm.  By name: learning_rate 0.01.
    Memory: 2 × parameters.  Needs `value=loss`, which a program's train step passes.

    Args:
      learning_rate: η ≥ 0, the longest step, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      lower_bound: below which the loss does not fall.
      weight_decay: λ ≥ 0; the whole new point is divided by 1 + ηλ.
      adapt_lower_bound: estimate the bound on the way; read it by `get_slot(state, "lower_bound")`.

    Differs from: optax with weight_decay, see `scale_by_momo`.
    Source: Schaipp et al. 2024, arXiv:2305.07583.
    """
    return chain(scale_by_momo_adam(learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound))


@registry.register("sgd_hd", by_name={"learning_rate": 0.001})
def hypergradient_sgd(
    learning_rate: Any,
    hypergradient_rate: Any = 1e-3,
    momentum: Any = None,
    nesterov: bool = False,
    *,
    multiplicative: bool = False,
) -> GradientTransformation:
    """Gradient descent, with momentum if asked, whose rate learns on the way.

    hypergradient(trace)

    By name: learning_rate 0.001.  Memory: 1 × parameters, + 1 with momentum.

    Args:
      learning_rate: η ≥ 0, where the rate begins, a number, an array or a schedule; the rate itself is
        `get_slot(state, "rate")`.
      hypergradient_rate: κ ≥ 0, how fast it learns; 0.02 or so if multiplicative.
      momentum: μ in [0, 1), or None for none.
      nesterov: look one step ahead.
      multiplicative: change the rate by a share of itself, whatever the size of the gradients.

    Raises:
      ValueError: nesterov without momentum, or a value out of range.

    Source: Baydin et al. 2018, arXiv:1703.04782.
    """
    if momentum is None:
        if nesterov:
            raise ValueError("hypergradient_sgd: nesterov must have momentum, got None; pass momentum=0.9")
        return chain(hypergradient(chain(), learning_rate, hypergradient_rate, multiplicative))
    return chain(hypergradient(trace(momentum, nesterov), learning_rate, hypergradient_rate, multiplicative))


@registry.register("adam_hd", by_name={"learning_rate": 0.001})
def hypergradient_adam(
    learning_rate: Any,
    hypergradient_rate: Any = 1e-7,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    multiplicative: bool = False,
) -> GradientTransformation:
    """Adam whose rate learns on the way.

    hypergradient(scale_by_adam)

    Use when: a rate is known to an order of magnitude or two.  By name: learning_rate 0.001.
    Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, where the rate begins, a number, an array or a schedule; the rate itself is
        `get_slot(state, "rate")`.
      hypergradient_rate: κ ≥ 0, how fast it learns; 0.02 or so if multiplicative.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      multiplicative: change the rate by a share of itself, whatever the size of the gradients.

    Source: Baydin et al. 2018, arXiv:1703.04782.
    """
    return chain(hypergradient(scale_by_adam(b1, b2, eps, eps_root), learning_rate, hypergradient_rate, multiplicative))
