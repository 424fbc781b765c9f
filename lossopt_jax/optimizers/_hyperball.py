"""Optimizers that turn matrices and keep their norms."""

from typing import Any

import jax

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    chain,
    hyperball,
    partition,
    scale_by_adam,
    scale_by_learning_rate,
)


def _by_rank(params: Any) -> Any:
    return jax.tree.map(lambda p: "hyperball" if getattr(p, "ndim", 0) >= 2 else "adam", params)


@registry.register("adam_hyperball", by_name={"learning_rate": 0.01})
def adamh(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    adam_learning_rate: Any = None,
    param_labels: Any = _by_rank,
) -> GradientTransformation:
    """Adam whose matrices keep their norms, in place of weight decay.

    scale_by_adam → partition: hyperball for arrays of rank ≥ 2, scale_by_learning_rate for the rest

    Use when: a transformer's or another normalised network's rate shall carry over between sizes. Embeddings and the
    output layer are better left to Adam, and matrices must not start at 0.  By name: learning_rate 0.01.
    Memory: 2 × parameters.

    Args:
      learning_rate: η ≥ 0, the length of a step on the unit sphere: a number, an array or a schedule.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      adam_learning_rate: the rest's rate, a step in the parameters' own units; None for learning_rate. In the state
        as "adam/learning_rate" beside "hyperball/learning_rate"; the bare name sets both.
      param_labels: what is "hyperball" and what "adam": a tree of these labels or a prefix of one, or a function of
        the parameters that returns it.

    Raises:
      ValueError: another label.

    Source: Wen et al. 2025, "Hyperball optimization".
    """
    rates = {
        "hyperball": hyperball(learning_rate),
        "adam": scale_by_learning_rate(learning_rate if adam_learning_rate is None else adam_learning_rate),
    }
    return chain(scale_by_adam(b1, b2, eps, eps_root), partition(rates, param_labels))
