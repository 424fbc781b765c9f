"""How far to go along an update, found by looking at the loss there."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import (
    COUNT,
    NONNEGATIVE,
    POSITIVE,
    Range,
    Scalar,
    as_default_float,
    check_scalar,
    complaint,
    dtype_of,
    is_complex,
    is_trainable,
    none_is_leaf,
    standard_promotion,
)
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._hyperparams import get_slot
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Axes, Slot
from lossopt_jax.transforms._vectors import add_scaled, inner

_SHORTER = Range("be in (0, 1)", lambda x: 0 < x < 1)
_LONGER = Range("be ≥ 1", lambda x: x >= 1)
_UNLIMITED = 2.0**127  # a state has finite leaves


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _scalar(where: str, value: jax.Array, dtype: Any) -> jax.Array:
    if value.shape:
        raise TypeError(complaint(where, "value_fn", "return a scalar", f"shape {value.shape}", "reduce the losses"))
    return value.astype(dtype)


def _error(excess: jax.Array) -> jax.Array:
    """By how much a condition is missed: 0 where it holds, ∞ where it cannot be judged."""
    return jnp.where(jnp.isnan(excess), jnp.inf, jnp.maximum(excess, 0))


def _promising(value: jax.Array, slope: jax.Array) -> jax.Array:
    """Whether a shorter step would do where all were in vain: a bad batch or a way uphill says nothing about it."""
    return jnp.isfinite(value) & (slope < 0)


def _scaled(u: list[jax.Array], step: jax.Array) -> list[jax.Array]:
    """η u, and 0 for η = 0 whatever u is."""
    return [jnp.where(step > 0, step.astype(x.dtype) * x, 0) for x in u]


# ---------------------------------------------------------------------------------------------------- backtracking


class _Descent(NamedTuple):
    """A backtracking search: trials made, and the last one's step, value, error and gradient."""

    trials: jax.Array
    step: jax.Array
    value: jax.Array
    error: jax.Array
    grad: list[jax.Array] | None


def _if_stored(shape: tuple[int, ...], arguments: dict[str, Any]) -> Axes | None:
    return tuple(range(len(shape))) if arguments["store_grad"] else None


@treewise(
    needs=("params", "value", "grad", "value_fn"),
    learning_rate=Slot(per="tree", fill=1.0, exact=True),
    guess=Slot(per="tree", fill=1.0, exact=True),
    value=Slot(per="tree", fill=math.inf, exact=True),
    grad=Slot(shape=_if_stored, exact=True),
)
def _scale_by_backtracking_linesearch(
    u,
    slots,
    t,
    p,
    value,
    grad,
    value_fn,
    *,
    max_backtracking_steps: int,
    slope_rtol: Annotated[Scalar, NONNEGATIVE] = 1e-4,
    decrease_factor: Annotated[Scalar, _SHORTER] = 0.8,
    increase_factor: Annotated[Scalar, _LONGER] = 1.5,
    max_learning_rate: Annotated[Scalar, POSITIVE] = 1.0,
    atol: Annotated[Scalar, NONNEGATIVE] = 0.0,
    rtol: Annotated[Scalar, NONNEGATIVE] = 0.0,
    store_grad: bool = False,
):
    """Shorten an update until the loss falls as its slope promises."""
    dtype, slope, tiny = t.dtype, inner(u, grad, t.dtype), jnp.finfo(t.dtype).tiny
    most = value + rtol * jnp.abs(value)

    def loss(x: list[jax.Array]) -> jax.Array:
        return _scalar("scale_by_backtracking_linesearch", value_fn(x), dtype)

    def judge(step: jax.Array, trial: jax.Array) -> jax.Array:
        return jnp.where(jnp.isfinite(trial), _error(trial - most - step * slope_rtol * slope), jnp.inf)

    def go_on(search: _Descent) -> jax.Array:
        return ~(search.error <= atol) & (search.trials <= max_backtracking_steps)

    def shorten(search: _Descent) -> _Descent:
        step = jnp.where(search.trials > 0, decrease_factor * search.step, search.step)
        x = add_scaled(p, step, u)
        if not store_grad:
            trial = loss(x)
            return _Descent(search.trials + 1, step, trial, judge(step, trial), None)
        trial, pull = jax.vjp(loss, x)
        error = judge(step, trial)
        wanted = (error <= atol) | (search.trials == max_backtracking_steps)
        new = jax.lax.cond(wanted, lambda: pull(jnp.ones_like(trial))[0], lambda: search.grad)
        return _Descent(search.trials + 1, step, trial, error, new)

    guess, unknown = jnp.minimum(increase_factor * slots.guess, max_learning_rate), jnp.full_like(value, jnp.inf)
    start = _Descent(jnp.zeros((), jnp.int32), guess, value, unknown, grad if store_grad else None)
    end = jax.lax.while_loop(go_on, shorten, start)
    moves = (end.error <= atol) | (jnp.isfinite(end.value) & (end.value <= value))
    step = jnp.where(moves, end.step, 0)
    after = {
        "learning_rate": step,
        "guess": jnp.where(moves | _promising(value, slope), jnp.maximum(end.step, tiny), slots.guess),
        "value": jnp.where(moves, end.value, value),
    }
    return _scaled(u, step), after | ({"grad": _choose(moves, end.grad, grad)} if store_grad else {})


