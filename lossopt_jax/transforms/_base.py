"""The protocol, the states, and the border that every gradient crosses twice.

    update: check against the parameters → raise to compute dtype → _run → cast once to the parameter's dtype

Between the members of a composition updates travel as a tree of arrays in compute dtype with None for every leaf that
is not being trained; only the outermost `update` knows what the caller's leaves looked like.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    accepts_keyword,
    as_compute,
    comparable,
    complaint,
    compute_dtype,
    dtype_of,
    first_difference,
    is_array_like,
    is_complex,
    is_float0,
    is_trainable,
    leaf_paths,
    map_arrays,
    none_is_leaf,
    standard_promotion,
)

# What a training loop may hand to any optimizer; whoever does not need it ignores it.
EXTRA_ARGUMENTS = ("value", "grad", "value_fn", "key", "loss", "weight")


class Hyperparameter(NamedTuple):
    """A scalar in the state: `value` is what the last update used; a schedule is followed unless `pinned`.

    `memory` is the state of a schedule that has one, and None otherwise.
    """

    value: jax.Array
    pinned: jax.Array
    memory: Any = None


class RuleState(NamedTuple):
    """State of one rule: updates made so far (int32), named slots, hyperparameters by name."""

    step: jax.Array
    slots: dict[str, Any]
    hyperparams: dict[str, Hyperparameter]


class WrapperState(NamedTuple):
    """State of a transform around another: the inner state, and what a RuleState has."""

    inner: Any
    step: jax.Array
    slots: dict[str, Any]
    hyperparams: dict[str, Hyperparameter]


class PartitionState(NamedTuple):
    """One state per label: of `partition`, each with None where the label does not apply, or of a wrapper's members."""

    groups: dict[str, Any]


class Met(NamedTuple):
    """A rule that a leaf meets on its way through a composition, and the keys under which the rule's state lies."""

    keys: tuple[str, ...]
    transformation: Any

    def inside(self, key: str) -> "Met":
        return Met((key, *self.keys), self.transformation)


def _arguments(parts: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in parts.items())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientTransformation:
    """An `(init, update)` pair: gradients in, updates out, state carried by the caller.

    `init(params) → state` and `update(updates, state, params=None, **extra) → (updates, state)`, optax's calling
    convention. `init, update = tx` works too. Frozen: transforms compare and hash by their arguments (arrays by
    identity), print themselves and pickle.
    """

    def init(self, params: Any) -> Any:
        """Make the state for a tree of parameters: arrays, `jax.ShapeDtypeStruct`s, None, or foreign objects."""
        return self._init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """Turn gradients into updates, to be added to the parameters by `apply_updates`.

        Args:
          updates: the gradients; the tree of the parameters, with the same shapes. A leaf that is None or float0 is
            not trained in this step and passes through untouched; so does every leaf whose parameter is no floating
            or complex array. For a complex leaf: the conjugate of what `jax.grad` returns, as in optax.
          state: from `init` or the last `update`.
          params: the parameters. Needed by some rules; decides the dtype of the result.
          **extra: `value`, `grad`, `value_fn`, `key`, `loss`, `weight`; ignored where unneeded.

        Returns:
          (updates, state): updates in the parameters' dtype (the gradients' without parameters).

        Raises:
          ValueError: tree or shapes differ from the parameters'; the message names the path.
          TypeError: a gradient of the wrong kind, an unknown keyword, or a missing one that a rule needs.
        """
        self._check_extra(extra)
        flow, state = self._run(self._enter(updates, params), state, params, extra)
        return leave(flow, updates, params), state

    def _init(self, params: Any) -> Any:
        raise NotImplementedError

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        """`update` without its border: uncast, on a tree that `enter` made."""
        raise NotImplementedError

    def _enter(self, updates: Any, params: Any) -> Any:
        return enter(updates, params, "per_example" in self._flags)

    def _met_by(self, params: Any) -> list[tuple["Met", ...]] | None:
        """The rules that each leaf meets, in order; None where leaves cannot be updated one by one."""
        return None

    def _measured(self, updates: Any, state: Any, extra: dict[str, Any]) -> "GradientTransformation | None":
        """Itself with what it measures of the whole tree held, if that is all that keeps leaves together."""
        return None

    def _settled(self, state: Any) -> Any:
        """A state from elsewhere, such as a checkpoint, with each array in the kind of memory that `update` returns."""
        return state

    @property
    def name(self) -> str:
        """The name under which a chain keeps this member's state."""
        return type(self).__name__.lower()

    @property
    def _flags(self) -> frozenset[str]:
        """What its rule declared about its place in a composition."""
        return frozenset()

    def _members(self) -> tuple["GradientTransformation", ...]:
        """The transforms directly inside this one."""
        return ()

    def _accepts(self, keyword: str) -> bool:
        return keyword in EXTRA_ARGUMENTS or any(member._accepts(keyword) for member in self._members())

    def _check_extra(self, extra: dict[str, Any]) -> None:
        for keyword in extra:
            if not self._accepts(keyword):
                raise TypeError(
                    complaint("update", "keywords", f"be among {', '.join(EXTRA_ARGUMENTS)}", repr(keyword))
                )

    def _parts(self) -> dict[str, Any]:
        """What it was built from, for repr and comparison."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        return comparable(tuple(self._parts().items()))

    def __repr__(self) -> str:
        return f"{self.name}({_arguments(self._parts())})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Foreign(GradientTransformation):
    """Another library's transform as a member: gets the parameters' dtype, has its output raised again."""

    transformation: Any

    @property
    def name(self) -> str:
        qualified = getattr(self.transformation.update, "__qualname__", type(self.transformation).__name__)
        return qualified.split(".")[0]

    def _accepts(self, keyword: str) -> bool:
        return keyword in EXTRA_ARGUMENTS or accepts_keyword(self.transformation.update, keyword)

    def _init(self, params: Any) -> Any:
        with standard_promotion():
            return self.transformation.init(_trainable_only(params))

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        known = {k: v for k, v in extra.items() if accepts_keyword(self.transformation.update, k)}
        if params is not None:
            params = _trainable_only(params)
            updates = map_arrays(lambda u, p: u.astype(dtype_of(p)), updates, params)
        with standard_promotion():
            updates, state = self.transformation.update(updates, state, params, **known)
        return map_arrays(as_compute, updates), state


def as_transformation(where: str, candidate: Any) -> GradientTransformation:
    """Ours as it is, another library's wrapped, anything else refused."""
    if isinstance(candidate, GradientTransformation):
        return candidate
    if callable(getattr(candidate, "init", None)) and callable(getattr(candidate, "update", None)):
        return Foreign(candidate)
    hint = "call it: name(…)" if callable(candidate) else "pass transforms, not their names"
    raise TypeError(complaint(where, "members", "have init and update", f"{candidate!r}", hint))


