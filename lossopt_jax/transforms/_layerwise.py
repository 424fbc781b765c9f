"""Rules that look at the norm of one array: of the parameter, of the update, or of both."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import Scalar
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import leafwise, treewise
from lossopt_jax.transforms._measures import Whole
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot


def _trust_ratio(whole: Whole, p: jax.Array, g: jax.Array, min_norm: Any, coefficient: Any, eps: Any) -> jax.Array:
    """c ‖p‖ / (‖g‖ + ε), norms at least min_norm; 1 where either is 0."""
    weight, step = jnp.maximum(whole.norm(p), min_norm), jnp.maximum(whole.norm(g), min_norm)
    known = (weight > 0) & (step > 0)
    return jnp.where(known, coefficient * weight / jnp.where(known, step + eps, 1), 1)


def _trust(whole, g, slots, t, p, *, min_norm, trust_coefficient, eps):
    return _trust_ratio(whole, p, g, min_norm, trust_coefficient, eps), {}


@registry.register()
@leafwise(needs=("params",), measure=_trust)
def scale_by_trust_ratio(
    g, slots, t, p, ratio, *, min_norm: Scalar = 0.0, trust_coefficient: Scalar = 1.0, eps: Scalar = 0.0
):
    """Give every array's update the size of the array.

        u = g · c ‖w‖ / (‖g‖ + ε),  u = g where either norm is 0

    Args:
      min_norm: what a norm counts as at least, ≥ 0.
      trust_coefficient: c ≥ 0.
      eps: ε ≥ 0.

    Needs the parameters.  Lift: leafwise.
    Source: You, Gitman & Ginsburg 2017, arXiv:1708.03888; You et al. 2020, arXiv:1904.00962.
    """
    return ratio * g, {}


def _size(whole, g, slots, t, p, *, min_scale):
    return jnp.maximum(whole.norm(p), min_scale), {}


@registry.register()
@leafwise(needs=("params",), measure=_size)
def scale_by_param_block_norm(g, slots, t, p, size, *, min_scale: Scalar = 1e-3):
    """Multiply by the norm of the parameter: u = g · max(‖w‖, s).

    Args:
      min_scale: s ≥ 0.

    Needs the parameters.  Lift: leafwise.
    """
    return size * g, {}


def _mean_size(whole, g, slots, t, p, *, min_scale):
    return jnp.maximum(whole.root_mean_square(p), min_scale), {}


@registry.register()
@leafwise(needs=("params",), measure=_mean_size)
def scale_by_param_block_rms(g, slots, t, p, size, *, min_scale: Scalar = 1e-3):
    """Multiply by the root mean square of the parameter: u = g · max(rms(w), s).

    Args:
      min_scale: s ≥ 0.

    Needs the parameters.  Lift: leafwise.
    Source: Shazeer & Stern 2018, arXiv:1804.04235, section 8.
    """
    return size * g, {}


def _bounded_trust(whole, g, slots, t, p, *, learning_rate, min_norm):
    return _trust_ratio(whole, p, g, min_norm, 1, 0), {}


@registry.register()
@leafwise(needs=("params",), measure=_bounded_trust)
def scale_by_fromage(g, slots, t, p, ratio, *, learning_rate: Scalar, min_norm: Scalar = 1e-6):
    """A step as long as η times the parameter, and the parameter shrunk so that its norm does not grow.

        r = max(‖w‖, s) / max(‖g‖, s)
        u = ((w − η r g) / √(1 + η²)) − w

    Args:
      learning_rate: η ≥ 0.
      min_norm: s ≥ 0, what a norm counts as at least.

    Needs the parameters. The update is complete: no rate belongs behind it.  Lift: leafwise.
    Source: Bernstein et al. 2020, arXiv:2002.03432, algorithm 1.
    """
    shrink = 1 / sqrt(1 + learning_rate * learning_rate)
    # shrink − 1 without cancellation
    fall = -learning_rate * learning_rate * shrink / (1 + 1 / shrink)
    return -learning_rate * shrink * ratio * g + fall * p, {}


def _mean_square(whole, g, slots, t, p, *, b1, b2, eps, eps_root, weight_decay):
    square = jnp.square(whole.norm(g))
    nu = jnp.where(t > 1, b2 * slots.nu + (1 - b2) * square, square)
    return nu, {"nu": nu}


@registry.register()
@leafwise(needs=("params",), measure=_mean_square, mu=Slot(), nu=Slot("leaf", nonnegative=True, exact=True))
def scale_by_novograd(
    g,
    slots,
    t,
    p,
    nu,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
):
    """Momentum of gradients divided by a moving norm of their array.

        v ← ‖g‖² at t = 1, then β₂ v + (1−β₂) ‖g‖²
        m ← β₁ m + (g / (√(v + ε₀) + ε) + λ w)
        u = m

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0, outside the root.
      eps_root: ε₀ ≥ 0, inside the root.
      weight_decay: λ ≥ 0, decay inside the momentum.

    Needs the parameters.  Slots: mu (1 × parameters), nu (one number per array).  Lift: leafwise.
    Source: Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1.
    """
    mu = b1 * slots.mu + g / (sqrt(nu + eps_root) + eps) + weight_decay * p
    return mu, {"mu": mu}


def _normalizing(gradients, t, *, scale_factor, eps, per_group):
    norm = global_norm(gradients)
    return jnp.where(norm > 0, scale_factor.astype(norm.dtype) / jnp.where(norm > 0, norm + eps, 1), 0)


@registry.register()
@treewise(measure=_normalizing, flags=("global_statistic",))
def normalize_by_update_norm(
    g, slots, t, factor, *, scale_factor: Scalar = 1.0, eps: Scalar = 0.0, per_group: bool = False
):
    """Give the whole tree one norm.

        u = c g / (‖g‖ + ε),      ‖g‖ over all leaves;  0 where the norm is 0

    Args:
      scale_factor: c.
      eps: ε ≥ 0.
      per_group: say True to normalise a group of `partition` or `masked` by its own norm; refused there otherwise.

    Lift: treewise.
    Differs from: optax, whose ε of 1e-6 leaves a tiny gradient tiny.
    """
    return factor * g, {}
