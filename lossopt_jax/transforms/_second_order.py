"""Curvature: products with the Hessian, its diagonal and that of the Fisher information, exact and estimated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import (
    COUNT,
    as_compute,
    check_real_leaves,
    check_scalar,
    complaint,
    concrete,
    dtype_of,
    first_difference,
    is_array_like,
    leaf_paths,
    random_bits,
    standard_promotion,
    widest_float,
)
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._microbatching import microbatch
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._vectors import Vector, one_vector


def _along(function: Callable[[Vector], jax.Array], p: Vector, v: Vector) -> Vector:
    """H v, forward over reverse: one gradient and its derivative along v."""
    return jax.jvp(jax.grad(function), (p,), (v,))[1]


def _random_signs(seed: jax.Array, like: jax.Array) -> jax.Array:
    """±1, a function of seed and index."""
    return 1 - 2 * (random_bits(seed, like.shape) >> jnp.uint32(31)).astype(like.dtype)


def hutchinson(function: Callable[[Vector], jax.Array], p: Vector, seeds: list[jax.Array]) -> Vector:
    """z ⊙ H z with random signs z: the diagonal of H in the mean, exact where H is diagonal."""
    signs = [_random_signs(seed, x) for seed, x in zip(seeds, p, strict=True)]
    return [z * hz for z, hz in zip(signs, _along(function, p, signs), strict=True)]


# ----------------------------------------------------------------------------------------------- functions of a batch


def _opened(where: str, params: Any) -> tuple[Vector, Callable[[Vector], Any]]:
    """The parameters in compute dtype, and what makes parameters, in their own dtypes, of such arrays."""
    check_real_leaves(where, params, "pass None for what is not differentiated")
    leaves, treedef = jax.tree.flatten(params)

    def closed(raised: Vector) -> Any:
        return treedef.unflatten([x.astype(dtype_of(leaf)) for x, leaf in zip(raised, leaves, strict=True)])

    return [as_compute(leaf) for leaf in leaves], closed


def _of_vectors(
    where: str, name: str, function: Callable[..., Any], closed: Callable[[Vector], Any], *batch: Any
) -> Callable[[Vector], jax.Array]:
    """The caller's function, as one of the parameters in compute dtype."""

    def value_of(raised: Vector) -> jax.Array:
        with standard_promotion():
            value = function(closed(raised), *batch)
        if jnp.shape(value) != ():
            must, got = "return a scalar", f"shape {jnp.shape(value)}"
            raise TypeError(complaint(where, name, must, got, "average or sum over the batch"))
        return value

    return value_of


def _direction(v: Any, params: Any, leaves: Vector) -> Vector:
    """A flat vector, or a tree like the parameters, as a list like theirs."""
    size, shapes = sum(leaf.size for leaf in leaves), [leaf.shape for leaf in leaves]
    if is_array_like(v) and jnp.ndim(v) == 1:
        if jnp.size(v) != size:
            raise ValueError(complaint("hvp", "v", f"have {size} elements, as the parameters have", jnp.size(v)))
        flat = as_compute(v)
        return one_vector(leaves, flat.dtype)[1](flat)
    check_real_leaves("hvp", v, "pass a direction of real numbers")
    if jax.tree.structure(v) != jax.tree.structure(params):
        must = f"be a vector of {size} elements or a tree like the parameters"
        raise ValueError(complaint("hvp", "v", must, first_difference(params, v)))
    parts = jax.tree.leaves(v)
    for path, part, shape in zip(leaf_paths(params), parts, shapes, strict=True):
        if jnp.shape(part) != shape:
            raise ValueError(complaint("hvp", f"v at {path!r}", f"have shape {shape}", jnp.shape(part)))
    return [jnp.asarray(part).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]


