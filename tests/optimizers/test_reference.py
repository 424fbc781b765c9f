"""Fifteen float64 steps against live optax, torch and Keras, and against the paper where no peer is right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import (
    MATRICES,
    RATE,
    Case,
    agree,
    check,
    falling,
    flat,
    gradients,
    keras_path,
    numpy_path,
    optax_path,
    parametrize,
    path_of,
    ranks,
    torch_path,
    tree,
    with_value,
)

import lossopt_jax as lo
from lossopt_jax import optimizers as O
from lossopt_jax import transforms as T


def optax_cases(name, *grid, theirs=None):
    """A recipe that optax has under this name: every row of arguments with a number and with a schedule as its rate."""
    make = theirs or getattr(optax, name, None) or getattr(optax.contrib, name)
    return [
        Case(
            "optax",
            partial(getattr(O, name), rate, **arguments),
            lambda rate=rate, arguments=arguments: optax_path(lambda: make(rate, **arguments)),
        )
        for arguments in grid
        for rate in (RATE, falling)
    ]


def torch_case(ours, theirs, **options):
    run = partial(path_of, of=options["of"]) if "of" in options else path_of
    return Case("torch", ours, lambda: torch_path(theirs, **options), run)


def keras_case(ours, theirs):
    return Case("Keras", ours, lambda: keras_path(theirs))


def paper_case(ours, transcription, *, per_leaf=False, of=tree):
    return Case("NumPy", ours, lambda: numpy_path(transcription, per_leaf, of), partial(path_of, of=of))


def by_rank(params):
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


B = {"b1": 0.6, "b2": 0.8}
RATES = (RATE, falling)


def optax_adafactor(
    learning_rate,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
    weight_decay_mask=None,
):
    """optax.adafactor from its parts, with the decay of the moments in float64."""

    def decay(step, exponent):
        return 1 - (jnp.asarray(step, jnp.float64) + 1) ** -exponent

    return optax.chain(
        optax.scale_by_factored_rms(factored, decay_rate, 0, min_dim_size_to_factor, eps, decay_rate_fn=decay),
        optax.identity() if clipping_threshold is None else optax.clip_by_block_rms(clipping_threshold),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        optax.scale_by_param_block_rms() if multiply_by_parameter_scale else optax.identity(),
        optax.identity() if momentum is None else optax.ema(momentum, debias=False),
        optax.add_decayed_weights(weight_decay_rate or 0.0, weight_decay_mask),
        optax.scale(-1),
    )


# --------------------------------------------------------------------------------------------------- transcriptions


def adam_like(direction, rate=RATE):
    """Moments and a direction of (g, m, v, t): what most rules of Adam's family are."""

    def start(w):
        state = {}

        def move(g, t):
            nonlocal w
            w = w - rate * direction(g, state, t)
            return w

        return move

    return start


def amsgrad(b1, b2, eps, eps_root):
    """Algorithm 2 of Reddi et al. with Adam's corrections: the largest raw second moment, then corrected."""

    def direction(g, s, t):
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
        s["w"] = np.maximum(s.get("w", 0), s["v"])
        return (s["m"] / (1 - b1**t)) / (np.sqrt(s["w"] / (1 - b2**t) + eps_root) + eps)

    return adam_like(direction)


def adan(b1, b2, b3, eps, eps_root):
    """Algorithm 1 of Xie et al. with this library's β = 1 − the paper's."""

    def direction(g, s, t):
        change = g - s.get("g", g)
        s["g"] = g
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["d"] = b2 * s.get("d", 0) + (1 - b2) * change
        s["n"] = b3 * s.get("n", 0) + (1 - b3) * (g + b2 * change) ** 2
        mean = s["m"] / (1 - b1**t) + b2 * s["d"] / (1 - b2**t)
        return mean / (np.sqrt(s["n"] / (1 - b3**t) + eps_root) + eps)

    return adam_like(direction)


def nadam(b1, b2, eps, eps_root, decay):
    """Dozat's schedule, μₜ = β₁ (1 − ½ 0.96^(tψ)), as a running product."""

    def direction(g, s, t):
        now, ahead = (b1 * (1 - 0.5 * 0.96 ** (k * decay)) for k in (t, t + 1))
        s["product"] = s.get("product", 1.0) * now
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
        mean = ahead * s["m"] / (1 - s["product"] * ahead) + (1 - now) * g / (1 - s["product"])
        return mean / (np.sqrt(s["v"] / (1 - b2**t) + eps_root) + eps)

    return adam_like(direction)


def adam_mini(b1, b2, eps, decay, shared):
    """Algorithm 1 of Zhang et al.: one mean of squares per block."""

    def start(w):
        m, v = 0 * w, 0.0
        axes = shared(w.ndim)

        def move(g, t):
            nonlocal w, m, v
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.mean(g * g, axis=axes, keepdims=True)
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            w = w - RATE * (step + decay * w)
            return w

        return move

    return start


