"""Schedules of one piece, and of a warmup and one piece."""

import jax.numpy as jnp

from lossopt_jax._core import complaint, concrete
from lossopt_jax.schedules._lift import between, progress, ratio, schedule


@schedule("constant")
def constant_schedule(step, *, value):
    """The same value at every step.

    Args:
      value: any real number.

    Example:
      >>> constant_schedule(0.1)(1000)
      Array(0.1, dtype=float32)
    """
    return jnp.broadcast_to(value, step.shape)


@schedule("linear", steps=("transition_steps",), begins=("transition_begin",))
def linear_schedule(step, *, init_value, end_value, transition_steps, transition_begin=0):
    """From init_value to end_value along a line, then constant.

        x = clamp((s − begin) / n, 0, 1)
        value = (1 − x) init + x end

    Args:
      init_value: at s ≤ begin.
      end_value: at s ≥ begin + n.
      transition_steps: n ≥ 1.
      transition_begin: ≥ 0.

    Raises:
      ValueError: a concrete duration out of range.

    Example:
      >>> linear_schedule(1.0, 0.0, 10)(4)
      Array(0.6, dtype=float32)

    Differs from: optax, where 0 steps stay at init_value for ever; here that is an error (a traced 0: end_value).
    """
    return between(init_value, end_value, progress(step, transition_steps, transition_begin))


@schedule("exponential", steps=("transition_steps",), begins=("transition_begin",))
def exponential_decay(
    step, *, init_value, transition_steps, decay_rate, transition_begin=0, staircase=False, end_value=None
):
    """A factor every so many steps.

        x = max(s − begin, 0) / n,      ⌊x⌋ with staircase
        value = init · rˣ,      not beyond end_value

    Args:
      init_value: at s ≤ begin.
      transition_steps: n ≥ 1.
      decay_rate: r ≥ 0; above 1 it grows.
      transition_begin: ≥ 0.
      staircase: change every n steps only.
      end_value: a floor (a ceiling where r > 1), or None.

    Raises:
      ValueError: a concrete duration or rate out of range.

    Example:
      >>> exponential_decay(1.0, 10, 0.5)(20)
      Array(0.25, dtype=float32)

    Differs from: optax, where a rate of 0 or 0 steps stay at init_value for ever.
    """
    n, since = jnp.maximum(transition_steps, 1), jnp.maximum(step - transition_begin, 0)
    x = ratio(since // n, jnp.ones_like(n)) if staircase else ratio(since, n)
    value = init_value * decay_rate**x
    if end_value is None:
        return value
    return jnp.where(decay_rate < 1, jnp.maximum(value, end_value), jnp.minimum(value, end_value))


@schedule("cosine", steps=("decay_steps",))
def cosine_decay_schedule(step, *, init_value, decay_steps, alpha=0.0, exponent=1.0):
    """From init_value to alpha · init_value along half a cosine, then constant.

        x = clamp(s / n, 0, 1)
        value = init · ((1 − α) (½ (1 + cos πx))^p + α)

    Args:
      init_value: at s = 0.
      decay_steps: n ≥ 1.
      alpha: α, the share of init_value that stays.
      exponent: p.

    Raises:
      ValueError: a concrete duration out of range.

    Example:
      >>> cosine_decay_schedule(1.0, 10)(5)
      Array(0.5, dtype=float32)

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return init_value * ((1 - alpha) * _half_cosine(progress(step, decay_steps)) ** exponent + alpha)


def _warmup_fits(*, warmup_steps, decay_steps, **_):
    if concrete(warmup_steps) and concrete(decay_steps) and decay_steps <= warmup_steps:
        got = f"{decay_steps} with warmup_steps {warmup_steps}"
        where = "warmup_cosine_decay_schedule"
        raise ValueError(complaint(where, "decay_steps", "be > warmup_steps", got, "it counts the warmup too"))


@schedule("warmup_cosine", steps=("decay_steps",), begins=("warmup_steps",), check=_warmup_fits)
def warmup_cosine_decay_schedule(
    step, *, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0, exponent=1.0
):
    """A line up to the peak, then half a cosine down.

        s < w:  (1 − s/w) init + s/w peak
        else:   (peak − end) (½ (1 + cos πx))^p + end,      x = clamp((s − w) / (n − w), 0, 1)

    Args:
      init_value: at s = 0.
      peak_value: at s = w.
      warmup_steps: w ≥ 0.
      decay_steps: n > w, the warmup included.
      end_value: at s ≥ n.
      exponent: p.

    Raises:
      ValueError: a concrete duration out of range.

    Example:
      >>> warmup_cosine_decay_schedule(0.0, 1.0, 10, 110)(60)
      Array(0.5, dtype=float32)

    Differs from: Keras, where decay_steps come after the warmup.
    Source: Goyal et al. 2017, arXiv:1706.02677; Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    rise = between(init_value, peak_value, progress(step, warmup_steps))
    fall = _half_cosine(progress(step, decay_steps - warmup_steps, warmup_steps)) ** exponent
    return jnp.where(step < warmup_steps, rise, between(end_value, peak_value, fall))


def _half_cosine(x):
    # sin² of the rest: ½ (1 + cos πx) without its cancellation towards x = 1
    return jnp.sin(jnp.pi / 2 * (1 - x)) ** 2


@schedule("inverse_time", steps=("transition_steps",))
def inverse_time_decay(step, *, init_value, transition_steps, decay_rate, staircase=False):
    """Divided by a number that grows with the step.

        value = init / (1 + r x),      x = s / n,  ⌊s / n⌋ with staircase

    Args:
      init_value: at s = 0.
      transition_steps: n ≥ 1; 1 gives the `decay` of Keras 2.
      decay_rate: r ≥ 0.
      staircase: change every n steps only.

    Raises:
      ValueError: a concrete duration or rate out of range.

    Example:
      >>> inverse_time_decay(1.0, 1, 0.5)(2)
      Array(0.5, dtype=float32)

    Source: Robbins & Monro 1951; Keras 2.
    """
    n = jnp.maximum(transition_steps, 1)
    x = ratio(step // n, jnp.ones_like(n)) if staircase else ratio(step, n)
    return init_value / (1 + decay_rate * x)


@schedule(steps=("steps",))
def exponential_range(step, *, low, high, steps):
    """From low to high in equal factors: the curve of a learning-rate range test.

        value = low^(1−x) high^x,      x = clamp(s / n, 0, 1)

    Args:
      low: at s = 0, > 0.
      high: at s ≥ n, > 0.
      steps: n ≥ 1.

    Raises:
      ValueError: a concrete duration out of range.

    Example:
      >>> exponential_range(1e-4, 1.0, 100)(50)
      Array(0.01, dtype=float32)

    Source: Smith 2017, arXiv:1506.01186.
    """
    x = progress(step, steps)
    return low ** (1 - x) * high**x
