"""One number from all elements of a tree: in float32, or float64 where a leaf is; integers among themselves exactly."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import as_compute, complaint, default_float, is_complex, is_trainable, standard_promotion
from lossopt_jax.transforms._clipping import length
from lossopt_jax.transforms._vectors import accurate_sum
from lossopt_jax.transforms.tree._arithmetic import over_leaves


def _arrays(tree: Any) -> list[jax.Array]:
    """The leaves, of half precision no more."""
    return [as_compute(x) if is_trainable(x) else jnp.asarray(x) for x in jax.tree.leaves(tree)]


def _joined(terms: list[jax.Array], reduce: Callable[..., Any] = functools.reduce) -> jax.Array:
    """The sum of scalars in the dtype that holds them all."""
    with standard_promotion():
        return reduce(operator.add, terms)


@jax.custom_jvp
def _inner(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
    """Σ x y of real arrays of one dtype; finite if it fits, whatever the products."""

    def total(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
        products = zip(left, right, strict=True)
        return functools.reduce(
            operator.add, [jnp.tensordot(x, y, x.ndim, precision=jax.lax.Precision.HIGHEST) for x, y in products]
        )

    def lowered(parts: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        exponent = jnp.finfo(parts[0].dtype).maxexp
        largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in parts])
        raised = jnp.where(largest > 2.0 ** (exponent // 4), 2.0 ** (exponent * 5 // 8), 1).astype(largest.dtype)
        return [(1 / raised) * x for x in parts], raised

    def again() -> jax.Array:
        (x, up), (y, too) = lowered(left), lowered(right)
        return total(x, y) * up * too

    plain = total(left, right)
    return jax.lax.cond(jnp.isfinite(plain), lambda: plain, again)


@_inner.defjvp
def _inner_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (left, right), (d_left, d_right) = primals, tangents
    slopes = [jnp.sum(dx * y + x * dy) for x, y, dx, dy in zip(left, right, d_left, d_right, strict=True)]
    return _inner(left, right), functools.reduce(operator.add, slopes)


@jax.jit
def _vdot(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
    pairs = list(zip(left, right, strict=True))
    exact = [jnp.sum(x * y) for x, y in pairs if not (is_trainable(x) or is_trainable(y))]
    pairs = [(x, y) for x, y in pairs if is_trainable(x) or is_trainable(y)]
    if not pairs:
        return _joined(exact)
    dtype = jnp.finfo(functools.reduce(jnp.promote_types, [x.dtype for pair in pairs for x in pair])).dtype
    (xr, xi), (yr, yi) = (
        [[part(pair[side]).astype(dtype) for pair in pairs] for part in (jnp.real, jnp.imag)] for side in (0, 1)
    )
    if not any(is_complex(x) for pair in pairs for x in pair):
        return _joined([_inner(xr, yr), *exact])
    # conj(x) y = (xᵣyᵣ + xᵢyᵢ) + i (xᵣyᵢ − xᵢyᵣ)
    found = jax.lax.complex(_inner(xr + xi, yr + yi), _inner(xr + xi, yi + [-y for y in yr]))
    return _joined([found, *exact])


def vdot(tree_x: Any, tree_y: Any) -> jax.Array:
    """The inner product of two trees, as if each were one vector.

        ⟨x, y⟩ = Σ x̄ y

    Taken in float32 (float64 where a leaf is), and finite wherever it fits: where products overflow, it is taken
    again of lowered elements. Integers among themselves give an integer. No leaves: 0.

    Args:
      tree_x: a tree of arrays; of complex ones the conjugate counts.
      tree_y: a tree like it.

    Raises:
      ValueError: trees or leaves of another shape, by the path.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.vdot({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 4.0])})
      Array(11., dtype=float32)

    Differs from: optax, which rounds each leaf's product to the leaf's dtype.
    """

    def pair(x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(complaint("tree.vdot", "leaves", "have one shape", f"{jnp.shape(x)} and {jnp.shape(y)}"))
        return tuple(_arrays([x, y]))

    pairs = jax.tree.leaves(over_leaves("tree.vdot", pair, tree_x, tree_y), is_leaf=lambda x: type(x) is tuple)
    pairs = [pair for pair in pairs if pair]
    with standard_promotion():
        return _vdot(*map(list, zip(*pairs, strict=True))) if pairs else jnp.zeros((), default_float())


@functools.partial(jax.jit, static_argnames="associative")
def _sum(leaves: list[jax.Array], associative: bool) -> jax.Array:
    sums = [accurate_sum(x) if is_trainable(x) else jnp.sum(x) for x in leaves]
    return _joined(sums, jax.tree.reduce_associative if associative else functools.reduce)


def sum(tree: Any, associative_reduction: bool = False) -> jax.Array:
    """The sum of all elements.

    Taken in float32 (float64 where a leaf is), in rows, so that a million numbers lose no digits. Integers among
    themselves give an integer. No leaves: 0.

    Args:
      tree: a tree of arrays.
      associative_reduction: add the leaves' sums in pairs instead of one after the other.

    Differs from: optax, which rounds each leaf's sum to the leaf's dtype.
    """
    leaves = _arrays(tree)
    return _sum(leaves, associative_reduction) if leaves else jnp.zeros((), default_float())


@functools.partial(jax.jit, static_argnames="pick")
def _extreme(leaves: list[jax.Array], pick: Callable[..., jax.Array]) -> jax.Array:
    with standard_promotion():
        found = pick(jnp.stack([pick(x) for x in leaves]))
    unknown = [jnp.any(jnp.isnan(x)) for x in leaves if is_trainable(x)]  # XLA:CPU's maximum may lose a NaN
    return jnp.where(functools.reduce(operator.or_, unknown), jnp.nan, found) if unknown else found


def _extreme_of(tree: Any, pick: Callable[..., jax.Array], of_nothing: float) -> jax.Array:
    leaves = [x for leaf in jax.tree.leaves(tree) if (x := jnp.asarray(leaf)).size]
    return _extreme(leaves, pick) if leaves else jnp.full((), of_nothing, default_float())


def max(tree: Any) -> jax.Array:
    """The largest element, in the dtype that holds all leaves; NaN if there is one, −∞ without elements."""
    return _extreme_of(tree, jnp.max, -math.inf)


def min(tree: Any) -> jax.Array:
    """The smallest element, in the dtype that holds all leaves; NaN if there is one, ∞ without elements."""
    return _extreme_of(tree, jnp.min, math.inf)


def size(tree: Any) -> int:
    """The number of elements; leaves may be shapes (`jax.ShapeDtypeStruct`)."""
    return functools.reduce(operator.add, [math.prod(getattr(x, "shape", ())) for x in jax.tree.leaves(tree)], 0)


def norm(tree: Any, ord: Any = None, squared: bool = False) -> jax.Array:
    """A norm of all elements, as if the tree were one vector.

        2 or None: √ Σ |x|²,      1: Σ |x|,      inf: max |x|

    In float32 (float64 where a leaf is), integers raised too. The Euclidean norm is that of `global_norm`: it neither
    overflows nor vanishes where it fits, and its gradient is 0 at 0. No leaves: 0.

    Args:
      tree: a tree of arrays.
      ord: None, 2, 1, inf, "inf" or "infinity".
      squared: the square of it.

    Raises:
      ValueError: another order.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.tree.norm({"a": jnp.array([3e30]), "b": jnp.array([4e30])})
      Array(5.e+30, dtype=float32)

    Differs from: optax, which squares and sums in the leaf's dtype and gives NaN gradients at 0.
    """
    leaves = jax.tree.leaves(tree)
    if ord in (None, 2):
        found = length(leaves)
    elif ord == 1:
        found = sum([jnp.abs(as_compute(x)) for x in leaves])
    elif ord in (math.inf, "inf", "infinity"):
        found = max([*(jnp.abs(as_compute(x)) for x in leaves), jnp.zeros((), jnp.float32)])
    else:
        raise ValueError(complaint("tree.norm", "ord", "be None, 2, 1 or inf", repr(ord)))
    return jnp.square(found) if squared else found


def allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> jax.Array:
    """Whether two trees are equal within a tolerance: |a − b| ≤ atol + rtol |b| everywhere.

    Compared in float32, or float64 where a leaf is. No leaves: true.

    Raises:
      ValueError: trees or leaves of another shape, by the path.
    """

    def close(x: Any, y: Any) -> jax.Array:
        return jnp.allclose(*_arrays([x, y]), rtol=rtol, atol=atol, equal_nan=equal_nan)

    found = jax.tree.leaves(over_leaves("tree.allclose", close, a, b))
    return functools.reduce(operator.and_, found, jnp.ones((), bool))
