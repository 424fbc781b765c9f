"""Second moments in less memory than the parameters: factored, shared along axes, or one per block."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import UNIT, Scalar
from lossopt_jax.transforms._averages import debias
from lossopt_jax.transforms._clipping import root_mean_square
from lossopt_jax.transforms._lift import leafwise
from lossopt_jax.transforms._measures import Whole
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Axes, Extent, Slot

_Shape = tuple[int, ...]


def _largest_axes(shape: _Shape, factored: bool, min_dim_size_to_factor: int) -> tuple[int, int] | None:
    """The two largest axes, the largest last; None where an array is not worth factoring."""
    by_size = sorted(range(len(shape)), key=shape.__getitem__)
    if not factored or len(shape) < 2 or shape[by_size[-2]] < min_dim_size_to_factor:
        return None
    return by_size[-2], by_size[-1]


def _last_axes(shape: _Shape) -> tuple[int, int] | None:
    return (len(shape) - 2, len(shape) - 1) if len(shape) > 1 else None


def _without(shape: _Shape, axis: int) -> Axes:
    return tuple(other for other in range(len(shape)) if other != axis)


def _adafactor_axes(shape: _Shape, arguments: dict[str, Any]) -> tuple[int, int] | None:
    return _largest_axes(shape, arguments["factored"], arguments["min_dim_size_to_factor"])


def _factors(
    axes_of: Callable[[_Shape, dict[str, Any]], tuple[int, int] | None], row: str, column: str, whole: str | None
) -> dict[str, Slot]:
    """Slots for the row and column means of an array, or for the whole of one that has no such axes."""

    def shape_of(choose: Callable[[_Shape, tuple[int, int] | None], Axes | None]) -> Slot:
        return Slot(lambda shape, arguments: choose(shape, axes_of(shape, arguments)), nonnegative=True)

    slots = {
        row: shape_of(lambda shape, axes: None if axes is None else _without(shape, axes[1])),
        column: shape_of(lambda shape, axes: None if axes is None else _without(shape, axes[0])),
    }
    if whole is not None:
        slots[whole] = shape_of(lambda shape, axes: tuple(range(len(shape))) if axes is None else None)
    return slots


def _mixed_in(
    whole: Whole, decay: Any, row: jax.Array, column: jax.Array, square: jax.Array, eps: Any, axes: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Row and column means with those of a new square + ε averaged in."""
    return (
        decay * row + (1 - decay) * (whole.mean(square, axes[1]) + eps),
        decay * column + (1 - decay) * (whole.mean(square, axes[0]) + eps),
    )


