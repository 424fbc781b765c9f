"""What a leafwise rule may ask of its whole array, in one pass over memory however the array is made."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax.kernels import Cut, each_anew, norm, norms_of, of_shape


class Whole:
    """The array that a rule measures.

    What is asked of it must not depend on a norm asked before: all are taken at once, of arrays never written down.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def norm(self, x: jax.Array) -> jax.Array:
        """‖x‖ of an array of this shape, never overflowing."""
        return norm(x)

    def root_mean_square(self, x: jax.Array) -> jax.Array:
        """‖x‖ / √size, 0 without elements."""
        return self.norm(x) / max(math.prod(self.shape), 1) ** 0.5

    def mean(self, x: jax.Array, axis: int | tuple[int, ...], keepdims: bool = False) -> jax.Array:
        """Means along some axes, 0 without elements."""
        axes = axis if isinstance(axis, tuple) else (axis,)
        return jnp.sum(x, axes, keepdims=keepdims) / max(math.prod(self.shape[a] for a in axes), 1)


class _Asking(Whole):
    """Writes down what it is asked: arrays for their norms, and sums along axes."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape)
        self.norms: list[jax.Array] = []
        self.means: list[jax.Array] = []

    def norm(self, x: jax.Array) -> jax.Array:
        self.norms.append(x)
        return jnp.zeros((), x.dtype)

    def mean(self, x: jax.Array, axis: int | tuple[int, ...], keepdims: bool = False) -> jax.Array:
        self.means.append(super().mean(x, axis, keepdims))
        return jnp.zeros_like(self.means[-1])


class _Told(Whole):
    """Answers with what is known."""

    def __init__(self, shape: tuple[int, ...], norms: list[jax.Array], means: list[jax.Array]):
        super().__init__(shape)
        self.norms, self.means = iter(norms), iter(means)

    def norm(self, x: jax.Array) -> jax.Array:
        return next(self.norms)

    def mean(self, x: jax.Array, axis: int | tuple[int, ...], keepdims: bool = False) -> jax.Array:
        return next(self.means)


def measured_in_place(
    measure: Callable[..., Any], shape: tuple[int, ...], inputs: Any, blocks: Cut | None
) -> tuple[Any, jax.Array | None]:
    """`measure(whole, inputs)` without a copy of the arrays that it asks about: they are made again where needed.

    Args:
      measure: maths without operations across elements, but what it asks `whole` for.
      shape: the leaf's.
      inputs: a tree of arrays; those of this shape, compressed or not, may be cut.
      blocks: how they are cut, or None.

    Returns:
      (what it measures, `done` of the loop over blocks or None).
    """
    leaves, treedef = jax.tree.flatten(inputs)
    cut = of_shape(inputs, shape)

    def asked(arrays: Any, others: Any) -> _Asking:
        asking, parts, rest = _Asking(shape), iter(arrays), iter(others)
        measure(asking, treedef.unflatten([next(parts if of_leaf else rest) for of_leaf in cut]))
        return asking

    given = tuple(tuple(x for x, own in zip(leaves, cut, strict=True) if own is here) for here in (True, False))
    means = jax.eval_shape(lambda *given: asked(*given).means, *given)
    found = each_anew([lambda *given, n=n: asked(*given).means[n] for n in range(len(means))], *given)
    norms, done = [], None
    if jax.eval_shape(lambda *given: asked(*given).norms, *given):
        norms, done = norms_of(lambda *given: asked(*given).norms, *given, blocks)
    return measure(_Told(shape, norms, found), inputs), done
