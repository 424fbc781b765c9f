"""DoG, DoWG, Prodigy, D-Adaptation, COCOB and Mechanic: their paths, and what is special about having no rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import MATRICES, Case, agree, check, falling, numpy_path, optax_path, parametrize, path_of, torch_path

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers


def rate_of(step):
    """A schedule around 1."""
    return 1.5 / (1.0 + 0.1 * step)


def peer(name, *args, **kwargs):
    """The same optimizer with the same arguments in both libraries."""
    return Case(
        "optax",
        lambda: getattr(O, name)(*args, **kwargs),
        lambda: optax_path(lambda: getattr(optax.contrib, name)(*args, **kwargs)),
    )


def reference_prodigy(*, ours, **kwargs):
    def make(_, params):
        prodigyopt = pytest.importorskip("prodigyopt", reason="prodigyopt is the extra 'oracles'")
        return prodigyopt.Prodigy(params, **kwargs)

    return Case("prodigyopt", ours, lambda: torch_path(make))


def mechanized(base, peer_base, **kwargs):
    return Case(
        "optax",
        lambda: T.mechanize(base(), **kwargs),
        lambda: optax_path(lambda: optax.contrib.mechanize(peer_base(), **kwargs)),
    )


def layer_wise(w, reps_rel=0.2, eps=0.02):
    """LDoG of one array, from the paper."""
    first, farthest, total = w.copy(), reps_rel * (1 + np.linalg.norm(w)), 0.0

    def move(g, t):
        nonlocal w, farthest, total
        farthest = max(farthest, np.linalg.norm(w - first))
        total += np.sum(g * g)
        w = w - farthest / np.sqrt(total + eps) * g
        return w

    return move


CASES = {
    "scale_by_distance_over_gradients": [
        Case(
            "optax",
            lambda: T.scale_by_distance_over_gradients(0.2, 0.02, -0.7),
            lambda: optax_path(lambda: optax.scale_by_distance_over_gradients(0.2, 0.02, jnp.float64, -0.7)),
        ),
        Case(
            "NumPy",
            lambda: T.scale_by_distance_over_gradients(0.2, 0.02, -1.0),
            lambda: numpy_path(layer_wise, per_leaf=True),
        ),
    ],
    "dog": [
        peer("dog"),
        peer("dog", rate_of, ("heuristic", 0.2), 0.02),
        peer("dog", 0.7, ("distance", 0.3), 0.02, 0.3),
        peer("dog", 0.7, ("learning_rate", 0.3), 0.02, 0.3, MATRICES),
        peer("dog", jnp.float32(0.5), init_step=("distance", 0.3), weight_decay=0.3, mask=MATRICES),
    ],
    "dowg": [
        peer("dowg"),
        peer("dowg", rate_of, 0.3, 0.02),
        peer("dowg", 0.7, eps=0.3, weight_decay=0.3),
        peer("dowg", jnp.float32(0.5), 0.3, 0.02, 0.3, MATRICES),
    ],
    "prodigy": [
        peer("prodigy"),
        peer("prodigy", rate_of, (0.6, 0.8), eps=0.03, estim_lr0=0.02, estim_lr_coef=0.7),
        peer("prodigy", 0.7, (0.6, 0.8), 0.7, 0.03, 0.02, 1.5, 0.3),
        peer("prodigy", falling, (0.6, 0.8), 0.7, 0.03, 0.02, 1.5, 0.3, True),
        reference_prodigy(ours=lambda: O.prodigy(bias_correction=False)),
        reference_prodigy(
            ours=lambda: O.prodigy(0.7, (0.6, 0.8), 0.7, 0.03, 0.02, 1.5, 0.3, bias_correction=False),
            **{"lr": 0.7, "betas": (0.6, 0.8), "beta3": 0.7, "eps": 0.03, "d0": 0.02, "d_coef": 1.5},
            weight_decay=0.3,
        ),
        reference_prodigy(
            ours=lambda: O.prodigy(0.7, (0.6, 0.8), eps=0.03, estim_lr0=0.02, safeguard_warmup=True),
            **{"lr": 0.7, "betas": (0.6, 0.8), "eps": 0.03, "d0": 0.02, "safeguard_warmup": True},
            use_bias_correction=True,
        ),
        reference_prodigy(  # L2 is a chain
            ours=lambda: lo.chain(T.add_decayed_weights(0.3), O.prodigy(0.7, bias_correction=False)),
            **{"lr": 0.7, "weight_decay": 0.3, "decouple": False},
        ),
    ],
    "dadapt_adamw": [
        peer("dadapt_adamw"),
        peer("dadapt_adamw", rate_of, (0.6, 0.8), 0.03, 0.02),
        peer("dadapt_adamw", 0.7, (0.6, 0.8), 0.03, 0.02, 0.3),
        peer("dadapt_adamw", falling, estim_lr0=0.02, weight_decay=0.3),
    ],
    "cocob": [
        peer("cocob"),
        peer("cocob", 0.7, 2.0, 0.3),
        peer("cocob", rate_of, 2.0, 0.3, 0.3),
        peer("cocob", falling, alpha=20.0, weight_decay=0.3, mask=MATRICES),
    ],
    "mechanize": [
        mechanized(lambda: O.sgd(0.07), lambda: optax.sgd(0.07)),
        mechanized(lambda: O.adam(0.7), lambda: optax.adam(0.7), weight_decay=0.3, eps=0.02, s_init=0.3),
        mechanized(lambda: O.adamw(rate_of), lambda: optax.adamw(rate_of), s_init=0.02, num_betas=3),
        mechanized(lambda: O.sgd(falling, 0.9), lambda: optax.sgd(falling, 0.9), weight_decay=0.0, num_betas=1),
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


# ------------------------------------------------------------------------------------------------- where optax is NaN


def late(schedule_or_gradients, steps=3):
    """The first steps have no gradient, or no rate."""
    return lambda step: jnp.where(step < steps, 0.0, schedule_or_gradients)


def run(tx, gradients, start=(1.0, -2.0, 0.5), dtype=jnp.float32):
    params = jnp.array(start, dtype)
    state, points = tx.init(params), []
    for g in gradients:
        updates, state = tx.update(jnp.asarray(g, dtype), state, params)
        params = lo.apply_updates(params, updates)
        points.append(np.asarray(params, np.float64))
    return np.stack(points), state


def some_gradients(count=12):
    return np.random.default_rng(3).normal(size=(count, 3)) * [1.0, 10.0, 0.1]


def adaptation(w, d=1e-6, b1=0.9, b2=0.999, eps=1e-8, rate=lambda t: 1.0):
    """D-Adaptation with Adam, in NumPy, whose estimate waits while s = 0."""
    m, v, s, numerator, beta = 0 * w, 0 * w, 0 * w, 0.0, np.sqrt(b2)

    def move(g, t):
        nonlocal w, m, v, s, d, numerator
        step = d * rate(t) * np.sqrt(1 - b2**t) / (1 - b1**t)
        numerator = beta * numerator + (1 - beta) * step * np.sum(g * s / (np.sqrt(v) + eps))
        s = beta * s + (1 - beta) * step * g
        m, v = b1 * m + (1 - b1) * step * g, b2 * v + (1 - b2) * g * g
        if np.any(s):
            d = max(d, numerator / ((1 - beta) * np.abs(s).sum()))
        w = w - m / (np.sqrt(v) + eps)
        return w

    return move


def test_prodigy_forgets_zero_gradients_at_the_start(x64):  # NUMERICS O20
    """As the reference package, which skips such steps."""
    zeros = np.zeros((4, 3))
    tx = O.prodigy(bias_correction=False, weight_decay=0.0)
    plain, _ = run(tx, some_gradients(), dtype=jnp.float64)
    delayed, _ = run(tx, [*zeros, *some_gradients()], dtype=jnp.float64)
    agree(delayed[4:], plain)
    np.testing.assert_array_equal(delayed[:4], np.broadcast_to([1.0, -2.0, 0.5], (4, 3)))


def test_dadapt_waits_for_the_first_gradient(x64):  # NUMERICS O20
    gradients = [*np.zeros((4, 3)), *some_gradients()]
    move = adaptation(np.array([1.0, -2.0, 0.5]))
    theirs = np.stack([move(g, t) for t, g in enumerate(gradients, start=1)])
    agree(run(O.dadapt_adamw(), gradients, dtype=jnp.float64)[0], theirs)


def test_dadapt_waits_for_the_first_rate(x64):
    move = adaptation(np.array([1.0, -2.0, 0.5]), rate=lambda t: float(t > 3))
    theirs = np.stack([move(g, t) for t, g in enumerate(some_gradients(), start=1)])
    agree(run(O.dadapt_adamw(late(1.0)), some_gradients(), dtype=jnp.float64)[0], theirs)


@pytest.mark.parametrize("safeguard", [False, True])
def test_a_warm_up_from_zero_is_no_trap(safeguard):
    """optax: NaN for good from the first step on."""
    points, state = run(O.prodigy(late(1.0), safeguard_warmup=safeguard), np.ones((50, 3)))
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points[2], np.float32([1.0, -2.0, 0.5]))
    assert np.any(points[-1] != points[2])
    assert float(lo.get_slot(state, "estim_lr")) > 1e-6


@pytest.mark.parametrize("name", ["dog", "dowg", "prodigy", "dadapt_adamw", "cocob"])
def test_nothing_to_divide_by_gives_zero(name):
    """Zero gradients with ε = 0, where every quotient is 0/0, then a gradient."""
    arguments = {"init_estim_sq_dist": 1e-6} if name == "dowg" else {}
    points, state = run(getattr(O, name)(eps=0.0, **arguments), [*np.zeros((2, 3)), *some_gradients(3)])
    np.testing.assert_array_equal(points[1], np.float32([1.0, -2.0, 0.5]))
    assert np.isfinite(points).all()
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


def test_mechanize_with_nothing_to_divide_by():
    points, state = run(T.mechanize(O.sgd(1.0), eps=0.0), [*np.zeros((2, 3)), *some_gradients(3)], (0.0, 0.0, 0.0))
    np.testing.assert_array_equal(points[1], 0)
    assert np.isfinite(points).all()
    assert float(lo.get_slot(state, "s").sum()) > 0


# ------------------------------------------------------------------------------------------------------------- DoG


def test_dog_with_a_first_rate_waits_for_a_gradient():
    """optax uses up the first rate on a gradient of zero, and never moves."""
    points, _ = run(O.dog(init_step=("learning_rate", 0.1)), [np.zeros(3), np.ones(3), np.ones(3)])
    np.testing.assert_allclose(points[1], np.array([1.0, -2.0, 0.5]) - 0.1, rtol=1e-6)
    assert np.all(points[2] < points[1])


@pytest.mark.parametrize("bad", ["heuristic", ("first", 0.1), ("heuristic",), 0.1, None], ids=repr)
def test_dog_says_how_to_start(bad):
    with pytest.raises(ValueError, match=r"scale_by_dog: init_step must be \(start, number\)"):
        O.dog(init_step=bad)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda x: T.scale_by_dog(("distance", x)), "init_step"),
        (lambda x: T.scale_by_dowg(x), "init_estim_sq_dist"),
        (lambda x: T.scale_by_distance_over_gradients(x), "reps_rel"),
        (lambda x: O.prodigy(estim_lr0=x), "estim_lr0"),
        (lambda x: O.dadapt_adamw(estim_lr0=x), "estim_lr0"),
        (lambda x: O.cocob(alpha=x), "alpha"),
        (lambda x: T.mechanize(O.sgd(1.0), s_init=x), "s_init"),
        (lambda x: T.mechanize(O.sgd(1.0), num_betas=x).init(1.0), "num_betas"),
    ],
)
def test_a_start_is_positive(build, name):
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match=rf"{name} must be"):
            build(bad)


# -------------------------------------------------------------------------------------------------------- precision


def test_sums_of_squares_do_not_stop_at_256():
    """1000 bfloat16 gradients of norm 1; optax's sum of squares stays at 256."""
    gradients = np.full((1000, 4), 0.5)
    _, state = run(O.dog(), gradients, start=(1.0,) * 4, dtype=jnp.bfloat16)
    np.testing.assert_allclose(lo.get_slot(state, "grad_norm"), np.sqrt(1000), rtol=1e-5)
    _, state = run(T.scale_by_dowg(0.25), gradients, start=(0.0,) * 4, dtype=jnp.bfloat16)
    assert lo.get_slot(state, "max_dist").dtype == jnp.float32


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw"])
def test_the_estimate_does_not_depend_on_the_parameters_precision(name):
    """From d₀ = 1e-6, which bfloat16 holds to 3 digits and float16 as 9.5e-7."""
    for dtype in (jnp.bfloat16, jnp.float16):
        tx = getattr(O, name)(0.0)
        state = run(tx, np.ones((2, 3)), dtype=dtype)[1]
        assert float(lo.get_slot(state, "estim_lr")) == np.float32(1e-6)


