"""Least squares: steps from the residuals themselves instead of from the gradient of their squares."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from lossopt_jax._core import COUNT, POSITIVE, UNIT, Scalar, check_scalar, complaint
from lossopt_jax.transforms._base import GradientTransformation
from lossopt_jax.transforms._lift import treewise
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._vectors import add_scaled, inner, one_vector

_NAME = "scale_by_levenberg_marquardt"
_List = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class _Linear:
    """r(p + δ) ≈ r + Jδ: the residuals, Jᵀr, the size of JᵀJ beside D, D or None for I, and μ → δ."""

    residuals: jax.Array
    gradient: _List
    size: jax.Array
    diagonal: _List | None
    solve: Callable[[jax.Array], _List]


def _dense(function: Callable[[_List], jax.Array], p: _List, dtype: Any, solver: str, scale_invariant: bool) -> _Linear:
    """With J written down: (JᵀJ + μD)δ = −Jᵀr by Cholesky, or min ‖[J; √(μD)]δ + [r; 0]‖ by QR."""
    x, back = one_vector(p, dtype)

    def vector_of(x: jax.Array) -> jax.Array:
        return function(back(x)).reshape(-1)

    shape = jax.eval_shape(vector_of, x)
    if shape.size >= x.size:
        r, along = jax.linearize(vector_of, x)
        jacobian = jax.vmap(along, out_axes=1)(jnp.eye(x.size, dtype=dtype))
    else:
        r, pull = jax.vjp(vector_of, x)
        (jacobian,) = jax.vmap(pull)(jnp.eye(shape.size, dtype=dtype))
    gradient, squares = r @ jacobian, jnp.sum(jnp.square(jacobian), axis=0)
    diagonal = jnp.where(squares > 0, squares, 1) if scale_invariant else jnp.ones_like(squares)

    def solve(mu: jax.Array) -> _List:
        if solver == "cholesky":
            normal = jacobian.T @ jacobian + jnp.diag(mu * diagonal)
            return back(-jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(normal), gradient))
        # the right-hand side as a last column: R alone holds the solution
        above = jnp.concatenate([jacobian, r[:, None]], axis=1)
        below = jnp.concatenate([jnp.diag(jnp.sqrt(mu * diagonal)), jnp.zeros((x.size, 1), dtype)], axis=1)
        triangle = jnp.linalg.qr(jnp.concatenate([above, below]), mode="r")
        square, right = triangle[: x.size, : x.size], triangle[: x.size, x.size]
        return back(-jax.scipy.linalg.solve_triangular(square, right))

    size = jnp.max(squares / diagonal)
    return _Linear(r, back(gradient), size, back(diagonal) if scale_invariant else None, solve)


def _matrix_free(
    function: Callable[[_List], jax.Array], p: _List, dtype: Any, max_cg_steps: int, cg_tol: jax.Array
) -> _Linear:
    """With J as a product only: conjugate gradients on min ‖Jδ + r‖² + μ‖δ‖², the residual s = −r − Jδ kept apart."""
    r, along = jax.linearize(function, p)
    transposed = jax.linear_transpose(along, p)
    gradient = transposed(r)[0]
    square = inner(gradient, gradient, dtype)
    steepest = jnp.sum(jnp.square(along(gradient)))
    known = square > 0

    def solve(mu: jax.Array) -> _List:
        def go_on(carry: Any) -> jax.Array:
            k, *_, gamma = carry
            return (k < max_cg_steps) & (gamma > jnp.square(cg_tol) * square)

        def advance(carry: Any) -> Any:
            k, delta, s, d, gamma = carry
            image = along(d)
            alpha = gamma / (jnp.sum(jnp.square(image)) + mu * inner(d, d, dtype))
            delta, s = add_scaled(delta, alpha, d), s - alpha * image
            downhill = add_scaled(transposed(s)[0], -mu, delta)
            after = inner(downhill, downhill, dtype)
            return k + 1, delta, s, add_scaled(downhill, after / gamma, d), after

        down = [-x for x in gradient]
        begin = (jnp.zeros((), jnp.int32), [jnp.zeros_like(x) for x in p], -r, down, square)
        return jax.lax.while_loop(go_on, advance, begin)[1]

    size = jnp.where(known, steepest / jnp.where(known, square, 1), 0)
    return _Linear(r, gradient, size, None, solve)


@treewise(
    needs=("params", "value_fn"),
    damping=Slot(per="tree", exact=True),
    growth=Slot(per="tree", fill=2.0, exact=True),
)
def _scale_by_levenberg_marquardt(
    g,
    slots,
    t,
    p,
    residual_fn,
    *,
    solver: Literal["qr", "cholesky", "cg"] = "qr",
    initial_damping: Annotated[Scalar, POSITIVE] = 1e-3,
    scale_invariant: bool = False,
    max_cg_steps: int = 100,
    cg_tol: Annotated[Scalar, UNIT] = 1e-6,
):
    """Damped Gauss–Newton steps, by the gain of the last one."""
    if not sum(x.size for x in p):
        return g, {}
    dtype = t.dtype

    def residuals_at(x: _List) -> jax.Array:
        r = residual_fn(x)
        if not r.shape:
            must, remedy = "return the residuals, an array", "neither square nor sum them"
            raise TypeError(complaint(_NAME, "the residual function", must, "a scalar", remedy))
        return r.astype(dtype)

    if solver == "cg":
        model = _matrix_free(residuals_at, p, dtype, max_cg_steps, cg_tol)
    else:
        model = _dense(residuals_at, p, dtype, solver, scale_invariant)

    info = jnp.finfo(dtype)
    mu = jnp.where(slots.damping > 0, slots.damping, initial_damping * model.size)
    step = model.solve(jnp.maximum(mu, info.tiny))
    damped = step if model.diagonal is None else [d * x for d, x in zip(model.diagonal, step, strict=True)]
    predicted = inner(step, add_scaled([-x for x in model.gradient], mu, damped), dtype)
    r, after = model.residuals, residuals_at(add_scaled(p, jnp.ones((), dtype), step)).reshape(model.residuals.shape)
    actual = jnp.sum((r - after) * (r + after))

    lost = 4 * info.eps * jnp.sum(jnp.square(r))  # in the rounding of ‖r‖²
    unseen = (jnp.abs(actual) <= lost) & (jnp.abs(predicted) <= lost) & jnp.isfinite(lost)
    gain = actual / jnp.where(predicted > 0, predicted, 1)
    gained = (gain > 0) & (predicted > 0)
    accepted = gained | unseen
    shrunk = mu * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3)
    damping = jnp.where(unseen, mu, jnp.where(gained, shrunk, mu * slots.growth))
    growth = jnp.where(unseen, slots.growth, jnp.where(gained, 2, 2 * slots.growth))
    return [jnp.where(accepted, x, jnp.zeros_like(old)) for x, old in zip(step, g, strict=True)], {
        "damping": jnp.where(jnp.isfinite(mu), jnp.minimum(damping, info.max), 0),
        "growth": jnp.minimum(growth, info.max),
    }


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OfResiduals(GradientTransformation):
    """A transform that brings its own `value_fn`."""

    inner: GradientTransformation
    residual_fn: Callable[[Any], Any]

    @property
    def name(self) -> str:
        return self.inner.name

    def _members(self) -> tuple[GradientTransformation, ...]:
        return (self.inner,)

    def _parts(self) -> dict[str, Any]:
        return {"residual_fn": self.residual_fn} | self.inner._parts()

    def _init(self, params: Any) -> Any:
        return self.inner._init(params)

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        return self.inner._run(updates, state, params, extra | {"value_fn": self.residual_fn})


@registry.register()
def scale_by_levenberg_marquardt(
    residual_fn: Callable[[Any], Any] | None = None,
    solver: Literal["qr", "cholesky", "cg"] = "qr",
    initial_damping: Any = 1e-3,
    scale_invariant: bool = False,
    max_cg_steps: int = 100,
    cg_tol: Any = 1e-6,
) -> GradientTransformation:
    """Levenberg–Marquardt: minimise ½‖r(w)‖² by damped Gauss–Newton steps.

        (JᵀJ + μD) δ = −Jᵀr,      J = ∂r/∂w,  D = I, or diag(JᵀJ) if scale_invariant
        ρ = (‖r‖² − ‖r(w+δ)‖²) / ⟨δ, μDδ − Jᵀr⟩,      what was gained of what was promised
        ρ > 0:  u = δ,  μ ← μ max(⅓, 1 − (2ρ−1)³),  ν ← 2
        else:   u = 0,  μ ← μν,  ν ← 2ν
        before the first: μ = τ max(diag(JᵀJ)/D), ν = 2
        both gain and promise within 4 ulps of ‖r‖²: u = δ, and μ and ν stay

    The update is complete. The gradients say only which leaves move (None: held fixed); in a jitted step of one's own
    the parameters themselves may stand for them.

    Args:
      residual_fn: parameters → residuals, one array of rank ≥ 1, neither squared nor summed; None for the function
        given to each update as `value_fn`, which may close over other data every time.
      solver: "qr" of [J; √(μD)], accurate where the problem is badly conditioned; "cholesky" of JᵀJ + μD, faster;
        "cg", which never writes J down, for many parameters.
      initial_damping: τ > 0: 1e-6 near the solution, 1 far away.
      scale_invariant: the units of the parameters do not matter then; not with "cg".
      max_cg_steps: products with J and Jᵀ at most, ≥ 1.
      cg_tol: what may be left of the gradient, relative to it, in [0, 1]. With "cg", τ is relative to ‖Jg‖²/‖g‖².

    Needs the parameters, and `update(…, value_fn=residuals)` if residual_fn is None; call it under `jit`.
    Slots: damping μ, growth ν (one number each). In passing, J: residuals × parameters, unless "cg".  Lift: treewise.

    Raises:
      TypeError: no residual function, or one that returns a scalar.
      ValueError: another solver, scale_invariant with "cg", or a value out of range.

    Source: Levenberg 1944; Marquardt 1963; Nielsen 1999, IMM-REP-1999-05, for μ, as in Madsen, Nielsen & Tingleff 2004,
    algorithm 3.16; the last line is not theirs: it takes the place of their stopping tests and saves half the digits.
    """
    if residual_fn is not None and not callable(residual_fn):
        raise TypeError(complaint(_NAME, "residual_fn", "be a function of the parameters", f"{residual_fn!r}"))
    if solver not in ("qr", "cholesky", "cg"):
        raise ValueError(complaint(_NAME, "solver", "be 'qr', 'cholesky' or 'cg'", repr(solver)))
    if solver == "cg" and scale_invariant:
        remedy = "rescale the parameters, or use solver='qr'"
        raise ValueError(complaint(_NAME, "scale_invariant", "be False with 'cg'", True, remedy))
    check_scalar(_NAME, "max_cg_steps", max_cg_steps, within=COUNT)
    rule = _scale_by_levenberg_marquardt(solver, initial_damping, scale_invariant, max_cg_steps, cg_tol)
    return rule if residual_fn is None else OfResiduals(rule, residual_fn)