def came(b1, b2, b3, eps, confidence, threshold, decay):
    """Algorithm 2 of Luo et al., rows and columns in the last two axes."""

    def estimate(memory, square, beta):
        if square.ndim < 2:
            memory[0] = beta * memory[0] + (1 - beta) * square
            return memory[0]
        memory[0] = beta * memory[0] + (1 - beta) * square.mean(-1, keepdims=True)
        memory[1] = beta * memory[1] + (1 - beta) * square.mean(-2, keepdims=True)
        return memory[0] * memory[1] / memory[0].mean(-2, keepdims=True)

    def start(w):
        moment, distance, m = [0.0, 0.0], [0.0, 0.0], 0 * w

        def move(g, t):
            nonlocal w, m
            u = g / np.sqrt(estimate(moment, g * g + eps, b2))
            u = u / max(1.0, np.sqrt(np.mean(u * u)) / threshold)
            m = b1 * m + (1 - b1) * u
            step = m if g.ndim < 2 else m / np.sqrt(estimate(distance, (u - m) ** 2 + confidence, b3))
            w = w - RATE * (step + decay * w)
            return w

        return move

    return start


def whole_adafactor(offset):
    """Algorithm 4 of Shazeer & Stern unfactored, with steps that do not count: β = 0 until they are over."""

    def start(w):
        v = 0 * w

        def move(g, t):
            nonlocal w, v
            beta = 1 - max(t - offset, 1) ** -0.8
            v = beta * v + (1 - beta) * (g * g + 1e-30)
            u = g / np.sqrt(v)
            u = u / max(1.0, np.sqrt(np.mean(u * u)))
            w = w - RATE * max(1e-3, np.sqrt(np.mean(w * w))) * u
            return w

        return move

    return start


def lazy_adam(b1, b2, eps):
    """Adam in the rows of the first axis that have a gradient."""

    def start(w):
        m, v = np.zeros_like(w), np.zeros_like(w)

        def move(g, t):
            for row in np.ndindex(g.shape[:1]):
                if np.any(g[row]):
                    m[row] = b1 * m[row] + (1 - b1) * g[row]
                    v[row] = b2 * v[row] + (1 - b2) * g[row] ** 2
                    w[row] -= RATE * (m[row] / (1 - b1**t)) / (np.sqrt(v[row] / (1 - b2**t)) + eps)
            return w.copy()

        return move

    return start


def novograd(b1, b2, eps, eps_root, decay):
    """Algorithm 1 of Ginsburg et al."""

    def start(w):
        m, v = 0 * w, None

        def move(g, t):
            nonlocal w, m, v
            square = np.sum(g * g)
            v = square if v is None else b2 * v + (1 - b2) * square
            m = b1 * m + (g / (np.sqrt(v + eps_root) + eps) + decay * w)
            w = w - RATE * m
            return w

        return move

    return start


def sm3(b1, b2, eps):
    """SM3-II of Anil et al. with one cover per axis."""

    def start(w):
        covers = [np.zeros([n if i == axis else 1 for i in range(w.ndim)]) for axis, n in enumerate(w.shape)]
        covers, m = covers or [np.zeros(())], 0 * w

        def move(g, t):
            nonlocal w, m
            nu = (1 - b2 if b2 < 1 else 1) * g * g + b2 * np.min(np.broadcast_arrays(*covers), axis=0)
            for axis, cover in enumerate(covers):
                others = tuple(i for i in range(w.ndim) if i != axis)
                covers[axis] = nu.max(axis=others, keepdims=True) if others else nu.reshape(cover.shape)
            m = b1 * m + (1 - b1) * np.where(nu > 0, g / np.sqrt(np.where(nu > 0, nu, 1) + eps), 0)
            w = w - RATE * m
            return w

        return move

    return start


def madgrad(rate, momentum, decay, eps):
    """Algorithm 1 of Defazio & Jelassi."""

    def start(w):
        x0, s, v = w.copy(), 0 * w, 0 * w

        def move(g, t):
            nonlocal w, s, v
            g = g + decay * w
            weight = ((rate(t - 1) if callable(rate) else rate) + eps) * np.sqrt(t)
            s, v = s + weight * g, v + weight * g * g
            w = momentum * w + (1 - momentum) * (x0 - s / (np.cbrt(v) + eps))
            return w

        return move

    return start


def normal_lars(rate, decay, trust, eps, momentum):
    """LARS with one ratio per array, in optax's form."""

    def start(w):
        b = 0 * w

        def move(g, t):
            nonlocal w, b
            h = g + decay * w
            norms = np.linalg.norm(w), np.linalg.norm(h)
            ratio = trust * norms[0] / (norms[1] + eps) if all(norms) else 1.0
            b = momentum * b + rate * ratio * h
            w = w - b
            return w

        return move

    return start


# -------------------------------------------------------------------------------------------------------- the table