@registry.register()
def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Any = 1e-4,
    decrease_factor: Any = 0.8,
    increase_factor: Any = 1.5,
    max_learning_rate: Any = 1.0,
    atol: Any = 0.0,
    rtol: Any = 0.0,
    store_grad: bool = False,
) -> GradientTransformation:
    """Shorten an update until the loss falls as its slope promises.

        η ← min(b η, η_max), then η ← a η until f(w + η u) ≤ f + δ|f| + c η ⟨u,∇f⟩ + ε
        u ← η u

    u must lead downhill, so the learning rate's sign comes before: `chain(sgd(1.0), this)`. A loss of ∞ or NaN means
    too far. Where no trial falls enough the last one is taken if the loss does not rise, else none: η = 0, u = 0, and
    the next search begins where this one ended.

    Args:
      max_backtracking_steps: how often η may be shortened, ≥ 1; one loss more than that is computed at most.
      slope_rtol: c ≥ 0.
      decrease_factor: a in (0, 1).
      increase_factor: b ≥ 1; ∞ to begin at η_max every time.
      max_learning_rate: η_max > 0.
      atol: ε ≥ 0.
      rtol: δ ≥ 0.
      store_grad: keep the gradient where it ends, for `value_and_grad_from_state`.

    Needs the parameters, and `update(…, value=loss, grad=gradient, value_fn=loss_of_params)`; call it under `jit`.
    Slots: learning_rate (the step taken), guess, value, and grad (1 × parameters) with store_grad.  Lift: treewise.

    Raises:
      TypeError: value, grad or value_fn is missing, or value_fn returns no scalar.
      ValueError: a value out of range.

    Differs from: optax, which takes the last trial though the loss rises there, stays at 0 for ever after one search
      that met only NaN, and measures δ by f with its sign. Further arguments of the loss are bound in value_fn.
    Source: Armijo 1966; Nocedal & Wright 2006, algorithm 3.1; Vaswani et al. 2019, arXiv:1905.09997, for b.
    """
    check_scalar("scale_by_backtracking_linesearch", "max_backtracking_steps", max_backtracking_steps, within=COUNT)
    return _scale_by_backtracking_linesearch(
        max_backtracking_steps,
        slope_rtol,
        decrease_factor,
        increase_factor,
        max_learning_rate,
        atol,
        rtol,
        store_grad,
    )


# ------------------------------------------------------------------------------------------------------------ zoom


class _Point(NamedTuple):
    """A step along the line, the loss there, and its slope."""

    step: jax.Array
    value: jax.Array
    slope: jax.Array


class _Zoom(NamedTuple):
    """A search: `low` is the best end of the bracket, `high` the other (at ∞ until there is one).

    `third` is a further point for the cubic. `trial` is the last one looked at, `safe` the best that falls enough.
    """

    trials: jax.Array
    done: jax.Array
    failed: jax.Array
    low: _Point
    high: _Point
    third: _Point
    trial: _Point
    grad: list[jax.Array]
    safe: _Point
    safe_grad: list[jax.Array]


