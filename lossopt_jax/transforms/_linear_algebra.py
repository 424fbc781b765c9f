"""Small dense linear algebra: the dominant eigenpair, inverse roots, least squares without negative numbers.

Arithmetic runs in float32, or float64 where the input is.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from lossopt_jax._core import (
    COUNT,
    NONNEGATIVE,
    as_compute,
    check_scalar,
    complaint,
    dtype_of,
    is_array_like,
    is_complex,
    is_trainable,
    leaf_paths,
    standard_promotion,
    widest_float,
)
from lossopt_jax.kernels import norm
from lossopt_jax.transforms._vectors import Vector, combined, difference, inner, scaled


def check_real(where: str, name: str, array: Any) -> None:
    if not is_array_like(array) or not is_trainable(array) or is_complex(array):
        got = dtype_of(array) if is_array_like(array) else repr(array)
        raise TypeError(complaint(where, name, "be a real floating array", got))


def _check_square(where: str, matrix: Any, batched: bool = False) -> None:
    check_real(where, "matrix", matrix)
    *front, rows, columns = (0, 0, *jnp.shape(matrix))
    if jnp.ndim(matrix) < 2 or rows != columns or not rows or (len(front) > 2 and not batched):
        remedy = "" if batched else "vmap over a batch"
        raise ValueError(complaint(where, "matrix", "be square and not empty", f"shape {jnp.shape(matrix)}", remedy))


def _product(left: jax.Array, right: jax.Array, precision: Any) -> jax.Array:
    return jnp.matmul(left, right, precision=precision)


# ------------------------------------------------------------------------------------------------ dominant eigenpair


class _Orbit(NamedTuple):
    """Three vectors of length 1 in a row, of which each points where the matrix sends the one before it."""

    before: Vector
    here: Vector
    after: Vector
    stretched_before: jax.Array
    stretched: jax.Array
    cosine: jax.Array
    count: jax.Array
    along: jax.Array
    """Whether `here` and `after` lie on one line."""
    back: jax.Array
    """Whether `after` is `before`."""


def _unit(vector: Vector, length: jax.Array) -> Vector:
    return [x / jnp.where(length == 0, 1, length) for x in vector]


def _distance(left: Vector, right: Vector) -> jax.Array:
    """Of vectors of length 1 or less."""
    apart = difference(left, right)
    return jnp.sqrt(inner(apart, apart, apart[0].dtype))


def _dominant(
    apply: Callable[[Vector], Vector], start: Vector, num_iters: Any, error_tolerance: Any
) -> tuple[jax.Array, Vector]:
    dtype = start[0].dtype
    tolerance, most = jnp.asarray(error_tolerance).astype(dtype), jnp.asarray(num_iters)

    def step(orbit: _Orbit) -> _Orbit:
        before, here = orbit.here, orbit.after
        image = apply(here)
        length = norm(*image)
        after = [jnp.where(length == 0, x, y) for x, y in zip(here, _unit(image, length), strict=True)]
        # An image of 0 leaves the vector where it is, as one that belongs to the eigenvalue 0.
        cosine = inner(here, after, dtype)
        return _Orbit(
            before,
            here,
            after,
            orbit.stretched,
            length,
            cosine,
            orbit.count + 1,
            _distance(after, scaled(cosine, here)) <= tolerance * jnp.abs(cosine),
            _distance(after, before) <= tolerance,
        )

    none, zero, no = [jnp.zeros_like(x) for x in start], jnp.zeros((), dtype), jnp.zeros((), bool)
    first = _unit(start, norm(*start))
    orbit = _Orbit(none, none, first, zero, zero, zero, jnp.zeros((), most.dtype), no, no)
    orbit = lax.while_loop(lambda orbit: ~(orbit.along | orbit.back) & (orbit.count < most), step, orbit)

    # To and fro between two vectors: λ and −λ, whose eigenvectors are a sum and a difference of the two.
    two = orbit.back & ~orbit.along
    sign = jnp.where(orbit.cosine < 0, -1, jnp.ones_like(zero))
    ratio = jnp.sqrt(orbit.stretched / jnp.where(two, orbit.stretched_before, 1))
    mixed = combined(ratio, orbit.before, sign, orbit.here)
    mixed = _unit(mixed, norm(*mixed))
    both = sign * jnp.sqrt(orbit.stretched) * jnp.sqrt(orbit.stretched_before)
    eigenvalue = jnp.where(two, both, orbit.stretched * orbit.cosine)
    return eigenvalue, [jnp.where(two, x, y) for x, y in zip(mixed, orbit.after, strict=True)]


@functools.partial(jax.jit, static_argnames="precision")
def _dominant_of_matrix(
    matrix: jax.Array, start: jax.Array, num_iters: Any, error_tolerance: Any, precision: Any
) -> tuple[jax.Array, jax.Array]:
    dtype = widest_float((matrix.dtype, start.dtype))
    wide = matrix.astype(dtype)
    value, (vector,) = _dominant(
        lambda vector: [_product(wide, vector[0], precision)], [start.astype(dtype)], num_iters, error_tolerance
    )
    return value, vector


def _start(matrix: Any, key: Any) -> jax.Array:
    dtype = as_compute(matrix).dtype
    return jax.random.uniform(jax.random.key(0) if key is None else key, jnp.shape(matrix)[:1], dtype, -1, 1)


def _dominant_of_function(function: Callable[[Any], Any], v0: Any, num_iters: Any, error_tolerance: Any) -> Any:
    where = "power_iteration"
    leaves, treedef = jax.tree.flatten(v0)
    for path, leaf in zip(leaf_paths(v0), leaves, strict=True):
        check_real(where, f"v0 at {path!r}" if path else "v0", leaf)
    if not leaves:
        raise ValueError(complaint(where, "v0", "have arrays", repr(v0)))
    dtype = widest_float(map(dtype_of, leaves))

    def restore(vector: Vector) -> Any:
        return treedef.unflatten([x.astype(dtype_of(leaf)) for x, leaf in zip(vector, leaves, strict=True)])

    def apply(vector: Vector) -> Vector:
        with standard_promotion():
            image = function(restore(vector))
        images = jax.tree.leaves(image)
        if jax.tree.structure(image) != treedef or list(map(jnp.shape, images)) != list(map(jnp.shape, leaves)):
            got = jax.tree.map(jnp.shape, image)
            raise ValueError(complaint(where, "matrix", "return a tree like v0", got))
        return [jnp.asarray(x).astype(dtype) for x in images]

    start = [jnp.asarray(leaf).astype(dtype) for leaf in leaves]
    value, vector = _dominant(apply, start, num_iters, error_tolerance)
    return value, restore(vector)


def power_iteration(
    matrix: Any,
    *,
    v0: Any = None,
    num_iters: Any = 100,
    error_tolerance: Any = 1e-6,
    precision: Any = lax.Precision.HIGHEST,
    key: Any = None,
) -> tuple[jax.Array, Any]:
    """The eigenvalue of the largest |λ|, and its eigenvector, by power iteration.

        v ← A v / ‖A v‖,      λ = ⟨v, A v⟩,      until ‖A v − λ v‖ ≤ tol · |λ|

    Where λ and −λ are both dominant, v goes to and fro between two vectors, which is seen: the one of which the start
    has more, and its eigenvector. For a pair that is complex no v ever stays: the result is the last λ. A v = 0 gives
    0 and v; so does a matrix of zeros. A NaN gives NaN.

    Args:
      matrix: A, a real floating array [n, n], or a function v ↦ A v of a tree of such arrays.
      v0: where to start, [n] or the function's argument. None: uniform in [−1, 1] from `key`, for an array only.
      num_iters: the most steps, ≥ 1, each one product with A.
      error_tolerance: tol ≥ 0.
      precision: of products with an array.
      key: a random key; None: `jax.random.key(0)`, so that the same matrix gives the same result.

    Returns:
      (λ, v): λ in float32, or float64 where A or v0 is, and ‖v‖ = 1 in the dtype of `v0`, else of `matrix`.

    Raises:
      ValueError: an array that is not square; a function without v0; a v0 of another shape; a bad count or tolerance.
      TypeError: what is not real and floating.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> value, vector = lo.transforms.power_iteration(jnp.array([[2.0, 0.0], [0.0, -3.0]]))
      >>> print(f"{value:.4f}", abs(vector).round(3))
      -3.0000 [0. 1.]

    Differs from: optax, where λ and −λ give a number between the two, zeros NaN, and a half-precision array stops at
      the accuracy of its dtype.
    Source: von Mises & Pollaczek-Geiringer 1929, doi:10.1002/zamm.19290090206.
    """
    where = "power_iteration"
    check_scalar(where, "num_iters", num_iters, within=COUNT)
    check_scalar(where, "error_tolerance", error_tolerance, within=NONNEGATIVE)
    if callable(matrix):
        if v0 is None:
            raise ValueError(complaint(where, "v0", "be given with a function", None, "pass an argument of it"))
        return _dominant_of_function(matrix, v0, num_iters, error_tolerance)
    _check_square(where, matrix)
    if v0 is not None:
        check_real(where, "v0", v0)
        if jnp.shape(v0) != jnp.shape(matrix)[:1]:
            raise ValueError(complaint(where, "v0", f"have shape {jnp.shape(matrix)[:1]}", jnp.shape(v0)))
    start = _start(matrix, key) if v0 is None else jnp.asarray(v0)
    value, vector = _dominant_of_matrix(as_compute(matrix), as_compute(start), num_iters, error_tolerance, precision)
    return value, vector.astype(dtype_of(matrix if v0 is None else v0))


# ----------------------------------------------------------------------------------------------------- inverse roots


def _power(x: jax.Array, p: int, precision: Any) -> jax.Array:
    """xᵖ, by squaring."""
    result = None
    while True:
        if p % 2:
            result = x if result is None else _product(result, x, precision)
        p //= 2
        if not p:
            return result
        x = _product(x, x, precision)


class _Root(NamedTuple):
    root: jax.Array
    product: jax.Array
    error: jax.Array


@functools.partial(jax.jit, static_argnames=("p", "precision"))
def _inverse_root(
    matrix: jax.Array, p: int, num_iters: Any, ridge_epsilon: Any, error_tolerance: Any, precision: Any
) -> tuple[jax.Array, jax.Array]:
    dtype, identity = matrix.dtype, jnp.eye(len(matrix), dtype=matrix.dtype)
    tolerance, most = jnp.asarray(error_tolerance).astype(dtype), jnp.asarray(num_iters)
    largest, _ = power_iteration(matrix, precision=precision)
    damped = matrix + jnp.asarray(ridge_epsilon).astype(dtype) * jnp.maximum(largest, 1e-16) * identity
    if len(matrix) == 1:
        return damped ** (-1 / p), jnp.zeros((), dtype)

    def off(product: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(product - identity))

    def step(carry: Any) -> Any:
        count, _, now, _ = carry
        factor = ((p + 1) * identity - now.product) / p
        product = _product(_power(factor, p, precision), now.product, precision)
        new = _Root(_product(now.root, factor, precision), product, off(product))
        # Far off, errors may grow a little before they fall. Near, where all eigenvalues are within 1/(2p+2) of 1, each
        # is of the order of the last one's square, until rounding is all there is.
        near = len(matrix) * now.error < 0.5 / (p + 1)
        return count + 1, now, new, jnp.where(near, new.error < now.error / 2, new.error < 1.2 * now.error)

    # Of the product's eigenvalues those in (0, p+1) go to 1. They start as large as leaves the largest well inside,
    # since rounding takes most from the small ones; and the scale, a power of 2, takes nothing.
    bound = jnp.minimum(norm(damped), jnp.max(jnp.sum(jnp.abs(damped), 1)))
    scale = jnp.ldexp(jnp.ones((), dtype), jnp.frexp(max(1.5, (p + 1) / 2) / bound)[1] - 1)
    product = damped * scale
    start = _Root(identity * scale ** (1 / p), product, off(product))
    carry = (jnp.zeros((), most.dtype), start, start, jnp.ones((), bool))
    _, last, now, _ = lax.while_loop(lambda c: (c[0] < most) & (c[2].error > tolerance) & c[3], step, carry)
    better = ~(last.error <= now.error)  # or NaN
    root, error = jnp.where(better, now.root, last.root), jnp.where(better, now.error, last.error)
    return jnp.where(jnp.isnan(error), jnp.nan, (root + root.T) / 2), error


def matrix_inverse_pth_root(
    matrix: Any,
    p: int,
    num_iters: Any = 100,
    ridge_epsilon: Any = 1e-6,
    error_tolerance: Any = 1e-6,
    precision: Any = lax.Precision.HIGHEST,
) -> tuple[jax.Array, jax.Array]:
    """(A + r I)^(−1/p) of a symmetric positive semidefinite matrix, by coupled Newton iterations.

        r = ε max(λ, 10⁻¹⁶),      λ the dominant eigenvalue, by `power_iteration`
        T = ((p+1) I − M)/p;      X ← X T,      M ← Tᵖ M,      until max |M − I| ≤ tol

    from X = z^(1/p) I and M = z (A + r I), of which the product A Xᵖ = M is kept. The steps end too where rounding
    lets the error fall no further; the best X is returned. Its relative error is some units of rounding times the
    condition number, over p.

    Args:
      matrix: A [..., n, n], real, floating, symmetric.
      p: an integer ≥ 1.
      num_iters: the most steps, ≥ 1.
      ridge_epsilon: ε ≥ 0.
      error_tolerance: tol ≥ 0.
      precision: of products.

    Returns:
      (X, error): X like A; max |M − I| [...], in float32, or float64 where A is. A matrix that is not positive definite
      shows in the error.

    Raises:
      ValueError: a matrix that is not square; an argument out of range.
      TypeError: a matrix that is not real and floating; a p that is no integer, or traced.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> root, error = lo.transforms.matrix_inverse_pth_root(jnp.diag(jnp.array([1.0, 8.0, 27.0])), 3)
      >>> root.diagonal().round(4).tolist()
      [1.0, 0.5, 0.3333]

    Differs from: optax, which is right for p = 1, 2, 4 and 8 only, computes in float32 whatever the matrix, and gives
      NaN for zeros.
    Source: Higham 2008, Functions of Matrices, equation 7.18; Guo & Higham 2006, doi:10.1137/050643374.
    """
    where = "matrix_inverse_pth_root"
    _check_square(where, matrix, batched=True)
    try:
        power = operator.index(p)
    except TypeError:
        raise TypeError(complaint(where, "p", "be an integer", p, "make it a static argument")) from None
    if power < 1:
        raise ValueError(complaint(where, "p", "be ≥ 1", p))
    check_scalar(where, "num_iters", num_iters, within=COUNT)
    check_scalar(where, "ridge_epsilon", ridge_epsilon, within=NONNEGATIVE)
    check_scalar(where, "error_tolerance", error_tolerance, within=NONNEGATIVE)
    function = functools.partial(
        _inverse_root,
        p=power,
        num_iters=num_iters,
        ridge_epsilon=ridge_epsilon,
        error_tolerance=error_tolerance,
        precision=precision,
    )
    for _ in range(jnp.ndim(matrix) - 2):
        function = jax.vmap(function)
    root, error = function(as_compute(matrix))
    return root.astype(dtype_of(matrix)), error


# ------------------------------------------------------------------------------------- nonnegative least squares


class _Active(NamedTuple):
    """A point and the columns that it may use."""

    x: jax.Array
    support: jax.Array
    """Columns with x > 0, on which A has full rank."""
    trial: jax.Array
    """These, and those that come in."""
    count: jax.Array
    done: jax.Array


def _triangle(matrix: jax.Array, columns: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """R and Qᵀb of the QR factors of some columns; the others are made those of the identity, below."""
    n = matrix.shape[1]
    rest = jnp.diag(jnp.where(columns, 0, jnp.ones(n, matrix.dtype)))
    top = jnp.concatenate([jnp.where(columns[None], matrix, 0), right[:, None]], 1)
    bottom = jnp.concatenate([rest, jnp.zeros((n, 1), matrix.dtype)], 1)
    r = jnp.linalg.qr(jnp.concatenate([top, bottom]), mode="r")
    return r[:n, :n], r[:n, n]


def _solution(matrix: jax.Array, right: jax.Array, iters: Any) -> jax.Array:
    """argmin ‖A x − b‖, x ≥ 0, of columns of length 1 and ‖b‖ = 1."""
    (m, n), dtype = matrix.shape, matrix.dtype
    unit = jnp.finfo(dtype).eps

    def slopes(x: jax.Array) -> jax.Array:
        return _product(right - _product(matrix, x, "highest"), matrix, "highest")

    def descents(x: jax.Array, among: jax.Array) -> jax.Array:
        return among & (slopes(x) > 8 * unit * (1 + jnp.sum(x)))

    def step(now: _Active) -> _Active:
        order = jnp.argsort(jnp.where(now.support, 0, jnp.where(now.trial, 1, 2)), stable=True)
        r, image = _triangle(matrix[:, order], now.trial[order], right)
        dependent = jnp.abs(jnp.diagonal(r)) <= max(m, n) * unit
        z = solve_triangular(r + jnp.diag(jnp.where(dependent, 1, jnp.zeros(n, dtype))), image)
        z, dependent = jnp.zeros_like(z).at[order].set(z), jnp.zeros_like(dependent).at[order].set(dependent)

        # Columns that others make are of no use; those of the support, which come first, are not among them.
        useless = dependent & now.trial & ~now.support
        redundant = jnp.any(useless)
        below = now.trial & (z <= 0)
        share = jnp.where(below, jnp.where(now.x > 0, now.x / (now.x - z), 0), 1)
        part = jnp.min(share)
        met = below & (share <= part)
        x = jnp.where(now.trial & ~met, now.x + part * (z - now.x), 0)
        out = jnp.where(redundant, useless, met)
        x = jnp.where(redundant, now.x, x)
        trial = now.trial & ~out
        support = jnp.where(redundant, now.support, trial)

        # Of all that come in one stays, as along each the residual falls: no support comes twice.
        solved = ~redundant & ~jnp.any(below)
        new = descents(x, ~trial) & solved
        return _Active(x, support, trial | new, now.count + 1, solved & ~jnp.any(new))

    nothing, nobody, most = jnp.zeros(n, dtype), jnp.zeros(n, bool), jnp.asarray(iters)
    first = descents(nothing, ~nobody)
    start = _Active(nothing, nobody, first, jnp.zeros((), most.dtype), ~jnp.any(first))
    return lax.while_loop(lambda now: ~now.done & (now.count < most), step, start).x


def _scales(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Columns of length 1, or 0, and their lengths, 1 for 0, each as a product of two: (columns, largest, rest)."""
    largest = jnp.max(jnp.abs(matrix), 0)
    largest = jnp.where(largest == 0, 1, largest)
    seen = matrix / largest[None]
    length = jnp.sqrt(jnp.sum(jnp.square(seen), 0))
    length = jnp.where(length == 0, 1, length)
    return seen / length[None], largest, length


