"""Rules that see matrices: against optax, torch and NumPy transcriptions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from paths import RATE, Case, check, falling, numpy_path, optax_path, parametrize, path_of, ranks, torch_path

import lossopt_jax as lo
from lossopt_jax._core import leaf_seed, random_normal

T, O = lo.transforms, lo.optimizers


def optax_muon(*args, **kwargs):
    """Which wants to be told that matrices are matrices."""
    matrix = optax.contrib.MuonDimensionNumbers()
    return optax.contrib.scale_by_muon(
        *args, weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: matrix, tree), **kwargs
    )


JORDAN = (3.4445, -4.7750, 2.0315)
DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def two_axes(seed):
    """Matrices of several shapes, two of them equal."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape) for name, shape in {"a": (4, 3), "b": (3, 6), "c": (4, 3), "d": (1, 5)}.items()
    }


def with_vectors(seed):
    return two_axes(seed) | {"bias": np.random.default_rng(seed + 50).normal(size=5)}


def on_matrices(run):
    return lambda tx: path_of(tx, of=run)


def sum_of_steps(tx):
    """The path of parameters to which a rule's updates are added at the rate."""
    return lo.chain(tx, O.sgd(RATE))


def optax_sum(make, of=two_axes):
    return lambda: optax_path(lambda: optax.chain(make(), optax.sgd(RATE)), of=of)


def newton_schulz(x, coefficients=(JORDAN,) * 5, eps=1e-8):
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (np.linalg.norm(x) + eps)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def jordan_muon(momentum=0.9, nesterov=True, rms=None):
    """Of the code that Muon was published with, kernels being [in, out]; whatever has fewer axes is a row."""

    def start(w):
        w, m = w.copy(), np.zeros_like(w)

        def move(g, t):
            nonlocal w, m
            m = momentum * m + (1 - momentum) * g
            x = momentum * m + (1 - momentum) * g if nesterov else m
            shape = x.shape if x.ndim > 1 else (1, x.size)
            stack = x.reshape(-1, *shape[-2:])
            u = np.stack([newton_schulz(one) for one in stack]).reshape(x.shape)
            fan_in, fan_out = shape[-2:]
            scale = np.sqrt(max(1, fan_out / fan_in)) if rms is None else rms * np.sqrt(max(fan_in, fan_out))
            w = w - RATE * scale * u
            return w

        return move

    return start


def adam(shape, b1, b2, eps):
    m, v = np.zeros(shape), np.zeros(shape)

    def direction(g, t):
        nonlocal m, v
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)

    return direction


B1, B2, EPS = 0.8, 0.9, 0.02
ADAM = T.scale_by_adam(B1, B2, EPS)


def paper_galore(rank, gap, scale, longer=False):
    """Algorithm 2 of the paper, where the shorter axis is projected."""

    def start(w):
        w, inner, basis = w.copy(), None, None

        def move(g, t):
            nonlocal w, inner, basis
            wide = (w.shape[0] < w.shape[1]) != longer
            if (t - 1) % gap == 0:
                u, _, v = np.linalg.svd(g, full_matrices=False)
                basis = u[:, :rank] if wide else v[:rank].T
            r = basis.T @ g if wide else g @ basis
            inner = inner or adam(r.shape, B1, B2, EPS)
            n = inner(r, t)
            w = w - RATE * scale * (basis @ n if wide else n @ basis.T)
            return w

        return move

    return start


