"""Rules without a rate: they estimate how far away the solution is from how far the parameters have come."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.numpy import sqrt

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Scalar, StatefulSchedule, as_compute, check_scalar, complaint
from lossopt_jax.transforms._averages import bias_correction as corrected
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._clipping import global_norm
from lossopt_jax.transforms._lift import leafwise, treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._vectors import absolute_sum, averaged, combined, difference, inner, scaled


def ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, 0 where whole is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _normalized(left: list[jax.Array], squares: list[jax.Array], eps: jax.Array) -> list[jax.Array]:
    """x / (√v + ε), leaf by leaf."""
    return [ratio(x, sqrt(v) + eps.astype(v.dtype)) for x, v in zip(left, squares, strict=True)]


def _farthest(before: jax.Array, now: jax.Array, t: jax.Array, start: Callable[[], jax.Array]) -> jax.Array:
    """The largest distance so far, which the first step has to be told."""
    return jnp.maximum(now, jax.lax.cond(t > 1, lambda: before, start))


@registry.register()
@leafwise(
    needs=("params",),
    x0=Slot(fill=as_compute, exact=True),
    max_dist=Slot("leaf", nonnegative=True, exact=True),
    grad_norm=Slot("leaf", nonnegative=True, exact=True),
)
def scale_by_distance_over_gradients(
    g,
    slots,
    t,
    p,
    *,
    reps_rel: Annotated[Scalar, POSITIVE] = 1e-6,
    eps: Scalar = 1e-8,
    global_scale: Scalar = 1.0,
):
    """Distance over gradients for every array apart (LDoG).

        r ← max(r, ‖w − w₀‖),      r = c (1 + ‖w₀‖) at first
        G ← G + ‖g‖²
        u = s r / √(G + ε) g

    Kept is √G, which no gradient overflows.

    Args:
      reps_rel: c > 0; 1e-4 for models with batch normalisation.
      eps: ε ≥ 0, inside the root.
      global_scale: s, any real number; −1 for a complete update.

    Needs the parameters; w₀ are those that init saw.
    Slots: x0 (1 × parameters), max_dist, grad_norm (one number each per array).  Lift: leafwise.
    Source: Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, the layer-wise form.
    """
    distance = global_norm(p - slots.x0)
    farthest = _farthest(slots.max_dist, distance, t, lambda: reps_rel * (1 + global_norm(slots.x0)))
    grad_norm = jnp.hypot(slots.grad_norm, global_norm(g))
    factor = global_scale * ratio(farthest, jnp.hypot(grad_norm, sqrt(eps)))
    return factor * g, {"max_dist": farthest, "grad_norm": grad_norm}


_Start = Literal["heuristic", "distance", "learning_rate"]


@treewise(
    needs=("params",),
    x0=Slot(fill=as_compute, exact=True),
    max_dist=Slot(per="tree", nonnegative=True, exact=True),
    grad_norm=Slot(per="tree", nonnegative=True, exact=True),
)
def _scale_by_dog(g, slots, t, p, *, start: _Start, init_step: Annotated[Scalar, POSITIVE], eps: Scalar):
    """Distance over gradients, given how to start."""
    starts = {
        "heuristic": lambda: init_step * (1 + global_norm(slots.x0).astype(t.dtype)),
        "distance": lambda: init_step,
        "learning_rate": lambda: jnp.zeros_like(init_step),
    }
    distance = global_norm(difference(p, slots.x0)).astype(t.dtype)
    farthest = _farthest(slots.max_dist, distance, t, starts[start])
    grad_norm = jnp.hypot(slots.grad_norm, global_norm(g).astype(t.dtype))
    factor = ratio(farthest, jnp.hypot(grad_norm, sqrt(eps)))
    if start == "learning_rate":
        factor = jnp.where(farthest > 0, factor, init_step)
    return scaled(factor, g), {"max_dist": farthest, "grad_norm": grad_norm}


@registry.register()
def scale_by_dog(init_step: tuple[_Start, Any] = ("heuristic", 1e-6), eps: Any = 1e-8) -> GradientTransformation:
    """Distance over gradients (DoG): the farthest the tree has come, over all gradients so far.

        r ← max(r, ‖w − w₀‖)
        G ← G + ‖g‖²
        u = r / √(G + ε) g

    All norms over the whole tree. Kept is √G, which no gradient overflows.

    Args:
      init_step: how to start, with a number c > 0 that is in the state as "init_step":
        ("heuristic", c) for r = c (1 + ‖w₀‖), 1e-4 for models with batch normalisation;
        ("distance", c) for r = c;
        ("learning_rate", c) for u = c g while w = w₀.
      eps: ε ≥ 0, inside the root.

    Raises:
      ValueError: another way to start.

    Needs the parameters; w₀ are those that init saw.
    Slots: x0 (1 × parameters), max_dist, grad_norm (one number each).  Lift: treewise.
    Differs from: optax, which keeps G and r in the parameters' lowest precision (a bfloat16 G stops at 256 ‖g‖²), and
      from ("learning_rate", c) never moves if the first gradient is 0.
    Source: Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.
    """
    if not isinstance(init_step, tuple) or len(init_step) != 2 or init_step[0] not in get_args(_Start):
        must = f"be (start, number), start among {', '.join(map(repr, get_args(_Start)))}"
        raise ValueError(complaint("scale_by_dog", "init_step", must, f"{init_step!r}"))
    start, value = init_step
    return _scale_by_dog(start, value, eps)


@treewise(
    needs=("params",),
    x0=Slot(fill=as_compute, exact=True),
    max_dist=Slot(per="tree", nonnegative=True, exact=True),
    grad_norm=Slot(per="tree", nonnegative=True, exact=True),
)
def _scale_by_dowg(g, slots, t, p, *, init_estim_sq_dist: Annotated[Scalar, POSITIVE], eps: Scalar):
    """Distance over weighted gradients, given the first distance."""
    distance = global_norm(difference(p, slots.x0)).astype(t.dtype)
    farthest = _farthest(slots.max_dist, distance, t, lambda: sqrt(init_estim_sq_dist))
    grad_norm = jnp.hypot(slots.grad_norm, farthest * global_norm(g).astype(t.dtype))
    factor = farthest * ratio(farthest, grad_norm + eps)
    return scaled(factor, g), {"max_dist": farthest, "grad_norm": grad_norm}


@registry.register()
def scale_by_dowg(init_estim_sq_dist: Any = None, eps: Any = 1e-4) -> GradientTransformation:
    """Distance over weighted gradients (DoWG): as DoG, with later gradients counting more.

        r ← max(r, ‖w − w₀‖),      r = √c at first
        G ← G + r² ‖g‖²
        u = r² / (√G + ε) g

    All norms over the whole tree. Kept is √G, which no gradient overflows.

    Args:
      init_estim_sq_dist: c > 0, a first guess of the squared distance to the solution; None for ε.
      eps: ε ≥ 0, outside the root; > 0 where it is the first guess.

    Needs the parameters; w₀ are those that init saw.
    Slots: x0 (1 × parameters), max_dist, grad_norm (one number each).  Lift: treewise.
    Differs from: optax, which keeps G and r² in the parameters' lowest precision.
    Source: Khaled, Mishchenko & Jin 2023, arXiv:2305.16284, algorithm 1, with optax's ε.
    """
    return _scale_by_dowg(eps if init_estim_sq_dist is None else init_estim_sq_dist, eps)


@treewise(
    needs=("params",),
    mu=Slot(),
    nu=Slot(nonnegative=True),
    grad_sum=Slot(exact=True),
    x0=Slot(fill=as_compute, exact=True),
    estim_lr=Slot(per="tree", nonnegative=True, exact=True),
    numerator=Slot(per="tree", exact=True),
)
def _scale_by_prodigy(
    g,
    slots,
    t,
    p,
    *,
    learning_rate: Scalar,
    b1: Scalar,
    b2: Scalar,
    b3: Scalar,
    eps: Scalar,
    estim_lr0: Annotated[Scalar, POSITIVE],
    estim_lr_coef: Annotated[Scalar, NONNEGATIVE],
    weight_decay: Scalar,
    safeguard_warmup: bool,
    bias_correction: bool,
):
    """Prodigy, given β₃."""
    d = jnp.maximum(slots.estim_lr, estim_lr0)
    step = d * learning_rate
    if bias_correction:
        step = step * sqrt(corrected(b2, t)) / corrected(b1, t)
    scale = d / estim_lr0

    numerator = b3 * slots.numerator + scale * step * inner(g, difference(slots.x0, p), t.dtype)
    grad_sum = combined(b3, slots.grad_sum, scale * (d if safeguard_warmup else step), g)
    estimated = scaled(d, g)
    mu = averaged(b1, slots.mu, estimated)
    nu = averaged(b2, slots.nu, [x * x for x in estimated])

    # while the sum is 0 (no gradient yet, or a warm-up from 0) there is nothing to estimate
    estim_lr = jnp.maximum(d, estim_lr_coef * ratio(numerator, absolute_sum(grad_sum, t.dtype)))
    direction = _normalized(mu, nu, estim_lr * eps)
    changed = {"mu": mu, "nu": nu, "grad_sum": grad_sum, "estim_lr": estim_lr, "numerator": numerator}
    return combined(-step, direction, -step * weight_decay, p), changed


def _root(decay: Any, *step: Any) -> Any:
    return (decay(*step) if step else decay) ** 0.5


@registry.register()
def scale_by_prodigy(
    learning_rate: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    bias_correction: bool = True,
) -> GradientTransformation:
    """Adam whose rate is an estimate of the distance to the solution, in the form that grows fast.

        δ = d η √(1−β₂ᵗ) / (1−β₁ᵗ)
        a ← β₃ a + (d/d₀) δ ⟨g, w₀ − w⟩
        s ← β₃ s + (d/d₀) δ g
        m ← β₁ m + (1−β₁) d g
        v ← β₂ v + (1−β₂) (d g)²
        d⁺ = max(d, c a / ‖s‖₁),  d while s = 0
        u = −δ (m / (√v + d⁺ ε) + λ w)

    Args:
      learning_rate: η ≥ 0; a schedule should be 1 at its highest.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      b3: β₃ in [0, 1); None for the root of b2 given here (one set later in the state is not followed).
      eps: ε ≥ 0.
      estim_lr0: d₀ > 0, the first d; too small is harmless.
      estim_lr_coef: c ≥ 0, the argument to tune if any.
      weight_decay: λ ≥ 0, decoupled.
      safeguard_warmup: leave η out of s, for a warm-up that starts near 0.
      bias_correction: False for δ = d η, as the reference package by default.

    Needs the parameters; w₀ are those that init saw. The update is complete.
    Slots: mu, nu, grad_sum, x0 (4 × parameters), estim_lr (d; 0 before the first step), numerator (one number each).
      Lift: treewise.
    Differs from: optax, which is NaN for good after a first gradient or a first rate of 0, and keeps d in the
      parameters' lowest precision; the reference package, which skips a step of rate 0 altogether, while here its
      gradient counts in m and v.
    Source: Mishchenko & Defazio 2023, arXiv:2306.06101, the Adam version, and its authors' package.
    """
    if b3 is None and not callable(b2):
        check_scalar("scale_by_prodigy", "b2", b2)
    if b3 is None and isinstance(b2, StatefulSchedule):
        raise TypeError(complaint("scale_by_prodigy", "b2", "be a function of the step", f"{b2!r}", "give b3 as well"))
    if b3 is None:
        b3 = functools.partial(_root, b2) if callable(b2) else _root(b2)
    return _scale_by_prodigy(
        learning_rate, b1, b2, b3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup, bias_correction
    )


@registry.register()
@treewise(
    needs=("params",),
    mu=Slot(),
    nu=Slot(nonnegative=True),
    grad_sum=Slot(exact=True),
    estim_lr=Slot(per="tree", nonnegative=True, exact=True),
    numerator=Slot(per="tree", exact=True),
)
def scale_by_dadapt_adamw(
    g,
    slots,
    t,
    p,
    *,
    learning_rate: Scalar = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    estim_lr0: Annotated[Scalar, POSITIVE] = 1e-6,
    weight_decay: Scalar = 0.0,
):
    """Adam whose rate is a lower bound on the distance to the solution (D-Adaptation).

        δ = d η √(1−β₂ᵗ) / (1−β₁ᵗ),      β = √β₂
        a ← β a + (1−β) δ ⟨g, s / (√v + ε)⟩
        s ← β s + (1−β) δ g
        m ← β₁ m + (1−β₁) δ g
        v ← β₂ v + (1−β₂) g²
        d ← max(d, a / ((1−β) ‖s‖₁)),  as it was while s = 0
        u = −m / (√v + ε) − δ λ w

    Args:
      learning_rate: η ≥ 0; a schedule should be 1 at its highest.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      estim_lr0: d₀ > 0, the first d; too small is harmless.
      weight_decay: λ ≥ 0, decoupled.

    Needs the parameters. The update is complete.
    Slots: mu, nu, grad_sum (3 × parameters), estim_lr (d; 0 before the first step), numerator (one number each).
      Lift: treewise.
    Differs from: optax, which is NaN for good after a first rate of 0, and after a first gradient of 0; it keeps d in
      the parameters' lowest precision.
    Source: Defazio & Mishchenko 2023, arXiv:2301.07733, the Adam version, in the form of its authors' later releases.
    """
    d = jnp.maximum(slots.estim_lr, estim_lr0)
    step = d * learning_rate * sqrt(corrected(b2, t)) / corrected(b1, t)
    beta = sqrt(b2)
    agreement = inner(g, _normalized(slots.grad_sum, slots.nu, eps), t.dtype)
    numerator = beta * slots.numerator + (1 - beta) * step * agreement
    grad_sum = combined(beta, slots.grad_sum, (1 - beta) * step, g)
    mu = combined(b1, slots.mu, (1 - b1) * step, g)
    nu = averaged(b2, slots.nu, [x * x for x in g])
    # while the sum is 0 (no gradient yet, or a warm-up from 0) there is nothing to estimate
    estim_lr = jnp.maximum(d, ratio(numerator, (1 - beta) * absolute_sum(grad_sum, t.dtype)))
    changed = {"mu": mu, "nu": nu, "grad_sum": grad_sum, "estim_lr": estim_lr, "numerator": numerator}
    return combined(-jnp.ones_like(step), _normalized(mu, nu, eps), -step * weight_decay, p), changed
