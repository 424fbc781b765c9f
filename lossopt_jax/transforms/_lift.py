"""The lifts: maths on one array becomes a transform over pytrees.

    @elementwise(mu=Slot())
    def ema(g, slots, t, *, b1: Scalar = 0.9):
        mu = b1 * slots.mu + (1 - b1) * g
        return mu, {"mu": mu}

A rule sees a gradient, its slots and the number t of this update (1, 2, …), all in compute dtype, then whatever it
declared in `needs`, then its arguments; it returns the update and the slots it changed. A parameter annotated
`Scalar` is a hyperparameter and lives in the state; every other one is static. Everything else is done here, once:
step counter, slots, dtypes, leaves that are not trained, complex leaves, hyperparameters, extra arguments, checks,
and one trace per distinct leaf signature.

    elementwise   one array, no operation across elements: may be cut, packed, quantised, sharded any way
    leafwise      one array with its shape
    treewise      the list of all trained arrays
    wrapper       an inner transform that it runs
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_origin

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    RANGES,
    accepts_keyword,
    as_compute,
    as_default_float,
    bound_arguments,
    check_scalar,
    complaint,
    default_float,
    dtype_of,
    first_difference,
    is_complex,
    is_trainable,
    leaf_paths,
    leaf_seed,
    map_arrays,
    none_is_leaf,
    standard_promotion,
)
from lossopt_jax.kernels import compressed, loaded, store
from lossopt_jax.transforms._base import (
    GradientTransformation,
    Hyperparameter,
    Met,
    PartitionState,
    RuleState,
    WrapperState,
    as_member,
)
from lossopt_jax.transforms._rule import Axes, Constants, Rule, Slot, declare, fresh, program, range_of
from lossopt_jax.transforms._scheduled import first_values, next_values, safe_increment
from lossopt_jax.transforms._selection import run_where

FORWARD = "forward_extra_args"  # the argument that says so of the functions among a rule's arguments


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Lifted(GradientTransformation):
    """What every lifted transform shares: hyperparameters, slots, the step, and what the rule needs."""

    rule: Rule
    arguments: tuple[tuple[str, Any], ...]
    storage: str | None = dataclasses.field(default=None, kw_only=True)  # of `compress_state`

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def _flags(self) -> frozenset[str]:
        return self.rule.flags

    def _parts(self) -> dict[str, Any]:
        return dict(self.arguments)

    def _key(self) -> Any:
        return self.rule, self.storage, super()._key()

    def __repr__(self) -> str:
        return super().__repr__() if self.storage is None else f"compress_state({super().__repr__()}, {self.storage!r})"

    def _accepts(self, keyword: str) -> bool:
        """Also what a function among its arguments takes that is to be handed extra arguments."""
        arguments = dict(self.arguments)
        told = [given for given in arguments.values() if callable(given)] if arguments.get(FORWARD) else []
        return super()._accepts(keyword) or any(accepts_keyword(function, keyword) for function in told)

    @property
    def _statics(self) -> tuple[tuple[str, Any], ...]:
        return self.rule.statics(self.arguments)

    def _memory(self, params: Any) -> tuple[jax.Array, dict[str, Any], dict[str, Hyperparameter]]:
        """The step, slots and hyperparameters of a new state."""
        step, arguments = jnp.zeros((), jnp.int32), dict(self.arguments)
        hyperparams = first_values(self.rule.scalars, arguments, step)
        arguments |= {name: hyper.value for name, hyper in hyperparams.items()}

        def make(name: str, slot: Slot) -> Any:
            if slot.per == "tree":
                return slot.make(params, arguments)
            made = jax.tree.map(
                lambda p: slot.make(p, arguments) if is_trainable(p) else None, params, is_leaf=none_is_leaf
            )
            if self.storage is None or not slot.compressible:
                return made
            paths = [f"{self.name}/{name}/{path}" for path in leaf_paths(params)]
            paths = jax.tree.unflatten(jax.tree.structure(params, is_leaf=none_is_leaf), paths)
            return map_arrays(lambda x, path: compressed(x, self.storage, slot.nonnegative, path), made, paths)

        return step, {name: make(name, slot) for name, slot in self.rule.slots.items()}, hyperparams

    def _refuse_complex(self, params: Any) -> None:
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params, is_leaf=none_is_leaf), strict=True):
            if is_trainable(leaf) and is_complex(leaf):
                where = f"the parameter at {path!r}"
                raise TypeError(complaint(self.name, where, "be real", dtype_of(leaf), "train real and imaginary part"))

    def _advance(self, state: Any, extra: dict[str, Any]) -> tuple[jax.Array, jax.Array, dict[str, Hyperparameter]]:
        """The next step, its number t, and the hyperparameters of this update."""
        step = safe_increment(state.step)
        hyperparams = next_values(self.name, dict(self.arguments), state.hyperparams, state.step, extra)
        return step, step.astype(default_float()), hyperparams

    def _shared(
        self, state: Any, t: jax.Array, scalars: dict[str, jax.Array], extra: dict[str, Any]
    ) -> dict[str, jax.Array]:
        """The slots that all leaves share, after the rule's scalar-only part has run."""
        shared = {name: state.slots[name] for name in self.rule.slots_per("tree")}
        if self.rule.once is None:
            return shared
        value = [self._need("value", None, state, None, extra)] if "value" in self.rule.needs else []
        changed = self.rule.once(SimpleNamespace(**shared), t, *value, **scalars, **dict(self._statics))
        return shared | {name: value.astype(shared[name].dtype) for name, value in changed.items()}

    def _need(self, need: str, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Any:
        """What the rule declared, for the whole tree: a tree for params, grad and key, else the thing itself."""
        if need == "step":
            return state.step
        if need == "key":
            seeds = [leaf_seed(state.slots["seed"], state.step, path) for path in leaf_paths(updates)]
            return jax.tree.unflatten(jax.tree.structure(updates, is_leaf=none_is_leaf), seeds)
        given = params if need == "params" else extra.get(need)
        if given is None and need in ("params", "grad") and not jax.tree.leaves(updates):
            return updates  # nothing is trained here: a lone leaf outside a mask is None, and so are its parameters
        if given is None:
            call = "tx.update(grads, state, params)" if need == "params" else f"tx.update(…, {need}=…)"
            remedy = f"call {call}, through lo.interop.to_optax inside a chain of optax's"
            raise TypeError(complaint(self.name, need, "be given to update", "nothing", remedy))
        return as_default_float(given) if need == "value" else given

    def _check_state(self, state: Any, kind: type) -> None:
        if not isinstance(state, kind):
            remedy = "pass the state of this transform's init"
            raise TypeError(complaint(self.name, "state", f"be a {kind.__name__}", type(state).__name__, remedy))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RuleTransformation(_Lifted):
    """A rule lifted over trees: elementwise, leafwise or treewise."""

    measured: Any = None  # what its measure said of the tree, once that is known

    def _parts(self) -> dict[str, Any]:
        return super()._parts() | ({} if self.measured is None else {"measured": self.measured})

    def _met_by(self, params: Any) -> list[tuple[Met, ...]] | None:
        if not self.rule.by_leaf or self._measures_tree:
            return None
        return [(Met((), self),)] * len(jax.tree.leaves(params, is_leaf=none_is_leaf))

    @property
    def _measures_tree(self) -> bool:
        return self.rule.lift == "treewise" and self.rule.measure is not None and self.measured is None

    def _measured(self, updates: Any, state: RuleState, extra: dict[str, Any]) -> "RuleTransformation | None":
        if not (self._measures_tree and self.rule.by_leaf):
            return None
        _, t, hyperparams = self._advance(state, extra)
        scalars = {name: hyper.value for name, hyper in hyperparams.items()}
        gradients = jax.tree.leaves(updates)
        measured = self.rule.measure(gradients, t, **scalars, **dict(self._statics))
        return dataclasses.replace(self, measured=measured)

    def _constants(self, state: RuleState, extra: dict[str, Any]) -> Constants:
        """What this update gives to every leaf alike."""
        self._check_state(state, RuleState)
        _, t, hyperparams = self._advance(state, extra)
        scalars = {name: hyper.value for name, hyper in hyperparams.items()}
        value = self._need("value", None, state, None, extra) if "value" in self.rule.needs else None
        return Constants(t, scalars, self._shared(state, t, scalars, extra), value, self.measured)

    def _init(self, params: Any) -> RuleState:
        if self.rule.lift == "leafwise" or "by_shape" in self.rule.flags:
            self._refuse_complex(params)
        return RuleState(*self._memory(params))

    def _run(self, updates: Any, state: RuleState, params: Any, extra: dict[str, Any]) -> tuple[Any, RuleState]:
        self._check_state(state, RuleState)
        if self._measures_tree:
            return self._measured(updates, state, extra)._run(updates, state, params, extra)
        rule = self.rule
        step, t, hyperparams = self._advance(state, extra)
        scalars = {name: hyper.value for name, hyper in hyperparams.items()}
        shared = self._shared(state, t, scalars, extra)

        gradients, treedef = jax.tree.flatten(updates, is_leaf=none_is_leaf)
        active = [index for index, gradient in enumerate(gradients) if gradient is not None]
        held = {name: self._leaves(state.slots[name], treedef, updates) for name in rule.slots_per("leaf")}
        needs = [
            self._leaves(given, treedef, updates, raised=True) if (need in ("params", "grad", "key")) else _Same(given)
            for need in rule.needs
            for given in [self._need(need, updates, state, params, extra)]
        ]
        needs += [] if self.measured is None else [_Same(self.measured)]
        run = program(rule, self._statics)
        if rule.takes_lists:
            slots = {name: [leaves[i] for i in active] for name, leaves in held.items()}
            rows = tuple(
                _of_trained(n.value, params, active)
                if need == "value_fn"
                else n.value
                if isinstance(n, _Same)
                else [n[i] for i in active]
                for need, n in zip(rule.needs, needs, strict=True)
            )
            new, changed = _treewise(run, [gradients[i] for i in active], slots | shared, t, scalars, rows)
            shared = {name: changed[name] for name in shared}
            outcomes = [(u, {name: changed[name][k] for name in held}) for k, u in enumerate(new)]
        else:
            outcomes = [
                run(
                    gradients[i],
                    {name: leaves[i] for name, leaves in held.items()} | shared,
                    t,
                    scalars,
                    tuple(need[i] for need in needs),
                )
                for i in active
            ]
        for i, (update, changed) in zip(active, outcomes, strict=True):
            gradients[i] = update
            for name, leaves in held.items():
                leaves[i] = changed[name]
        slots = {name: jax.tree.unflatten(treedef, leaves) for name, leaves in held.items()} | shared
        return jax.tree.unflatten(treedef, gradients), RuleState(step, slots, hyperparams)

    def _leaves(self, tree: Any, treedef: Any, updates: Any, raised: bool = False) -> list[Any]:
        try:
            leaves = treedef.flatten_up_to(tree)
        except ValueError:
            remedy = "pass gradients of the parameters that init saw"
            gap = first_difference(tree, updates)
            raise ValueError(complaint(self.name, "gradients", "have the tree of the state", gap, remedy)) from None
        return [as_compute(leaf) if raised and is_trainable(leaf) else leaf for leaf in leaves]


@dataclasses.dataclass(frozen=True)
class _Same:
    """One thing for every leaf, indexed like a list of leaves."""

    value: Any

    def __getitem__(self, index: int) -> Any:
        return self.value


def _of_trained(value_fn: Callable[[Any], Any], params: Any, active: list[int]) -> Callable[[list[Any]], jax.Array]:
    """The caller's function of the parameters as one of the list of trained arrays, in JAX's default float type."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)

    def value_of(trained: list[Any]) -> jax.Array:
        whole = list(leaves)
        for index, leaf in zip(active, trained, strict=True):
            whole[index] = leaf.astype(dtype_of(leaves[index]))
        with standard_promotion():
            return as_default_float(value_fn(jax.tree.unflatten(treedef, whole)))

    return value_of


def _imaginary(x: jax.Array) -> jax.Array:
    """The second of two real parts; of a complex leaf's seed, another seed."""
    return jnp.imag(x) if is_complex(x) else ~x


def _treewise(run: Callable[..., Any], gradients: list[Any], slots: dict[str, Any], *rest: Any) -> Any:
    """A treewise rule sees a complex leaf as two real ones, so that its inner products are real."""
    split = [is_complex(g) for g in gradients]

    def cut(leaves: list[Any]) -> list[Any]:
        parts = [(jnp.real, _imaginary) if two else (jnp.asarray,) for two in split]
        return [jax.tree.map(part, x) for x, of in zip(leaves, parts, strict=True) for part in of]

    def join(leaves: list[Any]) -> list[Any]:
        parts = iter(leaves)
        return [jax.tree.map(jax.lax.complex, next(parts), next(parts)) if two else next(parts) for two in split]

    def over_lists(function: Callable[[list[Any]], list[Any]], tree: Any) -> Any:
        def is_list(node: Any) -> bool:
            return isinstance(node, list)

        def along(node: Any) -> Any:
            if callable(node):
                return lambda parts: node(join(parts))
            return function(node) if is_list(node) else node

        return jax.tree.map(along, tree, is_leaf=is_list)

    if not any(split):
        return run(gradients, slots, *rest)
    new, changed = run(cut(gradients), *over_lists(cut, (slots, *rest)))
    return join(new), over_lists(join, changed)


def multiplied(factor: jax.Array | None, updates: Any) -> Any:
    """A number, if there is one, times a tree."""
    return updates if factor is None else jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates)


