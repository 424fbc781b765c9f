"""A rule as declared: its slots, its arguments, and the compiled program that runs it on one leaf."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lossopt_jax._core import Scalar, complaint, compute_dtype, default_float, dtype_of, is_complex, widest_float


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a rule remembers, declared: `init`, sharding, compression and checkpoint paths follow from it.

    Args:
      shape: "param" (the leaf's shape), "leaf" (one scalar per leaf), or a function of the leaf's shape and the rule's
        arguments (a dict): a shape, a list of shapes for several arrays, or None for no slot.
      fill: the initial value: a number, the name of an argument of the rule, or a function of the parameter
        (its result is copied, never aliased).
      per: "leaf", or "tree" for one scalar that all leaves share.
      dtype: None for the leaf's compute dtype (at least float32).
      nonnegative: never below zero, which a low-bit code can use.
      exact: never to be compressed.
    """

    shape: Literal["param", "leaf"] | Callable[[tuple[int, ...], dict[str, Any]], Any] = "param"
    fill: float | str | Callable[[jax.Array], jax.Array] = 0.0
    per: Literal["leaf", "tree"] = "leaf"
    dtype: Any = None
    nonnegative: bool = False
    exact: bool = False

    def make(self, parameter: Any, arguments: dict[str, Any]) -> Any:
        """The initial slot of one leaf, or of the tree."""
        fill = arguments[self.fill] if isinstance(self.fill, str) else self.fill
        if self.per == "tree":
            return jnp.array(fill, self.dtype or default_float(), copy=True)
        dtype = self.dtype or compute_dtype(dtype_of(parameter))
        if callable(fill):
            return jnp.array(fill(jnp.asarray(parameter)), dtype, copy=True)
        if self.shape == "param":  # full_like keeps the parameter's sharding
            return jnp.full_like(parameter, fill, dtype=dtype)
        shape = () if self.shape == "leaf" else self.shape(jnp.shape(parameter), arguments)
        if isinstance(shape, list):
            return tuple(jnp.full(part, fill, dtype) for part in shape)
        return None if shape is None else jnp.full(shape, fill, dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The function, its lift, and what follows from its signature."""

    function: Callable[..., Any]
    lift: str
    slots: dict[str, Slot]
    needs: tuple[str, ...]
    once: Callable[..., Any] | None
    flags: frozenset[str]
    scalars: tuple[str, ...]
    parameters: tuple[inspect.Parameter, ...]

    @property
    def name(self) -> str:
        return self.function.__name__.lstrip("_")

    def statics(self, arguments: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        """The arguments that the function takes as they are; a seed lives in the state alone."""
        hidden = (*self.scalars, "seed") if "key" in self.needs else self.scalars
        return tuple((name, value) for name, value in arguments if name not in hidden)

    def slots_per(self, owner: str) -> tuple[str, ...]:
        return tuple(name for name, slot in self.slots.items() if slot.per == owner)

    def __reduce__(self) -> Any:
        return _rule_of, (self.function.__module__, self.function.__qualname__)


def _rule_of(module: str, qualname: str) -> Rule:
    return functools.reduce(getattr, qualname.split("."), sys.modules[module]).rule


def declare(
    function: Callable[..., Any],
    lift: str,
    slots: dict[str, Slot],
    needs: tuple[str, ...],
    once: Callable[..., Any] | None,
    flags: tuple[str, ...],
) -> Rule:
    """Read a rule's keyword arguments; a rule that needs a key also gets a seed, in its arguments and its state."""
    signature = inspect.signature(function, eval_str=True)
    keywords = tuple(p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
    if "key" in needs:
        slots = {**slots, "seed": Slot(per="tree", fill="seed", dtype=jnp.uint32, exact=True)}
        keywords += (inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=int),)
    scalars = tuple(p.name for p in keywords if p.annotation == Scalar)
    return Rule(function, lift, slots, tuple(needs), once, frozenset(flags), scalars, keywords)


def _raise_to(dtype: Any, tree: Any) -> Any:
    def raised(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(dtype_of(leaf), jnp.floating) else leaf

    return jax.tree.map(raised, tree)


def _raise_each(gradients: list[jax.Array], tree: Any, dtype: Any) -> Any:
    """Lists go leaf by leaf to their gradient's dtype, what is shared to the widest."""

    def raised(node: Any) -> Any:
        if isinstance(node, list):
            return [_raise_to(g.dtype, leaf) for g, leaf in zip(gradients, node, strict=True)]
        return node if callable(node) else _raise_to(dtype, node)

    return jax.tree.map(raised, tree, is_leaf=lambda node: isinstance(node, list) or callable(node))


def _call(
    rule: Rule,
    static: dict[str, Any],
    g: Any,
    slots: dict[str, Any],
    t: jax.Array,
    scalars: dict[str, jax.Array],
    needs: tuple[Any, ...],
) -> tuple[Any, dict[str, Any]]:
    """Run the rule on real arrays: everything in compute dtype going in, slots in their own dtype coming out."""
    dtype = widest_float(leaf.dtype for leaf in jax.tree.leaves(g))
    if isinstance(g, list):
        seen, extras = _raise_each(g, (slots, needs), dtype)
    else:
        seen, extras = _raise_to(dtype, (slots, needs))
    update, changed = rule.function(
        g, SimpleNamespace(**seen), t.astype(dtype), *extras, **_raise_to(dtype, scalars), **static
    )
    own = tuple(rule.slots) if rule.lift == "treewise" else rule.slots_per("leaf")
    for name in changed:
        if name not in own:
            raise TypeError(complaint(rule.name, "a returned slot", f"be among {list(own)}", repr(name)))
    before = {name: slots[name] for name in changed}
    _check_shapes(rule, g, before, update, changed)
    after = jax.tree.map(lambda new, old: new.astype(old.dtype), changed, before)
    return update, {name: after.get(name, slots[name]) for name in own}


def _check_shapes(rule: Rule, g: Any, before: dict[str, Any], update: Any, changed: dict[str, Any]) -> None:
    expected, got = (jax.tree.map(jnp.shape, pair) for pair in ((g, before), (update, changed)))
    if expected != got:
        raise TypeError(complaint(rule.name, "update and slots", f"keep the shapes {expected}", got))


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """A rule without operations across elements sees real and imaginary parts of a complex leaf apart."""

    def part_of(part: Callable[..., Any], leaf: Any) -> Any:
        return part(leaf) if is_complex(leaf) else leaf

    real, imaginary = (
        call(*jax.tree.map(functools.partial(part_of, part), arguments)) for part in (jnp.real, jnp.imag)
    )
    return jax.tree.map(jax.lax.complex, real, imaginary)


@functools.lru_cache(maxsize=4096)
def program(rule: Rule, statics: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """(g, slots, t, scalars, needs) → (update, slots), for one array or one list of arrays.

    Compiled, so that leaves of equal shape and dtype are traced once however many there are.
    """
    call = functools.partial(_call, rule, dict(statics))

    def run(g: Any, *rest: Any) -> Any:
        return apart(call, g, *rest) if not isinstance(g, list) and is_complex(g) else call(g, *rest)

    run.__name__ = run.__qualname__ = rule.name
    return run if "value_fn" in rule.needs else jax.jit(run)