CASES = {
    "sgd": [
        *optax_cases("sgd", {}, {"momentum": 0.9}, {"momentum": 0.7, "nesterov": True}),
        torch_case(partial(O.sgd, RATE), lambda o, p: o.SGD(p, RATE)),
        torch_case(partial(O.sgd, RATE, 0.8), lambda o, p: o.SGD(p, RATE, momentum=0.8)),
        torch_case(partial(O.sgd, RATE, 0.8, True), lambda o, p: o.SGD(p, RATE, momentum=0.8, nesterov=True)),
        torch_case(partial(O.sgd, RATE, 0.8, dampening=0.4), lambda o, p: o.SGD(p, RATE, momentum=0.8, dampening=0.4)),
        torch_case(
            lambda: lo.chain(T.add_decayed_weights(0.2), O.sgd(RATE, 0.8)),
            lambda o, p: o.SGD(p, RATE, momentum=0.8, weight_decay=0.2),
        ),
        torch_case(partial(O.sgd, falling, 0.8), lambda o, p: o.SGD(p, RATE, momentum=0.8), rate=falling),
        keras_case(partial(O.sgd, RATE, 0.8), lambda k: k.SGD(RATE, momentum=0.8)),
        keras_case(partial(O.sgd, RATE, 0.8, True), lambda k: k.SGD(RATE, momentum=0.8, nesterov=True)),
    ],
    "rmsprop": [
        *optax_cases(
            "rmsprop",
            {},
            {"decay": 0.7, "eps": 0.02},
            {"decay": 0.7, "eps": 0.02, "eps_in_sqrt": False},
            {"initial_scale": 0.3, "centered": True, "eps": 0.02},
            {"centered": True, "momentum": 0.8, "eps": 0.02},
            {"momentum": 0.8, "nesterov": True},
            {"bias_correction": True, "eps": 0.02},
            {"bias_correction": True, "centered": True, "eps": 0.02},
        ),
        torch_case(
            partial(O.rmsprop, RATE, 0.8, 0.02, eps_in_sqrt=False),
            lambda o, p: o.RMSprop(p, RATE, alpha=0.8, eps=0.02),
        ),
        torch_case(
            partial(O.rmsprop, RATE, 0.8, 0.02, eps_in_sqrt=False, centered=True, momentum=0.7),
            lambda o, p: o.RMSprop(p, RATE, alpha=0.8, eps=0.02, centered=True, momentum=0.7),
        ),
        keras_case(
            partial(O.rmsprop, RATE, 0.8, 0.02, momentum=0.7, centered=True),
            lambda k: k.RMSprop(RATE, 0.8, momentum=0.7, epsilon=0.02, centered=True),
        ),
    ],
    "adagrad": [
        *optax_cases("adagrad", {}, {"initial_accumulator_value": 0.4, "eps": 0.02}),
        torch_case(
            partial(O.adagrad, RATE, 0.3, 0.02, eps_in_sqrt=False),
            lambda o, p: o.Adagrad(p, RATE, initial_accumulator_value=0.3, eps=0.02),
        ),
        torch_case(
            partial(O.adagrad, lambda step: RATE / (1 + 0.3 * step), 0.0, 0.02, eps_in_sqrt=False),
            lambda o, p: o.Adagrad(p, RATE, lr_decay=0.3, eps=0.02),
        ),
        keras_case(partial(O.adagrad, RATE, 0.2, 0.02), lambda k: k.Adagrad(RATE, 0.2, 0.02)),
    ],
    "adadelta": [
        *optax_cases("adadelta", {}, {"rho": 0.7, "eps": 0.02, "weight_decay": 0.3, "weight_decay_mask": MATRICES}),
        torch_case(
            partial(O.adadelta, RATE, 0.8, 0.02, 0.3), lambda o, p: o.Adadelta(p, RATE, 0.8, 0.02, weight_decay=0.3)
        ),
        keras_case(partial(O.adadelta, RATE, 0.8, 0.02), lambda k: k.Adadelta(RATE, 0.8, 0.02)),
    ],
    "adam": [
        *optax_cases(
            "adam",
            {},
            {**B, "eps": 0.03},
            {"eps_root": 0.02, "eps": 0.0},
            {"nesterov": True, "b1": 0.8, "eps": 0.03},
        ),
        torch_case(partial(O.adam, RATE, 0.8, 0.9, 0.02), lambda o, p: o.Adam(p, RATE, (0.8, 0.9), 0.02)),
        torch_case(
            lambda: lo.chain(T.add_decayed_weights(0.3), O.adam(RATE, 0.8, 0.9, 0.02)),
            lambda o, p: o.Adam(p, RATE, (0.8, 0.9), 0.02, weight_decay=0.3),
        ),
        keras_case(partial(O.adam, RATE, 0.8, 0.9, 1e-30), lambda k: k.Adam(RATE, 0.8, 0.9, 1e-30)),
    ],
    "adamw": [
        *optax_cases(
            "adamw",
            {},
            {"weight_decay": 0.3, **B, "eps": 0.03},
            {"weight_decay": 0.3, "mask": MATRICES},
            {"weight_decay": 0.3, "mask": by_rank},
            {"weight_decay": 0.3, "nesterov": True, "eps_root": 0.02},
        ),
        torch_case(
            partial(O.adamw, RATE, 0.8, 0.9, 0.02, weight_decay=0.3),
            lambda o, p: o.AdamW(p, RATE, (0.8, 0.9), 0.02, weight_decay=0.3),
        ),
        keras_case(
            partial(O.adamw, RATE, 0.8, 0.9, 1e-30, weight_decay=0.3),
            lambda k: k.AdamW(RATE, weight_decay=0.3, beta_1=0.8, beta_2=0.9, epsilon=1e-30),
        ),
    ],
    "amsgrad": [
        paper_case(partial(O.amsgrad, RATE, 0.8, 0.6, 0.02, 0.01), amsgrad(0.8, 0.6, 0.02, 0.01)),
        torch_case(
            partial(O.amsgrad, RATE, 0.8, 0.6, 0.02), lambda o, p: o.Adam(p, RATE, (0.8, 0.6), 0.02, amsgrad=True)
        ),
        keras_case(partial(O.amsgrad, RATE, 0.8, 0.6, 1e-30), lambda k: k.Adam(RATE, 0.8, 0.6, 1e-30, amsgrad=True)),
        *optax_cases("amsgrad", {**B, "eps": 0.02, "bias_correction_nu": False, "bias_correction_mu": False}),
    ],
    "adamax": [
        *optax_cases("adamax", {}, {**B, "eps": 0.02}),
        torch_case(partial(O.adamax, RATE, 0.8, 0.7, 0.02), lambda o, p: o.Adamax(p, RATE, (0.8, 0.7), 0.02)),
        keras_case(partial(O.adamax, RATE, 0.8, 0.7, 1e-30), lambda k: k.Adamax(RATE, 0.8, 0.7, 1e-30)),
    ],
    "adamaxw": [
        *optax_cases("adamaxw", {}, {**B, "eps": 0.02, "weight_decay": 0.3, "mask": MATRICES}),
        keras_case(
            partial(O.adamaxw, RATE, 0.8, 0.7, 1e-30, weight_decay=0.3),
            lambda k: k.Adamax(RATE, 0.8, 0.7, 1e-30, weight_decay=0.3),
        ),
    ],
    "nadam": [
        *optax_cases("nadam", {}, {**B, "eps": 0.02, "eps_root": 0.01}, {"nesterov": False}),
        torch_case(
            partial(O.nadam, RATE, 0.8, 0.9, 0.02, momentum_decay=0.3),
            lambda o, p: o.NAdam(p, RATE, (0.8, 0.9), 0.02, momentum_decay=0.3),
        ),
        keras_case(partial(O.nadam, RATE, 0.8, 0.7, 0.02, momentum_decay=1.0), lambda k: k.Nadam(RATE, 0.8, 0.7, 0.02)),
        paper_case(partial(O.nadam, RATE, 0.8, 0.9, 0.02, 0.01, momentum_decay=0.3), nadam(0.8, 0.9, 0.02, 0.01, 0.3)),
    ],
    "nadamw": [
        *optax_cases("nadamw", {}, {**B, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3, "mask": MATRICES}),
        torch_case(
            partial(O.nadamw, RATE, 0.8, 0.9, 0.02, weight_decay=0.3, momentum_decay=0.3),
            lambda o, p: o.NAdam(p, RATE, (0.8, 0.9), 0.02, 0.3, momentum_decay=0.3, decoupled_weight_decay=True),
        ),
        keras_case(
            partial(O.nadamw, RATE, 0.8, 0.7, 0.02, weight_decay=0.3, momentum_decay=1.0),
            lambda k: k.Nadam(RATE, 0.8, 0.7, 0.02, weight_decay=0.3),
        ),
    ],
    "radam": [
        *optax_cases(
            "radam", {}, {"b1": 0.6, "b2": 0.9, "eps": 0.02, "eps_root": 0.01}, {"b2": 0.95, "nesterov": True}
        ),
        # the average is 7.46295 long at the eighth update: with a threshold 0.1 % higher the ninth is the first
        *optax_cases("radam", {"b2": 0.95, "threshold": 7.459}),
        torch_case(partial(O.radam, RATE, 0.8, 0.9, 1e-30), lambda o, p: o.RAdam(p, RATE, (0.8, 0.9), 1e-30)),
    ],
    "adabelief": [
        *optax_cases("adabelief", {}, {**B, "eps": 0.02, "eps_root": 0.01}, {"eps": 0.02, "nesterov": True}),
    ],
    "acprop": [
        *optax_cases("acprop", {"eps": 0.3, "eps_root": 0.1, **B, "weight_decay": 0.3, "mask": MATRICES}),
    ],
    "yogi": [
        *optax_cases("yogi", {}, {**B, "eps": 0.02}),
    ],
    "adan": [
        paper_case(partial(O.adan, RATE, 0.8, 0.7, 0.6, 0.02, 0.01), adan(0.8, 0.7, 0.6, 0.02, 0.01)),
        # optax's 1 − b2 is the paper's b2 where both are ½
        *optax_cases("adan", {"b2": 0.5, "b1": 0.8, "b3": 0.9, "eps": 0.02, "weight_decay": 0.3, "mask": MATRICES}),
    ],
    "adopt": [
        *optax_cases(
            "adopt",
            {"eps": 0.1},
            {**B, "eps": 0.1, "use_clipping": False},
            {**B, "eps": 0.1, "nesterov": True},
            {"eps": 0.1, "clip_value_fn": lambda step: 0.1 * (1 + step)},
        ),
    ],
    "ademamix": [
        *optax_cases(
            "ademamix",
            {},
            {**B, "b3": 0.9, "alpha": 3.0, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3, "mask": MATRICES},
            {"b3": lambda step: 0.9 + 0.001 * step, "alpha": lambda step: 0.3 * step},
        ),
    ],
    "simplified_ademamix": [
        *optax_cases(
            "simplified_ademamix",
            {},
            {**B, "alpha": 3.0, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3, "mask": MATRICES},
            {"alpha": lambda step: 0.3 * step},
        ),
    ],
    "lazy_adam": [
        torch_case(
            partial(O.lazy_adam, RATE, 0.8, 0.9, 1e-30),
            lambda o, p: o.SparseAdam(p, RATE, (0.8, 0.9), 1e-30),
            of=ranks,
            sparse=True,
        ),
        paper_case(partial(O.lazy_adam, RATE, 0.8, 0.9, 0.02), lazy_adam(0.8, 0.9, 0.02), per_leaf=True),
    ],
    "asgd": [
        torch_case(
            partial(O.asgd, RATE, 0.3, 0.6, 4, 0.2), lambda o, p: o.ASGD(p, RATE, 0.3, 0.6, 4, weight_decay=0.2)
        ),
        Case(
            "torch",
            partial(O.asgd, RATE, 0.3, 0.6, 4.5, 0.2),
            lambda: torch_path(lambda o, p: o.ASGD(p, RATE, 0.3, 0.6, 4.5, weight_decay=0.2), read="ax"),
            partial(path_of, read=lambda params, state: lo.get_slot(state, "average")),
        ),
    ],
    "sign_sgd": optax_cases("sign_sgd", {}),
    "signum": optax_cases("signum", {}, {"beta": 0.5}),
    "lion": [
        *optax_cases("lion", {}, {**B, "weight_decay": 0.3, "mask": MATRICES}),
        keras_case(partial(O.lion, RATE, 0.8, 0.7, 0.3), lambda k: k.Lion(RATE, 0.8, 0.7, weight_decay=0.3)),
        *[
            Case(
                "optax",
                lambda mode=mode: lo.chain(T.scale_by_lion(0.6, 0.8, mode, 0.3), O.sgd(RATE)),
                lambda mode=mode: optax_path(
                    lambda: optax.chain(optax.scale_by_lion(0.6, 0.8, mode=mode, smooth_beta=0.3), optax.scale(-RATE))
                ),
            )
            for mode in ("hard", "smooth", "refined")
        ],
    ],
    "rprop": [
        torch_case(partial(O.rprop, RATE), lambda o, p: o.Rprop(p, RATE)),
        torch_case(
            partial(O.rprop, RATE, 0.4, 1.3, 0.05, 0.08), lambda o, p: o.Rprop(p, RATE, (0.4, 1.3), (0.05, 0.08))
        ),
    ],
    "lars": [
        *optax_cases(
            "lars",
            {},
            {"weight_decay": 0.3, "weight_decay_mask": MATRICES, "trust_coefficient": 0.1, "eps": 0.2},
            {"trust_ratio_mask": MATRICES, "momentum": 0.5, "nesterov": True},
        ),
        paper_case(
            partial(O.lars, RATE, 0.3, True, 0.1, 0.2, momentum=0.5),
            normal_lars(RATE, 0.3, 0.1, 0.2, 0.5),
            per_leaf=True,
        ),
    ],
    "lamb": [
        *optax_cases("lamb", {}, {**B, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3, "mask": MATRICES}),
        keras_case(partial(O.lamb, RATE, 0.8, 0.7, 0.02), lambda k: k.Lamb(RATE, 0.8, 0.7, 0.02)),
    ],
    "novograd": [
        *optax_cases("novograd", {}, {**B, "eps": 0.02, "eps_root": 0.01, "weight_decay": 0.3}),
        paper_case(
            partial(O.novograd, RATE, 0.8, 0.7, 0.02, 0.01, 0.3), novograd(0.8, 0.7, 0.02, 0.01, 0.3), per_leaf=True
        ),
    ],
    "fromage": optax_cases("fromage", {}, {"min_norm": 1.5}),
    "adafactor": [
        paper_case(partial(O.adafactor, RATE, decay_offset=3.5, factored=False), whole_adafactor(3.5), per_leaf=True),
        *[
            Case(
                "optax",
                partial(O.adafactor, rate, **arguments),
                lambda rate=rate, arguments=arguments, of=of: optax_path(
                    lambda: optax_adafactor(rate, **arguments), of=of
                ),
                partial(path_of, of=of),
            )
            for arguments in (
                {},
                {"min_dim_size_to_factor": 2, "decay_rate": 0.6, "eps": 0.02},
                {"min_dim_size_to_factor": 2, "momentum": 0.8, "weight_decay_rate": 0.1, "weight_decay_mask": by_rank},
                {"multiply_by_parameter_scale": False, "clipping_threshold": None, "factored": False},
                {"clipping_threshold": 0.3},
            )
            for rate, of in ((RATE, tree), (falling, ranks))
        ],
        torch_case(
            # torch takes min(η, 1/√t) and decays by ηλ; optax's and our decay is not multiplied by the rate
            partial(
                O.adafactor, lambda step: jnp.minimum(0.4, 1 / jnp.sqrt(step + 1.0)), 1, weight_decay_rate=0.4 * 0.2
            ),
            lambda o, p: o.Adafactor(p, 0.4, eps=(1e-30, 1e-3), weight_decay=0.2),
        ),
        keras_case(partial(O.adafactor, RATE, 1), lambda k: k.Adafactor(RATE))._replace(atol=2e-8),  # float32 inside
    ],
    "sm3": [
        Case(
            "optax",
            partial(O.sm3, rate, 0.7),
            lambda rate=rate: optax_path(
                lambda: optax.chain(optax.scale_by_sm3(0.7), optax.scale_by_learning_rate(rate)), of=ranks
            ),
            partial(path_of, of=ranks),
        )
        for rate in (RATE, falling)
    ]
    + [
        paper_case(
            lambda b2=b2: lo.chain(T.scale_by_sm3(0.7, b2, 0.02), O.sgd(RATE)), sm3(0.7, b2, 0.02), per_leaf=True
        )
        for b2 in (0.9, 1.0)
    ],
    "came": [
        paper_case(
            partial(O.came, RATE, 0.8, 0.7, 0.6, 0.02, 0.03, 0.5, 0.3),
            came(0.8, 0.7, 0.6, 0.02, 0.03, 0.5, 0.3),
            per_leaf=True,
            of=of,
        )
        for of in (tree, ranks)
    ],
    "adam_mini": [
        paper_case(
            partial(O.adam_mini, RATE, 0.8, 0.9, 0.02, 0.3),
            adam_mini(0.8, 0.9, 0.02, 0.3, lambda ndim: tuple(range(max(ndim - 1, 1))) if ndim else ()),
            per_leaf=True,
        ),
        paper_case(
            partial(O.adam_mini, RATE, 0.8, 0.9, 0.02, shared_axes=lambda shape: (0, 2) if len(shape) > 2 else ()),
            adam_mini(0.8, 0.9, 0.02, 0.0, lambda ndim: (0, 2) if ndim > 2 else ()),
            per_leaf=True,
            of=ranks,
        ),
    ],
    "madgrad": [
        # optax's √t is of float32
        *[case._replace(atol=1e-7) for case in optax_cases("madgrad", {}, {"momentum": 0.5, "weight_decay": 0.3})],
        *[paper_case(partial(O.madgrad, rate, 0.5, 0.3, 0.02), madgrad(rate, 0.5, 0.3, 0.02)) for rate in RATES],
    ],
    "ftrl": [
        keras_case(partial(O.ftrl, RATE), lambda k: k.Ftrl(RATE)),
        keras_case(
            partial(O.ftrl, RATE, -0.4, 0.2, 0.1, 0.2, 0.3, 0.1),
            lambda k: k.Ftrl(RATE, -0.4, 0.2, 0.1, 0.2, 0.3, beta=0.1),
        ),
    ],
}