def paper_apollo(rank, gap, scale, tensor=False, seed=7, paths=("a", "b", "c", "d"), decay=0.0):
    """Algorithm 1 of the paper with the limiter; the projections are this library's random numbers."""
    names = iter(paths)

    def start(w):
        w, path, inner, length = w.copy(), next(names), None, 0.0

        def move(g, t):
            nonlocal w, inner, length
            if w.ndim < 2:
                inner = inner or adam(w.shape, B1, B2, EPS)
                u = inner(g, t)
            else:
                wide = w.shape[0] < w.shape[1]
                g = g if wide else g.T
                r = min(rank, len(g))
                period = jnp.int32((t - 1) // gap)
                p = np.asarray(random_normal(leaf_seed(jnp.uint32(seed), period, path), (len(g), r), jnp.float64)).T
                small = p @ g / np.sqrt(r)
                inner = inner or adam(small.shape, B1, B2, EPS)
                n = inner(small, t)
                axis = None if tensor else 0
                size = np.sqrt(np.sum(small**2, axis))
                s = np.sqrt(np.sum(n**2, axis)) / np.where(size > 0, size, np.inf)
                u = np.sqrt(scale) * g * s
                now = np.linalg.norm(u)
                if 0 < 1.01 * length < now:
                    u, now = u * 1.01 * length / now, 1.01 * length
                length = now
                u = u if wide else u.T
            w = w - RATE * (u + decay * w)
            return w

        return move

    return start


SETTINGS = {"beta": 0.8, "eps": 1e-3, "weight_decay": 0.3, "adam_b1": 0.7, "adam_b2": 0.9, "adam_weight_decay": 0.1}
CASES = {
    "scale_by_muon": [
        Case(
            "optax",
            lambda: sum_of_steps(T.scale_by_muon(beta=0.8)),
            optax_sum(lambda: optax_muon(beta=0.8)),
            on_matrices(two_axes),
        ),
        Case(
            "optax",
            lambda: sum_of_steps(T.scale_by_muon("dion", beta=0.8, nesterov=False, adaptive=True)),
            optax_sum(lambda: optax_muon(DION, 5, 0.8, nesterov=False, adaptive=True)),
            on_matrices(two_axes),
        ),
        *(
            Case(
                "optax",
                lambda kind=kind: sum_of_steps(T.scale_by_muon(JORDAN, 3, 0.8, 1e-3, preconditioning=kind)),
                optax_sum(lambda kind=kind: optax_muon(JORDAN, 3, 0.8, 1e-3, preconditioning=kind)),
                on_matrices(two_axes),
                1e-11,
            )
            for kind in ("spectral", "aol", "schatten")
        ),
        Case(
            "NumPy",
            lambda: lo.chain(T.scale_by_muon(beta=0.9, bias_correction=False), T.scale_by_shape(), O.sgd(RATE)),
            lambda: numpy_path(jordan_muon(), per_leaf=True, of=ranks),
            on_matrices(ranks),
        ),
        Case(
            "NumPy",
            lambda: lo.chain(
                T.scale_by_muon(beta=0.9, nesterov=False, bias_correction=False),
                T.scale_by_shape(0.2),
                O.sgd(RATE),
            ),
            lambda: numpy_path(jordan_muon(nesterov=False, rms=0.2), per_leaf=True, of=ranks),
            on_matrices(ranks),
        ),
    ],
    "muon": [
        Case(
            "optax",
            lambda: O.muon(
                falling, beta=0.8, eps=1e-3, weight_decay=0.3, adam_b1=0.7, adam_b2=0.9, adam_weight_decay=0.1
            ),
            lambda: optax_path(
                lambda: optax.contrib.muon(
                    falling, beta=0.8, eps=1e-3, weight_decay=0.3, adam_b1=0.7, adam_b2=0.9, adam_weight_decay=0.1
                ),
                of=with_vectors,
            ),
            on_matrices(with_vectors),
        ),
        Case(
            "optax",
            lambda: O.muon(RATE, "dion", consistent_rms=0.2, adam_learning_rate=0.01, nesterov=False),
            lambda: optax_path(
                lambda: optax.contrib.muon(RATE, "dion", consistent_rms=0.2, adam_learning_rate=0.01, nesterov=False),
                of=with_vectors,
            ),
            on_matrices(with_vectors),
        ),
        Case(  # which orthogonalises in bfloat16, from kernels [out, in]
            "torch",
            lambda: O.muon(RATE, beta=0.8, eps=1e-7, weight_decay=0.3, bias_correction=False, consistent_rms=0.2),
            lambda: torch_path(
                lambda o, p: o.Muon(p, RATE, 0.3, 0.8, eps=1e-7, adjust_lr_fn="match_rms_adamw"), of=two_axes
            ),
            on_matrices(two_axes),
            2e-2,
        ),
    ],
    "scale_by_galore": [
        Case(
            "NumPy",
            lambda: sum_of_steps(T.scale_by_galore(2, 4, 0.5, ADAM, side="shorter")),
            lambda: numpy_path(paper_galore(2, 4, 0.5), per_leaf=True, of=two_axes),
            on_matrices(two_axes),
        ),
        Case(
            "NumPy",
            lambda: sum_of_steps(T.scale_by_galore(2, 4, 0.5, ADAM)),
            lambda: numpy_path(paper_galore(2, 4, 0.5, longer=True), per_leaf=True, of=two_axes),
            on_matrices(two_axes),
        ),
    ],
    "galore": [
        Case(
            "optax",
            lambda: O.galore(falling, 1, 4, 0.5, ADAM, 0.3),
            lambda: optax_path(
                lambda: optax.contrib.galore(falling, 1, 4, 0.5, optax.scale_by_adam(B1, B2, EPS), 0.3), of=two_axes
            ),
            on_matrices(two_axes),
            1e-5,
        )
    ],
    "scale_by_apollo": [
        Case(
            "NumPy",
            lambda: sum_of_steps(T.scale_by_apollo(2, 4, 3.0, ADAM, seed=7)),
            lambda: numpy_path(paper_apollo(2, 4, 3.0), per_leaf=True, of=two_axes),
            on_matrices(two_axes),
        ),
        Case(
            "NumPy",
            lambda: sum_of_steps(T.scale_by_apollo(1, 4, 128.0, ADAM, per="tensor", seed=7)),
            lambda: numpy_path(paper_apollo(1, 4, 128.0, tensor=True), per_leaf=True, of=two_axes),
            on_matrices(two_axes),
        ),
    ],
    "apollo": [
        Case(
            "NumPy",
            lambda: O.apollo(RATE, 2, 4, 3.0, B1, B2, EPS, 0.3, seed=7),
            lambda: numpy_path(
                paper_apollo(2, 4, 3.0, paths=("a", "b", "bias", "c", "d"), decay=0.3), per_leaf=True, of=with_vectors
            ),
            on_matrices(with_vectors),
        )
    ],
    "apollo_mini": [
        Case(
            "NumPy",
            lambda: O.apollo_mini(RATE, 4, 16.0, B1, B2, EPS, 0.3, seed=7),
            lambda: numpy_path(
                paper_apollo(1, 4, 16.0, True, paths=("a", "b", "bias", "c", "d"), decay=0.3),
                per_leaf=True,
                of=with_vectors,
            ),
            on_matrices(with_vectors),
        )
    ],
}


@parametrize(CASES)
def test_reference(x64, case):
    check(case)