@pytest.mark.parametrize("make", [O.dog, O.prodigy, lambda: T.mechanize(O.adam(1.0))])
def test_half_precision_needs_master_weights(make):
    """The first steps are a millionth: bfloat16 rounds them away, and then there is no distance to learn from."""

    def loss_after(tx, dtype):
        params = jnp.array([3.0, -2.0], dtype)
        update = jax.jit(tx.update)
        state = tx.init(params)
        for _ in range(200):
            updates, state = update(params - 1, state, params)
            params = lo.apply_updates(params, updates)
        return float(jnp.sum((params.astype(jnp.float32) - 1.0) ** 2) / 2)

    assert loss_after(make(), jnp.bfloat16) == 6.5
    assert loss_after(lo.master_weights(make()), jnp.bfloat16) < 1.2 * loss_after(make(), jnp.float32) + 0.01 < 6.5


def test_gradients_whose_squares_overflow():
    for tx in (O.dog(), O.dowg(), T.scale_by_distance_over_gradients(global_scale=-1.0), O.cocob()):
        points, state = run(tx, [np.full(3, 1e25)] * 4)
        assert np.isfinite(points).all()
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


# ---------------------------------------------------------------------------------------- hyperparameters and chains


@pytest.mark.parametrize("name", ["dog", "dowg", "prodigy", "dadapt_adamw", "cocob"])
def test_the_rate_is_one_and_in_the_state(name):
    state = getattr(O, name)().init(1.0)
    assert float(lo.get_hyperparams(state)["learning_rate"]) == 1.0


