"""The hyperparameters in a state, from one update to the next: constants, schedules, schedules with a state."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    StatefulSchedule,
    accepts_keyword,
    as_default_float,
    complaint,
    first_difference,
    standard_promotion,
)
from lossopt_jax.transforms._base import Hyperparameter


def safe_increment(count: Any) -> jax.Array:
    """One more; a count that is the largest of its dtype stays there.

    Args:
      count: an integer or floating array or number.

    Returns:
      An array of its dtype.

    Raises:
      TypeError: no real number.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> lo.transforms.safe_increment(jnp.array([1, 2**31 - 1]))
      Array([         2, 2147483647], dtype=int32)
    """
    count = jnp.asarray(count)
    if jnp.issubdtype(count.dtype, jnp.integer):
        most = jnp.iinfo(count.dtype).max
    elif jnp.issubdtype(count.dtype, jnp.floating):
        most = jnp.finfo(count.dtype).max
    else:
        raise TypeError(complaint("safe_increment", "count", "be an integer or real", count.dtype))
    return jnp.where(count < jnp.asarray(most, count.dtype), count + 1, count)


safe_int32_increment = safe_increment


def owned(tree: Any) -> Any:
    """Copies of the arrays and numbers of a tree that is another's, none of them of a weak type."""

    def own(leaf: Any) -> jax.Array:
        array = jnp.array(leaf, copy=True)
        return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array

    return jax.tree.map(own, tree)


def of_types(where: str, what: str, before: Any, after: Any) -> Any:
    """A tree in the dtypes that it had; its structure and shapes must be the same.

    Raises:
      TypeError: they are not.
    """
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(complaint(where, what, "keep its tree", first_difference(before, after)))
    shapes, now = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (before, after))
    if shapes != now:
        raise TypeError(complaint(where, what, f"keep the shapes {shapes}", now))

    def cast(new: Any, old: jax.Array) -> jax.Array:
        new = jnp.asarray(new)
        return jax.lax.convert_element_type(new, old.dtype) if new.dtype != old.dtype or new.weak_type else new

    return jax.tree.map(cast, after, before)


def _called(function: Callable[..., Any], memory: Any, extra: Mapping[str, Any]) -> Any:
    return function(memory, **{name: given for name, given in extra.items() if accepts_keyword(function, name)})


def first_values(names: Iterable[str], arguments: Mapping[str, Any], step: jax.Array) -> dict[str, Hyperparameter]:
    """The hyperparameters of a new state."""

    def first(argument: Any) -> Hyperparameter:
        memory = None
        with standard_promotion():
            if isinstance(argument, StatefulSchedule):
                memory = owned(argument.init())
                argument = argument(memory)
            elif callable(argument):
                argument = argument(step)
        return Hyperparameter(as_default_float(argument), jnp.zeros((), bool), memory)

    return {name: first(arguments[name]) for name in names}


def next_values(
    where: str, arguments: Mapping[str, Any], held: dict[str, Hyperparameter], step: jax.Array, extra: Mapping[str, Any]
) -> dict[str, Hyperparameter]:
    """The hyperparameters of the update after `step`; a schedule sees what `update` was given also while pinned."""

    def following(name: str, value: jax.Array, pinned: jax.Array, memory: Any) -> Hyperparameter:
        argument = arguments[name]
        if not callable(argument):
            return Hyperparameter(value, pinned, memory)
        with standard_promotion():
            if isinstance(argument, StatefulSchedule):
                now = _called(argument, memory, extra)
                after = _called(argument.update, memory, extra)
                memory = of_types(where, f"the state of the schedule of {name}", memory, after)
            else:
                now = argument(step)
        return Hyperparameter(jnp.where(pinned, value, as_default_float(now).astype(value.dtype)), pinned, memory)

    return {name: following(name, *hyper) for name, hyper in held.items()}
