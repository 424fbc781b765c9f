"""Optimizers that see matrices as matrices."""

from collections.abc import Callable
from typing import Any

import jax

from lossopt_jax.optimizers._adam import adamw
from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    add_decayed_weights,
    chain,
    partition,
    scale_by_learning_rate,
    scale_by_muon,
    scale_by_shape,
)
from lossopt_jax.transforms._muon import last_axes


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: "muon" if getattr(p, "ndim", 0) == 2 else "adam", params)


@registry.register(by_name={"learning_rate": 0.02})
def muon(
    learning_rate: Any,
    ns_coeffs: Any = "standard",
    ns_steps: int = 5,
    beta: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: Any = 0.9,
    adam_b2: Any = 0.999,
    adam_eps_root: Any = 0.0,
    adam_weight_decay: Any = 0.0,
    adam_learning_rate: Any = None,
    consistent_rms: float | None = None,
    bias_correction: bool = True,
    matrix_axes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = last_axes,
    param_labels: Any = _matrices,
) -> GradientTransformation:
    """Momentum whose matrices are orthogonalised; AdamW for what is no matrix.

    partition: "muon" scale_by_muon → scale_by_shape → add_decayed_weights → scale_by_learning_rate;  "adam" adamw

    Use when: hidden kernels [in, out] of a network make up most of its parameters. Embeddings and the output layer
    are better left to Adam.  By name: learning_rate 0.02.  Memory: 1 × matrices, 2 × the rest.

    Args:
      learning_rate: η ≥ 0, a number, an array or a schedule.
      ns_coeffs: of the Newton–Schulz steps: "standard", "dion", "polar_express", or numbers.
      ns_steps: how many, an integer ≥ 1.
      beta: β in [0, 1), of the momentum.
      eps: ε ≥ 0, beside the norm of a matrix and, for Adam, outside the root.
      weight_decay: λ ≥ 0 of matrices, multiplied by learning_rate.
      weight_decay_mask: which of them decay, as in `adamw`.
      nesterov: look one step ahead, in both.
      adaptive: multiply by the dual norm, as in `scale_by_muon`.
      preconditioning: by what a matrix is divided first, as in `scale_by_muon`.
      adam_b1: β₁ in [0, 1).
      adam_b2: β₂ in [0, 1).
      adam_eps_root: ε₀ ≥ 0, inside the root.
      adam_weight_decay: λ ≥ 0 of the rest.
      adam_learning_rate: the rest's rate; None for learning_rate. In the state as "adam/learning_rate" beside
        "muon/learning_rate"; the bare name sets both.
      consistent_rms: c, for matrices' steps of about that root mean square: with 0.2 Adam's rates fit. None for
        √max(1, out/in), with steps that change outputs alike at every width.
      bias_correction: of the momentum, as in `scale_by_muon`.
      matrix_axes: shape → (axes of the inputs, axes of the outputs).
      param_labels: what is "muon" and what "adam": a tree of these labels or a prefix of one, or a function of the
        parameters that returns it. By default arrays of two axes are "muon".

    Raises:
      ValueError: another label.

    Differs from: Keras and torch in the first steps, unless bias_correction=False, and in the defaults of rate, decay
      and shape; torch takes kernels [out, in] and computes in bfloat16.
    Source: Jordan et al. 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982.
    """
    rule = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        nesterov,
        adaptive,
        preconditioning,
        bias_correction,
        matrix_axes,
    )
    groups = {
        "muon": chain(
            rule,
            scale_by_shape(consistent_rms, matrix_axes),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        "adam": adamw(
            learning_rate if adam_learning_rate is None else adam_learning_rate,
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            weight_decay=adam_weight_decay,
            nesterov=nesterov,
        ),
    }
    return chain(partition(groups, param_labels))