def test_b3_is_the_root_of_b2_whatever_b2_is(x64):
    def changing(step):
        return 0.9 - 0.01 * step

    by_hand = path_of(O.prodigy(betas=(0.9, changing), beta3=lambda step: changing(step) ** 0.5))
    agree(path_of(O.prodigy(betas=(0.9, changing))), by_hand)
    for b2 in (0.81, np.float64(0.81), jnp.asarray(0.81)):
        hypers = lo.get_hyperparams(O.prodigy(betas=(0.9, b2)).init(1.0))
        np.testing.assert_allclose(hypers["b3"], 0.9, rtol=1e-15)
    with pytest.raises(ValueError, match="scale_by_prodigy: b2 must be in"):
        O.prodigy(betas=(0.9, -0.5))
    with pytest.raises(TypeError, match="scale_by_prodigy: b2 must be a real"):
        O.prodigy(betas=(0.9, "0.5"))


@pytest.mark.parametrize("start", ["heuristic", "distance", "learning_rate"])
def test_a_start_may_be_set_in_the_state(start):
    gradients = some_gradients(3)
    written = O.dog(init_step=(start, 0.1))
    state = lo.set_hyperparams(written.init(jnp.ones(3)), init_step=0.3)
    updates, _ = written.update(jnp.asarray(gradients[0], jnp.float32), state, jnp.ones(3))
    points, _ = run(O.dog(init_step=(start, 0.3)), gradients[:1], start=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(1 + updates, np.float32(points[0]))


@pytest.mark.parametrize("make", [O.dog, O.dowg, O.prodigy, O.dadapt_adamw, O.cocob, lambda: T.mechanize(O.sgd(1.0))])
def test_inside_chains_of_either_library(make):
    gradients = some_gradients(4)
    alone, _ = run(lo.chain(T.clip_by_global_norm(1.0), make()), gradients)
    params, tx = jnp.array([1.0, -2.0, 0.5]), optax.chain(optax.clip_by_global_norm(1.0), lo.interop.to_optax(make()))
    state = tx.init(params)
    for g, expected in zip(gradients, alone, strict=True):
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=2e-6)


