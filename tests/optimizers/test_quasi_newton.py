"""L-BFGS, its line searches and Levenberg–Marquardt: against live optax and SciPy, and NumPy where neither has them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import MATRICES, RATE, STEPS, Case, check, falling, flat, numpy_path, parametrize, tree

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
BACKTRACKING, ZOOM = T.scale_by_backtracking_linesearch, T.scale_by_zoom_linesearch


# ------------------------------------------------------------------------------------------------------- objectives


def vector(params):
    return jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves(params)])


def rosenbrock_residuals(params):
    x = vector(params)
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def rosenbrock(params):
    return jnp.sum(rosenbrock_residuals(params) ** 2)


def bowl(params):
    """½ ‖w‖²: along u = −r w the loss is least at η = 1/r, and every condition can be worked out by hand."""
    return jnp.sum(vector(params) ** 2) / 2


def quartic(params):
    return jnp.sum(vector(params) ** 4) / 4


def waves(params):
    return jnp.sum(2 + jnp.sin(vector(params)))


def valley(params):
    """Convex and no quadratic."""
    x = vector(params)
    return jnp.sum(jnp.arange(1.0, 1 + x.size) * (jnp.log1p(jnp.exp(2 * x)) - x) + x**2 / 10)


ONES = {"a": np.array([1.0, -1.0]), "b": np.array([[1.0, 1.0]])}
CREST = {"x": np.array([1.3, 1.3])}
CLASSIC = {"x": np.array([-1.2, 1.0])}
HARD = {"x": np.array([-1.2, 1.0]), "y": np.array([-0.5, 2.0])}


def descend(tx, value_fn, start, count=STEPS, apply=lo.apply_updates, read=lambda params, state: params):
    """Where the parameters (or `read(params, state)`) are after every step."""

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return apply(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state, points = tx.init(params), []
    for _ in range(count):
        params, state = step(params, state)
        points.append(flat(read(params, state)))
    return np.stack(points)


def against_optax(ours, theirs, value_fn, start, count=STEPS):
    def peer():
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return descend(theirs(), value_fn, start, count, optax.apply_updates)

    return Case("optax", ours, peer, lambda tx: descend(tx, value_fn, start, count))


def search(name, value_fn, start, *args, rate=1.0, count=6, **kwargs):
    """One line search behind gradient descent, ours and optax's."""
    return against_optax(
        lambda: lo.chain(O.sgd(rate), getattr(T, name)(*args, **kwargs)),
        lambda: optax.chain(optax.sgd(rate), getattr(optax, name)(*args, **kwargs)),
        value_fn,
        start,
        count,
    )


backtrack, zoom = partial(search, "scale_by_backtracking_linesearch"), partial(search, "scale_by_zoom_linesearch")


# --------------------------------------------------------------------------------------------------- transcriptions


def lbfgs_in_numpy(memory, scaled):
    """Algorithm 7.4 of Nocedal & Wright, without the pairs of negative curvature."""

    def start(w):
        pairs, last = [], None

        def move(g, t):
            nonlocal w, last
            if last is not None:
                s, y = w - last[0], g - last[1]
                if s @ y > np.finfo(float).eps * np.linalg.norm(s) * np.linalg.norm(y):
                    pairs.append((s, y, 1 / (s @ y)))
                    del pairs[:-memory]
            last, q, alphas = (w, g), g.copy(), []
            for s, y, rho in reversed(pairs):
                alphas.append(rho * (s @ q))
                q = q - alphas[-1] * y
            if scaled:
                s, y, _ = pairs[-1] if pairs else (None, None, None)
                q = q * (s @ y / (y @ y) if pairs else min(1, 1 / np.linalg.norm(g)))
            for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
                q = q + (alpha - rho * (y @ q)) * s
            w = w - RATE * q
            return w

        return move

    return numpy_path(start)


def conjugate_gradients(a, b, count, tol):
    x, r = np.zeros_like(b), b.copy()
    d = r
    for _ in range(count):
        if np.linalg.norm(r) <= tol * np.linalg.norm(b):
            break
        alpha = (r @ r) / (d @ a @ d)
        x, before, r = x + alpha * d, r, r - alpha * (a @ d)
        d = r + (r @ r) / (before @ before) * d
    return x


def nielsen_in_numpy(residuals, jacobian, w, tau, scaled, cg, count):
    """Algorithm 3.16 of Madsen, Nielsen & Tingleff, without its stopping tests."""
    mu, nu, points = None, 2.0, []
    for _ in range(count):
        r, j = residuals(w), jacobian(w)
        a, g = j.T @ j, j.T @ r
        d = np.diag(np.diag(a)) if scaled else np.eye(w.size)
        if mu is None:
            mu = tau * (np.max(np.diag(a) / np.diag(d)) if cg is None else (g @ a @ g) / (g @ g))
        h = np.linalg.solve(a + mu * d, -g) if cg is None else conjugate_gradients(a + mu * d, -g, *cg)
        after = residuals(w + h)
        gain = (r @ r - after @ after) / (h @ (mu * d @ h - g))
        if gain > 0:
            w, mu, nu = w + h, mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
        else:
            mu, nu = mu * nu, 2 * nu
        points.append(w)
    return np.stack(points)


