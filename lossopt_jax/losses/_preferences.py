"""Losses of preferences, from log-probabilities of whole sequences under a policy and a reference."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, UNIT, Scalar
from lossopt_jax.losses._arithmetic import expm1, floored_log
from lossopt_jax.losses._crossentropy import softmax_cross_entropy_with_integer_labels
from lossopt_jax.losses._lift import Mask, Reals, Values, loss

LogProbabilities = Annotated[Any, Values(high=0)]


def token_log_probs(logits: Any, labels: Any, ignore_index: int | None = None) -> jax.Array:
    """Logarithm of the probability of each token; their sum over the last axis is what the losses of preferences take.

        token_log_probs(z, y) = log softmax(z)_y

    Args:
      logits: [..., T, V], floating.
      labels: [..., T], integer, in [0, V).
      ignore_index: the label of tokens that give 0, such as those of the prompt.

    Returns:
      [..., T], float32 for half-precision input; NaN where a traced label is no class.

    Raises:
      ValueError: shapes do not fit, or a concrete label is out of range.
      TypeError: logits are not floating, or labels not integer.

    Example:
      >>> token_log_probs(jnp.zeros((2, 4)), jnp.array([1, -1]), ignore_index=-1)
      Array([-1.3862944, -0.       ], dtype=float32)
    """
    return -softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=ignore_index)


def _lead(chosen: Any, rejected: Any, reference_chosen: Any, reference_rejected: Any) -> jax.Array:
    return (chosen - reference_chosen) - (rejected - reference_rejected)


@loss("DPO", task="embedding", event=0, logits=False)
def dpo_loss(
    chosen: Reals,
    rejected: Reals,
    reference_chosen: Reals,
    reference_rejected: Reals,
    beta: Annotated[Scalar, POSITIVE] = 0.1,
    label_smoothing: Annotated[Scalar, UNIT] = 0.0,
):
    """Direct preference optimisation, of each pair.

        dpo_loss = −(1 − ε) log σ(β h) − ε log σ(−β h),      h = (log π_c − log ρ_c) − (log π_r − log ρ_r)

    Args:
      chosen: [...], log-probabilities of the preferred sequences under the policy.
      rejected: [...], same shape: of the others.
      reference_chosen: [...], same shape: of the preferred ones under the reference.
      reference_rejected: [...], same shape: of the others.
      beta: β > 0, how dear it is to leave the reference.
      label_smoothing: ε in [0, 1], how often the preference is the wrong way round (conservative DPO).

    Returns:
      [...], float32 for half-precision input, one value per pair.

    Raises:
      ValueError: shapes differ, or an option is out of range.
      TypeError: log-probabilities are not floating.

    Example:
      >>> dpo_loss(jnp.array([-1.0]), jnp.array([-2.0]), jnp.array([-1.5]), jnp.array([-1.5]), beta=1.0)
      Array([0.3132617], dtype=float32)

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    lead = beta * _lead(chosen, rejected, reference_chosen, reference_rejected)
    return (1 - label_smoothing) * jax.nn.softplus(-lead) + label_smoothing * jax.nn.softplus(lead)