@dataclasses.dataclass(frozen=True)
class Member:
    """An inner transform as its wrapper sees it: `member(updates, params) → (updates, state)`."""

    transformation: GradientTransformation
    state: Any
    params: Any
    extra: dict[str, Any]

    def __call__(
        self, updates: Any, params: Any = None, state: Any = None, ok: Any = None, factor: Any = None
    ) -> tuple[Any, Any]:
        """Run it once, at the parameters and from the state that the wrapper was given, or at and from others.

        Unless ok, where that is given, no update comes out and the state stays as it was. A factor multiplies the
        updates before that.
        """
        params, state = self.params if params is None else params, self.state if state is None else state
        updates = multiplied(factor, updates)

        def run(before: Any) -> tuple[Any, Any]:
            return self.transformation._run(updates, before, params, self.extra)

        return run(state) if ok is None else run_where(ok, run, state)

    def skipped(self, updates: Any) -> tuple[Any, Any]:
        """What it returns where it is not run: no update, and the state as it is."""
        return jax.tree.map(jnp.zeros_like, updates), self.state

    def restarted(self) -> Any:
        """A new state at these parameters that keeps the hyperparameters."""

        def is_hyperparameter(node: Any) -> bool:
            return isinstance(node, Hyperparameter)

        def keep(fresh: Any, now: Any) -> Any:
            return now if is_hyperparameter(now) else fresh

        return jax.tree.map(keep, self.transformation._init(self.params), self.state, is_leaf=is_hyperparameter)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WrapperTransformation(_Lifted):
    """A rule around inner transforms, which it runs when and on what it likes."""

    members: tuple[GradientTransformation, ...]

    def _parts(self) -> dict[str, Any]:
        return dict(zip(self.rule.members, self.members, strict=True)) | super()._parts()

    @property
    def _flags(self) -> frozenset[str]:
        return self.rule.flags.union(*(member._flags & {"per_example"} for member in self.members))

    def _members(self) -> tuple[GradientTransformation, ...]:
        return self.members

    def axes_seen(self, shape: tuple[int, ...]) -> Axes:
        """The axes of a parameter along which what its members see of it runs."""
        return self.rule.seen(shape, dict(self.arguments)) if self.rule.seen else tuple(range(len(shape)))

    def _seen(self, params: Any) -> Any:
        """The tree that the members are made for."""
        if self.rule.seen is None:
            return params
        self._refuse_complex(params)

        def of(leaf: Any) -> Any:
            return fresh(self.axes_seen(jnp.shape(leaf)), leaf, 0, dtype_of(leaf)) if is_trainable(leaf) else leaf

        return jax.tree.map(of, params, is_leaf=none_is_leaf)

    def _init(self, params: Any) -> WrapperState:
        seen = self._seen(params)
        states = {name: member._init(seen) for name, member in zip(self.rule.members, self.members, strict=True)}
        inner = PartitionState(states) if len(states) != 1 else states[self.rule.members[0]]
        return WrapperState(inner, *self._memory(params))

    def _run(
        self, updates: Any, state: WrapperState, params: Any, extra: dict[str, Any], member: Any = Member
    ) -> tuple[Any, WrapperState]:
        """`member` is what stands for an inner transform: a `Member`, or something that acts like one."""
        self._check_state(state, WrapperState)
        step, t, hyperparams = self._advance(state, extra)
        scalars = {name: hyper.value for name, hyper in hyperparams.items()}
        shared = self._shared(state, t, scalars, extra)
        needs = [self._need(need, updates, state, params, extra) for need in self.rule.needs]
        several = len(self.members) != 1
        met = None if self.rule.seen else params
        runs = {
            name: member(inner, state.inner.groups[name] if several else state.inner, met, extra)
            for name, inner in zip(self.rule.members, self.members, strict=True)
        }
        run = SimpleNamespace(**runs, params=params, extra=extra) if several else runs[self.rule.members[0]]
        slots = loaded(state.slots) | shared
        updates, inner, changed = self.rule.function(
            run, updates, SimpleNamespace(**slots), t, *needs, **scalars, **dict(self._statics)
        )
        inner = PartitionState(inner) if several else inner
        slots = state.slots | shared
        changed = jax.tree.map(store, changed, {name: slots[name] for name in changed})
        return updates, WrapperState(inner, step, slots | changed, hyperparams)