def rosenbrock_jacobian(w):
    n = w.size
    upper = 10 * (np.eye(n - 1, n, 1) - 2 * np.diag(w)[:-1])
    return np.concatenate([upper, -np.eye(n - 1, n)])


X = np.linspace(0.0, 3.0, 12)
Y = 2.0 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.cos(7 * X)
DECAY = {"p": np.array([1.0, 0.3, 0.0])}


def decay_residuals(params):
    a, b, c = params["p"]
    return a * jnp.exp(-b * X) + c - Y


def decay_jacobian(w):
    e = np.exp(-w[1] * X)
    return np.stack([e, -w[0] * X * e, np.ones_like(X)], axis=1)


def rosenbrock_in_numpy(w):
    return np.concatenate([10 * (w[1:] - w[:-1] ** 2), 1 - w[:-1]])


def decay_in_numpy(w):
    return w[0] * np.exp(-w[1] * X) + w[2] - Y


# residuals and a start, both in NumPy with the Jacobian, and steps until the gain drowns in rounding
PROBLEMS = {
    "rosenbrock": (rosenbrock_residuals, CLASSIC, rosenbrock_in_numpy, rosenbrock_jacobian, STEPS),
    "local": (rosenbrock_residuals, HARD, rosenbrock_in_numpy, rosenbrock_jacobian, 10),
    "decay": (decay_residuals, DECAY, decay_in_numpy, decay_jacobian, 6),
}