def _cubic(a: _Point, b: _Point, c: _Point) -> jax.Array:
    """Where the cubic through three points, with the first one's slope, is least; NaN where it is nowhere."""
    to_b, to_c = b.step - a.step, c.step - a.step
    rise_b, rise_c = b.value - a.value - a.slope * to_b, c.value - a.value - a.slope * to_c
    scale = (to_b * to_c) ** 2 * (to_b - to_c)
    third = (to_c**2 * rise_b - to_b**2 * rise_c) / scale
    second = (to_b**3 * rise_c - to_c**3 * rise_b) / scale
    return a.step + (jnp.sqrt(second**2 - 3 * third * a.slope) - second) / (3 * third)


def _parabola(a: _Point, b: _Point) -> jax.Array:
    """Where the parabola through two points, with the first one's slope, is level."""
    to_b = b.step - a.step
    return a.step - a.slope * to_b**2 / (2 * (b.value - a.value - a.slope * to_b))


def _inside(search: _Zoom) -> jax.Array:
    """The next step to try in a bracket: by cubic, else by parabola, else the middle."""
    low, high = search.low, search.high
    left, right = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)

    def within(step: jax.Array, margin: float) -> jax.Array:
        return (step > left + margin * (right - left)) & (step < right - margin * (right - left))

    cubic, parabola = _cubic(low, high, search.third), _parabola(low, high)
    middle = jnp.where(within(parabola, 0.1), parabola, (low.step + high.step) / 2)
    return jnp.where(within(cubic, 0.2), cubic, middle)


@treewise(
    needs=("params", "value", "grad", "value_fn"),
    learning_rate=Slot(per="tree", fill=1.0, exact=True),
    guess=Slot(per="tree", fill=1.0, exact=True),
    value=Slot(per="tree", fill=math.inf, exact=True),
    grad=Slot(exact=True),
)
def _scale_by_zoom_linesearch(
    u,
    slots,
    t,
    p,
    value,
    grad,
    value_fn,
    *,
    max_linesearch_steps: int,
    max_learning_rate: Annotated[Scalar, POSITIVE] = _UNLIMITED,
    tol: Annotated[Scalar, NONNEGATIVE] = 0.0,
    increase_factor: Annotated[Scalar, _LONGER] = 2.0,
    slope_rtol: Annotated[Scalar, NONNEGATIVE] = 1e-4,
    curv_rtol: Annotated[Scalar, Range("be ≥ 0", lambda x: x >= 0)] = 0.9,
    approx_dec_rtol: Scalar = 1e-6,
    stepsize_precision: Annotated[Scalar, NONNEGATIVE] = 1e-5,
    initial_guess_strategy: Literal["one", "keep"] = "keep",
):
    """Find a step at which the loss has fallen and its slope is small: the strong Wolfe conditions."""
    dtype = t.dtype

    def loss(x: list[jax.Array]) -> jax.Array:
        return _scalar("scale_by_zoom_linesearch", value_fn(x), dtype)

    def at(step: jax.Array) -> tuple[_Point, list[jax.Array]]:
        trial, gradient = jax.value_and_grad(loss)(add_scaled(p, step, u))
        slope = inner(u, gradient, dtype)
        known = jnp.isfinite(trial) & jnp.isfinite(slope)
        return _Point(step, jnp.where(known, trial, jnp.inf), jnp.where(known, slope, jnp.inf)), gradient

    def decrease_error(point: _Point) -> jax.Array:
        armijo = point.value - start.value - slope_rtol * point.step * start.slope
        rise = point.value - start.value - approx_dec_rtol * jnp.abs(start.value)
        level = point.slope - (2 * slope_rtol - 1) * start.slope
        return _error(jnp.where(approx_dec_rtol < 0, armijo, jnp.minimum(armijo, jnp.maximum(level, rise))))

    def go_on(search: _Zoom) -> jax.Array:
        return ~(search.done | search.failed)

    def advance(search: _Zoom) -> _Zoom:
        low, high, first = search.low, search.high, search.trials == 0
        bracketed = jnp.isfinite(high.step)
        longer = jnp.minimum(jnp.where(first, slots.guess, increase_factor * low.step), max_learning_rate)
        trial, gradient = at(jnp.where(bracketed, _inside(search), longer))

        decrease = decrease_error(trial)
        curvature = _error(jnp.abs(trial.slope) - curv_rtol * jnp.abs(start.slope))
        good = jnp.maximum(decrease, curvature) <= tol

        # the lower end moves to the trial unless that is worse, and the upper one to wherever the slope does not lead
        worse = (decrease > 0) | ((trial.value >= low.value) & ~first)
        turns = ~worse & jnp.where(high.step > low.step, trial.slope >= 0, trial.slope <= 0)
        at_bound = ~bracketed & (longer >= max_learning_rate) & ~(worse | turns)

        better = (decrease <= tol) & (~bracketed | (trial.value < search.safe.value))
        safe, safe_grad = _choose(better, (trial, gradient), (search.safe, search.safe_grad))
        done = good | at_bound
        too_small = (jnp.abs(high.step - low.step) <= stepsize_precision) & (safe.step > 0)
        return _Zoom(
            trials=search.trials + 1,
            done=done,
            failed=~done & (too_small | (search.trials + 1 >= max_linesearch_steps)),
            low=_choose(worse, low, trial),
            high=_choose(worse, trial, _choose(turns, low, high)),
            third=_choose(worse | turns, high, low),
            trial=trial,
            grad=gradient,
            safe=safe,
            safe_grad=safe_grad,
        )

    zero, no = jnp.zeros_like(value), jnp.zeros((), bool)
    start, nowhere = _Point(zero, value, inner(u, grad, dtype)), _Point(*[jnp.full_like(value, jnp.inf)] * 3)
    begin = _Zoom(jnp.zeros((), jnp.int32), no, no, start, nowhere, nowhere, start, grad, start, grad)
    end = jax.lax.while_loop(go_on, advance, begin)
    as_it_is = jnp.isfinite(end.trial.value) & (end.safe.step == 0) & (end.trial.value <= value)
    point, gradient = _choose(end.done | as_it_is, (end.trial, end.grad), (end.safe, end.safe_grad))
    shorter = jnp.maximum(end.trial.step, jnp.finfo(dtype).tiny)
    again = jnp.where(_promising(value, start.slope), shorter, slots.guess)
    usual = point.step if initial_guess_strategy == "keep" else jnp.ones_like(point.step)
    return _scaled(u, point.step), {
        "learning_rate": point.step,
        "guess": jnp.where(point.step > 0, usual, again),
        "value": point.value,
        "grad": gradient,
    }