def _constructor(rule: Rule) -> Callable[..., GradientTransformation]:
    """The public function: the rule's keyword part as its signature, checked and bound into a transform."""
    declared = {p.name: p for p in rule.parameters}
    parameters = [
        p.replace(kind=p.POSITIONAL_OR_KEYWORD, annotation=range_of(p.annotation)[0]) for p in rule.parameters
    ]
    parameters[:0] = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in rule.members]
    signature = inspect.Signature(parameters, return_annotation=GradientTransformation)

    @functools.wraps(rule.function)
    def make(*args: Any, **kwargs: Any) -> GradientTransformation:
        arguments = bound_arguments(rule.name, signature, args, kwargs)
        members = [arguments.pop(name) for name in rule.members]
        for name, value in arguments.items():
            if name not in rule.scalars:
                _check_static(rule.name, declared[name], value)
            elif not callable(value):
                check_scalar(rule.name, name, value, within=rule.scalars[name])
        if rule.lift == "wrapper":
            first = "outermost" in rule.flags  # and so the first to see the gradients
            inner = tuple(as_member(rule.name, member, first) for member in members)
            if rule.seen is not None:
                _check_blind(rule.name, inner)
            return WrapperTransformation(rule, tuple(arguments.items()), inner)
        return RuleTransformation(rule, tuple(arguments.items()))

    make.__signature__ = signature
    make.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": GradientTransformation}
    make.rule = rule
    del make.__wrapped__
    return make