def fit(tx, residuals, start, count=STEPS, *, read=lambda params, state: params, **extra):
    """Where the parameters are after every step of a transform that has its residuals."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params, **extra)
        return lo.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state, points = tx.init(params), []
    for _ in range(count):
        params, state = step(params, state)
        points.append(flat(read(params, state)))
    return np.stack(points)


def least_squares(make, problem, tau=1e-3, scaled=False, cg=None, bound=True, **arguments):
    residuals, start, in_numpy, jacobian, count = PROBLEMS[problem]
    arguments |= {"initial_damping": tau, "scale_invariant": scaled}
    if cg is not None:
        arguments |= {"solver": "cg", "max_cg_steps": cg[0], "cg_tol": cg[1]}
    extra = {} if bound else {"value_fn": residuals}
    return Case(
        "NumPy",
        lambda: make(residuals if bound else None, **arguments),
        lambda: nielsen_in_numpy(in_numpy, jacobian, flat(start), tau, scaled, cg, count),
        lambda tx: fit(tx, residuals, start, count, **extra),
        atol=1e-11,  # the normal equations of the transcription lose digits
    )


def first_cg_ratio():
    """What one step of conjugate gradients leaves of the first gradient of the decay, relative to it."""
    w = flat(DECAY)
    j, r = decay_jacobian(w), decay_in_numpy(w)
    a, b = j.T @ j, -j.T @ r
    a = a + 0.1 * (b @ a @ b) / (b @ b) * np.eye(w.size)
    left = b - (b @ b) / (b @ a @ b) * (a @ b)
    return np.linalg.norm(left) / np.linalg.norm(b)


# ------------------------------------------------------------------------------------------------------------- cases

CLOSE = 0.9996  # so near to a bound that 0.1 % more is beyond it
RISE = (np.sin(1.35) - np.sin(1.3)) / (2 + np.sin(1.3))
CASES = {
    "scale_by_lbfgs": [
        *(
            Case(
                "NumPy",
                lambda m=memory, s=scaled: lo.chain(T.scale_by_lbfgs(m, s), O.sgd(RATE)),
                lambda m=memory, s=scaled: lbfgs_in_numpy(m, s),
            )
            for memory, scaled in [(1, True), (3, True), (3, False), (10, True)]
        ),
        *(
            against_optax(
                lambda m=memory, s=scaled: lo.chain(T.scale_by_lbfgs(m, s), O.sgd(0.3)),
                lambda m=memory, s=scaled: optax.chain(optax.scale_by_lbfgs(m, s), optax.sgd(0.3)),
                valley,
                tree(0),
            )
            for memory, scaled in [(1, True), (4, True), (4, False)]
        ),
    ],
    "lbfgs": [
        against_optax(lambda kw=kw: O.lbfgs(**kw), lambda kw=kw: optax.lbfgs(**kw), objective, start)
        for objective, start, kw in [
            (rosenbrock, HARD, {}),
            (rosenbrock, HARD, {"memory_size": 2, "scale_init_precond": False}),
            (valley, tree(0), {"learning_rate": RATE}),
            (valley, tree(0), {"learning_rate": falling}),
            (valley, tree(0), {"learning_rate": falling, "linesearch": None}),
        ]
    ],
    "scale_by_backtracking_linesearch": [
        backtrack(rosenbrock, HARD, 40, rate=0.1, count=STEPS),
        backtrack(rosenbrock, HARD, 40, 0.3, 0.5, 2.0, 3.0, rate=0.1, store_grad=True),
        backtrack(valley, tree(0), 40, increase_factor=jnp.inf, max_learning_rate=0.7),
        backtrack(valley, tree(0), 40, slope_rtol=jnp.asarray(0.4), decrease_factor=np.float32(0.75)),
        backtrack(bowl, ONES, 40, slope_rtol=0.5 * CLOSE),
        backtrack(bowl, ONES, 40, slope_rtol=0.1, atol=1.76 * CLOSE, rate=2.2),
        backtrack(bowl, ONES, 40, slope_rtol=0.1, rtol=0.88 * CLOSE, rate=2.2),
    ],
    "scale_by_zoom_linesearch": [
        zoom(rosenbrock, HARD, 20, rate=0.1, count=STEPS),
        zoom(rosenbrock, HARD, 20, rate=0.01, increase_factor=3.0, curv_rtol=0.1, initial_guess_strategy="one"),
        zoom(rosenbrock, HARD, 20, rate=0.01, max_learning_rate=0.7, approx_dec_rtol=None),
        zoom(valley, tree(0), 20, curv_rtol=jnp.inf),
        zoom(bowl, ONES, 20, slope_rtol=0.5 * CLOSE, approx_dec_rtol=None),
        zoom(bowl, ONES, 20, curv_rtol=0.8 * CLOSE, rate=0.2),
        zoom(bowl, ONES, 20, curv_rtol=0.5, tol=0.24 * CLOSE, rate=0.2),
        zoom(quartic, ONES, 20, curv_rtol=0.0, stepsize_precision=0.5 * CLOSE, rate=5.0, count=1),
        zoom(waves, CREST, 20, approx_dec_rtol=RISE * CLOSE, rate=(2 * np.pi - 0.05) / np.cos(1.3), count=2),
    ],
    "scale_by_levenberg_marquardt": [
        least_squares(T.scale_by_levenberg_marquardt, "rosenbrock", tau=1e-6, solver="cholesky"),
        least_squares(T.scale_by_levenberg_marquardt, "decay", tau=0.1, solver="qr"),
        least_squares(T.scale_by_levenberg_marquardt, "decay", tau=0.1, scaled=True, bound=False),
        least_squares(T.scale_by_levenberg_marquardt, "local", 0.1, cg=(2, 0.0)),
        least_squares(T.scale_by_levenberg_marquardt, "decay", 0.1, cg=(9, first_cg_ratio() * CLOSE), bound=False),
    ],
    "levenberg_marquardt": [
        least_squares(O.levenberg_marquardt, "rosenbrock", 1e-3),
        least_squares(O.levenberg_marquardt, "rosenbrock", 1e-6, bound=False),
        least_squares(O.levenberg_marquardt, "decay", 1e-3, True, solver="cholesky"),
    ],
}


@pytest.mark.slow
@parametrize(CASES)
def test_reference(x64, case):
    check(case)


# ------------------------------------------------------------------------------------------------------- convergence


def test_lbfgs_finds_the_minimum_of_rosenbrock(x64):
    path = descend(O.lbfgs(), rosenbrock, {"x": np.full(10, -1.0)}, count=100)
    np.testing.assert_allclose(path[-1], 1.0, atol=1e-8)


def logistic_regression():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x, sign = (x - x.mean(0)) / x.std(0), 2.0 * y - 1.0

    def loss(w):
        dtype = w["bias"].dtype
        margin = jnp.asarray(sign, dtype) * (jnp.asarray(x, dtype) @ w["weights"] + w["bias"])
        return jnp.mean(jnp.logaddexp(-margin, jnp.zeros_like(margin))) + 1e-3 * jnp.sum(w["weights"] ** 2)

    return loss, {"weights": np.zeros(x.shape[1]), "bias": np.zeros(())}


@pytest.mark.slow
@pytest.mark.parametrize("linesearch", [ZOOM(20, initial_guess_strategy="one"), BACKTRACKING(20)], ids=["zoom", "back"])
def test_lbfgs_fits_a_logistic_regression_as_scipy_does(x64, linesearch):
    from scipy.optimize import minimize

    loss, start = logistic_regression()

    def of_vector(v):
        return loss({"bias": v[0], "weights": v[1:]})

    both, exact = jax.jit(jax.value_and_grad(of_vector)), {"gtol": 1e-10, "ftol": 0}
    best = minimize(both, np.zeros(31), jac=True, method="L-BFGS-B", options=exact)
    path = descend(O.lbfgs(linesearch=linesearch), loss, start, 60)
    values = jax.vmap(of_vector)(jnp.asarray(path))
    assert best.fun - 1e-12 <= values[-1] <= best.fun * (1 + 1e-9)
    assert np.all(np.diff(values) <= 1e-15)


def test_lbfgs_fits_in_float32_too():
    loss, start = logistic_regression()
    start = jax.tree.map(lambda w: w.astype(np.float32), start)
    path = descend(O.lbfgs(), loss, start, 60)
    assert float(loss({"bias": path[-1][0], "weights": path[-1][1:]})) < 0.068083  # SciPy: 0.06808282


@pytest.mark.parametrize("solver", ["qr", "cholesky", "cg"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_least_squares_end_where_scipy_does(x64, problem, solver):
    from scipy import optimize

    residuals, start, in_numpy, jacobian, _ = PROBLEMS[problem]
    best = optimize.least_squares(in_numpy, flat(start), jacobian, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    end = fit(O.levenberg_marquardt(residuals, solver, cg_tol=1e-10), residuals, start, 120)[-1]
    np.testing.assert_allclose(end, best.x, atol=1e-6)
    slope, residual = jacobian(end).T @ in_numpy(end), np.linalg.norm(in_numpy(end))
    # Steps are taken by sums of squares, which know a slope to √ε of ‖J‖‖r‖; SciPy stops at 3e-8 in the local one.
    known = np.finfo(float).eps ** 0.5 * np.linalg.norm(jacobian(end), axis=0).max() * residual
    np.testing.assert_allclose(slope, 0, atol=known + 1e-15 if solver == "cg" else 1e-9)


def test_few_residuals_and_many_parameters(x64):
    start = {"w": np.linspace(1.0, 2.0, 7)}

    def two(params):
        return jnp.stack([jnp.prod(params["w"]) - 2.0, jnp.sum(params["w"]) - 8.0])

    for solver in ("qr", "cholesky", "cg"):
        end = fit(O.levenberg_marquardt(two, solver), two, start, 30)[-1]
        np.testing.assert_allclose(two({"w": end}), 0, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- curvature


def test_lbfgs_points_uphill_in_spite_of_negative_curvature(x64):
    """Where it is −1 along one axis, optax keeps the pair and turns the direction round."""

    def saddle(w):
        return (w[0] ** 2 - w[1] ** 2) / 2

    def uphill(tx):
        w = jnp.array([0.1, 1.0])
        state, slopes = tx.init(w), []
        for _ in range(4):
            grad = jax.grad(saddle)(w)
            direction, state = tx.update(grad, state, w)
            slopes.append(float(grad @ direction))
            w = w - 0.1 * grad
        return slopes

    assert min(uphill(T.scale_by_lbfgs(3))) > 0
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert min(uphill(optax.scale_by_lbfgs(3))) < 0


# ------------------------------------------------------------------------------------------------------- line search

SEARCHES = {"backtracking": partial(BACKTRACKING, store_grad=True), "zoom": ZOOM}
searches = pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)


def once(tx, value_fn, params, state=None):
    value, grad = jax.value_and_grad(value_fn)(params)
    state = tx.init(params) if state is None else state
    return tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)


def uneven(w, a, scale):
    """Smooth, bounded below and not convex."""
    return scale * jnp.sum(jnp.log1p((a @ w - 1) ** 2)) + jnp.sum(w**2)


def searched(tx):
    """One step on functions of very different scales: (function, start, update, state)."""
    step = jax.jit(lambda w, a, scale: once(tx, partial(uneven, a=a, scale=scale), w))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, scale = rng.normal(size=(6, 5)) * 10.0 ** rng.integers(-1, 2), 10.0 ** rng.integers(-3, 4)
        w = jnp.asarray(rng.normal(size=5))
        yield partial(uneven, a=a, scale=scale), w, *step(w, a, scale)


def test_zoom_ends_at_the_strong_wolfe_conditions(x64):
    c1, c2 = 1e-3, 0.3
    tx = lo.chain(O.sgd(1.0), ZOOM(40, slope_rtol=c1, curv_rtol=c2, approx_dec_rtol=None, stepsize_precision=0.0))
    for value_fn, w, u, state in searched(tx):
        eta, g = lo.get_slot(state, "learning_rate"), jax.grad(value_fn)(w)
        assert value_fn(w + u) <= value_fn(w) + c1 * jnp.vdot(u, g)
        assert abs(jnp.vdot(u, jax.grad(value_fn)(w + u))) <= c2 * abs(jnp.vdot(u, g))
        np.testing.assert_allclose(u, -eta * g, rtol=1e-14)
        np.testing.assert_allclose(lo.get_slot(state, "value"), value_fn(w + u), rtol=1e-14)
        np.testing.assert_allclose(lo.get_slot(state, "grad"), jax.grad(value_fn)(w + u), rtol=1e-9, atol=1e-9)


def test_backtracking_ends_at_the_first_step_that_falls_enough(x64):
    tx = lo.chain(O.sgd(1.0), BACKTRACKING(200, slope_rtol=0.1, decrease_factor=0.5))
    for value_fn, w, u, state in searched(tx):
        eta, g = float(lo.get_slot(state, "learning_rate")), jax.grad(value_fn)(w)

        def falls(step, w=w, g=g, value_fn=value_fn):
            return value_fn(w - step * g) <= value_fn(w) - 0.1 * step * jnp.vdot(g, g)

        assert falls(eta)
        assert eta == 1.0 or not falls(2 * eta)
        np.testing.assert_allclose(u, -eta * g, rtol=1e-14)


@searches
@pytest.mark.parametrize("beyond", [jnp.nan, jnp.inf, -jnp.inf])
def test_no_loss_means_too_far(make, beyond):
    def barrier(w):
        inside = jnp.where(w < 1, w, 0.5)
        return jnp.sum(jnp.where(w < 1, -jnp.log1p(-inside) - 3 * inside, beyond))

    w = jnp.array([0.0, 0.1])
    path = descend(lo.chain(O.sgd(4.0), make(30)), barrier, w, 20)
    np.testing.assert_allclose(path[-1], 2 / 3, atol=1e-2)


@searches
def test_a_gradient_of_zero_moves_nothing(make):
    updates, state = once(lo.chain(O.sgd(1.0), make(10)), bowl, jax.tree.map(jnp.zeros_like, ONES))
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@searches
def test_the_loss_never_rises(make):
    """Uphill, at a point without a loss, and where every trial is too long."""
    up, w = lo.chain(T.scale(1.0), make(8)), jnp.array([1.0, -2.0])
    updates, state = once(up, bowl, w)
    assert not np.any(updates)
    assert float(lo.get_slot(state, "learning_rate")) == 0.0
    assert float(lo.get_slot(state, "value")) == 2.5
    np.testing.assert_array_equal(lo.get_slot(state, "grad"), w)
    assert float(lo.get_slot(state, "guess")) == 1.0

    down = lo.chain(O.sgd(1.0), make(8))
    updates, state = once(down, lambda w: bowl(w) * jnp.nan, w)
    assert not np.any(updates)
    assert float(lo.get_slot(state, "guess")) == 1.0
    assert np.any(once(down, bowl, w, state)[0])


@searches
def test_a_search_in_vain_goes_on_in_the_next_step(make):
    def steep(w):
        return jnp.sum(jnp.cosh(1e4 * w)) / 1e4

    tx = lo.chain(O.sgd(1.0), make(4))
    rates = descend(
        tx, steep, np.array([1e-3], np.float32), 40, read=lambda _, state: lo.get_slot(state, "learning_rate")
    )
    assert rates[0] == 0
    assert np.any(rates > 0)


@pytest.mark.parametrize(("make", "most"), [(BACKTRACKING, 8), (ZOOM, 7)], ids=["backtracking", "zoom"])
def test_no_more_trials_than_asked_for(make, most):
    seen = []

    def rising(w):
        jax.debug.callback(lambda: seen.append(1))
        return jnp.sum(w)

    w = jnp.ones(2)
    tx = lo.chain(T.scale(1.0), make(7))
    jax.jit(partial(tx.update, value_fn=rising))(w, tx.init(w), w, value=2.0, grad=w)
    jax.effects_barrier()
    assert len(seen) == most


@searches
@pytest.mark.parametrize("missing", ["value", "grad", "value_fn"])
def test_what_is_missing_is_named(x64, make, missing):
    tx = lo.chain(O.sgd(1.0), make(5))
    every = {"value": 1.0, "grad": HARD, "value_fn": rosenbrock}
    given = {name: value for name, value in every.items() if name != missing}
    with pytest.raises(TypeError, match=rf"linesearch: {missing} must be given to update"):
        tx.update(HARD, tx.init(HARD), HARD, **given)
    peers = optax.chain(optax.scale(1.0), tx)  # to which optax hands no extra arguments
    with pytest.raises(TypeError, match=r"through lo\.interop\.to_optax"):
        peers.update(HARD, peers.init(HARD), HARD, **every)


@searches
def test_a_loss_per_example_is_refused(x64, make):
    tx = lo.chain(O.sgd(1.0), make(5))
    with pytest.raises(TypeError, match=r"linesearch: value_fn must return a scalar, got shape \(2,\)"):
        tx.update(CREST, tx.init(CREST), CREST, value=1.0, grad=CREST, value_fn=lambda p: p["x"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ZOOM(0), "max_linesearch_steps must be an integer ≥ 1"),
        (lambda: BACKTRACKING(0.5), "max_backtracking_steps must be an integer ≥ 1"),
        (lambda: ZOOM(5, initial_guess_strategy="two"), "initial_guess_strategy must be 'one' or 'keep', got 'two'"),
        (lambda: ZOOM(5, increase_factor=0.5), "increase_factor must be ≥ 1"),
        (lambda: ZOOM(5, 0.0), "max_learning_rate must be > 0"),
        (lambda: BACKTRACKING(5, decrease_factor=1.0), "decrease_factor must be in"),
        (lambda: O.lbfgs(memory_size=0), "memory_size must be an integer ≥ 1"),
        (lambda: O.levenberg_marquardt(solver="lu"), "solver must be 'qr', 'cholesky' or 'cg', got 'lu'"),
        (lambda: O.levenberg_marquardt(solver="cg", scale_invariant=True), "scale_invariant must be False with 'cg'"),
        (lambda: O.levenberg_marquardt(initial_damping=0.0), "initial_damping must be > 0"),
        (lambda: O.levenberg_marquardt(max_cg_steps=0), "max_cg_steps must be an integer ≥ 1"),
    ],
)
def test_out_of_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def everywhere(tx, start, count):
    """The end of one run on Rosenbrock's function in every way of calling a transform."""

    def step(carry, _, update=tx.update):
        params, state = carry
        value, grad = jax.value_and_grad(rosenbrock)(params)
        updates, state = update(grad, state, params, value=value, grad=grad, value_fn=rosenbrock)
        return (lo.apply_updates(params, updates), state), None

    def run(start):
        return jax.lax.scan(step, (start, tx.init(start)), length=count)[0][0]

    yield (
        "vmap of scan",
        jax.tree.map(lambda p: p[1], jax.vmap(run)(jax.tree.map(lambda p: jnp.stack([0.5 * p, p]), start))),
    )

    compiled, (params, state) = lo.compile_update(tx), jax.tree.map(jnp.array, (start, tx.init(start)))
    for _ in range(count):
        value, grad = jax.value_and_grad(rosenbrock)(params)
        given = {"value": value, "grad": jax.tree.map(jnp.copy, grad), "value_fn": rosenbrock}
        params, state = compiled(params, state, grad, **given)
    yield "compile_update", params

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peers = optax.chain(optax.scale(1.0), lo.interop.to_optax(tx), optax.scale(1.0))
        begin = (start, peers.init(start))
        yield "scan of optax's chain", jax.lax.scan(partial(step, update=peers.update), begin, length=count)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("linesearch", [ZOOM(20), BACKTRACKING(20)], ids=["zoom", "backtracking"])
