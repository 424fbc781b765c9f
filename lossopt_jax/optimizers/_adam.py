"""Adam and what was made of it."""

from collections.abc import Callable
from typing import Any

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    scale_by_acprop,
    scale_by_adam,
    scale_by_adamax,
    scale_by_adan,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_amsgrad,
    scale_by_belief,
    scale_by_lazy_adam,
    scale_by_learning_rate,
    scale_by_nadam,
    scale_by_radam,
    scale_by_simplified_ademamix,
    scale_by_yogi,
)
from lossopt_jax.transforms._adam import fourth_root


@registry.register(by_name={"learning_rate": 0.001})
def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam: the mean gradient over its root mean square.

    scale_by_adam → scale_by_learning_rate

    Use when: a first try at almost anything.  By name: learning_rate 0.001.
    Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the mean.
      b2: β₂ in [0, 1), decay of the mean square.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      nesterov: look one step ahead.

    Differs from: Keras, whose ε is ε √(1−β₂ᵗ) here. torch's weight_decay, which is L2, is
      `chain(add_decayed_weights(λ), adam(…))`.
    Source: Kingma & Ba 2015, arXiv:1412.6980.
    """
    return chain(scale_by_adam(b1, b2, eps, eps_root, nesterov), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay.

    scale_by_adam → add_decayed_weights → scale_by_learning_rate

    Use when: the default for transformers.  Start at learning_rate 3e-4, weight_decay 0.1.  By name: 0.001.
    Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0; multiplied by learning_rate, as in torch and optax, not as in the paper.
      mask: where to decay: a tree of bools, or a function of the parameters that returns one.
      nesterov: look one step ahead.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    return _decayed(scale_by_adam(b1, b2, eps, eps_root, nesterov), weight_decay, mask, learning_rate)


def _decayed(direction: GradientTransformation, weight_decay: Any, mask: Any, rate: Any) -> GradientTransformation:
    """A direction, decoupled decay, and the rate for both."""
    return chain(direction, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(rate))


@registry.register(by_name={"learning_rate": 0.001})
def amsgrad(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """Adam whose second moment never falls.

    scale_by_amsgrad → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      bias_correction_mu: False for m̂ = m.
      bias_correction_nu: False for an uncorrected maximum.

    Differs from: optax, see `scale_by_amsgrad`.
    Source: Reddi, Kale & Kumar 2018, arXiv:1904.09237.
    """
    rule = scale_by_amsgrad(b1, b2, eps, eps_root, bias_correction_mu, bias_correction_nu)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.002})
def adamax(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> GradientTransformation:
    """Adam over the largest recent gradient instead of a root mean square.

    scale_by_adamax → scale_by_learning_rate

    By name: learning_rate 0.002.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0, inside the maximum.

    Differs from: Keras, which adds ε to the maximum.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.002})
def adamaxw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> GradientTransformation:
    """Adamax with decoupled weight decay.

    scale_by_adamax → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.002.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0, inside the maximum.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    return _decayed(scale_by_adamax(b1, b2, eps), weight_decay, mask, learning_rate)


def _nadam_direction(b1: Any, b2: Any, eps: Any, eps_root: Any, momentum_decay: Any, nesterov: bool) -> Any:
    if momentum_decay is None:
        return scale_by_adam(b1, b2, eps, eps_root, nesterov)
    if not nesterov:
        raise ValueError("nadam: nesterov must be True with momentum_decay, got False; drop one of them")
    return scale_by_nadam(b1, b2, eps, eps_root, momentum_decay)


@registry.register(by_name={"learning_rate": 0.002})
def nadam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nesterov: bool = True,
    momentum_decay: Any = None,
) -> GradientTransformation:
    """Adam with Nesterov's momentum.

    scale_by_adam (scale_by_nadam with momentum_decay) → scale_by_learning_rate

    By name: learning_rate 0.002.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      nesterov: False for plain Adam.
      momentum_decay: ψ of Dozat's momentum schedule; 0.004 as torch and Keras 2, 1 as Keras 3, None for no schedule
        as optax.

    Raises:
      ValueError: momentum_decay without nesterov, or a value out of range.

    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """
    rule = _nadam_direction(b1, b2, eps, eps_root, momentum_decay, nesterov)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.002})
def nadamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
    momentum_decay: Any = None,
) -> GradientTransformation:
    """NAdam with decoupled weight decay.

    scale_by_adam (scale_by_nadam with momentum_decay) → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.002.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.
      nesterov: False for plain AdamW.
      momentum_decay: as in `nadam`.

    Raises:
      ValueError: momentum_decay without nesterov, or a value out of range.

    Source: Dozat 2016; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    rule = _nadam_direction(b1, b2, eps, eps_root, momentum_decay, nesterov)
    return _decayed(rule, weight_decay, mask, learning_rate)