def _check_blind(where: str, members: tuple[GradientTransformation, ...]) -> None:
    """Members that see something else than the parameters cannot ask for them."""
    for member in members:
        wanted = {"params", "grad", "value_fn"} & set(member.rule.needs if isinstance(member, _Lifted) else ())
        if wanted:
            remedy = f"chain {member.name} behind it"
            raise ValueError(complaint(where, "members", "not need the parameters", member.name, remedy))
        _check_blind(where, member._members())


def _check_static(where: str, parameter: inspect.Parameter, value: Any) -> None:
    if parameter.annotation is bool and not isinstance(value, bool):
        raise TypeError(complaint(where, parameter.name, "be True or False", f"{value!r}"))
    if get_origin(parameter.annotation) is Callable and not callable(value):
        raise TypeError(complaint(where, parameter.name, "be callable", f"{value!r}"))
    _, within = range_of(parameter.annotation)
    absent = value is None and parameter.default is None
    if (within is not None or parameter.name in RANGES) and not absent:
        check_scalar(where, parameter.name, value, within=within)
    try:
        hash(value)
    except TypeError:
        remedy = "pass a number, name or tuple"
        raise TypeError(complaint(where, parameter.name, "be hashable", f"{value!r}", remedy)) from None


_Decorator = Callable[[Callable[..., Any]], Callable[..., GradientTransformation]]


