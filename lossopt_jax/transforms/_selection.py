"""A step that takes effect or not, chosen array by array as each new one is computed.

A `cond` around a step must write its updates down, and a `select` behind it reads every slot once more, beside what was
made of it, so that XLA:CPU copies them all. Chosen where it is computed, a slot has one reader and stays in its place.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import bind_equation, inlinable


def _evaluated(jaxpr: Any, consts: Any, inputs: list[Any], ok: Any, held: dict[Any, Any]) -> list[Any]:
    """The outputs of a jaxpr in which each variable in `held` takes its value there unless ok."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def of(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        arguments = [of(atom) for atom in equation.invars]
        places = tuple(place for place, variable in enumerate(equation.outvars) if variable in held)
        old = [held[equation.outvars[place]] for place in places]
        inner = inlinable(equation) if places else None
        if inner is None:
            results = bind_equation(equation, arguments)
            for place, before in zip(places, old, strict=True):
                results[place] = jnp.where(ok, results[place], before)
        else:
            results = _inside(inner, places)(ok, old, arguments)
        known |= zip(equation.outvars, results, strict=True)
    return [of(atom) for atom in jaxpr.outvars]


@functools.lru_cache(maxsize=1024)
def _inside(inner: Any, places: tuple[int, ...]) -> Callable[..., list[Any]]:
    """A compiled function, chosen inside; one for all leaves that share its trace."""

    def run(ok: Any, old: list[Any], arguments: list[Any]) -> list[Any]:
        return _chosen(inner, arguments, ok, dict(zip(places, old, strict=True)))

    return jax.jit(run)


def _chosen(closed: Any, inputs: list[Any], ok: Any, old: dict[int, Any]) -> list[Any]:
    """The outputs of a closed jaxpr; those whose places are in `old` keep their value there unless ok."""
    outputs = closed.jaxpr.outvars
    made = {variable for equation in closed.jaxpr.eqns for variable in equation.outvars}
    readers = collections.Counter(atom for atom in outputs if not hasattr(atom, "val"))
    early = [
        place
        for place in old
        if not hasattr(outputs[place], "val") and readers[outputs[place]] == 1 and outputs[place] in made
    ]
    held = {outputs[place]: old[place] for place in early}
    results = _evaluated(closed.jaxpr, closed.consts, inputs, ok, held)
    for place in old.keys() - early:
        results[place] = jnp.where(ok, results[place], old[place])
    return results


def run_where(ok: jax.Array, run: Callable[[Any], tuple[Any, Any]], state: Any) -> tuple[Any, Any]:
    """`run(state) → (updates, state)` where ok holds; else updates of zero and the state as it was."""
    closed, (shapes, _) = jax.make_jaxpr(run, return_shape=True)(state)
    before = jax.tree.leaves(state)
    count = len(jax.tree.leaves(shapes))
    results = _chosen(closed, before, ok, {count + place: leaf for place, leaf in enumerate(before)})
    updates = [jnp.where(ok, u, jnp.zeros_like(u)) for u in results[:count]]
    return jax.tree.unflatten(jax.tree.structure(shapes), updates), jax.tree.unflatten(
        jax.tree.structure(state), results[count:]
    )
