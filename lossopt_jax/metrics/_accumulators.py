"""What a metric remembers: sums that do not stall, and moments; both merge."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt_jax._core import along_leading_axes, complaint, default_float


class MeanState(NamedTuple):
    """Σ w v and Σ w, and below them what rounding has taken from each: [[Σ w v, Σ w], [lost, lost]].

    With the second row counts go on past 2²⁴, and the sum of two states (so their psum) is their merge. One array,
    because a compiled loop pays for every output.
    """

    sums: jax.Array


@dataclasses.dataclass(frozen=True)
class Mean:
    """Weighted mean of the observed values. Nothing seen: NaN."""

    def init(self) -> MeanState:
        return MeanState(jnp.zeros((2, 2), default_float()))

    def update(self, state: MeanState, values: jax.Array, weights: jax.Array) -> MeanState:
        values, weights = (part.astype(state.sums.dtype) for part in (values, weights))
        terms = weights * jnp.where(weights == 0, jnp.zeros_like(values), values)
        return _add(state, jnp.stack([jnp.sum(terms), jnp.sum(weights)]))

    def merge(self, one: MeanState, other: MeanState) -> MeanState:
        high, low = _add(one, other.sums[0]).sums
        return MeanState(jnp.stack([high, low + other.sums[1]]))

    def compute(self, state: MeanState) -> jax.Array:
        total, weight = state.sums[0] + state.sums[1]
        return jnp.where(weight == 0, jnp.full_like(weight, jnp.nan), total / jnp.maximum(weight, _TINY))


def _add(state: MeanState, terms: jax.Array) -> MeanState:
    """One more term on each sum, by Knuth's two-sum."""
    before, lost = state.sums
    after = before + terms
    part = after - before
    error = (before - (after - part)) + (terms - part)
    return MeanState(jnp.stack([after, lost + jnp.where(jnp.isfinite(after), error, jnp.zeros_like(error))]))


_TINY = 1e-30


class MomentsState(NamedTuple):
    """Σ w, and for each output the weighted mean of the target, Σ w (y − mean)², and Σ w (y − p)²."""

    weight: jax.Array
    mean: jax.Array
    spread: jax.Array
    residual: jax.Array


@dataclasses.dataclass(frozen=True)
class Determination:
    """1 − residual / spread of each output, averaged. Merged by Chan's formula, so no large squares cancel."""

    outputs: int = 1

    def init(self) -> MomentsState:
        # three arrays, not one thrice: states are donated
        each = (jnp.zeros(self.outputs, default_float()) for _ in range(3))
        return MomentsState(jnp.zeros((), default_float()), *each)

    def update(self, state: MomentsState, pair: tuple[jax.Array, jax.Array], weights: jax.Array) -> MomentsState:
        prediction, target = (part.astype(state.mean.dtype) for part in pair)
        if target.shape[1] != self.outputs:
            remedy = f"say r2_score(outputs={target.shape[1]})"
            raise ValueError(complaint("r2_score", "outputs", f"be {self.outputs}", target.shape[1], remedy))
        w = weights.astype(state.mean.dtype)[:, None]
        seen = w != 0
        target = jnp.where(seen, target, jnp.zeros_like(target))
        error = jnp.where(seen, target - prediction, jnp.zeros_like(target))
        weight = jnp.sum(w)
        # measured from one example, so that a constant target has no spread at all
        origin = target[jnp.argmax(seen[:, 0])] if len(target) else jnp.zeros_like(state.mean)
        mean = origin + jnp.sum(w * (target - origin[None]), axis=0) / jnp.maximum(weight, _TINY)
        spread = jnp.sum(w * (target - mean[None]) ** 2, axis=0)
        return self.merge(state, MomentsState(weight, mean, spread, jnp.sum(w * error * error, axis=0)))

    def merge(self, one: MomentsState, other: MomentsState) -> MomentsState:
        weight = one.weight + other.weight
        share = other.weight / jnp.maximum(weight, _TINY)
        gap = jnp.where(one.weight == 0, jnp.zeros_like(one.mean), other.mean - one.mean)
        return MomentsState(
            weight,
            jnp.where(one.weight == 0, other.mean, one.mean + share * gap),
            one.spread + other.spread + one.weight * share * gap * gap,
            one.residual + other.residual,
        )

    def compute(self, state: MomentsState) -> jax.Array:
        flat = state.spread == 0
        ratio = state.residual / jnp.where(flat, jnp.ones_like(state.spread), state.spread)
        perfect = jnp.where(state.residual == 0, jnp.ones_like(ratio), jnp.zeros_like(ratio))
        score = jnp.mean(jnp.where(flat, perfect, 1 - ratio))
        return jnp.where(state.weight == 0, jnp.full_like(score, jnp.nan), score)


def weights_of(name: str, shape: tuple[int, ...], where: Any, weights: Any) -> jax.Array:
    """One weight per observed value: 0 where masked. `where` and `weights` cover the leading axes of the values."""
    dtype = default_float()
    result = jnp.ones(shape, dtype)
    for argument, array in (("where", where), ("weights", weights)):
        if array is None:
            continue
        array = jnp.asarray(array)
        if argument == "where" and array.dtype != jnp.bool_:
            raise TypeError(complaint(name, "where", "be boolean", array.dtype, "pass numbers as weights"))
        result = result * along_leading_axes(name, argument, array, shape).astype(dtype)
    return result