def test_every_way_of_calling_is_the_same(x64, linesearch):
    tx = O.lbfgs(linesearch=linesearch)
    loop = descend(tx, rosenbrock, HARD, 5)[-1]
    for name, end in everywhere(tx, jax.tree.map(jnp.asarray, HARD), 5):
        np.testing.assert_allclose(flat(end), loop, rtol=1e-9, err_msg=name)


# ---------------------------------------------------------------------------------------- value_and_grad_from_state


@searches
def test_value_and_grad_are_taken_from_the_state(make, x64):
    tx, w, seen = lo.chain(O.sgd(0.01), make(20)), jax.tree.map(jnp.asarray, HARD), []

    def loss(params):
        jax.debug.callback(lambda: seen.append(1))
        return rosenbrock(params)

    known = jax.jit(lambda w, state: T.value_and_grad_from_state(loss)(w, state=state))
    state = tx.init(w)
    for step in range(4):
        expected = jax.value_and_grad(rosenbrock)(w)
        found = known(w, state)
        jax.effects_barrier()
        assert len(seen) == 1
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=str(step))
        updates, state = once(tx, rosenbrock, w, state)
        w = lo.apply_updates(w, updates)


def test_value_and_grad_from_state_takes_what_value_fn_takes():
    f = T.value_and_grad_from_state(lambda w, x, *, y: jnp.sum((w * x - y) ** 2))
    state = O.lbfgs().init(jnp.float32(2.0))
    value, grad = f(jnp.float32(2.0), jnp.float32(3.0), state=state, y=jnp.float32(1.0))
    assert (float(value), float(grad)) == (25.0, 30.0)


