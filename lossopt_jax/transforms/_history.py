"""Gradients that are long beside those of the last steps."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, POSITIVE, UNIT, Scalar
from lossopt_jax.transforms._clipping import beyond, global_norm, shrunk
from lossopt_jax.transforms._guards import BAD_STEPS, counted
from lossopt_jax.transforms._lift import treewise, wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Extent, Slot


def _last(shape: tuple[int, ...], arguments: dict[str, Any]) -> tuple[Extent]:
    return (Extent(arguments["window"]),)


_NORMS = Slot(_last, per="tree", fill=-1.0, exact=True)  # below zero where none is known yet


def _with(norms: jax.Array, norm: jax.Array) -> jax.Array:
    """The last norms, the new one among them if it is finite."""
    return jnp.where(jnp.isfinite(norm), jnp.append(norms[1:], norm.astype(norms.dtype)), norms)


def _quantile(norms: jax.Array, q: jax.Array) -> jax.Array:
    """Of the norms that are known, between neighbours in proportion."""
    last = norms.shape[0] - 1
    known = jnp.sum(norms >= 0)
    place = last - (1 - q.astype(norms.dtype)) * jnp.maximum(known - 1, 0).astype(norms.dtype)
    below = jnp.floor(place)
    ordered = jnp.sort(norms)  # what is not known comes first
    low, high = ordered[below.astype(jnp.int32)], ordered[jnp.ceil(place).astype(jnp.int32)]
    return low + (place - below) * (high - low)


@registry.register("autoclip")
@treewise(flags=("global_statistic",), norms=_NORMS)
def clip_by_norm_quantile(
    gradients,
    slots,
    t,
    *,
    quantile: Annotated[Scalar, UNIT] = 0.1,
    window: Annotated[int, COUNT] = 1000,
    per_group: bool = False,
):
    """Scale all arrays down to a quantile of the last norms.

        c = Q_q(‖g‖ now and in the steps before, `window` in all),      u = g · min(1, c / ‖g‖)

    Between two norms the quantile lies in proportion. A norm that is not finite is not kept, and not clipped.

    Args:
      quantile: q in [0, 1]; 0.1 clips nine steps in ten.
      window: how many norms to keep.
      per_group: as `clip_by_global_norm`.

    Slots: norms (`window` numbers).  Lift: treewise.
    Source: Seetharaman et al. 2020, arXiv:2007.14469, algorithm 1, which keeps all norms.
    """
    norm = global_norm(gradients)
    norms = _with(slots.norms, norm)
    most = _quantile(norms, quantile).astype(norm.dtype)
    longer = beyond(most, norm)
    return [shrunk(g, most.astype(g.dtype), longer.astype(g.dtype)) for g in gradients], {"norms": norms}


@registry.register()
@wrapper(flags=("global_statistic", "passes_on"), norms=_NORMS, **BAD_STEPS)
def skip_spikes(
    run,
    updates,
    slots,
    t,
    *,
    factor: Annotated[Scalar, POSITIVE],
    quantile: Annotated[Scalar, UNIT] = 0.5,
    window: Annotated[int, COUNT] = 128,
    per_group: bool = False,
):
    """Skip a step whose gradient is long beside those of the last steps, or not finite.

        skip where ¬(‖g‖ ≤ a Q_q(‖g‖ in the `window` steps before))

    Before `window` norms are known only a gradient that is not finite is skipped. Every finite norm is kept, a skipped
    one too, so that norms that stay large are let through in the end.

    Args:
      inner: all that must not see such a gradient.
      factor: a > 0, such as 10.
      quantile: q in [0, 1]; 0.5 for the median.
      window: how many norms to keep.
      per_group: as `apply_if_finite`.

    Slots: norms (`window` numbers), bad_steps, bad_in_a_row (one int32 each).  Lift: wrapper.
    """
    norm = global_norm(updates)
    bound = factor.astype(norm.dtype) * _quantile(slots.norms, quantile).astype(norm.dtype)
    good = jnp.isfinite(norm) & ((norm <= bound) | (slots.norms[0] < 0))
    return *run(updates, ok=good), {**counted(good, slots), "norms": _with(slots.norms, norm)}