def _lift(kind: str, *declaration: Any) -> _Decorator:
    return lambda function: _constructor(declare(function, kind, *declaration))


def elementwise(*, needs: tuple[str, ...] = (), once: Any = None, **slots: Slot) -> _Decorator:
    """Lift maths on one array without any operation across its elements.

    The promise pays: such a rule may be cut into blocks, packed, quantised or sharded any way.

    Args:
      needs: what else the rule wants after t: "params", "value", "grad", "key" (then also a static `seed`), "step" (the
        updates made before this one, int32).
      once: scalar-only maths, run once per step: (slots, t, **arguments) → changed tree slots; with the value after t
        where the rule needs that.
      **slots: the rule's memory, by name.
    """
    return _lift("elementwise", slots, needs, once, None, ())


def leafwise(*, needs: tuple[str, ...] = (), once: Any = None, measure: Any = None, **slots: Slot) -> _Decorator:
    """Lift maths on one array that needs its shape: norms, rows and columns, matrices.

    Args:
      needs: as `elementwise`.
      once: as `elementwise`.
      measure: all that the rule wants of the whole array: (whole, g, slots, t, *needs, **arguments) → (measured,
        changed slots), where `whole` is a `Whole`, to be asked for norms and means. The rule is then one without any
        operation across elements, and has `measured`, arrays that broadcast, after its needs.
      **slots: as `elementwise`.
    """
    return _lift("leafwise", slots, needs, once, measure, ())