@jax.custom_jvp
@jax.jit
def _nonnegative(matrix: jax.Array, right: jax.Array, iters: Any) -> jax.Array:
    columns, width, length = _scales(matrix)
    target, height, size = _scales(right)
    solve = functools.partial(_solution, columns, iters=iters)
    x = jax.vmap(solve, 1, 1)(target)
    x = (x / length[:, None]) * size[None] * (height[None] / width[:, None])
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(right), 0)
    return jnp.where(finite[None], x, jnp.nan)


@_nonnegative.defjvp
def _nonnegative_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (matrix, right, iters), (d_matrix, d_right, _) = primals, tangents
    x = _nonnegative(matrix, right, iters)
    columns, width, length = _scales(matrix)
    per = (width * length)[:, None]
    highest = functools.partial(_product, precision="highest")

    def moved(used: jax.Array, slope: jax.Array) -> jax.Array:
        r, _ = _triangle(columns, used, jnp.zeros_like(matrix[:, 0]))
        return jnp.where(used, solve_triangular(r, solve_triangular(r, slope, trans=1)), 0)

    residual = right - highest(matrix, x)
    slopes = highest(columns.T, d_right - highest(d_matrix, x)) + highest(d_matrix.T, residual) / per
    return x, jax.vmap(moved, 1, 1)(x > 0, slopes) / per


