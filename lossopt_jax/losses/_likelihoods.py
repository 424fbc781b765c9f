"""Negative log-likelihoods of a target under a distribution whose parameters are predicted."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from lossopt_jax._core import POSITIVE, UNIT, Scalar
from lossopt_jax.losses._arithmetic import absolute, event_mean, floored_log
from lossopt_jax.losses._lift import Nonnegative, Reals, loss


def _of_rate(rate: jax.Array, counts: jax.Array) -> jax.Array:
    return rate - counts * floored_log(rate)


@loss(task="regression", event=1, logits=False)
def poisson(predictions: Nonnegative, targets: Nonnegative):
    """Poisson negative log-likelihood from rates, averaged over the last axis, without the terms of targets alone.

        poisson(λ, y) = 1/D Σ_d λ_d − y_d log λ_d

    Gradient: 1 − y/λ, over D. In it and in the logarithm λ is at least 1e-30 (float64: 1e-300), so that a rate of 0 can
    be left.

    Args:
      predictions: [..., D], rates, floating, ≥ 0.
      targets: [..., D], same shape, counts ≥ 0; integer too.

    Returns:
      [...], float32 for half-precision input, one value per example; NaN where a traced number is negative.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete number is negative.
      TypeError: predictions are not floating.

    Example:
      >>> poisson(jnp.array([[1.0, 4.0]]), jnp.array([[3.0, 0.0]]))
      Array([2.5], dtype=float32)

    Differs from: Keras, which adds 1e-7 to the rate in the logarithm; torch's form is `poisson_nll_loss`.
    """
    return event_mean(_of_rate(predictions, targets))


@loss("PoissonNLLLoss", task="regression", event=0, logits=False)
def poisson_nll_loss(predictions: Reals, targets: Nonnegative, log_input: bool = True, full: bool = False):
    """Poisson negative log-likelihood of each element, from the logarithm of the rate.

        poisson_nll_loss(z, y) = e^z − y z      or λ − y log λ

    With full, + y log y − y + ½ log(2π y) where y > 1: Stirling's log y!.

    Gradient: e^z − y. The value overflows where e^z does, from z = 88.7.

    Args:
      predictions: [...], logarithms of rates, or without log_input rates ≥ 0, in the logarithm at least 1e-30.
      targets: [...], same shape, counts ≥ 0; integer too.
      log_input: whether predictions are logarithms.
      full: whether to add what depends on targets alone.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target or rate is negative.

    Raises:
      ValueError: shapes differ, or a concrete target is negative.
      TypeError: predictions are not floating.

    Example:
      >>> poisson_nll_loss(jnp.array([0.0, 1.0]), jnp.array([2.0, 0.0]))
      Array([1.       , 2.7182817], dtype=float32)

    Differs from: torch, which averages over everything and adds 1e-8 to the rate in the logarithm.
    """
    if log_input:
        value = jnp.exp(predictions) - targets * predictions
    else:
        value = jnp.where(predictions < 0, jnp.nan, 1.0) * _of_rate(predictions, targets)
    if full:
        many = targets > 1
        y = jnp.where(many, targets, 2.0)
        value = value + jnp.where(many, y * jnp.log(y) - y + 0.5 * jnp.log(2 * math.pi * y), 0.0)
    return value


def _at_least(variance: jax.Array, least: Any) -> jax.Array:
    """max(v, ε) with the derivative of v, so that a variance below can grow again."""
    return jnp.where(variance < least, least + (variance - jax.lax.stop_gradient(variance)), variance)


@loss("GaussianNLLLoss", task="regression", event=0, logits=False)
def gaussian_nll_loss(
    predictions: Reals,
    targets: Reals,
    variance: Nonnegative,
    full: bool = False,
    eps: Annotated[Scalar, POSITIVE] = 1e-6,
):
    """Negative log-likelihood of each element under a normal distribution.

        gaussian_nll_loss(μ, y, v) = ½ (log v + (y − μ)²/v),      v at least ε

    With full, + ½ log 2π.

    Gradient: (μ − y)/v, and ½ (1 − (y − μ)²/v)/v with respect to v, below ε as at ε.

    Args:
      predictions: [...], means, floating.
      targets: [...], same shape.
      variance: [...], same shape, ≥ 0.
      full: whether to add the constant.
      eps: ε > 0, what a variance counts as at least.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced variance is negative.

    Raises:
      ValueError: shapes differ, ε is not positive, or a concrete variance is negative.
      TypeError: predictions are not floating.

    Example:
      >>> gaussian_nll_loss(jnp.array([0.0]), jnp.array([2.0]), jnp.array([4.0]))
      Array([1.1931472], dtype=float32)

    Source: Nix & Weigend 1994, doi:10.1109/ICNN.1994.374138.
    Differs from: torch, which averages over everything, and broadcasts.
    """
    v, error = _at_least(variance, eps), predictions - targets
    return 0.5 * (jnp.log(v) + error * (error / v)) + (0.5 * math.log(2 * math.pi) if full else 0.0)


@loss(task="regression", event=0, logits=False)
def beta_nll_loss(
    predictions: Reals,
    targets: Reals,
    variance: Nonnegative,
    beta: Annotated[Scalar, UNIT] = 0.5,
    eps: Annotated[Scalar, POSITIVE] = 1e-6,
):
    """Gaussian negative log-likelihood, each element weighted by a power of its own variance.

        beta_nll_loss(μ, y, v) = ⌊v^β⌋ ½ (log v + (y − μ)²/v),      ⌊·⌋ a constant to the gradient, v at least ε

    β = 0 is `gaussian_nll_loss`; 1 gives means the gradient of the squared error, so that a large variance cannot
    excuse a bad mean.

    Args:
      predictions: [...], means, floating.
      targets: [...], same shape.
      variance: [...], same shape, ≥ 0.
      beta: β in [0, 1].
      eps: ε > 0, what a variance counts as at least.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced variance is negative.

    Raises:
      ValueError: shapes differ, β or ε is out of range, or a concrete variance is negative.
      TypeError: predictions are not floating.

    Example:
      >>> beta_nll_loss(jnp.array([0.0]), jnp.array([2.0]), jnp.array([4.0]))
      Array([2.3862944], dtype=float32)

    Source: Seitzer et al. 2022, arXiv:2203.09168, equation 5.
    """
    weight = jax.lax.stop_gradient(jnp.power(jnp.where(variance < eps, eps, variance), beta))
    return weight * gaussian_nll_loss(predictions, targets, variance, eps=eps)


@loss(task="regression", event=0, logits=False)
def laplace_nll_loss(predictions: Reals, targets: Reals, log_scale: Reals):
    """Negative log-likelihood of each element under a Laplace distribution.

        laplace_nll_loss(μ, y, s) = log 2 + s + |y − μ| e^−s

    Gradient: sign(μ − y) e^−s, and 1 − |y − μ| e^−s with respect to s.

    Args:
      predictions: [...], medians, floating.
      targets: [...], same shape.
      log_scale: [...], same shape, s, the logarithm of the mean absolute deviation.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> laplace_nll_loss(jnp.array([0.0]), jnp.array([2.0]), jnp.array([0.0]))
      Array([2.6931472], dtype=float32)
    """
    return math.log(2) + log_scale + absolute(predictions - targets) * jnp.exp(-log_scale)


@loss(task="regression", event=0, logits=False)
def student_t_nll_loss(
    predictions: Reals, targets: Reals, log_scale: Reals, degrees_of_freedom: Annotated[Scalar, POSITIVE] = 3.0
):
    """Negative log-likelihood of each element under a Student t distribution, which forgives outliers.

        student_t_nll_loss(μ, y, s) = log B(½, ν/2) + ½ log ν + s + (ν+1)/2 log(1 + x²/ν),      x = (y − μ) e^−s

    Args:
      predictions: [...], locations, floating.
      targets: [...], same shape.
      log_scale: [...], same shape, s, the logarithm of the scale.
      degrees_of_freedom: ν > 0.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or ν is not positive.
      TypeError: predictions are not floating.

    Example:
      >>> student_t_nll_loss(jnp.array([0.0]), jnp.array([1.0]), jnp.array([0.0]), degrees_of_freedom=1.0)
      Array([1.837877], dtype=float32)

    Source: Lange, Little & Taylor 1989, doi:10.1080/01621459.1989.10478852.
    """
    nu = degrees_of_freedom
    x = (predictions - targets) * jnp.exp(-log_scale)
    half = jnp.asarray(0.5, x.dtype)
    constant = gammaln(half * nu) - gammaln(half * (nu + 1)) + 0.5 * math.log(math.pi) + 0.5 * jnp.log(nu)
    return constant + log_scale + half * (nu + 1) * jnp.log1p(x * (x / nu))


@loss(task="regression", event=0, logits=False)
def negative_binomial_nll_loss(predictions: Reals, targets: Nonnegative, log_dispersion: Reals):
    """Negative log-likelihood of each count under a negative binomial distribution.

        negative_binomial_nll_loss(z, y, a) = (r + y) log(1 + e^w) − y w + log Γ(r) + log y! − log Γ(y + r),
        w = z + a,  r = e^−a

    The mean is e^z, the variance e^z + e^a e^{2z}: a Poisson distribution for a → −∞.

    Gradient: (r + y) σ(w) − y with respect to z.

    Args:
      predictions: [...], logarithms of means, floating.
      targets: [...], same shape, counts ≥ 0; integer too.
      log_dispersion: [...], same shape, a. Below about −10 the gamma functions cancel in float32.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced target is negative.

    Raises:
      ValueError: shapes differ, or a concrete target is negative.
      TypeError: predictions are not floating.

    Example:
      >>> negative_binomial_nll_loss(jnp.array([0.0]), jnp.array([0.0]), jnp.array([0.0]))
      Array([0.69315], dtype=float32)

    Source: Hilbe 2011, doi:10.1017/CBO9780511973420, the NB2 form.
    """
    w, r = predictions + log_dispersion, jnp.exp(-log_dispersion)
    constant = gammaln(r) + gammaln(targets + 1) - gammaln(targets + r)
    return (r + targets) * jax.nn.softplus(w) - targets * w + constant
