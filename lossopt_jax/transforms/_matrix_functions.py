"""Functions of matrices [..., m, n] by products alone, of many leaves at once: those of one shape are stacked."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lossopt_jax._core import COUNT, as_compute, check_scalar, complaint, dtype_of, is_array_like
from lossopt_jax.transforms._linear_algebra import check_real

Coefficients: TypeAlias = tuple[float, float, float]

_NAMED: dict[str, tuple[Coefficients, ...]] = {
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
_STANDARD: Coefficients = (3.4445, -4.7750, 2.0315)
PRECONDITIONINGS = ("frobenius", "spectral", "aol", "schatten")


def _best_quintic(least: float, most: float) -> tuple[float, float, float]:
    """The odd a x + b x³ + c x⁵ that is nearest to 1 on [least, most]: its error has one size at four points there."""
    if least > most * (1 - 1e-3):  # where four points can hardly be told apart: the Taylor series about the centre
        centre = (least + most) / 2
        return 15 / 8 / centre, -10 / 8 / centre**3, 3 / 8 / centre**5
    points = np.array([least, (3 * least + most) / 4, (least + 3 * most) / 4, most])
    while True:  # Remez: the middle points go to where the error is largest, in few steps
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], 1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)  # of the derivative a + 3 b x² + 5 c x⁴
        before, points[1:3] = points[1:3].copy(), np.sqrt([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)])
        if np.all(np.abs(points[1:3] - before) <= 1e-9 * most):  # which moves the error by a square of that
            return float(a), float(b), float(c)


def polar_express_coefficients(
    num_steps: int, *, least: float = 1e-3, cushion: float = 0.02, safety: float = 1.02
) -> tuple[Coefficients, ...]:
    """The coefficients (a, b, c) of each step X ← a X + b (XXᵀ)X + c (XXᵀ)²X that lead to the polar factor soonest.

    Of all sequences of odd quintics this one leaves the least error for singular values in [l, 1]: from u = 1,

        p = the odd quintic nearest to 1 on [max(l, 0.02 u), u], times 2/(p(l) + p(u))
        p ← p(x/s), but in the last step
        l ← p(l),      u ← 2 − l

    Args:
      num_steps: an integer ≥ 1.
      least: l in (0, 1), of the singular values relative to the norm by which the matrix is divided.
      cushion: the ratio of l to u below which l is not believed, in (0, 1), so that no p grows too steep.
      safety: s ≥ 1 by which the argument of each step but the last is divided, so that rounding cannot lead outside.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> import lossopt_jax as lo
      >>> [round(c, 4) for c in lo.transforms.polar_express_coefficients(5)[0]]
      [8.1566, -22.4833, 15.8788]

    Source: Amsel, Persson, Musco & Gower 2025, arXiv:2505.16932, algorithm 1 and appendix.
    """
    where = "polar_express_coefficients"
    check_scalar(where, "num_steps", num_steps, within=COUNT)
    for name, value, holds in (
        ("least", least, 0 < least < 1),
        ("cushion", cushion, 0 < cushion < 1),
        ("safety", safety, safety >= 1),
    ):
        if not holds:
            raise ValueError(complaint(where, name, "be ≥ 1" if name == "safety" else "be in (0, 1)", value))
    steps, most = [], 1.0
    for number in range(num_steps):
        a, b, c = _best_quintic(max(least, cushion * most), most)
        centred = 2 / sum(a * x + b * x**3 + c * x**5 for x in (least, most))
        s = safety if number < num_steps - 1 else 1.0
        a, b, c = centred * a / s, centred * b / s**3, centred * c / s**5
        steps.append((a, b, c))
        least = a * least + b * least**3 + c * least**5
        most = 2 - least
    return tuple(steps)


def newton_schulz_steps(where: str, ns_coeffs: Any, ns_steps: Any) -> tuple[Coefficients, ...]:
    """The coefficients of every step, from a name, one triple for all steps, or a triple for each."""
    check_scalar(where, "ns_steps", ns_steps, within=COUNT)
    if ns_coeffs == "polar_express":
        return polar_express_coefficients(int(ns_steps))
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in ("standard", *_NAMED):
            names = ["standard", *_NAMED, "polar_express"]
            raise ValueError(complaint(where, "ns_coeffs", f"be among {names}, or numbers", repr(ns_coeffs)))
        ns_coeffs = _NAMED.get(ns_coeffs, _STANDARD)
    numbers = np.asarray(ns_coeffs, float) if np.size(ns_coeffs) and not isinstance(ns_coeffs, jax.Array) else None
    if numbers is None or numbers.ndim not in (1, 2) or numbers.shape[-1] != 3:
        must, remedy = "be three numbers, or a tuple of such for each step", "pass (a, b, c)"
        raise ValueError(complaint(where, "ns_coeffs", must, ns_coeffs, remedy))
    each = numbers if numbers.ndim == 2 else np.tile(numbers, (int(ns_steps), 1))
    return tuple(tuple(map(float, step)) for step in each)


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _size(x: jax.Array) -> jax.Array:
    """‖X‖ of each matrix, [..., 1, 1]."""
    return jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True))


def orthogonal(
    x: jax.Array, steps: tuple[Coefficients, ...], preconditioning: str, eps: jax.Array, precision: Any = None
) -> jax.Array:
    """`orthogonalize_via_newton_schulz` of what is known to be right, in compute dtype."""
    if not x.size:
        return x
    tall = x.shape[-2] > x.shape[-1]
    x = _transposed(x) if tall else x

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(left, right, precision=precision)

    # Nothing here changes with the length of X but for ε, so that no square overflows or vanishes.
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    x, eps = x / largest, eps / largest
    gram = None
    if preconditioning in ("frobenius", "spectral"):
        size = _size(x) if preconditioning == "frobenius" else jnp.linalg.norm(x, 2, (-2, -1), keepdims=True)
        x = x / jnp.where(size == 0, 1, size + eps)
    else:
        gram = product(x, _transposed(x))
        sizes = jnp.sum(jnp.abs(gram), -1, keepdims=True) if preconditioning == "aol" else _size(gram)
        shrink = 1 / jnp.sqrt(jnp.maximum(sizes, jnp.maximum(eps / largest, jnp.finfo(x.dtype).tiny)))
        x, gram = x * shrink, gram * shrink * _transposed(shrink)
    for a, b, c in steps:
        gram = product(x, _transposed(x)) if gram is None else gram
        x, gram = a * x + product(b * gram + c * product(gram, gram), x), None
    return _transposed(x) if tall else x


def orthogonalize_via_newton_schulz(
    x: Any,
    ns_coeffs: Any = "standard",
    ns_steps: int = 5,
    preconditioning: str = "frobenius",
    eps: Any = 1e-8,
    *,
    precision: Any = None,
) -> jax.Array:
    """About the polar factor U Vᵀ of a matrix X = U Σ Vᵀ: all singular values go near 1, the vectors stay.

        X ← X / (‖X‖ + ε)
        A = X Xᵀ;      X ← a X + (b A + c A²) X,      k times

    A matrix with more rows than columns is transposed meanwhile. Singular values that five steps lead from where they
    were at least 0.01 ‖X‖: "standard" 0.68 – 1.13, "dion" 0.98 – 1.03, "polar_express" 0.86 – 1.14, and 1.00 in eight
    steps of that one. 0 stays 0; a NaN gives NaN.

    Args:
      x: X, [..., m, n], real and floating. For leaves of many shapes, see `map_stacked`.
      ns_coeffs: (a, b, c); a tuple of such, one for each step; or "standard" (3.4445, −4.7750, 2.0315), "dion" (five
        steps), "polar_express" (`polar_express_coefficients(ns_steps)`).
      ns_steps: k, an integer ≥ 1; not looked at where each step has its own coefficients.
      preconditioning: by what X is divided first: "frobenius" ‖X‖; "spectral" its largest singular value, which costs
        far more than the steps; "schatten" √‖A‖; "aol" each row (of the shorter side) by √Σⱼ|A|ᵢⱼ, which turns the
        vectors a little.
      eps: ε ≥ 0.
      precision: of the products; None for JAX's default, which is bfloat16 on TPU.

    Returns:
      An array like X, computed in float32, or float64 where X is.

    Raises:
      ValueError: fewer than two axes; coefficients that are no triples; an unknown name.
      TypeError: what is not real and floating.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> x = jnp.array([[2.0, 0.0], [0.0, -0.5]])
      >>> lo.transforms.orthogonalize_via_newton_schulz(x, "polar_express", 8).round(4).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Differs from: optax, whose squares overflow beyond 1e19, and which computes in the dtype of X.
    Source: Jordan et al. 2024, "Muon"; Boissin et al. 2025, arXiv:2512.04632 ("aol"); Grishina et al. 2025,
      arXiv:2506.10935 ("schatten"); Ahn et al. 2025, arXiv:2504.05295 ("dion"); arXiv:2505.16932 ("polar_express").
    """
    where = "orthogonalize_via_newton_schulz"
    check_real(where, "x", x)
    if jnp.ndim(x) < 2:
        raise ValueError(complaint(where, "x", "have two axes or more", f"shape {jnp.shape(x)}"))
    check_scalar(where, "eps", eps)
    check_preconditioning(where, preconditioning)
    wide = as_compute(x)
    steps = newton_schulz_steps(where, ns_coeffs, ns_steps)
    return orthogonal(wide, steps, preconditioning, jnp.asarray(eps).astype(wide.dtype), precision).astype(dtype_of(x))


def check_preconditioning(where: str, preconditioning: Any) -> None:
    if preconditioning not in PRECONDITIONINGS:
        must = f"be among {list(PRECONDITIONINGS)}"
        raise ValueError(complaint(where, "preconditioning", must, repr(preconditioning)))


def in_stacks(function: Callable[[jax.Array], Any], arrays: list[jax.Array]) -> list[Any]:
    """A function of [..., *shape] of each array, those of one shape and dtype at once."""
    alike: dict[Any, list[int]] = {}
    for index, x in enumerate(arrays):
        alike.setdefault((x.shape, x.dtype), []).append(index)
    results: list[Any] = [None] * len(arrays)
    for indices in alike.values():
        if len(indices) == 1:
            results[indices[0]] = function(arrays[indices[0]])
            continue
        # On a CPU products of stacks are no faster than one after the other, which takes less memory.
        together = lax.platform_dependent(
            jnp.stack([arrays[i] for i in indices]), cpu=lambda stack: lax.map(function, stack), default=function
        )
        for place, index in enumerate(indices):
            results[index] = jax.tree.map(lambda y, place=place: y[place], together)
    return results


def map_stacked(function: Callable[[jax.Array], Any], tree: Any) -> Any:
    """Apply a function of stacks of matrices to every leaf of a tree, to those of one shape and dtype at once.

    One program for each shape instead of each leaf: fewer and larger products on GPU and TPU, and less to compile
    everywhere. On CPU the matrices of a stack go one after the other.

    Args:
      function: takes [..., m, n] whatever stands in front, acts on each matrix by itself, and returns an array, or a
        tree of arrays, with the same axes in front.
      tree: arrays of any shape; those of one shape must allow being stacked. None is no leaf.

    Returns:
      A tree like `tree` of what the function returns.

    Raises:
      TypeError: a leaf that is no array.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> kernels = {"a": jnp.eye(2) / 3, "b": 5 * jnp.eye(2), "c": jnp.ones((1, 4))}
      >>> root = lambda x: lo.transforms.orthogonalize_via_newton_schulz(x, "polar_express", 8)
      >>> lo.transforms.map_stacked(root, kernels)["b"].round(4).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    leaves, treedef = jax.tree.flatten(tree)
    for leaf in leaves:
        if not is_array_like(leaf):
            raise TypeError(complaint("map_stacked", "tree", "hold arrays", repr(leaf)))
    return jax.tree.unflatten(treedef, in_stacks(function, list(map(jnp.asarray, leaves))))