def optax_rule(name, *grid, of=tree):
    """A transform that optax has under this name with these arguments, followed by a rate."""
    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    return [
        Case(
            "optax",
            lambda a=a: lo.chain(getattr(T, name)(**a), O.sgd(RATE)),
            lambda a=a: optax_path(lambda: optax.chain(theirs(**a), optax.scale(-RATE)), of=of),
            partial(path_of, of=of),
        )
        for a in grid
    ]


def kernels(seed):
    return {name: x for name, x in ranks(seed).items() if x.ndim > 2}


def bounded(most):
    """Gradient descent that skips long gradients."""

    def start(w):
        def move(g, t):
            w[:] -= RATE * g if np.linalg.norm(g) <= most else 0
            return w

        return move

    return start


def broken(seed):
    """The usual tree, but for three gradients that are not finite."""
    return {name: x * {103: np.inf, 104: np.nan, 108: -np.inf}.get(seed, 1) for name, x in ranks(seed).items()}


WEIGHTS = [1.0, 3.0, 0.5, 0.0, 2.0, 1.0, 4.0, 0.25]


def weight(step, params, grads):
    return {"weight": WEIGHTS[step % len(WEIGHTS)]}


def accumulated(mean):
    """Gradient descent on weighted means or sums of k gradients, where k grows."""

    def start(w):
        held, steps = [], []

        def move(g, t):
            held.append((weight(t - 1, None, None)["weight"], g.copy()))
            if len(held) >= 2 + (t - 1) / 4:
                total = sum(part * g for part, g in held)
                w[:] -= falling(len(steps)) * (total / sum(part for part, _ in held) if mean else total)
                steps.append(t)
                held.clear()
            return w

        return move

    return start