def _inverse_root(row: jax.Array, column: jax.Array, axes: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """1/√V as a product of two arrays that broadcast, V = R Cᵀ / mean(R)."""
    first, second = axes
    mean = jnp.mean(row, first - (second < first), keepdims=True)
    return jnp.expand_dims(1 / sqrt(row / mean), second), jnp.expand_dims(1 / sqrt(column), first)


def _decay_at(t: jax.Array, offset: Any, rate: Any) -> jax.Array:
    return 1 - jnp.maximum(t - offset, 1) ** -rate


def _rows_and_columns(whole, g, slots, t, *, factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon):
    axes = _largest_axes(whole.shape, factored, min_dim_size_to_factor)
    if axes is None:
        return None, {}
    beta = _decay_at(t, step_offset, decay_rate)
    row, column = _mixed_in(whole, beta, slots.v_row, slots.v_col, g * g, epsilon, axes)
    return _inverse_root(row, column, axes), {"v_row": row, "v_col": column}


@registry.register()
@leafwise(measure=_rows_and_columns, **_factors(_adafactor_axes, "v_row", "v_col", "v"))
def scale_by_factored_rms(
    g,
    slots,
    t,
    factors,
    *,
    factored: bool = True,
    decay_rate: Scalar = 0.8,
    step_offset: Scalar = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Scalar = 1e-30,
):
    """Divide the gradient by a root mean square known by its row and column means alone.

        β = 1 − max(t − offset, 1)^(−c)
        R ← β R + (1−β) mean(g² + ε) over the largest axis
        C ← β C + (1−β) mean(g² + ε) over the second largest
        u = g / √V,      V = R Cᵀ / mean(R)
        an array of rank 1, or with axes that are too short:  V ← β V + (1−β) (g² + ε)

    Args:
      factored: False to keep V whole everywhere.
      decay_rate: c ≥ 0.
      step_offset: steps that do not count, for a start from a checkpoint, ≥ 0.
      min_dim_size_to_factor: the least size of the second largest axis.
      epsilon: ε > 0.

    Slots: v_row, v_col, or v.  Lift: leafwise.
    Differs from: optax with step_offset > 0, where β is NaN until step_offset updates were made.
    Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4.
    """
    if factors is not None:
        by_row, by_column = factors
        return g * by_row * by_column, {}
    beta = _decay_at(t, step_offset, decay_rate)
    v = beta * slots.v + (1 - beta) * (g * g + epsilon)
    return g / sqrt(v), {"v": v}


@registry.register()
@leafwise(
    mu=Slot(),
    **_factors(lambda shape, _: _last_axes(shape), "v_row", "v_col", "v"),
    **_factors(lambda shape, _: _last_axes(shape), "s_row", "s_col", None),
)
def scale_by_came(
    g,
    slots,
    t,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    eps: Scalar = 1e-30,
    eps_confidence: Scalar = 1e-16,
    clipping_threshold: Scalar = 1.0,
):
    """A factored second moment whose momentum is divided by its distance from the updates.

        R, C ← row and column means of g² + ε, averaged with β₂;  V = R Cᵀ / mean(R)
        U = g / √V,  divided by max(1, rms(U)/d)
        m ← β₁ m + (1−β₁) U
        S: as V, from (U − m)² + ε′, averaged with β₃
        u = m / √S;  an array of rank 0 or 1: V whole, u = m

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      b3: β₃ in [0, 1).
      eps: ε > 0.
      eps_confidence: ε′ > 0.
      clipping_threshold: d > 0.

    Rows and columns are the last two axes; axes before them are a batch.
    Slots: mu (1 × parameters), v_row, v_col, s_row, s_col, or v.  Lift: leafwise.
    Source: Luo et al. 2023, arXiv:2307.02047, algorithm 2, and its authors' code.
    """
    axes, square = _last_axes(g.shape), g * g
    if axes is None:
        v = b2 * slots.v + (1 - b2) * (square + eps)
        normal = g / sqrt(v)
    else:
        row, column = _mixed_in(Whole(g.shape), b2, slots.v_row, slots.v_col, square, eps, axes)
        by_row, by_column = _inverse_root(row, column, axes)
        normal = g * by_row * by_column
    normal = normal / jnp.maximum(1, root_mean_square(normal) / clipping_threshold)
    mu = b1 * slots.mu + (1 - b1) * normal
    if axes is None:
        return mu, {"mu": mu, "v": v}
    distance = jnp.square(normal - mu)
    s_row, s_column = _mixed_in(Whole(g.shape), b3, slots.s_row, slots.s_col, distance, eps_confidence, axes)
    by_row, by_column = _inverse_root(s_row, s_column, axes)
    return mu * by_row * by_column, {"mu": mu, "v_row": row, "v_col": column, "s_row": s_row, "s_col": s_column}


def _covers(shape: _Shape, _: dict[str, Any]) -> list[Axes]:
    """SM3's sets: one vector per axis of a matrix or more, every element of anything less."""
    return [(axis,) for axis in range(len(shape))] or [()]


@registry.register()
@leafwise(mu=Slot(_covers, nonnegative=True), nu=Slot())
def scale_by_sm3(g, slots, t, *, b1: Scalar = 0.9, b2: Annotated[Scalar, UNIT] = 1.0, eps: Scalar = 1e-8):
    """Adagrad that remembers one maximum per row, per column, per slice of every axis.

        ν = β₂ min over the axes of their maxima + (1−β₂, or 1 where β₂ = 1) g²
        maxima of an axis ← max of ν over all other axes
        m ← β₁ m + (1−β₁) g/√(ν + ε),  0 where ν = 0
        u = m

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1]; 1 for the paper's sums.
      eps: ε ≥ 0.

    Slots: nu (1 × parameters, the momentum m), mu (one vector per axis, the maxima); the names are optax's.
    Lift: leafwise.
    Source: Anil, Gupta, Koren & Singer 2019, arXiv:1901.11150, algorithm 2.
    """
    maxima = [
        m.reshape([-1 if i == axis or g.ndim < 2 else 1 for i in range(g.ndim)]) for axis, m in enumerate(slots.mu)
    ]
    least = maxima[0]
    for other in maxima[1:]:
        least = jnp.minimum(least, other)
    nu = jnp.where(b2 < 1, 1 - b2, 1) * g * g + b2 * least
    seen = jnp.where(nu > 0, nu, 1)
    mean = b1 * slots.nu + (1 - b1) * jnp.where(nu > 0, g / sqrt(seen + eps), 0)
    if g.ndim < 2:
        return mean, {"nu": mean, "mu": (nu,)}
    others = [tuple(i for i in range(g.ndim) if i != axis) for axis in range(g.ndim)]
    return mean, {"nu": mean, "mu": tuple(jnp.max(nu, axes, initial=0) for axes in others)}


def per_output(shape: tuple[int, ...]) -> tuple[int, ...]:
    """All axes but the last: a kernel [in, out] keeps one number per output, a vector one number."""
    return tuple(range(max(len(shape) - 1, 1))) if shape else ()


def _blocks(shape: _Shape, arguments: dict[str, Any]) -> Axes:
    shared = arguments["shared_axes"](shape)
    return tuple(Extent(1) if axis in shared else axis for axis in range(len(shape)))


def _mean_squares(whole, g, slots, t, *, b1, b2, eps, shared_axes):
    nu = b2 * slots.nu + (1 - b2) * whole.mean(g * g, shared_axes(whole.shape), keepdims=True)
    return nu, {"nu": nu}


@registry.register()
@leafwise(measure=_mean_squares, mu=Slot(), nu=Slot(_blocks, nonnegative=True, exact=True))
def scale_by_adam_mini(
    g,
    slots,
    t,
    nu,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    shared_axes: Callable[[tuple[int, ...]], tuple[int, ...]] = per_output,
):
    """Adam with one second moment per block of an array.

        m ← β₁ m + (1−β₁) g
        v ← β₂ v + (1−β₂) mean(g²) over the block
        u = m̂ / (√v̂ + ε),      m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)

    Args:
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      shared_axes: shape → the axes along which a block runs; by default one block per output. Give an embedding
        `lambda shape: ()` or `(−1 axis,)`, heads [in, head, size] `(0, 2)`, by `partition`.

    Slots: mu (1 × parameters), nu (one number per block).  Lift: leafwise.
    Source: Zhang et al. 2024, arXiv:2406.16793, algorithm 1.
    """
    mu = b1 * slots.mu + (1 - b1) * g
    return debias(mu, b1, t) / (sqrt(debias(nu, b2, t)) + eps), {"mu": mu}