@loss("IPO", task="embedding", event=0, logits=False)
def ipo_loss(
    chosen: Reals,
    rejected: Reals,
    reference_chosen: Reals,
    reference_rejected: Reals,
    beta: Annotated[Scalar, POSITIVE] = 0.1,
):
    """Identity preference optimisation, of each pair: the lead is to be 1/(2β), not infinite.

        ipo_loss = (h − 1/(2 β))²,      h as for `dpo_loss`

    Args:
      chosen: [...], log-probabilities of the preferred sequences under the policy.
      rejected: [...], same shape: of the others.
      reference_chosen: [...], same shape: of the preferred ones under the reference.
      reference_rejected: [...], same shape: of the others.
      beta: β > 0.

    Returns:
      [...], float32 for half-precision input, one value per pair.

    Raises:
      ValueError: shapes differ, or β is not positive.
      TypeError: log-probabilities are not floating.

    Example:
      >>> ipo_loss(jnp.array([-1.0]), jnp.array([-2.0]), jnp.array([-1.5]), jnp.array([-1.5]), beta=1.0)
      Array([0.25], dtype=float32)

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    return jnp.square(_lead(chosen, rejected, reference_chosen, reference_rejected) - 0.5 / beta)


@loss("SimPO", task="embedding", event=0, logits=False)
def simpo_loss(
    chosen: Reals,
    rejected: Reals,
    beta: Annotated[Scalar, POSITIVE] = 2.0,
    gamma: Annotated[Scalar, NONNEGATIVE] = 1.0,
):
    """Simple preference optimisation, of each pair: without a reference, and with a margin.

        simpo_loss = −log σ(β (c − r) − γ)

    Args:
      chosen: [...], log-probabilities of the preferred sequences, averaged over their tokens.
      rejected: [...], same shape: of the others.
      beta: β > 0.
      gamma: γ ≥ 0, the margin.

    Returns:
      [...], float32 for half-precision input, one value per pair.

    Raises:
      ValueError: shapes differ, or an option is out of range.
      TypeError: log-probabilities are not floating.

    Example:
      >>> simpo_loss(jnp.array([-1.0]), jnp.array([-2.0]), beta=1.0, gamma=1.0)
      Array([0.6931472], dtype=float32)

    Source: Meng, Xia & Chen 2024, arXiv:2405.14734, equation 6.
    """
    return jax.nn.softplus(gamma - beta * (chosen - rejected))


def _log_odds(log_probability: jax.Array) -> jax.Array:
    return log_probability - floored_log(-expm1(log_probability))


@loss("ORPO", task="embedding", event=0, logits=False)
def orpo_loss(chosen: LogProbabilities, rejected: LogProbabilities):
    """The odds-ratio part of ORPO, of each pair: −log σ of the logarithm of the ratio of odds.

        orpo_loss = −log σ(o(c) − o(r)),      o(x) = x − log(1 − e^x), where 1 − e^x is at least 1e-30

    The whole objective adds the cross entropy of the preferred sequences: L = CE + λ orpo_loss.

    Args:
      chosen: [...], log-probabilities of the preferred sequences, averaged over their tokens, ≤ 0.
      rejected: [...], same shape: of the others.

    Returns:
      [...], float32 for half-precision input, one value per pair; NaN where a traced number is above 0.

    Raises:
      ValueError: shapes differ, or a concrete number is above 0.
      TypeError: log-probabilities are not floating.

    Example:
      >>> orpo_loss(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.5])))
      Array([0.6931472], dtype=float32)

    Source: Hong, Lee & Thorne 2024, arXiv:2403.07691, equation 7.
    """
    return jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen))


@loss("KTO", task="embedding", event=0, logits=False)
def kto_loss(
    log_probability: Reals,
    reference: Reals,
    desirable: Mask,
    divergence: Scalar = 0.0,
    beta: Annotated[Scalar, POSITIVE] = 0.1,
    desirable_weight: Annotated[Scalar, NONNEGATIVE] = 1.0,
    undesirable_weight: Annotated[Scalar, NONNEGATIVE] = 1.0,
):
    """Kahneman–Tversky optimisation, of single sequences that are said to be good or bad, without pairs.

        kto_loss = λ_D σ(−β (r − z)) if desirable, else λ_U σ(−β (z − r)),      r = log π − log ρ

    z is the divergence of the policy from the reference, a constant to the gradient: the mean of log π − log ρ over
    prompts with the answers of others, at least 0.

    Args:
      log_probability: [...], log-probabilities of the sequences under the policy.
      reference: [...], same shape: under the reference.
      desirable: [...], same shape, boolean.
      divergence: z, one number.
      beta: β > 0, how soon gains and losses saturate.
      desirable_weight: λ_D ≥ 0.
      undesirable_weight: λ_U ≥ 0; the paper keeps λ_D n_D / (λ_U n_U) between 1 and 1.5 for n_D good and n_U bad ones.

    Returns:
      [...], float32 for half-precision input, one value per sequence.

    Raises:
      ValueError: shapes differ, or an option is out of range.
      TypeError: log-probabilities are not floating, or desirable is not boolean.

    Example:
      >>> kto_loss(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -3.0]), jnp.array([True, False]), beta=1.0)
      Array([0.5      , 0.8807971], dtype=float32)

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 8.
    """
    gain = beta * ((log_probability - reference) - jax.lax.stop_gradient(jnp.asarray(divergence, reference.dtype)))
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))