def clipped_to_quantile(q, window):
    """Gradient descent on gradients clipped to a quantile of the last norms."""

    def start(w):
        norms = []

        def move(g, t):
            norms.append(np.linalg.norm(g))
            w[:] -= RATE * g * min(1, np.quantile(norms[-window:], q) / norms[-1])
            return w

        return move

    return start


def within_ball(w):
    """Projected gradient descent in the ball of radius 1."""

    def move(g, t):
        w[:] -= RATE * g
        w[:] /= max(1, np.linalg.norm(w))
        return w

    return move


NORMS = [np.linalg.norm(flat(g)) for g in gradients()]


def spikes_skipped(factor, q, window):
    """Gradient descent that skips what is long beside the last gradients."""

    def start(w):
        def move(g, t):
            before = NORMS[max(t - 1 - window, 0) : t - 1]
            w[:] -= RATE * g if t <= window or NORMS[t - 1] <= factor * np.quantile(before, q) else 0
            return w

        return move

    return start


def just_too_long(q, window):
    """The factor that skips a middling step by a hair's breadth."""
    ratios = [NORMS[t] / np.quantile(NORMS[t - window : t], q) for t in range(window, len(NORMS))]
    return sorted(ratios)[len(ratios) // 2] * (1 - 1e-6)


def decaying(weight_decay, initial=False, independent=False):
    """Gradient descent with decay to zero or to where it began, with the rate or without."""

    def start(w):
        origin = w.copy() if initial else 0.0

        def move(g, t):
            pull = (weight_decay(t - 1) if callable(weight_decay) else weight_decay) * (w - origin)
            w[:] -= RATE * g + (pull if independent else RATE * pull)
            return w

        return move

    return start


def loss_scaled(scale, interval, growth, backoff, least, most):
    """Gradient descent on scaled gradients."""

    def start(w):
        state = {"scale": scale, "good": 0}

        def move(g, t):
            if not np.all(np.isfinite(g)):
                state.update(scale=max(state["scale"] * backoff, least), good=0)
                return w
            w[:] -= RATE * g / state["scale"]
            state["good"] += 1
            if state["good"] == interval:
                state.update(scale=min(state["scale"] * growth, most), good=0)
            return w

        return move

    return start


def added(k):
    """Gradient descent by sums of k gradients, which `k` gives as a function of the step."""

    def start(w):
        total, count = 0.0, 0

        def move(g, t):
            nonlocal w, total, count
            total, count = total + g, count + 1
            if count >= k(t - 1):
                w, total, count = w - RATE * total, 0.0, 0
            return w

        return move

    return start


def two_in_three(step):
    return step % 3 > 0


def where_it_is_large(step, value):
    """A condition on the loss."""
    return value > 1.5


def conditional(name):
    """A condition on the step, and one on the loss, around a rule with memory; behind it the rate."""
    ours, theirs = getattr(T, name), getattr(optax, name)
    return [
        Case(
            "optax",
            lambda: lo.chain(ours(T.scale_by_adam(), two_in_three), O.sgd(falling)),
            lambda: optax_path(lambda: optax.chain(theirs(optax.scale_by_adam(), two_in_three), optax.sgd(falling))),
        ),
        Case(
            "optax",
            lambda: ours(O.adam(RATE), where_it_is_large, forward_extra_args=True),
            lambda: optax_path(lambda: theirs(optax.adam(RATE), where_it_is_large, True), with_value),
            partial(path_of, extra=with_value),
        ),
    ]


MEASURED = ("first", "mean", "raw", "second")


def measured(T, norm):
    """Readings before and behind a rule with memory, plain and averaged."""
    with_ema = T.measure_with_ema
    return T.chain(
        T.snapshot("first", norm),
        T.monitor({"mean": with_ema(norm, 0.7), "raw": with_ema(lambda u: norm(u) > 0.1, 0.6, debias=False)}),
        T.trace(0.9),
        T.snapshot("second", norm),
        T.scale(-RATE),
    )


def readings(params, state):
    """Parameters and readings side by side."""
    return [*jax.tree.leaves(params), *(jnp.asarray(optax.tree.get(state, name), jnp.float64) for name in MEASURED)]


JUST_BELOW = 0.9995 * np.linalg.norm(flat(list(gradients())[-1]))

CASES |= {
    "apply_if_finite": [
        Case(
            "optax",
            lambda: T.apply_if_finite(O.adam(RATE)),
            lambda: optax_path(lambda: optax.apply_if_finite(optax.adam(RATE), 100), of=broken),
            partial(path_of, of=broken),
        )
    ],
    "dynamic_loss_scale": [
        paper_case(
            lambda a=a: T.dynamic_loss_scale(
                O.sgd(RATE),
                *a[:1],
                growth_interval=a[1],
                growth_factor=a[2],
                backoff_factor=a[3],
                min_scale=a[4],
                max_scale=a[5],
            ),
            loss_scaled(*a),
            of=broken,
        )
        for a in ((8.0, 2, 1.7, 0.3, 0.1, 100.0), (8.0, 2, 1.7, 0.3, 3.0, 10.0))
    ],
    "multi_steps": [
        *(
            Case(
                "optax",
                lambda k=k, mean=mean: T.multi_steps(O.adamw(falling), k, use_grad_mean=mean),
                lambda k=k, mean=mean: optax_path(
                    lambda: optax.MultiSteps(optax.adamw(falling), k, use_grad_mean=mean, accumulator_dtype=jnp.float64)
                ),
            )
            for k, mean in ((3, True), (2, False))
        ),
        *(
            Case(
                "NumPy",
                lambda mean=mean: T.multi_steps(O.sgd(falling), lambda step: 2.0 + step / 4, mean),
                lambda mean=mean: numpy_path(accumulated(mean)),
                partial(path_of, extra=weight),
            )
            for mean in (True, False)
        ),
    ],
    "add_decay_to_initial": [
        paper_case(lambda a=a: lo.chain(T.add_decay_to_initial(a), O.sgd(RATE)), decaying(a, initial=True))
        for a in (0.3, falling)
    ],
    "add_independent_weight_decay": [
        paper_case(lambda a=a: lo.chain(O.sgd(RATE), T.add_independent_weight_decay(a)), decaying(a, independent=True))
        for a in (0.3, falling)
    ],
    "clip_by_norm_quantile": [
        paper_case(lambda a=a: lo.chain(T.clip_by_norm_quantile(*a), O.sgd(RATE)), clipped_to_quantile(*a))
        for a in ((0.3, 5), (0.75, 100), (0.0, 4), (1.0, 3))
    ],
    "project_params": [paper_case(lambda: lo.chain(O.sgd(RATE), T.project_params(T.projection_l2_ball)), within_ball)],
    "skip_spikes": [
        paper_case(lambda a=a: T.skip_spikes(O.sgd(RATE), just_too_long(*a), *a), spikes_skipped(just_too_long(*a), *a))
        for a in ((0.6, 4), (0.3, 5))
    ],
    "skip_large_updates": [
        paper_case(lambda: T.skip_large_updates(O.sgd(RATE), JUST_BELOW), bounded(JUST_BELOW)),
    ],
    "adaptive_grad_clip": [
        *optax_rule("adaptive_grad_clip", {"clipping": 0.1}, {"clipping": 0.1, "eps": 1.5}, of=ranks),
        *optax_rule("adaptive_grad_clip", {"clipping": 0.1, "axis": (0, 1)}, of=kernels),
    ],
    "centralize": optax_rule("centralize", {}, of=ranks),
    "clip_by_norm": [
        keras_case(lambda: lo.chain(T.clip_by_norm(0.3), O.sgd(RATE)), lambda k: k.SGD(RATE, clipnorm=0.3)),
    ],
    "keep_params_nonnegative": [
        Case(
            "optax",
            lambda: lo.chain(O.sgd(RATE), T.keep_params_nonnegative()),
            lambda: optax_path(lambda: optax.chain(optax.sgd(RATE), optax.keep_params_nonnegative())),
        )
    ],
    "zero_nans": optax_rule("zero_nans", {}),
    "apply_every": [
        *optax_rule("apply_every", {"k": 1}, {"k": 4}),
        paper_case(
            lambda: lo.chain(T.apply_every(lambda step: 2.0 + step / 4), O.sgd(RATE)), added(lambda s: 2 + s / 4)
        ),
    ],
    "conditionally_mask": conditional("conditionally_mask"),
    "conditionally_transform": conditional("conditionally_transform"),
    "identity": optax_rule("identity", {}),
    "monitor": [
        Case(
            "optax",
            lambda: measured(T, T.global_norm),
            lambda: optax_path(lambda: measured(optax, optax.tree.norm), read=readings),
            partial(path_of, read=readings),
        )
    ],
    "set_to_zero": [
        Case(
            "optax",
            lambda: lo.chain(T.set_to_zero(), T.add_decayed_weights(0.1), O.sgd(RATE)),
            lambda: optax_path(
                lambda: optax.chain(optax.set_to_zero(), optax.add_decayed_weights(0.1), optax.sgd(RATE))
            ),
        )
    ],
    "stateless": optax_rule("stateless", {"f": lambda u, p: jax.tree.map(lambda u, p: 0.3 * u + 0.1 * p, u, p)}),
    "stateless_with_tree_map": optax_rule("stateless_with_tree_map", {"f": lambda u, p: jnp.sin(u) + 0.1 * p}),
    "add_decayed_weights": optax_rule("add_decayed_weights", {"weight_decay": 0.3}, {"weight_decay": falling}),
    "clip": optax_rule("clip", {"max_delta": 0.3}),
    "clip_by_block_rms": optax_rule("clip_by_block_rms", {"threshold": 0.3}),
    "clip_by_global_norm": optax_rule("clip_by_global_norm", {"max_norm": 0.3}),
    "ema": optax_rule("ema", {"decay": 0.7}, {"decay": 0.7, "debias": False}),
    "normalize_by_update_norm": optax_rule("normalize_by_update_norm", {"scale_factor": 2.0, "eps": 0.3}),
    "scale": optax_rule("scale", {"step_size": 3.0}),
    "scale_by_param_block_norm": optax_rule("scale_by_param_block_norm", {"min_scale": 1.5}),
    "scale_by_param_block_rms": optax_rule("scale_by_param_block_rms", {"min_scale": 1.5}),
    "scale_by_rss": optax_rule("scale_by_rss", {"initial_accumulator_value": 0.0, "eps": 0.02}),
    "scale_by_schedule": optax_rule("scale_by_schedule", {"step_size_fn": falling}),
    "scale_by_trust_ratio": optax_rule("scale_by_trust_ratio", {"min_norm": 1.5, "trust_coefficient": 0.3, "eps": 0.2}),
    "scale_by_yogi": optax_rule("scale_by_yogi", {"eps_root": 0.01, "initial_accumulator_value": 0.3}),
    "trace": optax_rule("trace", {"decay": 0.7}, {"decay": 0.7, "nesterov": True}),
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)


def test_adam_s_rate_is_a_number_an_array_or_a_schedule(x64):
    same = [path_of(O.adamw(rate, weight_decay=rate)) for rate in (RATE, jnp.asarray(RATE), lambda step: RATE)]
    agree(same[1], same[0])
    agree(same[2], same[0])


SCHEDULED = {
    "momentum": (O.sgd, {"momentum": lambda step: 0.9 - 0.05 * step}),
    "decay": (O.rmsprop, {"decay": lambda step: 0.5 + 0.02 * step}),
    "weight_decay": (O.adamw, {"weight_decay": lambda step: 0.1 * step}),
    "eps": (O.adam, {"eps": lambda step: 0.1 / (1.0 + step)}),
}


@pytest.mark.parametrize("name", list(SCHEDULED))
def test_any_hyperparameter_may_follow_a_schedule(x64, name):
    """The same as setting it by hand before every step, a schedule being read at the number of updates made."""
    make, arguments = SCHEDULED[name]
    schedule = arguments[name]
    key = "decay" if name == "momentum" else name
    by_hand = make(RATE, **{name: 0.3})
    params = jax.tree.map(jnp.asarray, tree(0))
    state, points = by_hand.init(params), []
    for step, grads in enumerate(gradients()):
        state = lo.set_hyperparams(state, **{key: schedule(float(step))})
        updates, state = by_hand.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = lo.apply_updates(params, updates)
        points.append(flat(params))
    agree(path_of(make(RATE, **arguments)), np.stack(points))