@registry.register()
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Any = None,
    tol: Any = 0.0,
    increase_factor: Any = 2.0,
    slope_rtol: Any = 1e-4,
    curv_rtol: Any = 0.9,
    approx_dec_rtol: Any = 1e-6,
    stepsize_precision: Any = 1e-5,
    initial_guess_strategy: Literal["one", "keep"] = "keep",
) -> GradientTransformation:
    """Find a step at which the loss has fallen and its slope is small: the strong Wolfe conditions.

        f(w + η u) ≤ f + c₁ η s,  s = ⟨u,∇f⟩;   or  ⟨u,∇f(w + η u)⟩ ≤ (2c₁−1) s  and  f(w + η u) ≤ f + δ|f|
        |⟨u,∇f(w + η u)⟩| ≤ c₂ |s|
        u ← η u

    η grows by b from its first guess until there is a bracket, which then narrows by cubic, parabola or bisection.
    u must lead downhill, so the learning rate's sign comes before: `chain(sgd(1.0), this)`. A loss of ∞ or NaN means
    too far. Where the trials run out, the best that has fallen is taken; where none has, the last if the loss does
    not rise there, else none: η = 0, u = 0, and the next search begins where this one ended.

    Args:
      max_linesearch_steps: losses and gradients computed at most, ≥ 1.
      max_learning_rate: longest η > 0, or None.
      tol: slack in all conditions, ≥ 0.
      increase_factor: b ≥ 1.
      slope_rtol: c₁ ≥ 0.
      curv_rtol: c₂ ≥ 0, > c₁; ∞ for the first condition alone.
      approx_dec_rtol: δ ≥ 0, for where rounding hides the decrease; None or a negative number for the first form only.
      stepsize_precision: length of a bracket, ≥ 0, below which a step that has fallen is enough.
      initial_guess_strategy: begin at η = "one", or "keep" the last one.

    Needs the parameters, and `update(…, value=loss, grad=gradient, value_fn=loss_of_params)`; call it under `jit`.
    Slots: learning_rate (the step taken), guess, value, grad (1 × parameters; `value_and_grad_from_state` reads them).
    Lift: treewise.

    Raises:
      TypeError: value, grad or value_fn is missing, or value_fn returns no scalar.
      ValueError: a value out of range.

    Differs from: optax in what is taken where nothing has fallen: there the last trial though the loss rises.
      Further arguments of the loss are bound in value_fn.
    Source: Nocedal & Wright 2006, algorithms 3.5 and 3.6; Hager & Zhang 2006, doi:10.1145/1132973.1132979, for δ.
    """
    name = "scale_by_zoom_linesearch"
    check_scalar(name, "max_linesearch_steps", max_linesearch_steps, within=COUNT)
    if initial_guess_strategy not in ("one", "keep"):
        must = "be 'one' or 'keep'"
        raise ValueError(complaint(name, "initial_guess_strategy", must, repr(initial_guess_strategy)))
    return _scale_by_zoom_linesearch(
        max_linesearch_steps,
        _UNLIMITED if max_learning_rate is None else max_learning_rate,
        tol,
        increase_factor,
        slope_rtol,
        curv_rtol,
        -1.0 if approx_dec_rtol is None else approx_dec_rtol,
        stepsize_precision,
        initial_guess_strategy,
    )


