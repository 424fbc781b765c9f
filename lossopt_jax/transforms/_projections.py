"""The nearest point of a set, and a rule that keeps the parameters in one.

A projection sees all leaves of a tree as one vector, unless it says otherwise. Leaves are floating arrays; None stays
None. Arithmetic runs in float32, or float64 where a leaf is, and every leaf keeps its dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import (
    NONNEGATIVE,
    UNIT,
    as_compute,
    axes_of,
    check_real_leaves,
    check_scalar,
    complaint,
    concrete,
    dtype_of,
    is_array_like,
    leaf_paths,
    map_arrays,
    none_is_leaf,
    standard_promotion,
    widest_float,
)
from lossopt_jax.kernels import norm
from lossopt_jax.transforms._base import alongside
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._vectors import accurate_sum

_Vector = list[jax.Array]
_PROJECTED = "that is projected"


# ---------------------------------------------------------------------------------------------- trees as vectors


def _check_leaves(where: str, tree: Any) -> None:
    check_real_leaves(where, tree, "pass None for what is not to be projected")


def _vector(where: str, tree: Any) -> tuple[_Vector, Callable[[_Vector], Any]]:
    """The leaves in one dtype, and what makes a tree like this one of others."""
    _check_leaves(where, tree)
    leaves, treedef = jax.tree.flatten(tree)
    dtype = widest_float(dtype_of(leaf) for leaf in leaves)

    def restore(vector: _Vector) -> Any:
        return treedef.unflatten([new.astype(dtype_of(old)) for new, old in zip(vector, leaves, strict=True)])

    return [jnp.asarray(leaf).astype(dtype) for leaf in leaves], restore


def _radius(where: str, scale: Any, vector: _Vector) -> jax.Array:
    check_scalar(where, "scale", scale, within=NONNEGATIVE)
    return jnp.asarray(scale).astype(widest_float(x.dtype for x in vector))


def _total(vector: _Vector) -> jax.Array:
    return functools.reduce(jnp.add, map(accurate_sum, vector), jnp.zeros((), widest_float(x.dtype for x in vector)))


def _inner(left: _Vector, right: _Vector) -> jax.Array:
    return _total([x * y for x, y in zip(left, right, strict=True)])


def _largest(vector: _Vector) -> jax.Array:
    """max x, −∞ of nothing."""
    lowest = jnp.full((), -jnp.inf, widest_float(x.dtype for x in vector))
    return functools.reduce(jnp.maximum, [jnp.max(x, initial=-jnp.inf) for x in vector], lowest)


def _unit(of: jax.Array) -> jax.Array:
    """What to divide by: a constant to autodiff, and 1 for 0."""
    return jax.lax.stop_gradient(jnp.where(of == 0, 1, of))


def _polar(vector: _Vector) -> tuple[_Vector, jax.Array, jax.Array]:
    """x = c l d with ‖d‖ = 1, as (d, c, l): the largest |xᵢ| and, from 1 to √n, the length in that unit; 0 for 0."""
    largest = jnp.maximum(_largest([jnp.abs(x) for x in vector]), 0)
    seen = [x / _unit(largest) for x in vector]
    length = norm(*seen) if seen else jnp.zeros_like(largest)
    return [jnp.where(length == 0, 0, x / jnp.where(length == 0, 1, length)) for x in seen], _unit(largest), length


# ------------------------------------------------------------------------------------------------------------ boxes


def projection_non_negative(tree: Any) -> Any:
    """The nearest point without negative elements: max(x, 0). The gradient at 0 is 0; NaN stays NaN.

    Args:
      tree: floating arrays.

    Raises:
      TypeError: a leaf that is no real floating array.
    """
    _check_leaves("projection_non_negative", tree)
    return map_arrays(lambda x: jax.nn.relu(jnp.asarray(x)), tree)


def _bounds(name: str, bound: Any, tree: Any) -> Any:
    if is_array_like(bound) and jnp.ndim(bound) == 0:
        return jax.tree.map(lambda leaf: None if leaf is None else bound, tree, is_leaf=none_is_leaf)
    return alongside("projection_box", name, bound, tree, _PROJECTED)


def _clipped(path: str, leaf: Any, lower: Any, upper: Any) -> Any:
    if leaf is None:
        return None
    if concrete(lower) and concrete(upper) and not np.all(np.asarray(lower) <= np.asarray(upper)):
        where = f"lower at {path!r}" if path else "lower"
        raise ValueError(complaint("projection_box", where, "be ≤ upper", f"{lower} and {upper}"))
    x = as_compute(leaf)
    low, high = (jnp.broadcast_to(jnp.asarray(bound).astype(x.dtype), x.shape) for bound in (lower, upper))
    return jnp.clip(x, low, high).astype(dtype_of(leaf))


def projection_box(tree: Any, lower: Any, upper: Any) -> Any:
    """The nearest point between bounds: min(max(x, l), u) for each element.

    Args:
      tree: floating arrays.
      lower: l, a number or a tree with the structure and shapes of `tree`; −∞ for no bound.
      upper: u ≥ l, likewise.

    Raises:
      ValueError: another structure or shape; l > u or NaN, where both can be looked at.
      TypeError: a leaf that is no real floating array.
    """
    _check_leaves("projection_box", tree)
    leaves, treedef = jax.tree.flatten(tree, is_leaf=none_is_leaf)
    lows, highs = (
        jax.tree.leaves(_bounds(name, bound, tree), is_leaf=none_is_leaf)
        for name, bound in (("lower", lower), ("upper", upper))
    )
    return treedef.unflatten(map(_clipped, leaf_paths(tree), leaves, lows, highs))


def projection_hypercube(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with elements in [0, r].

    Args:
      tree: floating arrays.
      scale: r ≥ 0, a number or a tree with the structure and shapes of `tree`.

    Raises:
      ValueError: as `projection_box`.
    """
    return projection_box(tree, 0, scale)