def test_mechanize_hands_extra_arguments_to_its_base():
    tx = T.mechanize(optax.contrib.momo(1.0))
    params = jnp.ones(3)
    updates, _ = tx.update(params, tx.init(params), params, value=jnp.float32(2.0))
    assert np.any(updates)


def test_mechanize_leaves_alone_what_is_not_trained():
    """Nor does it enter the norms: an untrained leaf changes nothing for the others."""
    tx = T.mechanize(O.sgd(1.0), s_init=0.1)
    params = {"w": jnp.array([1.0, 2.0]), "frozen": jnp.full(3, 1e6), "count": jnp.arange(3)}
    alone, _ = run(tx, np.ones((3, 2)), start=(1.0, 2.0))
    state = tx.init(params)
    for expected in alone:
        updates, state = tx.update({"w": jnp.ones(2), "frozen": None, "count": None}, state, params)
        params = lo.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- descent


@pytest.mark.parametrize(
    ("tx", "steps"),
    [
        (O.dog(), 400),
        (O.dowg(), 400),
        (O.prodigy(), 400),
        (O.dadapt_adamw(), 2000),
        (O.cocob(), 2000),
        (T.mechanize(O.sgd(1.0)), 2000),
        (T.mechanize(O.adam(1.0)), 2000),
    ],
    ids=["dog", "dowg", "prodigy", "dadapt_adamw", "cocob", "mechanic of sgd", "mechanic of adam"],
)
def test_descent_without_any_argument(tx, steps):
    scale = jnp.array([1.0, 30.0])

    def loss(params):
        return jnp.sum(scale * (params - 1.0) ** 2) / 2

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (lo.apply_updates(params, updates), state), None

    start = jnp.array([3.0, -2.0])
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))((start, tx.init(start)))
    assert loss(params) < 1e-2 * loss(start)