def hvp(loss: Callable[..., Any], v: Any, params: Any, inputs: Any, targets: Any) -> Any:
    """The product of a loss's Hessian with a vector, at about the cost of two gradients.

        H v = ∂/∂ε ∇L(w + εv) at ε = 0

    Args:
      loss: (params, inputs, targets) → a scalar.
      v: the elements of all parameters behind each other, in the order of `jax.tree.leaves`; or a tree like `params`.
      params: w, real floating arrays; a None stays None.
      inputs: handed to `loss` as they are.
      targets: likewise.

    Returns:
      H v, a tree like `params` in their dtypes.

    Raises:
      ValueError: v is of another size or tree.
      TypeError: a parameter that is no real floating array, or a loss that is no scalar.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> loss = lambda w, x, y: jnp.sum((x @ w - y) ** 2) / 2
      >>> x, y = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.zeros(2)
      >>> lo.transforms.hvp(loss, jnp.array([1.0, 0.0]), jnp.ones(2), x, y)
      Array([1., 2.], dtype=float32)

    Differs from: optax, which takes v flat only, and warns that its own is to be removed.
    Source: Pearlmutter 1994, with the gradient differentiated forwards.
    """
    p, closed = _opened("hvp", params)
    return closed(_along(_of_vectors("hvp", "loss", loss, closed, inputs, targets), p, _direction(v, params, p)))


def hessian_diag(
    loss: Callable[..., Any], params: Any, inputs: Any, targets: Any, *, batch_size: int = 16
) -> jax.Array:
    """The diagonal of a loss's Hessian, exactly, without the Hessian.

        hᵢ = eᵢᵀ H eᵢ

    n products with the Hessian for n parameters, a few at a time, each with the block of the parameter's own array.
    Call it under `jit`. `hutchinson_estimator_diag_hessian` estimates the same for the price of one.

    Args:
      loss: (params, inputs, targets) → a scalar.
      params: real floating arrays; None is no parameter.
      inputs: handed to `loss` as they are.
      targets: likewise.
      batch_size: products at once, ≥ 1: memory for so many gradients of one array, and derivatives of the activations.

    Returns:
      [n], the elements of all parameters behind each other, in the order of `jax.tree.leaves`; in float32, or float64
      where a parameter is. `jax.flatten_util.ravel_pytree(params)[1]` makes a tree of it.

    Raises:
      TypeError: a parameter that is no real floating array, or a loss that is no scalar.
      ValueError: batch_size < 1.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> loss = lambda w, x, y: jnp.sum((x @ w - y) ** 2) / 2
      >>> x, y = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.zeros(2)
      >>> lo.transforms.hessian_diag(loss, jnp.ones(2), x, y)
      Array([1., 5.], dtype=float32)

    Differs from: optax, which takes all n products at once in n × n numbers, and warns that its own is to be removed;
      float32 for parameters of half precision.
    """
    check_scalar("hessian_diag", "batch_size", batch_size, within=COUNT)
    p, closed = _opened("hessian_diag", params)
    value_of = _of_vectors("hessian_diag", "loss", loss, closed, inputs, targets)
    dtype = widest_float(x.dtype for x in p)

    def of_one(number: int, x: jax.Array) -> jax.Array:
        if not x.size:
            return x

        def value(flat: jax.Array) -> jax.Array:
            return value_of([*p[:number], flat.reshape(x.shape), *p[number + 1 :]])

        _, along = jax.linearize(jax.grad(value), x.reshape(-1))
        element = jnp.arange(x.size)
        return jax.lax.map(lambda i: along((element == i).astype(x.dtype))[i], element, batch_size=batch_size)

    return one_vector([of_one(number, x) for number, x in enumerate(p)], dtype)[0]