def test_value_and_grad_from_state_keeps_types_and_conventions():
    params = {"z": jnp.array([1.0 + 2.0j]), "h": jnp.ones(3, jnp.bfloat16), "n": None, "i": jnp.arange(2)}

    def loss(p):
        return jnp.sum(jnp.abs(p["z"] - 1j) ** 2) + jnp.sum(p["h"].astype(jnp.float32) ** 2)

    tx = lo.chain(O.sgd(0.1), ZOOM(20))
    f, state = jax.jit(T.value_and_grad_from_state(loss)), tx.init(params)
    for _ in range(2):
        value, grad = f(params, state=state)
        raw = jax.grad(lambda z, params=params: loss(params | {"z": z}))(params["z"])
        np.testing.assert_allclose(grad["z"], raw, rtol=1e-5, atol=1e-5)
        assert grad["h"].dtype == jnp.bfloat16
        assert grad["n"] is grad["i"] is None
        up = grad | {"z": jnp.conj(grad["z"])}
        updates, state = tx.update(up, state, params, value=value, grad=up, value_fn=loss)
        params = lo.apply_updates(params, updates)


def test_value_and_grad_from_state_says_what_is_missing():
    f, w = T.value_and_grad_from_state(bowl), jnp.ones(2)
    with pytest.raises(ValueError, match="value"):
        f(w, state=O.adam(0.1).init(w))
    with pytest.raises(ValueError, match="store_grad=True"):
        f(w, state=BACKTRACKING(5).init(w))