def treewise(
    *,
    needs: tuple[str, ...] = (),
    once: Any = None,
    measure: Any = None,
    flags: tuple[str, ...] = (),
    **slots: Slot,
) -> _Decorator:
    """Lift maths on all arrays at once, as lists of the trained leaves (a complex leaf as two real ones).

    Args:
      needs: also "value_fn", then a function of the list of trained parameters.
      once: as `elementwise`.
      measure: all that the rule wants of the whole tree: (gradients, t, **arguments) → a scalar. The rule is then one
        on one array without any operation across its elements, and has the scalar after its needs.
      flags: "global_statistic" for a rule that means the whole tree and would be wrong in a group; "by_shape" for one
        that sees where a leaf ends, and several leaves at once; "per_example" for one whose gradients have an axis of
        examples in front, which it takes away: it can only begin a chain.
      **slots: per="leaf" ones are lists too; per="tree" ones may be returned like them.
    """
    return _lift("treewise", slots, needs, once, measure, flags)


def wrapper(
    *,
    members: tuple[str, ...] = ("inner",),
    needs: tuple[str, ...] = (),
    once: Any = None,
    flags: tuple[str, ...] = (),
    seen: Callable[[tuple[int, ...], dict[str, Any]], Axes] | None = None,
    **slots: Slot,
) -> _Decorator:
    """Lift a transform around a transform, around several, or around none.

    The rule is `rule(run, updates, slots, t, *needs, **arguments) → (updates, inner state, changed slots)`, where
    `run(updates) → (updates, inner state)` runs the inner transform once (see `Member`); of several members,
    `run.<name>` is each and the inner state a dict by name. Trees have None where nothing is trained.

    Args:
      members: the names of the arguments that are transforms; none for a rule that only wants whole trees.
      needs: as `elementwise`, but whole trees.
      once: as `elementwise`.
      flags: "outermost" for a transform whose updates nothing may change any more; "passes_on" for one that returns
        the updates of `run`, or of `run.skipped`, as they are, so that they may be added where they are made.
      seen: where the members see something else than the updates: (shape of a leaf, arguments) → the axes along which
        that runs, as a `Slot` declares its own. Such members know no parameters.
      **slots: the wrapper's memory, by name.
    """
    return _lift("wrapper", slots, needs, once, None, flags, members, seen)
