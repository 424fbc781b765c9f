"""A rate that follows the gradient of the loss with respect to itself."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, Scalar, is_complex, map_arrays
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import wrapper
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._vectors import inner


def _parts(tree: Any) -> list[jax.Array]:
    """The arrays of a tree, a complex one as its two real parts."""
    return [part for x in jax.tree.leaves(tree) for part in ((x.real, x.imag) if is_complex(x) else (x,))]


def _unit(parts: list[jax.Array]) -> list[jax.Array]:
    """The same direction with norm 1; 0 where it is 0."""
    norm = global_norm(parts)
    divisor = jnp.where(norm > 0, norm, 1)
    return [x / divisor.astype(x.dtype) for x in parts]


@registry.register()
@wrapper(
    direction=Slot(),
    rate=Slot(per="tree", exact=True),
    base=Slot(per="tree", exact=True),
)
def hypergradient(
    run,
    updates,
    slots,
    t,
    *,
    learning_rate: Scalar,
    hypergradient_rate: Annotated[Scalar, NONNEGATIVE],
    multiplicative: bool = False,
):
    """A learning rate that grows while gradients agree with the last step, and shrinks while they do not.

        h = ⟨g, u₋⟩,  or cos(g, u₋) if multiplicative;      over all leaves, 0 at the first step
        η ← η + κ h,  or η (1 + κ h)
        u ← inner(g)
        step = −η u

    The rate of the last step is `get_slot(state, "rate")`. It begins at `learning_rate`, and a change of that, by hand
    or by a schedule, scales what has been learned: η ← η · (new / old). While it is 0 nothing moves or is learned.

    Args:
      inner: what makes u; without a rate, such as scale_by_adam.
      learning_rate: η₀ ≥ 0, where the rate begins.
      hypergradient_rate: κ ≥ 0. An additive one must suit the size of the gradients; a multiplicative one below 1
        keeps the rate positive, which an additive one may not.
      multiplicative: relative changes, which neither the size of the gradients nor that of the rate matters to.

    The update is complete: no rate belongs behind it.
    Slots: direction (1 × parameters), rate, base (one each).  Lift: wrapper.
    Differs from: the authors' package, whose Adam changes the rate array by array while it is in use; and in a step
      whose h overflows, which leaves the rate alone here.
    Source: Baydin et al. 2018, arXiv:1703.04782.
    """
    gradient, before = _parts(updates), _parts(map_arrays(lambda _, u: u, updates, slots.direction))
    if multiplicative:
        gradient, before = _unit(gradient), _unit(before)
    change = hypergradient_rate * inner(gradient, before, slots.rate.dtype)
    change = jnp.where(jnp.isfinite(change), change, 0)
    moving = learning_rate > 0
    # base is 0 until the first step that moves
    begun = slots.base > 0
    scaled = learning_rate * jnp.where(begun, slots.rate / jnp.where(begun, slots.base, 1), 1)
    rate = scaled * (1 + change) if multiplicative else scaled + change

    direction, state = run(updates)
    steps = map_arrays(lambda u: -jnp.where(moving, rate, 0).astype(u.dtype) * u, direction)
    # a copy: a direction may be the caller's gradient itself
    kept = map_arrays(lambda _, u: jnp.copy(u), slots.direction, direction)
    learned = {"rate": jnp.where(moving, rate, slots.rate), "base": jnp.where(moving, learning_rate, slots.base)}
    return steps, state, {"direction": kept, **learned}
