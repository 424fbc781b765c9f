"""Steps whose matrices have singular values near 1."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import FRACTION, NONNEGATIVE, Scalar, complaint
from lossopt_jax.transforms._averages import debias
from lossopt_jax.transforms._lift import leafwise, treewise
from lossopt_jax.transforms._matrix_functions import (
    check_preconditioning,
    in_stacks,
    newton_schulz_steps,
    orthogonal,
)
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot

_Shape = tuple[int, ...]
_Axes = tuple[int, ...]


def last_axes(shape: _Shape) -> tuple[_Axes, _Axes]:
    """A kernel [..., in, out]; whatever has fewer axes is one row."""
    count = len(shape)
    return ((count - 2,), (count - 1,)) if count > 1 else ((), tuple(range(count)))


class _Matrices:
    """An array seen as matrices [..., in, out], and the way back."""

    def __init__(self, where: str, shape: _Shape, matrix_axes: Callable[[_Shape], tuple[_Axes, _Axes]]):
        rows, columns = (tuple(axis % max(len(shape), 1) for axis in axes) for axes in matrix_axes(shape))
        front = tuple(axis for axis in range(len(shape)) if axis not in rows + columns)
        self._order = front + rows + columns
        if sorted(self._order) != list(range(len(shape))):
            got = f"{rows} and {columns} for shape {shape}"
            raise ValueError(complaint(where, "matrix_axes", "return two tuples that share no axis", got))
        self._shape = tuple(shape[axis] for axis in self._order)
        self.rows, self.columns = (math.prod(shape[axis] for axis in axes) for axes in (rows, columns))
        self._seen = (*(shape[axis] for axis in front), self.rows, self.columns)

    def of(self, x: jax.Array) -> jax.Array:
        return jnp.transpose(x, self._order).reshape(self._seen)

    def back(self, x: jax.Array) -> jax.Array:
        places = sorted(range(len(self._order)), key=self._order.__getitem__)
        return jnp.transpose(x.reshape(self._shape), places)


@registry.register()
@treewise(flags=("by_shape",), mu=Slot())
def scale_by_muon(
    g,
    slots,
    t,
    *,
    ns_coeffs: Any = "standard",
    ns_steps: int = 5,
    beta: Annotated[Scalar, FRACTION] = 0.95,
    eps: Scalar = 1e-8,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    bias_correction: bool = True,
    matrix_axes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = last_axes,
):
    """About the polar factor of the mean gradient: steps that turn every direction by the same amount.

        m ← β m + (1−β) g
        X = m / (1−βᵗ),      with nesterov  X = β m / (1−βᵗ⁺¹) + (1−β) g / (1−βᵗ)
        u = NS(X),           `orthogonalize_via_newton_schulz`
        adaptive:            u ← ⟨X, u⟩ u

    An array is a kernel [..., in, out], whose axes in front count matrices; one of fewer axes is a row, of which u is
    about X/‖X‖. Matrices of one shape are orthogonalised together.

    Args:
      ns_coeffs: a name, (a, b, c), or a tuple of such, as `orthogonalize_via_newton_schulz`.
      ns_steps: k, an integer ≥ 1.
      beta: β in [0, 1).
      eps: ε ≥ 0, added to the norm of X.
      nesterov: look one step ahead.
      adaptive: multiply by the dual norm of X.
      preconditioning: "frobenius", "spectral", "aol" or "schatten".
      bias_correction: False for X = m, or β m + (1−β) g with nesterov, as in Jordan's and torch's code, where the first
        steps mix g and m in other shares.
      matrix_axes: shape → (axes that are summed over in x W, axes of the result); the rest count matrices. Give a
        convolution's kernel [h, w, in, out] `lambda shape: ((0, 1, 2), (3,))`, by `partition`.

    Slots: mu (1 × parameters).  Lift: treewise, by shape.  Refuses complex parameters.
    Differs from: torch, whose steps run in bfloat16.
    Source: Jordan et al. 2024, "Muon"; adaptive: Bernstein & Newhouse 2024, arXiv:2409.20325.
    """
    steps = newton_schulz_steps("scale_by_muon", ns_coeffs, ns_steps)
    check_preconditioning("scale_by_muon", preconditioning)
    mu, flat, views = [], [], []
    for x, m in zip(g, slots.mu, strict=True):
        b, now = beta.astype(x.dtype), t.astype(x.dtype)
        mu.append(b * m + (1 - b) * x)
        mean, new = (debias(mu[-1], b, now + int(nesterov)), debias(x, b, now)) if bias_correction else (mu[-1], x)
        views.append(_Matrices("scale_by_muon", x.shape, matrix_axes))
        flat.append(views[-1].of(b * mean + (1 - b) * new if nesterov else mean))
    turned = in_stacks(lambda x: orthogonal(x, steps, preconditioning, eps.astype(x.dtype)), flat)
    if adaptive:
        turned = [jnp.sum(x * u, (-2, -1), keepdims=True) * u for x, u in zip(flat, turned, strict=True)]
    return [view.back(u) for view, u in zip(views, turned, strict=True)], {"mu": mu}


@registry.register()
@leafwise()
def scale_by_shape(
    g,
    slots,
    t,
    *,
    consistent_rms: Annotated[float | None, NONNEGATIVE] = None,
    matrix_axes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = last_axes,
):
    """Make steps with singular values of 1 as long as the shape of their matrix asks for.

        u = √max(1, out/in) g,      or with consistent_rms c   u = c √max(in, out) g

    The first gives outputs that change by the same amount whatever the width; the second a root mean square of about
    c, which is Adam's for c = 0.2, so that a rate made for Adam fits.

    Args:
      consistent_rms: c ≥ 0; None for the first.
      matrix_axes: as in `scale_by_muon`.

    Slots: none.  Lift: leafwise.
    Source: Jordan et al. 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982, section 2.2.
    """
    view = _Matrices("scale_by_shape", g.shape, matrix_axes)
    if not g.size:
        return g, {}
    ratio = max(1, view.columns / view.rows) if consistent_rms is None else max(view.rows, view.columns)
    return ratio**0.5 * (1.0 if consistent_rms is None else consistent_rms) * g, {}
