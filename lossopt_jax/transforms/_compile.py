"""`compile_update`: the whole step as one program over donated memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    complaint,
    cpu_compiler_options,
    holds_tracers,
    is_array_like,
    leaf_paths,
    none_is_leaf,
    on_one_cpu,
)
from lossopt_jax.transforms._base import GradientTransformation, apply_leaf, as_transformation
from lossopt_jax.transforms._offload import OffloadState
from lossopt_jax.transforms._one_pass import run_by_leaf


def run_and_apply(
    transformation: GradientTransformation,
    params: Any,
    state: Any,
    grads: Any,
    extra: dict[str, Any],
    *,
    ok: Any = None,
    blocks: bool | None = None,
) -> tuple[Any, Any]:
    """One step without a rounding between the update and the sum: (params, state, grads) → (params, state).

    Args:
      ok: None, or a flag without which nothing changes.
      blocks: None for what may be differentiated. Else one program for each large leaf, which writes down nothing
        that it measures; and True for going through it in blocks, in one pass over memory, in programs on one CPU,
        compiled with `cpu_compiler_options`.
    """
    if isinstance(transformation, OffloadState):
        state, inner = transformation.fetched(state), transformation.inner
        after, new = run_and_apply(inner, params, state, grads, extra, ok=ok, blocks=blocks)
        return after, transformation.sent(new)
    transformation._check_extra(extra)
    flow = transformation._enter(grads, params)
    if blocks is not None:
        return run_by_leaf(transformation, params, state, flow, extra, ok, blocks)
    updates, new = transformation._run(flow, state, params, extra)
    after = jax.tree.map(apply_leaf, params, updates, is_leaf=none_is_leaf)
    if ok is None:
        return after, new
    return jax.tree.map(functools.partial(jnp.where, ok), (after, new), (params, state))


def _arrays_only(tree: Any) -> Any:
    """The tree with None for what `jit` cannot take: functions, strings, layers' settings."""
    return jax.tree.map(lambda leaf: leaf if is_array_like(leaf) else None, tree, is_leaf=none_is_leaf)


def _shared(tree: Any) -> str:
    """The first two paths that hold one array."""
    first: dict[int, str] = {}
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree, is_leaf=none_is_leaf), strict=True):
        if isinstance(leaf, jax.Array) and first.setdefault(id(leaf), path) != path:
            return f"one for {first[id(leaf)]!r} and {path!r}"
    return "one buffer twice"


@dataclasses.dataclass(frozen=True)
class CompiledUpdate:
    """step(params, state, grads, **extra) → (params, state); see `compile_update`."""

    transformation: GradientTransformation
    out_shardings: Any = dataclasses.field(default=None, compare=False)  # a tree, which has no hash

    def fn(self, params: Any, state: Any, grads: Any, **extra: Any) -> tuple[Any, Any]:
        """The plain function, for use inside one's own `jit` with one's own options."""
        return run_and_apply(self.transformation, params, state, grads, extra)

    def __call__(self, params: Any, state: Any, grads: Any, **extra: Any) -> tuple[Any, Any]:
        if holds_tracers((params, state, grads, extra)):
            return self.fn(params, state, grads, **extra)
        state = self.transformation._settled(state)  # XLA:CPU ends the process if memory of another kind is donated
        functions = tuple((name, value) for name, value in extra.items() if callable(value))
        arrays = {name: value for name, value in extra.items() if not callable(value)}
        rest = state, grads, arrays, functions, on_one_cpu((params, state, grads))
        try:
            return self.jitted(params, *rest)
        except TypeError:
            if all(is_array_like(leaf) for leaf in jax.tree.leaves((params, grads))):
                raise
            return self._beside_others(params, *rest)
        except RuntimeError as error:
            if "donate" not in str(error):
                raise
            got = _shared({"params": params, "state": state, "grads": grads, **extra})
            remedy = "what is updated in place is donated: give each leaf its own with jnp.copy"
            raise ValueError(complaint("compile_update", "arrays", "be held once", got, remedy)) from None

    def _beside_others(self, params: Any, state: Any, grads: Any, *rest: Any) -> tuple[Any, Any]:
        """The step with parameters beside leaves that `jit` cannot take."""
        after, state = self.jitted(_arrays_only(params), state, _arrays_only(grads), *rest)
        return jax.tree.map(lambda new, old: old if new is None else new, after, params, is_leaf=none_is_leaf), state

    def trace(self, params: Any, state: Any, grads: Any, **extra: Any) -> Any:
        """The traced program, as `jax.jit(...).trace`."""
        blocks = on_one_cpu((params, state, grads))
        return self.jitted.trace(_arrays_only(params), state, _arrays_only(grads), extra, (), blocks)

    def lower(self, params: Any, state: Any, grads: Any, **extra: Any) -> Any:
        """The lowered program, as `jax.jit(...).lower`: `.compile().as_text()`, `.memory_analysis()`."""
        return self.trace(params, state, grads, **extra).lower()

    @functools.cached_property
    def jitted(self) -> Callable[..., Any]:
        def step(
            params: Any, state: Any, grads: Any, arrays: dict[str, Any], functions: tuple[Any, ...], blocks: bool
        ) -> Any:
            return run_and_apply(self.transformation, params, state, grads, arrays | dict(functions), blocks=blocks)

        # outputs in the order of the donated inputs: any other pairing costs a copy of every leaf
        return jax.jit(
            step,
            donate_argnums=(0, 1),
            static_argnums=(4, 5),
            keep_unused=True,  # a slot that is only written is donated too
            out_shardings=self.out_shardings,
            compiler_options=cpu_compiler_options(),
        )


def compile_update(transformation: Any, out_shardings: Any = None) -> CompiledUpdate:
    """Compile a transform and the addition of its updates into one pass over memory.

    `step(params, state, grads, **extra) → (params, state)`. Parameters and state are **donated**: they are updated in
    place and the arrays passed in are gone afterwards. The update is added before it is rounded, once. Under a tracer
    (inside `scan`, `jit`, `grad`) the plain function `step.fn` runs instead, and nothing is donated.

    Args:
      transformation: any transform, another library's included.
      out_shardings: those of (params, state), as `jax.jit` takes them. None lets XLA choose: they stay as they are
        where slots are sharded as their parameters. Slots that are sharded further (`lo.training.state_sharding` with a
        `zero_axis`) would draw their parameters after them.

    Raises:
      ValueError: one array in two places of (params, state, grads); nothing has been consumed then.

    Example:
      >>> import jax.numpy as jnp, lossopt_jax as lo
      >>> params = {"w": jnp.ones(3)}
      >>> tx = lo.optimizers.sgd(0.5)
      >>> step = lo.compile_update(tx)
      >>> params, state = step(params, tx.init(params), {"w": jnp.ones(3)})
      >>> params["w"]
      Array([0.5, 0.5, 0.5], dtype=float32)
    """
    return CompiledUpdate(as_transformation("compile_update", transformation), out_shardings)
