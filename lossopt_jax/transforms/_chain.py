"""Sequential composition: one member's update is the next one's gradient."""

import dataclasses
import itertools
from typing import Any

import jax

from lossopt_jax._core import complaint, none_is_leaf
from lossopt_jax.transforms._base import GradientTransformation, Met, as_member
from lossopt_jax.transforms._registry import registry


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chain(GradientTransformation):
    """Members in order; the state is a dict of their states under their names."""

    names: tuple[str, ...]
    members: tuple[GradientTransformation, ...]

    @property
    def _flags(self) -> frozenset[str]:
        return self.members[0]._flags & {"per_example"} if self.members else frozenset()

    def _init(self, params: Any) -> dict[str, Any]:
        return {name: member._init(params) for name, member in zip(self.names, self.members, strict=True)}

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not isinstance(state, dict) or set(state) != set(self.names):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise TypeError(complaint("chain", "state", f"be a dict of {list(self.names)}", got))
        after = {}
        for name, member in zip(self.names, self.members, strict=True):
            updates, after[name] = member._run(updates, state[name], params, extra)
        return updates, after

    def _members(self) -> tuple[GradientTransformation, ...]:
        return self.members

    def _met_by(self, params: Any) -> list[tuple[Met, ...]] | None:
        met = [()] * len(jax.tree.leaves(params, is_leaf=none_is_leaf))
        for name, member in zip(self.names, self.members, strict=True):
            inside = member._met_by(params)
            if inside is None:
                return None
            met = [(*before, *(one.inside(name) for one in own)) for before, own in zip(met, inside, strict=True)]
        return met

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.members))})"


def unused(name: str, taken: list[str]) -> str:
    candidates = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


@registry.register()
def chain(*transformations: Any) -> GradientTransformation:
    """Apply transforms one after the other.

    Nested chains are flattened, so `chain(a, chain(b, c)) == chain(a, b, c)`, and the state is one dict
    `{rule name: state}`, a second member of the same name being kept as `name_2`: the path of a slot does not depend
    on what stands in front of it. Members of optax's are welcome. `chain()` changes nothing.

    Args:
      *transformations: transforms, or anything with `init` and `update`.

    Raises:
      TypeError: a member is no transform.
      ValueError: a member that must be outermost.

    Example:
      >>> import lossopt_jax as lo
      >>> lo.chain(lo.transforms.clip(1.0), lo.optimizers.sgd(0.1))
      chain(clip(max_delta=1.0), scale_by_learning_rate(learning_rate=0.1, flip_sign=True))
    """
    names: list[str] = []
    members: list[GradientTransformation] = []
    for candidate in transformations:
        member = as_member("chain", candidate, first=not members)
        parts = zip(member.names, member.members, strict=True) if isinstance(member, Chain) else [(member.name, member)]
        for name, part in parts:
            names.append(unused(name, names))
            members.append(part)
    return Chain(tuple(names), tuple(members))


@registry.register()
def named_chain(*transformations: tuple[str, Any]) -> GradientTransformation:
    """Apply transforms one after the other, keeping each one's state under the name given.

    Args:
      *transformations: pairs (name, transform). A chain among them stays one member with its own dict.

    Raises:
      ValueError: a name twice, or a member that must be outermost.
      TypeError: a member is no transform.

    Example:
      >>> import lossopt_jax as lo
      >>> sorted(lo.named_chain(("grow", lo.transforms.scale(2.0)), ("sgd", lo.optimizers.sgd(0.1))).init(0.0))
      ['grow', 'sgd']
    """
    names = [name for name, _ in transformations]
    if len(set(names)) != len(names):
        raise ValueError(complaint("named_chain", "names", "differ", names))
    members = (as_member("named_chain", member, first=i == 0) for i, (_, member) in enumerate(transformations))
    return Chain(tuple(names), tuple(members))
