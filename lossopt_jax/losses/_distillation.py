"""Learning from the logits of a teacher."""

import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import POSITIVE, UNIT, Scalar
from lossopt_jax.losses._arithmetic import exp_excess, expm1
from lossopt_jax.losses._crossentropy import softmax_cross_entropy_with_integer_labels
from lossopt_jax.losses._lift import Labels, Reals, loss
from lossopt_jax.losses._softmax import softmax


def _log_ratio(logits: jax.Array, teacher_logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p − log t, p and t, where what two near students share never enters the first.

    δ_j = z_j − ẑ_j − (z_k − ẑ_k),  k the teacher's top class;      log p_j − log t_j = δ_j − log Σ t e^δ
    """
    surprise, p = softmax(logits, axis)
    taught, t = softmax(teacher_logits, axis)
    apart = logits - teacher_logits
    shift = apart - jnp.take_along_axis(apart, jnp.expand_dims(jnp.argmin(taught, axis), axis), axis)
    near = jnp.all((jnp.abs(shift) < 1) | (t == 0), axis, keepdims=True) & (t > 0)
    shift = jnp.where(near, shift, 0.0)
    moved = jnp.log1p(jnp.sum(t * expm1(shift), axis, keepdims=True))
    return jnp.where(near, shift - moved, taught - surprise), p, t


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def divergence_of_logits(logits: jax.Array, teacher_logits: jax.Array, axis: int) -> jax.Array:
    """KL(softmax(ẑ) ‖ softmax(z)) = Σ_j t_j (e^{d_j} − 1 − d_j), d = log p − log t: no term is negative."""
    d, p, t = _log_ratio(logits, teacher_logits, axis)
    outside = (t == 0) | (d > 16)  # where t vanishes beside p, t e^d would be 0 · ∞
    lost = p - jnp.where(t == 0, 0.0, t * (1 + jnp.where(t == 0, 0.0, d)))
    return jnp.sum(jnp.where(outside, lost, t * exp_excess(jnp.where(outside, 0.0, d))), axis)


@divergence_of_logits.defjvp
def _divergence_of_logits_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    """∂/∂z_j = p_j − t_j = t_j (e^{d_j} − 1); the teacher is a constant."""
    d, p, t = _log_ratio(*primals, axis)
    outside = (t == 0) | (d > 16)
    slope = jnp.where(outside, p - t, t * expm1(jnp.where(outside, 0.0, d)))
    return divergence_of_logits(*primals, axis), jnp.sum(slope * tangents[0], axis)


@loss("Distillation", task="categorical", event=1, logits=True)
def distillation_loss(
    logits: Reals,
    teacher_logits: Reals,
    labels: Labels = None,
    temperature: Annotated[Scalar, POSITIVE] = 1.0,
    alpha: Annotated[Scalar, UNIT] = 0.5,
    axis: int = -1,
    ignore_index: int | None = None,
):
    """Divergence from a teacher's softened probabilities, with or without the cross entropy of labels.

        distillation_loss(z, ẑ) = T² KL(softmax(ẑ / T) ‖ softmax(z / T))
        distillation_loss(z, ẑ, y) = α distillation_loss(z, ẑ) + (1−α) (−log softmax(z)_y)

    T² keeps the size of gradients when T changes. The teacher and T are constants to the gradient. The divergence
    is a sum of terms ≥ 0 of differences of logits: exact however near the student comes, and 0 where it is the teacher.

    Args:
      logits: [..., C], floating, the student's; classes along `axis`.
      teacher_logits: [..., C], same shape.
      labels: [...], integer, the shape of logits without the class axis, in [0, C); None for the divergence alone.
      temperature: T > 0.
      alpha: α in [0, 1], the weight of the teacher where there are labels.
      axis: where the classes are.
      ignore_index: the label of examples that cost 0, with gradient 0.

    Returns:
      [...], float32 for half-precision input; NaN, with a gradient of NaN, where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or an option or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> distillation_loss(jnp.array([2.0, 0.0]), jnp.array([0.0, 0.0]), temperature=2.0)
      Array(0.48045808, dtype=float32)

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
    """
    temperature = jax.lax.stop_gradient(temperature)
    soft = temperature * temperature * divergence_of_logits(logits / temperature, teacher_logits / temperature, axis)
    if labels is None:
        return soft
    return alpha * soft + (1 - alpha) * softmax_cross_entropy_with_integer_labels(logits, labels, axis)