def test_backtracking_keeps_a_gradient_only_if_asked():
    w = {"z": jnp.ones(2, jnp.complex64), "x": jnp.ones(3)}
    assert jax.tree.leaves(lo.get_slot(BACKTRACKING(5).init(w), "grad")) == []
    kept = lo.get_slot(BACKTRACKING(5, store_grad=True).init(w), "grad")
    assert jax.tree.map(jnp.shape, kept) == {"z": (2,), "x": (3,)}


# ----------------------------------------------------------------------------------------------- Levenberg–Marquardt


def test_a_rejected_step_is_exactly_zero_and_the_damping_grows(x64):
    tx = O.levenberg_marquardt(rosenbrock_residuals, initial_damping=1e-6)
    run = partial(fit, tx, rosenbrock_residuals, CLASSIC, 20)
    path = run()
    steps = np.diff(np.concatenate([flat(CLASSIC)[None], path]), axis=0)
    damping, growth = (run(read=lambda _, state, k=k: lo.get_slot(state, k))[:, 0] for k in ("damping", "growth"))
    rejected = ~steps.any(1)
    assert 0 < rejected.sum() < 10
    assert np.all(np.diff(damping)[rejected[1:]] > 0)
    assert np.all((growth > 2) == rejected)
    values = np.array([np.sum(rosenbrock_in_numpy(w) ** 2) for w in path])
    assert np.all(np.diff(values) <= 0)


