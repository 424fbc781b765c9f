"""Optimizers that remember of each matrix its projection on a few directions."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lossopt_jax._core import (
    COUNT,
    NONNEGATIVE,
    as_compute,
    check_scalar,
    complaint,
    leaf_paths,
    leaf_seed,
    none_is_leaf,
    random_normal,
)
from lossopt_jax.transforms._adam import scale_by_adam
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Axes, Extent, Slot

_Shape = tuple[int, ...]


def _short_axis(shape: _Shape, side: str) -> int:
    """The axis of a matrix that is projected: −2 or −1."""
    rows, columns = shape[-2:]
    return -1 if (rows >= columns) == (side == "shorter") else -2


def _rank(shape: _Shape, rank: int) -> int:
    return min(rank, *shape[-2:])


def _projected(shape: _Shape, arguments: dict[str, Any]) -> Axes:
    """A matrix with one of its axes projected; what has fewer axes stays."""
    axes: list[int] = list(range(len(shape)))
    if len(shape) > 1:
        axes[_short_axis(shape, arguments["side"])] = Extent(_rank(shape, arguments["rank"]))
    return tuple(axes)


def _projection(shape: _Shape, arguments: dict[str, Any]) -> Axes | None:
    """[..., size of the projected axis, rank]."""
    if len(shape) < 2:
        return None
    axis = len(shape) + _short_axis(shape, arguments["side"])
    return (*range(len(shape) - 2), axis, Extent(_rank(shape, arguments["rank"])))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def _onto(g: jax.Array, basis: jax.Array, axis: int) -> jax.Array:
    """Pᵀ G, or G P."""
    return _product(jnp.swapaxes(basis, -1, -2), g) if axis == -2 else _product(g, basis)


def _back(r: jax.Array, basis: jax.Array, axis: int) -> jax.Array:
    """P R, or R Pᵀ."""
    return _product(basis, r) if axis == -2 else _product(r, jnp.swapaxes(basis, -1, -2))


def _matrices(function: Any, updates: Any, *trees: Any, rest: Any = lambda g, *_: g) -> Any:
    """A function of every matrix, `rest` of what has fewer axes, None of None."""

    def of(g: Any, *others: Any) -> Any:
        return None if g is None else (function if g.ndim > 1 else rest)(g, *others)

    return jax.tree.map(of, updates, *trees, is_leaf=none_is_leaf)


def _leading_vectors(g: jax.Array, axis: int, rank: int) -> jax.Array:
    u, _, v = jnp.linalg.svd(g, full_matrices=False)
    return u[..., :rank] if axis == -2 else jnp.swapaxes(v, -1, -2)[..., :rank]


@wrapper(needs=("step",), seen=_projected, projector=Slot(_projection, exact=True))
def _scale_by_galore(run, updates, slots, t, step, *, rank: int, update_proj_gap: int, scale: float, side: str):
    due = step % update_proj_gap == 0

    def basis_of(g: jax.Array, before: jax.Array) -> jax.Array:
        axis = _short_axis(g.shape, side)
        return lax.cond(due, lambda: _leading_vectors(g, axis, _rank(g.shape, rank)), lambda: before)

    bases = _matrices(basis_of, updates, slots.projector, rest=lambda *_: None)
    seen = _matrices(lambda g, p: _onto(g, p, _short_axis(g.shape, side)), updates, bases)
    seen, inner = run(seen)
    new = _matrices(
        lambda g, r, p: scale * _back(r, p, _short_axis(g.shape, side)), updates, seen, bases, rest=lambda g, r, _: r
    )
    return new, inner, {"projector": bases}


def _check(where: str, rank: Any, update_proj_gap: Any, scale: Any) -> None:
    check_scalar(where, "rank", rank, within=COUNT)
    check_scalar(where, "update_proj_gap", update_proj_gap, within=COUNT)
    check_scalar(where, "scale", scale, within=NONNEGATIVE)


@registry.register()
def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    base_optimizer: Any = None,
    *,
    side: Literal["longer", "shorter"] = "longer",
) -> GradientTransformation:
    """Run a rule on the projection of each gradient on its leading singular vectors, and project its updates back.

        every T steps, at the first too:  P = the first r left singular vectors of G
        R = Pᵀ G
        u = α P N(R),      N the inner rule

    and with the right ones, R = G P and u = α N(R) Pᵀ, where the other axis is projected. Axes in front of the last
    two count matrices; what has fewer axes goes through N as it is. N's memory is not turned when P changes.

    Args:
      rank: r, an integer ≥ 1; min(r, m, n) for a matrix [m, n].
      update_proj_gap: T, an integer ≥ 1.
      scale: α ≥ 0.
      base_optimizer: N, any transform that needs no parameters; None for `scale_by_adam()`.
      side: "longer": P has as many rows as the longer axis, and N remembers r × the shorter one, the least memory;
        "shorter", the paper's, the other way round, in which R holds more of G.

    Slots: projector (r × the projected axis); N's, of the projections.  Lift: wrapper.  Refuses complex parameters.

    Raises:
      ValueError: an argument out of range; an inner rule that needs parameters, such as decay: chain it behind.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx = lo.transforms.scale_by_galore(rank=4)
      >>> lo.get_slot(tx.init({"w": jnp.zeros((64, 32))}), "mu")["w"].shape
      (4, 32)

    Differs from: optax in arrays of three and more axes, which it leaves whole unless told, and which are stacks here.
    Source: Zhao et al. 2024, arXiv:2403.03507, algorithm 2.
    """
    where = "scale_by_galore"
    _check(where, rank, update_proj_gap, scale)
    if side not in ("longer", "shorter"):
        raise ValueError(complaint(where, "side", "be 'longer' or 'shorter'", repr(side)))
    inner = scale_by_adam() if base_optimizer is None else base_optimizer
    return _scale_by_galore(inner, rank, update_proj_gap, float(scale), side)


_GROWTH = 1.01


def _lengths(x: jax.Array, axes: int | tuple[int, int]) -> jax.Array:
    """Norms along axes, which stay, of arrays of any size."""
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum((x / largest) ** 2, axes, keepdims=True))


def _per_matrix(shape: _Shape, arguments: dict[str, Any]) -> Axes | None:
    return (*range(len(shape) - 2), Extent(1), Extent(1)) if len(shape) > 1 else None


@wrapper(needs=("key", "step"), seen=_projected, length=Slot(_per_matrix, nonnegative=True, exact=True))
def _scale_by_apollo(
    run,
    updates,
    slots,
    t,
    key,
    step,
    *,
    rank: int,
    update_proj_gap: int,
    scale: float,
    per: str,
    side: str,
):
    period = step // update_proj_gap
    seeds = [leaf_seed(slots.seed, period, path) for path in leaf_paths(updates)]
    seeds = jax.tree.unflatten(jax.tree.structure(updates, is_leaf=none_is_leaf), seeds)

    def seen_of(g: jax.Array, seed: jax.Array) -> jax.Array:
        axis, r = _short_axis(g.shape, side), _rank(g.shape, rank)
        basis = random_normal(seed, (*g.shape[:-2], g.shape[axis], r), g.dtype)
        return _onto(g, basis / max(r, 1) ** 0.5, axis)

    def step_of(g: jax.Array, r: jax.Array, n: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = (-2, -1) if per == "tensor" else _short_axis(g.shape, side)
        size = _lengths(r, axes)
        u = scale**0.5 * g * jnp.where(size > 0, _lengths(n, axes) / jnp.where(size > 0, size, 1), 0)
        length = _lengths(u, (-2, -1))
        most = _GROWTH * as_compute(before).astype(g.dtype)
        shrink = jnp.where((before > 0) & (length > most), most / jnp.where(length > 0, length, 1), 1)
        return shrink * u, shrink * length

    seen = _matrices(seen_of, updates, seeds)
    normalised, inner = run(seen)
    both = _matrices(step_of, updates, seen, normalised, slots.length, rest=lambda g, r, n, _: (n, None))
    new, length = (
        jax.tree.map(lambda u, pair: None if u is None else pair[k], updates, both, is_leaf=none_is_leaf)  # noqa: B023
        for k in (0, 1)
    )
    return new, inner, {"length": length}


@registry.register()
def scale_by_apollo(
    rank: int = 256,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    base_optimizer: Any = None,
    *,
    per: Literal["channel", "tensor"] = "channel",
    seed: int = 0,
) -> GradientTransformation:
    """Scale the gradient as a rule would scale its projection on a few random directions.

        every T steps:  P [r, m] ~ normal, of variance 1/r;      m the shorter axis
        R = P G,      N the inner rule
        s = ‖N(R)‖ / ‖R‖  for each column of the longer axis, or one for the matrix
        u = √α G s,      then  u ← u min(1, 1.01 ‖u before‖/‖u‖)

    P is made anew from the seed in every step, so nothing but N's memory of R and one norm is kept. Axes in front of
    the last two count matrices; what has fewer axes goes through N as it is. N's memory is not turned when P changes.

    Args:
      rank: r, an integer ≥ 1; min(r, m) for a matrix [m, n].
      update_proj_gap: T, an integer ≥ 1.
      scale: α ≥ 0.
      base_optimizer: N, any transform that needs no parameters; None for `scale_by_adam()`.
      per: "channel", or "tensor" for one s, with which r = 1 does (APOLLO-Mini, α = 128).
      seed: of P, an integer in [0, 2³²); in the state.

    Slots: length (a number per matrix); N's, of the projections.  Lift: wrapper.  Refuses complex parameters.

    Raises:
      ValueError: an argument out of range; an inner rule that needs parameters, such as decay: chain it behind.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> tx = lo.transforms.scale_by_apollo(rank=1, scale=128.0, per="tensor")
      >>> lo.get_slot(tx.init({"w": jnp.zeros((64, 32))}), "mu")["w"].shape
      (64, 1)

    Differs from: the authors' code, where the norms that are compared are those before Adam's bias correction, and
      where a zero gradient in the first step holds all later steps near 0.
    Source: Zhu et al. 2024, arXiv:2412.05270, algorithm 1; the limiter: Chen et al. 2024, arXiv:2410.01623.
    """
    where = "scale_by_apollo"
    _check(where, rank, update_proj_gap, scale)
    if per not in ("channel", "tensor"):
        raise ValueError(complaint(where, "per", "be 'channel' or 'tensor'", repr(per)))
    inner = scale_by_adam() if base_optimizer is None else base_optimizer
    return _scale_by_apollo(inner, rank, update_proj_gap, float(scale), per, "shorter", seed)
