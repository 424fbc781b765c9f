"""A rule as declared: its slots, its arguments, and the compiled program that runs it on one leaf."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lossopt_jax._core import (
    Range,
    Scalar,
    complaint,
    compute_dtype,
    concrete,
    default_float,
    dtype_of,
    is_complex,
    widest_float,
)
from lossopt_jax.kernels import is_stored, load, store
from lossopt_jax.transforms._measures import Whole


class Extent(int):
    """The size of an axis of a slot along which its parameter does not run."""


# The axes of a slot: each the number of an axis of the parameter, or an Extent.
Axes: TypeAlias = tuple[int, ...]


def extents(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what runs along some axes of a shape."""
    return tuple(int(axis) if isinstance(axis, Extent) else shape[axis] for axis in axes)


def fresh(axes: Axes, parameter: Any, fill: Any, dtype: Any) -> jax.Array:
    """A slot that runs along some axes of a parameter, sharded as those are."""
    shape = extents(axes, jnp.shape(parameter))
    sharding = getattr(parameter, "sharding", None) if concrete(parameter) else None
    if not isinstance(sharding, NamedSharding):
        return jnp.full(shape, fill, dtype)
    names = (*sharding.spec, *[None] * jnp.ndim(parameter))
    kept = PartitionSpec(*(None if isinstance(axis, Extent) else names[axis] for axis in axes))
    return jnp.full(shape, fill, dtype, device=NamedSharding(sharding.mesh, kept))


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a rule remembers, declared: `init`, sharding, compression and checkpoint paths follow from it.

    Args:
      shape: "param" (the leaf's shape), "leaf" (one scalar per leaf), or a function of the leaf's shape and the rule's
        arguments (a dict): the axes of the parameter along which the slot runs (an `Extent` for one of its own), a
        list of those for several arrays, or None for no slot.
      fill: the initial value: a number, the name of an argument of the rule, or a function of the parameter
        (its result is copied, never aliased; None for no slot). Per tree also a function of all parameters and the
        rule's arguments, whose result is a tree.
      per: "leaf", or "tree" for one scalar (or array of Extents) that all leaves share.
      dtype: None for the leaf's compute dtype (at least float32), "param" for its own.
      nonnegative: never below zero, which a low-bit code can use.
      exact: never to be compressed.
    """

    shape: Literal["param", "leaf"] | Callable[[tuple[int, ...], dict[str, Any]], Axes | list[Axes] | None] = "param"
    fill: float | str | Callable[..., Any] = 0.0
    per: Literal["leaf", "tree"] = "leaf"
    dtype: Any = None
    nonnegative: bool = False
    exact: bool = False

    @property
    def compressible(self) -> bool:
        return self.shape == "param" and self.per == "leaf" and self.dtype is None and not self.exact

    def axes(self, shape: tuple[int, ...], arguments: dict[str, Any]) -> Axes | list[Axes] | None:
        """The axes along which the slot of a leaf runs; of each array, where it is several."""
        if callable(self.shape):
            return self.shape(shape, arguments)
        return tuple(range(len(shape))) if self.shape == "param" else ()

    def make(self, parameter: Any, arguments: dict[str, Any]) -> Any:
        """The initial slot of one leaf, or of the tree."""
        fill = arguments[self.fill] if isinstance(self.fill, str) else self.fill
        if self.per == "tree" and callable(fill):
            return jax.tree.map(lambda x: jnp.array(x, copy=True), fill(parameter, arguments))
        if self.per == "tree":
            own = self.axes((), arguments)
            return jnp.array(jnp.full(tuple(map(int, own)), fill, self.dtype or default_float()), copy=True)
        own = dtype_of(parameter)
        dtype = own if self.dtype == "param" else self.dtype or compute_dtype(own)
        if is_complex(parameter) and not callable(fill):  # which rules see as two real arrays
            fill = fill * (1 + 1j)
        if callable(fill):
            value = fill(jnp.asarray(parameter))
            return None if value is None else jnp.array(value, dtype, copy=True)
        if self.shape == "param":  # full_like keeps the parameter's sharding
            return jnp.full_like(parameter, fill, dtype=dtype)
        axes = self.axes(jnp.shape(parameter), arguments)
        if isinstance(axes, list):
            return tuple(fresh(part, parameter, fill, dtype) for part in axes)
        return None if axes is None else fresh(axes, parameter, fill, dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The function, its lift, and what follows from its signature."""

    function: Callable[..., Any]
    lift: str
    slots: dict[str, Slot]
    needs: tuple[str, ...]
    once: Callable[..., Any] | None
    measure: Callable[..., Any] | None
    flags: frozenset[str]
    members: tuple[str, ...]
    seen: Callable[[tuple[int, ...], dict[str, Any]], Axes] | None
    scalars: dict[str, Range | None]
    parameters: tuple[inspect.Parameter, ...]

    @property
    def name(self) -> str:
        return self.function.__name__.lstrip("_")

    @property
    def takes_lists(self) -> bool:
        """Whether its function sees all arrays at once; one that measures them sees one, and what was measured."""
        return self.lift == "treewise" and self.measure is None

    @property
    def by_leaf(self) -> bool:
        """Whether its function, once what it measures is known, has no operation across elements."""
        alone = self.lift == "elementwise" or self.measure is not None
        shaped = self.measures_leaves or all(s.shape == "param" for s in self.slots.values() if s.per == "leaf")
        return alone and shaped and set(self.needs) <= {"params", "value"}

    @property
    def measures_leaves(self) -> bool:
        return self.lift == "leafwise" and self.measure is not None

    def statics(self, arguments: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        """The arguments that the function takes as they are; a seed lives in the state alone."""
        hidden = (*self.scalars, "seed") if "key" in self.needs else self.scalars
        return tuple((name, value) for name, value in arguments if name not in hidden)

    def slots_per(self, owner: str) -> tuple[str, ...]:
        return tuple(name for name, slot in self.slots.items() if slot.per == owner)

    def __reduce__(self) -> Any:
        return _rule_of, (self.function.__module__, self.function.__qualname__)


class Constants(NamedTuple):
    """What a rule is given in one update whichever the leaf."""

    t: jax.Array
    scalars: dict[str, jax.Array]
    shared: dict[str, jax.Array]
    value: jax.Array | None
    measured: Any


def _rule_of(module: str, qualname: str) -> Rule:
    return functools.reduce(getattr, qualname.split("."), sys.modules[module]).rule


def range_of(annotation: Any) -> tuple[Any, Range | None]:
    """The type that an annotation names, and the range that it adds."""
    return get_args(annotation) if get_origin(annotation) is Annotated else (annotation, None)


def declare(
    function: Callable[..., Any],
    lift: str,
    slots: dict[str, Slot],
    needs: tuple[str, ...],
    once: Callable[..., Any] | None,
    measure: Callable[..., Any] | None,
    flags: tuple[str, ...],
    members: tuple[str, ...] = (),
    seen: Callable[[tuple[int, ...], dict[str, Any]], Axes] | None = None,
) -> Rule:
    """Read a rule's keyword arguments; a rule that needs a key also gets a seed, in its arguments and its state."""
    signature = inspect.signature(function, eval_str=True)
    keywords = tuple(p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
    if "key" in needs:
        slots = {**slots, "seed": Slot(per="tree", fill="seed", dtype=jnp.uint32, exact=True)}
        keywords += (inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=int),)
    ranges = {p.name: range_of(p.annotation) for p in keywords}
    scalars = {name: within for name, (kind, within) in ranges.items() if kind == Scalar}
    return Rule(function, lift, slots, tuple(needs), once, measure, frozenset(flags), members, seen, scalars, keywords)


def _raise_to(dtype: Any, tree: Any) -> Any:
    def raised(leaf: Any) -> Any:
        leaf = load(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(dtype_of(leaf), jnp.floating) else leaf

    return jax.tree.map(raised, tree, is_leaf=is_stored)


def _raise_each(gradients: list[jax.Array], tree: Any, dtype: Any) -> Any:
    """Lists go leaf by leaf to their gradient's dtype, what is shared to the widest."""

    def raised(node: Any) -> Any:
        if isinstance(node, list):
            return [_raise_to(g.dtype, leaf) for g, leaf in zip(gradients, node, strict=True)]
        return node if callable(node) else _raise_to(dtype, node)

    return jax.tree.map(raised, tree, is_leaf=lambda node: isinstance(node, list) or callable(node))


def measured_by(
    rule: Rule,
    static: dict[str, Any],
    whole: Whole,
    g: jax.Array,
    slots: dict[str, Any],
    t: jax.Array,
    scalars: dict[str, jax.Array],
    needs: tuple[Any, ...],
) -> tuple[Any, dict[str, Any]]:
    """What the rule measures of one array, and the slots after that."""
    seen, extras = _raise_to(g.dtype, (slots, needs))
    scalars = _raise_to(g.dtype, scalars)
    measured, changed = rule.measure(whole, g, SimpleNamespace(**seen), t.astype(g.dtype), *extras, **scalars, **static)
    return measured, slots | _stored(rule, (), slots, (), changed)


def _call(
    rule: Rule,
    static: dict[str, Any],
    g: Any,
    slots: dict[str, Any],
    t: jax.Array,
    scalars: dict[str, jax.Array],
    needs: tuple[Any, ...],
) -> tuple[Any, dict[str, Any]]:
    """`once_measured`, and before that what the rule measures of one array."""
    if rule.measures_leaves:
        measured, slots = measured_by(rule, static, Whole(g.shape), g, slots, t, scalars, needs)
        needs = (*needs, measured)
    return once_measured(rule, static, g, slots, t, scalars, needs)


def once_measured(
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
    own = tuple(rule.slots) if rule.takes_lists else rule.slots_per("leaf")
    for name in changed:
        if name not in own:
            raise TypeError(complaint(rule.name, "a returned slot", f"be among {list(own)}", repr(name)))
    after = _stored(rule, g, slots, update, changed)
    return update, {name: after.get(name, slots[name]) for name in own}


def _stored(rule: Rule, g: Any, slots: dict[str, Any], update: Any, changed: dict[str, Any]) -> dict[str, Any]:
    """The slots that a rule changed, kept as they were; each must have its shape, and the update the gradient's."""
    before = {name: slots[name] for name in changed}
    expected, got = (
        jax.tree.map(lambda x: x.shape if is_stored(x) else jnp.shape(x), pair, is_leaf=is_stored)
        for pair in ((g, before), (update, changed))
    )
    if "per_example" in rule.flags:  # such a rule takes the first axis of every gradient away
        expected = ([shape[1:] for shape in expected[0]], expected[1])
    if expected != got:
        raise TypeError(complaint(rule.name, "update and slots", f"keep the shapes {expected}", got))
    return jax.tree.map(store, changed, before)


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