@registry.register(by_name={"learning_rate": 0.001})
def radam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam that starts as momentum and divides once it knows the variance.

    scale_by_radam → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      threshold: the length of the average from which to divide.
      nesterov: look one step ahead.

    Differs from: torch, whose ε is not corrected with the second moment.
    Source: Liu et al. 2020, arXiv:1908.03265.
    """
    rule = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def adabelief(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam over the distance of gradients from their mean.

    scale_by_belief → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside, and kept in the moment.
      nesterov: look one step ahead.

    Source: Zhuang et al. 2020, arXiv:2010.07468.
    """
    return chain(scale_by_belief(b1, b2, eps, eps_root, nesterov), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def acprop(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """The gradient over the spread of those before it, not averaged.

    scale_by_acprop → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside, and kept in the moment.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Zhuang et al. 2021, arXiv:2110.05454.
    """
    return _decayed(scale_by_acprop(b1, b2, eps, eps_root), weight_decay, mask, learning_rate)


@registry.register(by_name={"learning_rate": 0.01})
def yogi(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-3) -> GradientTransformation:
    """Adam whose second moment changes slowly.

    scale_by_yogi → scale_by_learning_rate

    By name: learning_rate 0.01.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.

    Source: Zaheer et al. 2018, NeurIPS 31.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def adan(
    learning_rate: Any,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """Adam with Nesterov's momentum from differences of gradients.

    scale_by_adan → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 4 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1), decay of the gradients.
      b2: β₂ in [0, 1), decay of their differences.
      b3: β₃ in [0, 1), decay of the squares.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Differs from: optax, see `scale_by_adan`; the paper divides the new point by 1 + ηλ instead of subtracting ηλw.
    Source: Xie et al. 2022, arXiv:2208.06677.
    """
    return _decayed(scale_by_adan(b1, b2, b3, eps, eps_root), weight_decay, mask, learning_rate)


@registry.register(by_name={"learning_rate": 0.001})
def adopt(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Any], Any] = fourth_root,
) -> GradientTransformation:
    """Adam that normalises before it averages; converges for any b2.

    scale_by_adopt → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.  The first gradient moves nothing.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0, the least divisor.
      nesterov: look one step ahead.
      use_clipping: bound normalised gradients.
      clip_value_fn: updates made (a float array) → bound; t^¼ by default.

    Source: Taniguchi et al. 2024, arXiv:2411.02853.
    """
    rule = scale_by_adopt(b1, b2, eps, nesterov, use_clipping, clip_value_fn)
    return chain(rule, scale_by_learning_rate(learning_rate))


@registry.register(by_name={"learning_rate": 0.001})
def ademamix(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """AdamW with a second, much longer mean.

    scale_by_ademamix → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 3 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      b3: β₃ in [0, 1), decay of the long mean; the authors warm it up by a schedule.
      alpha: α, its weight; theirs is 8 at the end of a warm-up.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137.
    """
    return _decayed(scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root), weight_decay, mask, learning_rate)


@registry.register(by_name={"learning_rate": 1e-4})
def simplified_ademamix(
    learning_rate: Any,
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: Any = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """AdEMAMix with one mean: the newest gradient is weighed apart.

    scale_by_simplified_ademamix → add_decayed_weights → scale_by_learning_rate

    By name: learning_rate 0.0001, since the momentum is a sum and not a mean.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      alpha: α, the weight of the newest gradient.
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, multiplied by learning_rate.
      mask: where to decay, as in `adamw`.

    Source: Morwani, Vyas, Zhang & Kakade 2025, arXiv:2502.02431.
    """
    return _decayed(scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root), weight_decay, mask, learning_rate)


@registry.register("sparse_adam", by_name={"learning_rate": 0.001})
def lazy_adam(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> GradientTransformation:
    """Adam on the rows that have a gradient, for embeddings.

    scale_by_lazy_adam → scale_by_learning_rate

    By name: learning_rate 0.001.  Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.

    Differs from: torch's SparseAdam, see `scale_by_lazy_adam`.
    Source: Kingma & Ba 2015, arXiv:1412.6980, on rows.
    """
    return chain(scale_by_lazy_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))