def test_at_the_minimum_nothing_moves_and_all_is_finite():
    for solver in ("qr", "cholesky", "cg"):
        tx = O.levenberg_marquardt(rosenbrock_residuals, solver)
        path = fit(tx, rosenbrock_residuals, {"x": np.ones(3, np.float32)}, 100)
        np.testing.assert_array_equal(path, np.ones((100, 3)))
        away = fit(tx, rosenbrock_residuals, {"x": np.full(3, 0.5, np.float32)}, 200)
        np.testing.assert_allclose(away[-1], 1, rtol=1e-5)


def test_residuals_that_break_are_rejected():
    def broken(params):
        x = params["x"]
        return jnp.where(x < 1, x - 2, jnp.nan)

    huge = fit(O.levenberg_marquardt(lambda p: 1e25 * p["x"] ** 3), None, {"x": np.ones(2, np.float32)}, 5)
    np.testing.assert_array_equal(huge, 1)  # whose squares leave float32: nothing can be judged
    path = fit(O.levenberg_marquardt(broken, initial_damping=1e-3), broken, {"x": np.zeros(2, np.float32)}, 30)
    assert np.isfinite(path).all()
    assert np.all((path[-1] > 0.5) & (path[-1] < 1))


def test_units_do_not_matter_if_asked(x64):
    """The same curve with one parameter in other units takes the same path."""
    unit = np.array([1.0, 1e4, 1e-3])

    def other(params):
        return decay_residuals({"p": params["p"] * unit})

    start = {"p": DECAY["p"] / unit}
    one = fit(O.levenberg_marquardt(decay_residuals, scale_invariant=True), decay_residuals, DECAY)
    two = fit(O.levenberg_marquardt(other, scale_invariant=True), other, start)
    np.testing.assert_allclose(two * unit, one, rtol=1e-8)


