"""Transforms without memory: nothing, zeros, and a function of one's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    as_compute,
    complaint,
    dtype_of,
    is_complex,
    leaf_paths,
    none_is_leaf,
    standard_promotion,
    zeros_alike,
)
from lossopt_jax.transforms._base import GradientTransformation, alongside, as_transformation
from lossopt_jax.transforms._lift import elementwise, wrapper
from lossopt_jax.transforms._registry import registry


@registry.register()
@elementwise()
def identity(g, slots, t):
    """Change nothing: u = g.

    Lift: elementwise.
    """
    return g, {}


@registry.register()
@elementwise()
def set_to_zero(g, slots, t):
    """Zeros in place of the gradients, whatever these are: u = 0.

    What stands behind it in a chain, such as weight decay, still moves parameters. To train some parameters alone
    `freeze` and `selective_transform` say so, and spare the memory too.

    Lift: elementwise.
    Differs from: optax, whose zeros lie on one device under `jit`, wherever the gradients lie.
    """
    return zeros_alike(g), {}


def _taken(where: str, new: Any, updates: Any) -> Any:
    """What a caller's function made of the updates, in their dtypes; a wrong leaf is named by its path."""
    name = "what the function returns"

    def cast(path: str, u: Any, g: Any) -> Any:
        if g is None:
            return None
        if is_complex(u) and not is_complex(g):
            remedy = "take its real part"
            raise TypeError(complaint(where, f"{name} at {path!r}", "be real like its gradient", dtype_of(u), remedy))
        return jnp.asarray(u).astype(g.dtype)

    new = alongside(where, name, new, updates, "that it is given")
    paths = jax.tree.unflatten(jax.tree.structure(updates, is_leaf=none_is_leaf), leaf_paths(updates))
    return jax.tree.map(cast, paths, new, updates, is_leaf=none_is_leaf)


def _seen(updates: Any, params: Any) -> Any:
    """The parameters in compute dtype, None where nothing is trained; None without parameters."""
    if params is None:
        return None
    return jax.tree.map(lambda g, p: None if g is None else as_compute(p), updates, params, is_leaf=none_is_leaf)


@registry.register()
@wrapper(members=())
def stateless(run, updates, slots, t, *, f: Callable[[Any, Any], Any]):
    """A function of updates and parameters as a transform: u = f(g, w).

    It sees whole trees in float32 (float64 where the input is), with None where nothing is trained, and it may mix
    dtypes. Of one array at a time: `stateless_with_tree_map`. With memory: see `elementwise`.

    Args:
      f: (updates, params) → updates, of the same structure and shapes; `params` is None if `update` was given none.

    Raises:
      TypeError: `f` is no callable, or it returns a complex array for a real one.
      ValueError: it changes the tree or a shape; the message names the path.

    Example:
      >>> import jax, lossopt_jax as lo
      >>> halve = lo.transforms.stateless(lambda updates, params: jax.tree.map(lambda u: u / 2, updates))
      >>> halve.update({"w": 3.0}, halve.init({"w": 1.0}))[0]
      {'w': Array(1.5, dtype=float32)}

    Lift: wrapper, of nothing.
    Differs from: optax, which takes whatever `f` returns.
    """
    with standard_promotion():
        new = f(updates, _seen(updates, run.params))
    return _taken("stateless", new, updates), {}, {}


@registry.register()
@wrapper(members=())
def stateless_with_tree_map(run, updates, slots, t, *, f: Callable[[Any, Any], Any]):
    """A function of one update and its parameter as a transform: u = f(g, w), array by array.

    Args:
      f: (update, param) → update of the same shape, both in float32 (float64 where the input is); `param` is None if
        `update` was given no parameters. Not called where nothing is trained.

    Raises:
      TypeError: `f` is no callable, or it returns a complex array for a real one.
      ValueError: it changes a shape; the message names the path.

    Lift: wrapper, of nothing.
    Differs from: optax, which takes whatever `f` returns.
    """

    def made(path: str, g: Any, p: Any = None) -> Any:
        try:
            with standard_promotion():
                return None if g is None else f(g, p)
        except Exception as error:
            error.add_note(f"in the function of stateless_with_tree_map, at {path!r}")
            raise

    leaves, treedef = jax.tree.flatten(updates, is_leaf=none_is_leaf)
    seen = () if run.params is None else (treedef.flatten_up_to(_seen(updates, run.params)),)
    new = [made(*leaf) for leaf in zip(leaf_paths(updates), leaves, *seen, strict=True)]
    return _taken("stateless_with_tree_map", treedef.unflatten(new), updates), {}, {}


def with_extra_args_support(tx: Any) -> GradientTransformation:
    """A transform that may be handed `value`, `grad`, `value_fn`, `key`, `loss` and `weight`, wanted or not.

    Ours may as they are, and so may members of our compositions. Another library's is wrapped.

    Args:
      tx: a transform, of any library.

    Raises:
      TypeError: `tx` is no transform.

    Differs from: optax, where a keyword that nobody knows is ignored; here it is refused, unless `tx` takes any.
    """
    return as_transformation("with_extra_args_support", tx)


def init_empty_state(params: Any) -> tuple[()]:
    """The state of what remembers nothing: `()`. For pairs of functions of one's own, as optax's of this name."""
    del params
    return ()