def nnls(A: Any, b: Any, iters: Any, unroll: Any = 1, L: Any = None) -> jax.Array:
    """Least squares without negative numbers: the x ≥ 0 of the least ‖A x − b‖.

    By an active set: least squares on some columns, by QR; a column leaves where x would become negative, and all
    those come in along which the residual falls. As exact as least squares on the columns that stay, whatever the
    units of columns, mostly after some ten factorisations. Of columns that depend on each other some stay out. The
    gradient is that of least squares on the columns with x > 0.

    Args:
      A: real, floating [m, n].
      b: [m], or [m, k] for k problems at once.
      iters: the most factorisations, ≥ 1. Where it ends them, x is feasible and better than all before.
      unroll: nothing.
      L: nothing; both are optax's, whose method has a step size.

    Returns:
      x, [n] or [n, k], in the wider dtype of A and b. NaN where A or b is not finite.

    Raises:
      ValueError: another shape of A or b; a bad count.
      TypeError: what is not real and floating.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.transforms.nnls(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([5.0, 6.0]), 100).round(4).tolist()
      [0.0, 1.7]

    Differs from: optax, whose projected gradients need thousands of steps where columns are nearly parallel or differ
      in length, and have no end of their own.
    Source: Lawson & Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    where = "nnls"
    check_real(where, "A", A)
    check_real(where, "b", b)
    check_scalar(where, "iters", iters, within=COUNT)
    if jnp.ndim(A) != 2:
        raise ValueError(complaint(where, "A", "be a matrix", f"shape {jnp.shape(A)}", "vmap over a batch"))
    if jnp.ndim(b) not in (1, 2) or jnp.shape(b)[0] != jnp.shape(A)[0]:
        rows = jnp.shape(A)[0]
        raise ValueError(complaint(where, "b", f"have shape ({rows},) or ({rows}, k)", jnp.shape(b)))
    with standard_promotion():
        stored = jnp.promote_types(dtype_of(A), dtype_of(b))
    dtype = widest_float((dtype_of(A), dtype_of(b)))
    shape = (jnp.shape(A)[1], *jnp.shape(b)[1:])
    if not jnp.size(A) or not jnp.size(b):
        return jnp.zeros(shape, stored)
    right = jnp.asarray(b).astype(dtype)
    x = _nonnegative(jnp.asarray(A).astype(dtype), right if right.ndim == 2 else right[:, None], iters)
    return x.reshape(shape).astype(stored)