def projection_linf_ball(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with max |xᵢ| ≤ r.

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.
    """
    check_scalar("projection_linf_ball", "scale", scale, within=NONNEGATIVE)
    return projection_box(tree, -scale, scale)


# --------------------------------------------------------------------------------------------------------- simplex

# Each of Newton's steps divides Σ max(wᵢ−τ, 0) − 1 times the number of its terms by 4 or more: n² · 2⁵³ has no more.
_STEPS = 64


def _threshold(vector: _Vector, start: jax.Array) -> jax.Array:
    """τ with Σ max(wᵢ−τ, 0) = 1, by Newton's method: exact once a step keeps the terms that are not 0."""

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tau, _, count, number = carry
        positive = [jnp.maximum(x - tau, 0) for x in vector]
        terms = _total([jnp.where(x > 0, 1, x) for x in positive])
        return tau + (_total(positive) - 1) / jnp.maximum(terms, 1), count, terms, number + 1

    def goes_on(carry: tuple[jax.Array, ...]) -> jax.Array:
        _, before, terms, number = carry
        return (terms != before) & (number < _STEPS)

    none = jnp.zeros_like(start)
    return jax.lax.while_loop(goes_on, step, (start, none - 2, none - 1, jnp.zeros((), jnp.int32)))[0]


@jax.custom_jvp
def _on_simplex(scale: jax.Array, *vector: jax.Array) -> _Vector:
    # In units of r below the largest element, whatever is further away than 1 is 0. The sum of many small elements
    # would feel the last bit of τ, which therefore is a sum of two.
    largest = _largest(vector)
    below = [jnp.maximum((x - largest) / jnp.where(scale > 0, scale, 1), -1) for x in vector]
    near = _threshold(below, -jnp.ones_like(scale))
    above = [x - near for x in below]
    rest = _threshold(above, jnp.zeros_like(scale))
    return [scale * jnp.maximum(x - rest, 0) for x in above]


@_on_simplex.defjvp
def _on_simplex_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[_Vector, _Vector]:
    point, (widening, *moves) = _on_simplex(*primals), tangents
    support = [x > 0 for x in point]
    count = jnp.maximum(_total([jnp.where(s, jnp.ones_like(x), 0) for s, x in zip(support, point, strict=True)]), 1)
    along = sum(
        (jnp.sum(jnp.where(s, dx, 0)) for s, dx in zip(support, moves, strict=True)), start=jnp.zeros_like(count)
    )
    shift = (widening - along) / count
    return point, [jnp.where(s, dx + shift, 0) for s, dx in zip(support, moves, strict=True)]


def projection_simplex(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with xᵢ ≥ 0 and Σ xᵢ = r.

        max(x − τ, 0),      τ so that the sum is r

    τ by Newton's method, of some ten steps and never more than 64, each one pass and without a sort; the sum is right
    to a few units in the last place of r, also for a million elements. r = 0 gives zeros. A NaN makes all NaN.

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.
      TypeError: a leaf that is no real floating array.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.transforms.projection_simplex(jnp.array([0.9, 0.5, -1.0])).tolist()
      [0.699999988079071, 0.30000001192092896, 0.0]

    Differs from: optax, whose sums of sorted elements lose what is small beside them.
    Source: Michelot 1986, doi:10.1007/BF00938486; Condat 2016, doi:10.1007/s10107-015-0946-6.
    """
    vector, restore = _vector("projection_simplex", tree)
    return restore(_on_simplex(_radius("projection_simplex", scale, vector), *vector))


def _on_l1_sphere(scale: jax.Array, vector: _Vector) -> _Vector:
    signs = [jnp.where(x < 0, -1, jnp.ones_like(x)) for x in vector]
    sizes = _on_simplex(scale, *(s * x for s, x in zip(signs, vector, strict=True)))
    return [s * x for s, x in zip(signs, sizes, strict=True)]


def projection_l1_sphere(tree: Any, scale: Any = 1) -> Any:
    """A nearest point with Σ |xᵢ| = r. Elements that are 0 count as positive; of n zeros each becomes r/n.

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.

    Differs from: optax, where zeros stay zeros, inside the sphere.
    """
    vector, restore = _vector("projection_l1_sphere", tree)
    return restore(_on_l1_sphere(_radius("projection_l1_sphere", scale, vector), vector))


def projection_l1_ball(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with Σ |xᵢ| ≤ r.

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.

    Source: Duchi et al. 2008, doi:10.1145/1390156.1390191.
    """
    vector, restore = _vector("projection_l1_ball", tree)
    radius = _radius("projection_l1_ball", scale, vector)
    inside = _total([jnp.abs(x) for x in vector]) <= radius
    return restore([jnp.where(inside, x, y) for x, y in zip(vector, _on_l1_sphere(radius, vector), strict=True)])


# --------------------------------------------------------------------------------------------------- Euclidean norms


def projection_l2_sphere(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with ‖x‖ = r: r x/‖x‖. 0, to which all are near, stays 0, with gradient 0.

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.

    Differs from: optax, where 0 gives NaN, and squares overflow and vanish.
    """
    vector, restore = _vector("projection_l2_sphere", tree)
    radius, (direction, _, _) = _radius("projection_l2_sphere", scale, vector), _polar(vector)
    return restore([radius * x for x in direction])


def projection_l2_ball(tree: Any, scale: Any = 1) -> Any:
    """The nearest point with ‖x‖ ≤ r: x · min(1, r/‖x‖).

    Args:
      tree: floating arrays.
      scale: r ≥ 0.

    Raises:
      ValueError: a radius that is negative or NaN.

    Differs from: optax, whose squares overflow.
    """
    vector, restore = _vector("projection_l2_ball", tree)
    radius, (direction, unit, length) = _radius("projection_l2_ball", scale, vector), _polar(vector)
    inside = length < radius / unit
    return restore([jnp.where(inside, x, radius * d) for x, d in zip(vector, direction, strict=True)])


def _rescaled(where: str, tree: Any, axis: Any, wanted: Callable[[jax.Array], tuple[Any, Any]]) -> Any:
    """Each leaf with other norms along some axes: norms → (those wanted, where nothing is to be done)."""
    _check_leaves(where, tree)
    axis = tuple(axis) if isinstance(axis, list) else axis

    def rescale(leaf: Any) -> jax.Array:
        x = as_compute(leaf)
        axes = axes_of(where, axis, x.ndim)
        largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
        seen = x / _unit(largest)
        square = jnp.sum(jnp.square(seen), axes, keepdims=True)
        length = jnp.sqrt(jnp.where(square == 0, 1, square))
        norms, kept = wanted(jnp.where(square == 0, 0, _unit(largest) * length))
        return jnp.where(kept, x, jnp.where(square == 0, 0, norms * (seen / length))).astype(dtype_of(leaf))

    return map_arrays(rescale, tree)


def projection_unit_norm(tree: Any, axis: int | tuple[int, ...] = 0) -> Any:
    """Every array with norm 1 along some axes, as `keras.constraints.UnitNorm`. Zeros stay zeros, with gradient 0.

    Args:
      tree: floating arrays.
      axis: along which the weights of one unit lie: 0 for a dense kernel (inputs, outputs), (0, 1, 2) for a
        convolution's (height, width, inputs, outputs).

    Raises:
      ValueError: an axis that an array lacks.

    Differs from: Keras, which adds 1e-7 to the norm, and whose squares overflow and vanish.
    """
    return _rescaled("projection_unit_norm", tree, axis, lambda norms: (1, False))


def projection_max_norm(tree: Any, max_value: Any = 2, axis: int | tuple[int, ...] = 0) -> Any:
    """Every array with norms of at most c along some axes, as `keras.constraints.MaxNorm`.

    Args:
      tree: floating arrays.
      max_value: c ≥ 0.
      axis: as `projection_unit_norm`.

    Raises:
      ValueError: an axis that an array lacks; a bound that is negative or NaN.

    Differs from: Keras, which adds 1e-7 to the norm and so shrinks what is within the bound.
    """
    check_scalar("projection_max_norm", "max_value", max_value, within=NONNEGATIVE)

    def wanted(norms: jax.Array) -> tuple[Any, Any]:
        most = jnp.asarray(max_value).astype(norms.dtype)
        return most, norms < most

    return _rescaled("projection_max_norm", tree, axis, wanted)


def projection_min_max_norm(
    tree: Any, min_value: Any = 0.0, max_value: Any = 1.0, rate: Any = 1.0, axis: int | tuple[int, ...] = 0
) -> Any:
    """Every array with norms in [l, h] along some axes, as `keras.constraints.MinMaxNorm`.

        n ← n + ρ (min(max(n, l), h) − n)

    Zeros, which have no direction, stay zeros.

    Args:
      tree: floating arrays.
      min_value: l ≥ 0.
      max_value: h ≥ l.
      rate: ρ in [0, 1], how much of the way to go; 1 for a projection.
      axis: as `projection_unit_norm`.

    Raises:
      ValueError: an axis that an array lacks; l > h, or one that is negative or NaN.

    Differs from: Keras, as the other two.
    """
    where = "projection_min_max_norm"
    check_scalar(where, "min_value", min_value, within=NONNEGATIVE)
    check_scalar(where, "max_value", max_value, within=NONNEGATIVE)
    check_scalar(where, "rate", rate, within=UNIT)
    if concrete(min_value) and concrete(max_value) and min_value > max_value:
        raise ValueError(complaint(where, "min_value", "be ≤ max_value", f"{min_value} and {max_value}"))

    def wanted(norms: jax.Array) -> tuple[Any, Any]:
        low, high, part = (jnp.asarray(x).astype(norms.dtype) for x in (min_value, max_value, rate))
        return norms + part * (jnp.clip(norms, low, high) - norms), (low < norms) & (norms < high)

    return _rescaled(where, tree, axis, wanted)


# ----------------------------------------------------------------------------------------------------------- planes


def _normal(where: str, x: Any, a: Any) -> tuple[_Vector, Callable[[_Vector], Any], _Vector, Callable[[Any], Any]]:
    """x as a vector, what makes a tree of one, a/‖a‖, and b ↦ b/‖a‖."""
    vector, restore = _vector(where, x)
    direction, unit, length = _polar(_vector(where, alongside(where, "a", a, x, _PROJECTED))[0])
    dtype = widest_float(leaf.dtype for leaf in (*vector, *direction))

    def per_length(b: Any) -> jax.Array:
        check_scalar(where, "b", b)
        return (jnp.asarray(b).astype(dtype) / unit.astype(dtype)) / jnp.where(length == 0, 1, length).astype(dtype)

    return [v.astype(dtype) for v in vector], restore, [d.astype(dtype) for d in direction], per_length


def _moved(vector: _Vector, normal: _Vector, gap: Callable[[jax.Array], jax.Array]) -> _Vector:
    """x + gap(⟨x, n⟩) n; twice, since the first gap is a small difference of what may be large numbers."""
    for _ in range(2):
        step = gap(_inner(vector, normal))
        vector = [x + step * n for x, n in zip(vector, normal, strict=True)]
    return vector


def projection_hyperplane(x: Any, a: Any, b: Any) -> Any:
    """The nearest point y with ⟨a, y⟩ = b: x + (b − ⟨a, x⟩)/‖a‖² a. For a = 0: x.

    Args:
      x: floating arrays.
      a: a tree with the structure and shapes of `x`.
      b: a number.

    Raises:
      ValueError: another structure or shape; b is NaN.
    """
    vector, restore, normal, per_length = _normal("projection_hyperplane", x, a)
    offset = per_length(b)
    return restore(_moved(vector, normal, lambda along: offset - along))


def projection_halfspace(x: Any, a: Any, b: Any) -> Any:
    """The nearest point y with ⟨a, y⟩ ≤ b: x − max(⟨a, x⟩ − b, 0)/‖a‖² a. For a = 0: x.

    Args:
      x: floating arrays.
      a: a tree with the structure and shapes of `x`.
      b: a number.

    Raises:
      ValueError: another structure or shape; b is NaN.
    """
    vector, restore, normal, per_length = _normal("projection_halfspace", x, a)
    offset = per_length(b)
    return restore(_moved(vector, normal, lambda along: -jax.nn.relu(along - offset)))


def projection_vector(x: Any, a: Any) -> Any:
    """The nearest multiple of a: ⟨x, a⟩/‖a‖² a. For a = 0: 0.

    Args:
      x: floating arrays.
      a: a tree with the structure and shapes of `x`.

    Raises:
      ValueError: another structure or shape.
    """
    vector, restore, direction, _ = _normal("projection_vector", x, a)
    along = _inner(vector, direction)
    return restore([along * d for d in direction])


# ------------------------------------------------------------------------------------------------------------- rule


@registry.register()
@wrapper(members=(), needs=("params",))
def project_params(run, updates, slots, t, params, *, projection: Callable[[Any], Any]):
    """Keep the parameters in a set (projected gradient descent). The last member of a chain.

        u ← P(w + u) − w

    w + u rounds once more, so the parameters are as near to the set as two roundings leave them. For a part of the
    parameters: `masked` or `partition`.

    Args:
      projection: P, a function of a tree of arrays in float32 or better, None where nothing is trained:
        `projection_simplex`, or `functools.partial(projection_max_norm, max_value=3.0)`.

    Raises:
      TypeError: no callable.
      ValueError: the projection changes the tree or a shape.

    Needs the parameters.  Lift: wrapper, of nothing.
    Source: Goldstein 1964, doi:10.1090/S0002-9904-1964-11178-2; Levitin & Polyak 1966.
    """
    if not jax.tree.leaves(updates):
        return updates, {}, {}
    moved = jax.tree.map(lambda u, p: None if u is None else as_compute(p) + u, updates, params, is_leaf=none_is_leaf)
    with standard_promotion():
        point = alongside("project_params", "what the projection returns", projection(moved), moved, _PROJECTED)
    # in the dtype of storage, so that the sum has what the rounding of w + u would lose
    return (
        map_arrays(lambda u, q, p: as_compute(q.astype(dtype_of(p))) - as_compute(p), updates, point, params),
        {},
        {},
    )