def fisher_diag(
    negative_log_likelihood: Callable[..., Any],
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    per_example: bool = False,
    batch_size: int = 16,
) -> jax.Array:
    """The diagonal of the observed Fisher information: squares of the gradient.

        f = (∇L(w, x, y))²
        f = (1/N) Σₙ (∇L(w, xₙ, yₙ))²,  if per_example

    The first is optax's. It is the information of one observation: of a batch it is the square of a mean or a sum, in
    which gradients cancel. The second is the empirical Fisher information of N observations.

    Args:
      negative_log_likelihood: L: (params, inputs, targets) → a scalar.
      params: w, real floating arrays; None is no parameter.
      inputs: x, an array or a tree; with `per_example`, of N rows, and L is given one at a time, as a batch of one.
      targets: y, likewise.
      per_example: square before the mean.
      batch_size: gradients at once, ≥ 1, if per_example.

    Returns:
      [n], the elements of all parameters behind each other, in the order of `jax.tree.leaves`; in float32, or float64
      where a parameter is.

    Raises:
      TypeError: a parameter that is no real floating array, or a likelihood that is no scalar.
      ValueError: batch_size < 1; with `per_example`, no rows or not one number of them.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> nll = lambda w, x, y: jnp.sum((x @ w - y) ** 2) / 2
      >>> x, y = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.zeros(2)
      >>> lo.transforms.fisher_diag(nll, jnp.ones(2), x, y)
      Array([ 9., 49.], dtype=float32)
      >>> lo.transforms.fisher_diag(nll, jnp.ones(2), x, y, per_example=True)
      Array([ 4.5, 18.5], dtype=float32)

    Differs from: optax, which has no `per_example`, and warns that its own is to be removed; float32 for parameters of
      half precision.
    Source: Kunstner, Balles & Hennig 2019, arXiv:1905.12558, on which Fisher information this is.
    """
    where = "fisher_diag"
    check_scalar(where, "batch_size", batch_size, within=COUNT)
    if not isinstance(per_example, bool):
        raise TypeError(complaint(where, "per_example", "be True or False", f"{per_example!r}"))
    p, closed = _opened(where, params)
    dtype = widest_float(x.dtype for x in p)

    def square(x: Any, y: Any) -> jax.Array:
        value_of = _of_vectors(where, "negative_log_likelihood", negative_log_likelihood, closed, x, y)
        return jnp.square(one_vector(jax.grad(value_of)(p), dtype)[0])

    if not per_example:
        return square(inputs, targets)

    def squares(x: Any, y: Any) -> jax.Array:
        """Their sum over a few rows."""
        rows = jax.vmap(lambda *row: square(*jax.tree.map(lambda leaf: leaf[None], row)))(x, y)
        return jnp.sum(rows, axis=0)

    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((inputs, targets))}
    if len(sizes) != 1 or not all(map(all, sizes)) or () in sizes:
        must, got = "have one number of rows, ≥ 1", ", ".join(str(size) for size in sorted(sizes)) or "no arrays"
        raise ValueError(complaint(where, "inputs and targets", must, got))
    ((size,),) = sizes
    return microbatch(squares, (0, 1), batch_size, "sum")(inputs, targets) / size


# ------------------------------------------------------------------------------------------------------------ a rule


@treewise(needs=("params", "value_fn", "key"))
def _hutchinson_estimator_diag_hessian(g, slots, t, p, value_fn, seeds):
    """Whatever the gradients are: they say which leaves are trained."""
    return (hutchinson(value_fn, p, seeds) if g else []), {}


def _seed_of(random_seed: Any) -> Any:
    """An integer from an integer, from nothing, or from a key, typed or raw."""
    if random_seed is None:
        return 0
    dtype = getattr(random_seed, "dtype", np.dtype(int))
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) and not (dtype == jnp.uint32 and jnp.ndim(random_seed) == 1):
        return random_seed
    if not concrete(random_seed):
        must, got = "be known when the transform is made", "a traced key"
        raise TypeError(complaint("hutchinson_estimator_diag_hessian", "random_seed", must, got, "pass an integer"))
    return int(jax.random.bits(random_seed))


@registry.register()
def hutchinson_estimator_diag_hessian(random_seed: Any = None) -> GradientTransformation:
    """Replace the gradients by an estimate of the Hessian's diagonal.

        u = z ⊙ H z,      z = ±1 at random, anew in every step

    Right in the mean, with the variance Σⱼ Hᵢⱼ² over j ≠ i: exact where the Hessian is diagonal. The signs are a hash
    of seed, step, the leaf's path and the element's index. Put an average behind it, `ema(0.99)`, to see through the
    noise; `scale_by_sophia` has it inside.

    Args:
      random_seed: an integer in [0, 2³²), or a JAX key from which one is drawn; None for 0.

    Needs the parameters, and the loss as a function of them: `update(…, value_fn=lambda params: loss)`. The gradients
    only say which leaves are trained.  Slots: seed (one uint32).  Lift: treewise.

    Raises:
      TypeError: no value_fn.
      ValueError: a seed out of range.

    Differs from: optax, which takes obj_fn= for value_fn= and keeps a key.
    Source: Hutchinson 1990; Bekas, Kokiopoulou & Saad 2007, for the diagonal.
    """
    return _hutchinson_estimator_diag_hessian(_seed_of(random_seed))