def as_member(where: str, candidate: Any, first: bool = False) -> GradientTransformation:
    """A transform that may stand inside another one, where it is the first to see the gradients or not."""
    member = as_transformation(where, candidate)
    if "measure" in member._flags:
        raise TypeError(complaint(where, "members", "return updates", member.name, "give it to monitor"))
    if "outermost" in member._flags:
        remedy = f"write {member.name}({where}(…)) instead"
        raise ValueError(complaint(where, "members", f"not hold {member.name}, which must be outermost", "it", remedy))
    if "per_example" in member._flags and not first:
        remedy = "let it begin a chain that stands in nothing else"
        raise ValueError(complaint(where, member.name, "be given a gradient per example", "what others made", remedy))
    return member


def _trainable_only(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if is_trainable(leaf) else None, params, is_leaf=none_is_leaf)


def _check_gradient(path: str, gradient: Any, parameter: Any, examples: tuple[int, ...]) -> None:
    where, shape = f"the gradient at {path!r}", getattr(gradient, "shape", ())
    if not is_trainable(gradient):
        raise TypeError(complaint("update", where, "be floating, complex, float0 or None", _describe(gradient)))
    if shape[: len(examples)] != examples:
        must, remedy = f"begin with an axis of {examples[0]} examples", "take one per example with jax.vmap"
        raise ValueError(complaint("update", where, must, f"shape {shape}", remedy))
    if parameter is None:
        return
    if not is_trainable(parameter):
        remedy = "pass None or float0 for a leaf that is not trained"
        raise TypeError(complaint("update", where, f"be None for {_describe(parameter)}", _describe(gradient), remedy))
    expected = examples + jnp.shape(parameter)
    if shape != expected:
        remedy = "take one per example with jax.vmap" if examples else "nothing broadcasts"
        raise ValueError(complaint("update", where, f"have shape {expected}", shape, remedy))
    if is_complex(gradient) and not is_complex(parameter):
        raise TypeError(complaint("update", where, "be real like its parameter", _describe(gradient), "take its real"))


def _describe(leaf: Any) -> str:
    return f"{dtype_of(leaf)}{list(jnp.shape(leaf))}" if is_array_like(leaf) else repr(leaf)


def _untrained(gradient: Any, parameter: Any) -> bool:
    """Leaves that pass through: no gradient, or an integer one for a parameter that is no floating array."""
    if gradient is None or is_float0(gradient):
        return True
    if parameter is None or is_trainable(parameter):
        return False
    return not is_trainable(gradient)