# ------------------------------------------------------------------------------------------------ what a search knows


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """`jax.value_and_grad` that takes both from the state, where a line search has left them.

    `f(params, *args, state=state, **kwargs) → (value, grad)`; computed only while the state has no finite value, as
    before the first step. Right where nothing stands behind the search and the loss is the same in every step.

    Args:
      value_fn: (params, *args, **kwargs) → scalar.

    Returns:
      The function; gradients have the parameters' dtype, and are None where nothing is trained.

    Raises:
      ValueError: the state holds no line search with a gradient, or several.

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> def loss(w):
      ...     return jnp.sum(jnp.array([1.0, 10.0, 100.0]) * (w - 1.0) ** 2)
      >>> value_and_grad = lo.transforms.value_and_grad_from_state(loss)
      >>> tx = lo.optimizers.lbfgs()
      >>> @jax.jit
      ... def step(w, state):
      ...     value, grad = value_and_grad(w, state=state)
      ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
      ...     return lo.apply_updates(w, updates), state
      >>> w = jnp.zeros(3)
      >>> state = tx.init(w)
      >>> for _ in range(10):
      ...     w, state = step(w, state)
      >>> bool(loss(w) < 1e-6)
      True
    """

    def value_and_grad(params: Any, *args: Any, state: Any, **kwargs: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(params, is_leaf=none_is_leaf)
        active = [i for i, leaf in enumerate(leaves) if is_trainable(leaf)]
        value, grad = get_slot(state, "value"), get_slot(state, "grad")
        kept = [leaf for leaf in jax.tree.leaves(grad) if leaf is not None]
        if len(kept) != len(active):
            must = "hold a gradient for each trained parameter"
            remedy = "say store_grad=True to scale_by_backtracking_linesearch"
            raise ValueError(complaint("value_and_grad_from_state", "state", must, f"{len(kept)}", remedy))

        def of_trained(trained: list[Any]) -> jax.Array:
            whole = list(leaves)
            for i, leaf in zip(active, trained, strict=True):
                whole[i] = leaf
            with standard_promotion():
                return as_default_float(value_fn(jax.tree.unflatten(treedef, whole), *args, **kwargs))

        def stored() -> tuple[jax.Array, list[jax.Array]]:  # in the convention of update, not of jax.grad
            raw = [jnp.conj(leaf) if is_complex(leaf) else leaf for leaf in kept]
            return value, [leaf.astype(dtype_of(leaves[i])) for i, leaf in zip(active, raw, strict=True)]

        def computed() -> tuple[jax.Array, list[jax.Array]]:
            return jax.value_and_grad(of_trained)([jnp.asarray(leaves[i]) for i in active])

        value, trained = jax.lax.cond(jnp.isfinite(value), stored, computed)
        gradients: list[Any] = [None] * len(leaves)
        for i, gradient in zip(active, trained, strict=True):
            gradients[i] = gradient
        return value, jax.tree.unflatten(treedef, gradients)

    return value_and_grad
