"""Distances between numbers."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, UNIT, Range, Scalar
from lossopt_jax.losses._arithmetic import absolute, event_mean, expm1
from lossopt_jax.losses._lift import Reals, Values, loss

AboveMinusOne = Annotated[Any, Values(low=-1, open=True)]


@loss(task="regression", event=0, logits=False)
def squared_error(predictions: Reals, targets: Reals = None):
    """Squared difference of each element.

        squared_error(p, y) = e²,      e = p − y

    Gradient: 2 e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> squared_error(jnp.array([1.0, 3.0]), jnp.zeros(2))
      Array([1., 9.], dtype=float32)

    Differs from: Keras and torch `mse`, which average: see `mean_squared_error`.
    """
    error = predictions - targets
    return error * error


@loss(task="regression", event=0, logits=False)
def l2_loss(predictions: Reals, targets: Reals = None):
    """Half the squared difference of each element.

        l2_loss(p, y) = ½ e²,      e = p − y

    Gradient: e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> l2_loss(jnp.array([1.0, 3.0]), jnp.zeros(2))
      Array([0.5, 4.5], dtype=float32)

    Differs from: optax `l2_loss`, which overflows where e² does, and in float16 from e = 256.
    """
    error = predictions - targets
    return 0.5 * error * error


@loss(task="regression", event=0, logits=False)
def absolute_error(predictions: Reals, targets: Reals):
    """Absolute difference of each element.

        absolute_error(p, y) = |e|,      e = p − y

    Gradient: sign e, and 0 at an exact hit.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> absolute_error(jnp.array([-1.0, 3.0]), jnp.zeros(2))
      Array([1., 3.], dtype=float32)

    Differs from: Keras and torch `mae`, which average: see `mean_absolute_error`.
    """
    return absolute(predictions - targets)


@loss("mse", "MSELoss", task="regression", event=1, logits=False)
def mean_squared_error(predictions: Reals, targets: Reals):
    """Squared difference, averaged over the last axis.

        mean_squared_error(p, y) = 1/D Σ_d (p_d − y_d)²

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.

    Returns:
      [...], float32 for half-precision input, one value per example; 0 for D = 0.

    Raises:
      ValueError: shapes differ, or predictions are a scalar.
      TypeError: predictions are not floating.

    Example:
      >>> mean_squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
      Array([5.], dtype=float32)

    Differs from: torch `MSELoss`, which averages over the batch as well; Keras squeezes (N, 1) against (N,), here an
    error.
    """
    error = predictions - targets
    return event_mean(error * error)


@loss("mae", "l1", "L1Loss", task="regression", event=1, logits=False)
def mean_absolute_error(predictions: Reals, targets: Reals):
    """Absolute difference, averaged over the last axis.

        mean_absolute_error(p, y) = 1/D Σ_d |p_d − y_d|

    Gradient: sign e / D, and 0 at an exact hit.

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.

    Returns:
      [...], float32 for half-precision input, one value per example; 0 for D = 0.

    Raises:
      ValueError: shapes differ, or predictions are a scalar.
      TypeError: predictions are not floating.

    Example:
      >>> mean_absolute_error(jnp.array([[-1.0, 3.0]]), jnp.zeros((1, 2)))
      Array([2.], dtype=float32)

    Differs from: Keras on JAX, whose gradient at an exact hit is 1; torch `L1Loss` averages over the batch as well.
    """
    return event_mean(absolute(predictions - targets))


@loss("Huber", "HuberLoss", task="regression", event=0, logits=False)
def huber_loss(predictions: Reals, targets: Reals = None, delta: Annotated[Scalar, POSITIVE] = 1.0):
    """Half the square of a small difference, the size of a large one, of each element.

        huber_loss(p, y) = ½ e² if |e| ≤ δ, else δ (|e| − ½ δ),      e = p − y

    Gradient: e, cut off at ±δ; exact, however large δ is.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.
      delta: δ > 0, where the square ends.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or δ is not positive.
      TypeError: predictions are not floating.

    Example:
      >>> huber_loss(jnp.array([0.5, 3.0]), jnp.zeros(2))
      Array([0.125, 2.5  ], dtype=float32)

    Source: Huber 1964, doi:10.1214/aoms/1177703732.
    Differs from: optax, whose gradient inside δ loses digits (2 % of it at e = 1e-3 with δ = 1e4); Keras averages the
    last axis, torch everything.
    """
    error = predictions - targets
    return _huber(error, delta)


def _huber(error: jax.Array, delta: Any) -> jax.Array:
    kept = _cut(error, delta)
    return kept * (error - 0.5 * kept)


def _cut(error: jax.Array, bound: Any) -> jax.Array:
    """Within ±bound; NaN stays NaN."""
    return jnp.where(error > bound, bound, jnp.where(error < -bound, -bound, error))


@loss("SmoothL1Loss", task="regression", event=0, logits=False)
def smooth_l1_loss(predictions: Reals, targets: Reals, beta: Annotated[Scalar, POSITIVE] = 1.0):
    """The size of a large difference, a square for a small one, of each element.

        smooth_l1_loss(p, y) = ½ e² / β if |e| ≤ β, else |e| − ½ β,      e = p − y

    Gradient: e / β, cut off at ±1.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.
      beta: β > 0, where the square ends.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or β is not positive.
      TypeError: predictions are not floating.

    Example:
      >>> smooth_l1_loss(jnp.array([0.5, 3.0]), jnp.zeros(2), beta=2.0)
      Array([0.0625, 2.    ], dtype=float32)

    Source: Girshick 2015, arXiv:1504.08083.
    Differs from: `huber_loss`, by the factor β; torch averages over everything, and takes β = 0 for `absolute_error`.
    """
    error = predictions - targets
    kept = _cut(error, beta)
    return (kept / beta) * (error - 0.5 * kept)


@loss("LogCosh", task="regression", event=0, logits=False)
def log_cosh(predictions: Reals, targets: Reals = None):
    """Logarithm of the hyperbolic cosine of each difference: ½ e² for small ones, |e| − log 2 for large ones.

        log_cosh(p, y) = log cosh e,      e = p − y

    Gradient: tanh e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape; None for zeros.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ.
      TypeError: predictions are not floating.

    Example:
      >>> log_cosh(jnp.array([1e-4, 100.0]), jnp.zeros(2))
      Array([5.0e-09, 9.9306854e+01], dtype=float32)

    Differs from: optax, which gives 0 for |e| ≤ 1e-4 and negative values in float16; Keras averages the last axis.
    """
    return _log_cosh(predictions - targets)


@jax.custom_jvp
def _log_cosh(error: jax.Array) -> jax.Array:
    """−½ log1p(−tanh² e) below 1; |e| + log1p(e^−2|e|) − log 2 above, where tanh gives e^−2|e| = (1−tanh)/(1+tanh)."""
    size = jnp.abs(error)
    slope, near = jnp.tanh(size), size < 1
    tail = jnp.log1p(jnp.where(near, -slope * slope, (1 - slope) / (1 + slope)))
    return jnp.where(near, -0.5 * tail, size + (tail - 0.6931471805599453))


@_log_cosh.defjvp
def _log_cosh_jvp(primals: Any, tangents: Any) -> Any:
    return _log_cosh(*primals), jnp.tanh(primals[0]) * tangents[0]


@loss("pinball_loss", task="regression", event=0, logits=False)
def quantile_loss(
    predictions: Reals,
    targets: Reals,
    quantile: Annotated[Scalar, UNIT] = 0.5,
    delta: Annotated[Scalar, POSITIVE] | None = None,
):
    """Pinball loss of each element: its expectation is least at the τ-quantile of the targets.

        quantile_loss(p, y) = τ e if e ≥ 0, else (τ − 1) e,      e = y − p

    With δ the square of small differences: |τ − 1[e < 0]| · huber_loss(e, δ) / δ.

    Gradient: −τ where the target is above, 1 − τ where it is below, 0 at an exact hit.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.
      quantile: τ in [0, 1]. For several, `jax.vmap` over them and the axis of predictions that belongs to them.
      delta: δ > 0, where the square ends; None for none.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or τ or δ is out of range.
      TypeError: predictions are not floating.

    Example:
      >>> quantile_loss(jnp.array([0.0, 0.0]), jnp.array([2.0, -2.0]), quantile=0.75)
      Array([1.5, 0.5], dtype=float32)

    Source: Koenker & Bassett 1978, doi:10.2307/1913643; with δ Dabney et al. 2017, arXiv:1710.10044, equation 10.
    """
    error = targets - predictions
    slope = jnp.where(error > 0, quantile, jnp.where(error < 0, quantile - 1, 0.0))
    return slope * error if delta is None else jnp.abs(slope) * (_huber(error, delta) / delta)


@loss(task="regression", event=0, logits=False)
def expectile_loss(predictions: Reals, targets: Reals, expectile: Annotated[Scalar, UNIT] = 0.5):
    """Asymmetric square of each element: its expectation is least at the τ-expectile of the targets.

        expectile_loss(p, y) = |τ − 1[e < 0]| e²,      e = y − p

    Gradient: −2 |τ − 1[e < 0]| e.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.
      expectile: τ in [0, 1]; ½ gives half the squared error.

    Returns:
      [...], float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or τ is out of range.
      TypeError: predictions are not floating.

    Example:
      >>> expectile_loss(jnp.array([0.0, 0.0]), jnp.array([2.0, -2.0]), expectile=0.75)
      Array([3., 1.], dtype=float32)

    Source: Newey & Powell 1987, doi:10.2307/1911031.
    """
    error = targets - predictions
    return jnp.where(error < 0, 1 - expectile, expectile) * error * error


@jax.custom_jvp
def _log1p_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """log(1 + x) − log(1 + y), without cancellation where they are near."""
    step = (x - y) / (1 + y)
    near = (step > -0.5) & (step < 1)
    return jnp.where(near, jnp.log1p(jnp.where(near, step, 0.0)), jnp.log1p(x) - jnp.log1p(y))


@_log1p_difference.defjvp
def _log1p_difference_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    return _log1p_difference(x, y), dx / (1 + x) - dy / (1 + y)


@loss(task="regression", event=0, logits=False)
def squared_log_error(predictions: AboveMinusOne, targets: AboveMinusOne):
    """Squared difference of logarithms of each element: a relative error for large numbers.

        squared_log_error(p, y) = (log(1 + p) − log(1 + y))²

    Gradient: 2 (log(1 + p) − log(1 + y)) / (1 + p).

    Args:
      predictions: [...], floating, > −1.
      targets: [...], same shape, > −1.

    Returns:
      [...], float32 for half-precision input, one value per element; NaN where a traced number is not above −1.

    Raises:
      ValueError: shapes differ, or a concrete number is not above −1.
      TypeError: predictions are not floating.

    Example:
      >>> squared_log_error(jnp.array([0.0, 1e9]), jnp.array([jnp.e - 1, 1e9]))
      Array([1., 0.], dtype=float32)

    Differs from: Keras, which takes negative numbers for 1e-7; see `mean_squared_logarithmic_error`.
    """
    return jnp.square(_log1p_difference(predictions, targets))


@loss("msle", "mean_squared_log_error", task="regression", event=1, logits=False)
def mean_squared_logarithmic_error(predictions: AboveMinusOne, targets: AboveMinusOne):
    """Squared difference of logarithms, averaged over the last axis.

        mean_squared_logarithmic_error(p, y) = 1/D Σ_d (log(1 + p_d) − log(1 + y_d))²

    Args:
      predictions: [..., D], floating, > −1.
      targets: [..., D], same shape, > −1.

    Returns:
      [...], float32 for half-precision input, one value per example; NaN where a traced number is not above −1.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or a concrete number is not above −1.
      TypeError: predictions are not floating.

    Example:
      >>> mean_squared_logarithmic_error(jnp.array([[0.0, 1e9]]), jnp.array([[jnp.e - 1, 1e9]]))
      Array([0.5], dtype=float32)

    Differs from: Keras, which takes negative numbers for 1e-7.
    """
    return event_mean(jnp.square(_log1p_difference(predictions, targets)))


@loss(task="regression", event=0, logits=False)
def absolute_percentage_error(predictions: Reals, targets: Reals, epsilon: Annotated[Scalar, NONNEGATIVE] = 1e-7):
    """Absolute difference of each element in percent of its target.

        absolute_percentage_error(p, y) = 100 |e| / max(|y|, ε),      e = p − y

    Gradient: 100 sign e / max(|y|, ε), and 0 at an exact hit.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.
      epsilon: ε ≥ 0, what a target's size counts as at least.

    Returns:
      [...], percent, float32 for half-precision input, one value per element.

    Raises:
      ValueError: shapes differ, or ε is negative.
      TypeError: predictions are not floating.

    Example:
      >>> absolute_percentage_error(jnp.array([1.5, 2.0]), jnp.array([1.0, 2.0]))
      Array([50.,  0.], dtype=float32)
    """
    size = jnp.abs(targets)
    return absolute(predictions - targets) * (100 / jnp.where(size < epsilon, epsilon, size))


@loss("mape", task="regression", event=1, logits=False)
def mean_absolute_percentage_error(predictions: Reals, targets: Reals, epsilon: Annotated[Scalar, NONNEGATIVE] = 1e-7):
    """Absolute difference in percent of the target, averaged over the last axis.

        mean_absolute_percentage_error(p, y) = 100/D Σ_d |p_d − y_d| / max(|y_d|, ε)

    Args:
      predictions: [..., D], floating.
      targets: [..., D], same shape.
      epsilon: ε ≥ 0, what a target's size counts as at least.

    Returns:
      [...], percent, float32 for half-precision input, one value per example.

    Raises:
      ValueError: shapes differ, predictions are a scalar, or ε is negative.
      TypeError: predictions are not floating.

    Example:
      >>> mean_absolute_percentage_error(jnp.array([[1.5, 2.0]]), jnp.array([[1.0, 2.0]]))
      Array([25.], dtype=float32)
    """
    return event_mean(absolute_percentage_error(predictions, targets, epsilon))


@loss("barron_loss", task="regression", event=0, logits=False)
def general_robust_loss(
    predictions: Reals,
    targets: Reals,
    alpha: Annotated[Scalar, Range("be a number below ∞, or −∞", lambda x: x < float("inf"))] = 1.0,
    scale: Annotated[Scalar, POSITIVE] = 1.0,
):
    """A family of losses from the square to one that ignores outliers, of each element.

        general_robust_loss(p, y) = b/α ((x²/b + 1)^(α/2) − 1),      b = |α − 2|,  x = (p − y) / c

    α = 2: ½ x²;  1: √(x² + 1) − 1 (Charbonnier);  0: log(½ x² + 1) (Cauchy);  −2: 2 x² / (x² + 4) (Geman–McClure);
    −∞: 1 − exp(−½ x²) (Welsch). All of them ½ x² for small x. Differentiable in α and c too, so both can be learned.

    Args:
      predictions: [...], floating.
      targets: [...], same shape.
      alpha: α < ∞, the shape.
      scale: c > 0, the size of a difference that is no outlier.

    Returns:
      [...], float32 for half-precision input, one value per element; within 1e-5 of it, since powers are rounded.

    Raises:
      ValueError: shapes differ, or α or c is out of range.
      TypeError: predictions are not floating.

    Example:
      >>> general_robust_loss(jnp.array([0.0, 3.0]), jnp.zeros(2), alpha=-2.0)
      Array([0.       , 1.3846154], dtype=float32)

    Source: Barron 2019, arXiv:1701.03077, equation 13.
    """
    x = (predictions - targets) / scale
    half = 0.5 * x * x
    square, welsch = alpha == 2, alpha == -jnp.inf
    shape = jnp.where(square | welsch, 1.0, alpha).astype(x.dtype)
    b = jnp.abs(shape - 2)
    level = jnp.log1p(half * (2 / b))
    # b/α (e^{αl/2} − 1) = b/2 l (e^y − 1)/y, and the last factor is 1 at α = 0
    y = 0.5 * shape * level
    ratio = jnp.where(y == 0, 1 + 0.5 * y, expm1(y) / jnp.where(y == 0, 1.0, y))
    general = 0.5 * b * level * ratio
    return jnp.where(square, half, jnp.where(welsch, -expm1(-half), general))