def test_leaves_without_a_gradient_are_held_fixed(x64):
    params = {"p": jnp.asarray(DECAY["p"]), "c": jnp.asarray(0.3), "name": None}

    def residuals(params):
        return decay_residuals({"p": params["p"] + params["c"]})

    for solver in ("qr", "cholesky", "cg"):
        tx = O.levenberg_marquardt(residuals, solver)
        held = {"p": params["p"], "c": None, "name": None}
        updates, _ = tx.update(held, tx.init(params), params)
        assert updates["c"] is None
        alone = O.levenberg_marquardt(lambda p: residuals({"p": p, "c": params["c"]}), solver)
        expected, _ = alone.update(params["p"], alone.init(params["p"]), params["p"])
        np.testing.assert_allclose(updates["p"], expected, rtol=1e-12)


@pytest.mark.slow
def test_least_squares_in_every_way_of_calling(x64):
    for tx in (O.levenberg_marquardt(), O.levenberg_marquardt(solver="cg")):
        loop = fit(tx, decay_residuals, DECAY, 5, value_fn=decay_residuals)[-1]
        params = jax.tree.map(jnp.array, DECAY)
        compiled, state = lo.compile_update(tx), tx.init(params)
        for _ in range(5):
            params, state = compiled(params, state, jax.tree.map(jnp.copy, params), value_fn=decay_residuals)
        np.testing.assert_allclose(flat(params), loop, rtol=1e-9)

        peers = optax.chain(lo.interop.to_optax(tx))
        np.testing.assert_allclose(fit(peers, decay_residuals, DECAY, 5, value_fn=decay_residuals)[-1], loop, rtol=1e-9)

        def run(start, tx=tx):
            def step(carry, _):
                params, state = carry
                updates, state = tx.update(params, state, params, value_fn=decay_residuals)
                return (lo.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (start, tx.init(start)), length=5)[0][0]

        many = jax.vmap(run)({"p": jnp.stack([DECAY["p"], 1.1 * DECAY["p"]])})
        np.testing.assert_allclose(many["p"][0], loop, rtol=1e-9)
        np.testing.assert_allclose(many["p"][1], run({"p": jnp.asarray(1.1 * DECAY["p"])})["p"], rtol=1e-9)


def test_residuals_are_asked_for_by_name():
    w = jnp.ones(2)
    tx = O.levenberg_marquardt()
    with pytest.raises(TypeError, match="levenberg_marquardt: value_fn must be given to update"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(TypeError, match="must return the residuals, an array, got a scalar; neither square nor sum"):
        tx.update(w, tx.init(w), w, value_fn=bowl)
    with pytest.raises(TypeError, match="residual_fn must be a function of the parameters"):
        O.levenberg_marquardt(w)
    bound = O.levenberg_marquardt(rosenbrock_residuals)
    assert bound == O.levenberg_marquardt(rosenbrock_residuals) != O.levenberg_marquardt(decay_residuals)
    assert repr(bound).startswith("chain(scale_by_levenberg_marquardt(residual_fn=<function rosenbrock_residuals")
    assert list(lo.chain(bound).init(w)) == ["scale_by_levenberg_marquardt"]


def test_masked_leaves_keep_their_slots_apart(x64):
    """L-BFGS may sit in a group: it sees the group alone."""
    params = jax.tree.map(jnp.asarray, tree(0))
    inside = T.scale_by_lbfgs(3)
    masked = lo.masked(inside, MATRICES)
    updates, state = masked.update(params, masked.init(params), params)
    alone, _ = inside.update(params["w"], inside.init(params["w"]), params["w"])
    np.testing.assert_allclose(updates["w"], alone, rtol=1e-15)
    assert lo.get_slot(state, "last_grad")["deep"]["b"] is None


def test_a_line_search_in_a_group_holds_the_others_still():
    def loss(params):
        return (params["a"] - 1.0) ** 2 + (params["b"] - params["a"]) ** 2

    params = {"a": jnp.asarray(3.0), "b": jnp.asarray(-2.0)}
    value, grads = jax.value_and_grad(loss)(params)

    def step(tx, value_fn, params, grads):
        return jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v, grad=g, value_fn=value_fn))(
            grads, tx.init(params), params, value
        )[0]

    alone = step(O.lbfgs(), lambda a: loss({"a": a, "b": params["b"]}), params["a"], grads["a"])
    assert float(loss({"a": params["a"] + alone, "b": params["b"]})) < float(value)
    for tx in (
        lo.partition({"search": O.lbfgs(), "rest": O.sgd(0.0)}, {"a": "search", "b": "rest"}),
        lo.chain(lo.masked(O.lbfgs(), {"a": True, "b": False}), lo.masked(T.scale(0.0), {"a": False, "b": True})),
    ):
        updates = step(tx, loss, params, grads)
        assert float(updates["b"]) == 0
        assert float(updates["a"]) == float(alone)