def enter(updates: Any, params: Any, per_example: bool = False) -> Any:
    """Check the gradients against the parameters and raise them; None where nothing is trained.

    Per example: each must have one axis more than its parameter, in front, of one size in the whole tree.
    """
    gradients, treedef = jax.tree.flatten(updates, is_leaf=none_is_leaf)
    parameters: list[Any] = [None] * len(gradients)
    if params is not None:
        parameters, expected = jax.tree.flatten(params, is_leaf=none_is_leaf)
        if expected != treedef:
            raise ValueError(
                complaint("update", "gradients", "have the tree of params", first_difference(params, updates))
            )
    flow: list[Any] = []
    examples: tuple[int, ...] | None = None if per_example else ()
    for index, (gradient, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        if _untrained(gradient, parameter) or (params is not None and parameter is None):
            flow.append(None)
            continue
        if examples is None:  # a scalar has no such axis and shall be told so
            examples = (*getattr(gradient, "shape", ()), 1)[:1]
        if not (
            isinstance(gradient, jax.Array)
            and isinstance(parameter, jax.Array)
            and gradient.shape == examples + parameter.shape
            and gradient.dtype == parameter.dtype
            and jnp.issubdtype(gradient.dtype, jnp.inexact)
        ):
            _check_gradient(leaf_paths(updates)[index], gradient, parameter, examples)
        dtype = compute_dtype(dtype_of(gradient if parameter is None else parameter))
        flow.append(jax.lax.convert_element_type(jnp.asarray(gradient), dtype))
    return jax.tree.unflatten(treedef, flow)


def leave(flow: Any, updates: Any, params: Any) -> Any:
    """Cast to the dtype of the parameters (or of the gradients), and put the untrained leaves back."""

    def cast(update: Any, gradient: Any, parameter: Any) -> Any:
        if update is not None:
            return update.astype(dtype_of(gradient if parameter is None else parameter))
        if gradient is None or is_float0(gradient) or not is_array_like(gradient):
            return gradient
        return jnp.zeros_like(gradient, dtype=dtype_of(parameter if is_trainable(parameter) else gradient))

    reference = updates if params is None else params
    return jax.tree.map(cast, flow, updates, reference, is_leaf=none_is_leaf)


def alongside(where: str, name: str, tree: Any, like: Any, which: str) -> Any:
    """A tree of the caller's that must have the structure and shapes of another one, "that is …"."""
    if jax.tree.structure(tree, is_leaf=none_is_leaf) != jax.tree.structure(like, is_leaf=none_is_leaf):
        raise ValueError(complaint(where, name, f"have the tree {which}", first_difference(like, tree)))
    for path, leaf, other in zip(
        leaf_paths(like),
        jax.tree.leaves(like, is_leaf=none_is_leaf),
        jax.tree.leaves(tree, is_leaf=none_is_leaf),
        strict=True,
    ):
        if leaf is not None and not (is_array_like(other) and jnp.shape(other) == jnp.shape(leaf)):
            got = jnp.shape(other) if is_array_like(other) else repr(other)
            raise ValueError(complaint(where, f"{name} at {path!r}", f"have shape {jnp.shape(leaf)}", got))
    return tree


def apply_leaf(parameter: Any, update: Any) -> Any:
    """p + u in compute dtype, rounded once to the parameter's."""
    if update is None or is_float0(update) or not is_trainable(parameter):
        return parameter
    if jnp.shape(update) != jnp.shape(parameter):
        raise ValueError(
            complaint("apply_updates", "an update", f"have shape {jnp.shape(parameter)}", jnp.shape(update))
        )
    dtype = compute_dtype(dtype_of(parameter))
    raised = jax.lax.convert_element_type(jnp.asarray(parameter), dtype)
    return (raised + jax.lax.convert_element_type(jnp.asarray(update), dtype)).astype(dtype_of(parameter))


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters.

    The sum is taken in float32 (float64 for float64) and rounded once; every parameter keeps its dtype, shape and
    sharding. Leaves that are no floating or complex arrays, and leaves whose update is None, stay as they are.

    Raises:
      ValueError: the trees differ, or an update has another shape than its parameter.

    Differs from: optax, where an update of another shape changes the parameter's, and an integer is truncated.
    """
    if jax.tree.structure(params, is_leaf=none_is_leaf) != jax.tree.structure(updates, is_leaf=none_is_leaf):
        raise ValueError(
            complaint("apply_updates", "updates", "have the tree of params", first_difference(params, updates))
        )
    return jax.tree.map(apply_leaf, params, updates, is_leaf=none_is_leaf)
