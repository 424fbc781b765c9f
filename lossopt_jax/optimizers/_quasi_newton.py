"""Optimizers for whole data sets: few steps, each of them well considered."""

from collections.abc import Callable
from typing import Any, Literal

from lossopt_jax.optimizers._registry import registry
from lossopt_jax.transforms import (
    GradientTransformation,
    chain,
    scale,
    scale_by_lbfgs,
    scale_by_learning_rate,
    scale_by_levenberg_marquardt,
    scale_by_zoom_linesearch,
)

_ZOOM = scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")


@registry.register()
def lbfgs(
    learning_rate: Any = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Any = _ZOOM,
) -> GradientTransformation:
    """L-BFGS: Newton steps with a Hessian estimated from the last ones.

    scale_by_lbfgs → scale(−1) (scale_by_learning_rate if given one) → line search

    Use when: the loss is smooth, the same in every step, and cheap enough for a few hundred.
    By name: as below.  Memory: (2 memory_size + 3) × parameters: 23 at 10.

    Args:
      learning_rate: η ≥ 0 in front of the line search, a number, an array or a schedule; None for 1.
      memory_size: M ≥ 1, pairs remembered.
      scale_init_precond: scale the estimate by its newest pair.
      linesearch: a transform that finds the step; None for none, and then a learning_rate.

    Needs the parameters, and `update(…, value=loss, grad=gradient, value_fn=loss_of_params)` for the line search;
    `value_and_grad_from_state` saves one gradient in each step.

    Source: Liu & Nocedal 1989, doi:10.1007/BF01589116; see `scale_by_lbfgs` and `scale_by_zoom_linesearch`.
    """
    factor = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    parts = [scale_by_lbfgs(memory_size, scale_init_precond), factor]
    return chain(*parts) if linesearch is None else chain(*parts, linesearch)


@registry.register("lm")
def levenberg_marquardt(
    residual_fn: Callable[[Any], Any] | None = None,
    solver: Literal["qr", "cholesky", "cg"] = "qr",
    initial_damping: Any = 1e-3,
    scale_invariant: bool = False,
    max_cg_steps: int = 100,
    cg_tol: Any = 1e-6,
) -> GradientTransformation:
    """Levenberg–Marquardt: least squares in a dozen steps.

    scale_by_levenberg_marquardt

    Use when: the loss is a sum of squares of smooth residuals: curve fits, calibration, bundle adjustment.
    By name: as below; the residuals come with each update.  Memory: none kept, the Jacobian in passing; none with "cg".

    Args:
      residual_fn: parameters → residuals, one array of rank ≥ 1; None for what each update gets as `value_fn`.
      solver: "qr" (accurate), "cholesky" (faster) or "cg" (many parameters).
      initial_damping: τ > 0: 1e-6 near the solution, 1 far away.
      scale_invariant: the units of the parameters do not matter then; not with "cg".
      max_cg_steps: products with the Jacobian at most, ≥ 1.
      cg_tol: relative accuracy of "cg", in [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, lossopt_jax as lo
      >>> x = jnp.linspace(0.0, 4.0, 20)
      >>> y = 3.0 * jnp.exp(-0.7 * x)
      >>> tx = lo.optimizers.levenberg_marquardt(lambda p: p["a"] * jnp.exp(-p["b"] * x) - y)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(params, state, params)  # for which leaves move, not for gradients
      ...     return lo.apply_updates(params, updates), state
      >>> params = {"a": jnp.asarray(1.0), "b": jnp.asarray(0.1)}
      >>> state = tx.init(params)
      >>> for _ in range(10):
      ...     params, state = step(params, state)
      >>> round(float(params["a"]), 3), round(float(params["b"]), 3)
      (3.0, 0.7)

    Source: see `scale_by_levenberg_marquardt`.
    """
    return chain(
        scale_by_levenberg_marquardt(residual_fn, solver, initial_damping, scale_invariant, max_cg_steps, cg_tol)
    )
