"""The most used losses, value and gradient of the mean over a batch, beside optax and torch.

    python benchmarks/losses.py [--repeats 30] [--losses huber_loss ...]

Losses over classes at (8192, 1000), of numbers at (1000000,), in float32. All sides run interleaved in one process,
minimum of many; "to optax" and "to torch" are our time over theirs. Torch runs its own threads, as many as JAX. The
sides take turns in random order, and idle threads of torch sleep: spinning, they slow down whoever comes next.
"""

import argparse
import math
import os
import random
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("KMP_BLOCKTIME", "0")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

from lossopt_jax import losses

generator = np.random.default_rng(0)
LOGITS = generator.normal(size=(8192, 1000)).astype(np.float32) * 3
LABELS = generator.integers(0, 1000, 8192).astype(np.int32)
DENSE = generator.dirichlet(np.ones(1000), 8192).astype(np.float32)
NUMBERS = generator.normal(size=1_000_000).astype(np.float32)
TARGETS = generator.normal(size=1_000_000).astype(np.float32)
BINARY = generator.integers(0, 2, 1_000_000).astype(np.float32)
SIGNS = 2 * BINARY - 1
LOG_P = np.asarray(jax.nn.log_softmax(LOGITS))

# ours, optax's, torch's; predictions; targets
CASES = {
    "softmax_cross_entropy_with_integer_labels": (
        optax.softmax_cross_entropy_with_integer_labels, lambda z, y: F.cross_entropy(z, y.long()), LOGITS, LABELS
    ),
    "softmax_cross_entropy": (optax.softmax_cross_entropy, F.cross_entropy, LOGITS, DENSE),
    "kl_divergence": (
        optax.kl_divergence, lambda z, y: F.kl_div(z, y, reduction="batchmean"), LOG_P, DENSE
    ),
    "cosine_similarity": (
        optax.cosine_similarity, lambda a, b: F.cosine_similarity(a, b).mean(), LOGITS, DENSE
    ),
    "sigmoid_binary_cross_entropy": (
        optax.sigmoid_binary_cross_entropy, F.binary_cross_entropy_with_logits, NUMBERS, BINARY
    ),
    "sigmoid_focal_loss": (optax.sigmoid_focal_loss, None, NUMBERS, BINARY),
    "squared_error": (optax.squared_error, F.mse_loss, NUMBERS, TARGETS),
    "absolute_error": (None, F.l1_loss, NUMBERS, TARGETS),
    "huber_loss": (optax.huber_loss, F.huber_loss, NUMBERS, TARGETS),
    "log_cosh": (optax.log_cosh, None, NUMBERS, TARGETS),
    "hinge_loss": (optax.hinge_loss, None, NUMBERS, SIGNS),
}  # fmt: skip


class Jitted:
    """A JAX loss: value and gradient of the mean."""

    def __init__(self, function, predictions, targets):
        self.arguments = jnp.asarray(predictions), jnp.asarray(targets)
        self.step = jax.jit(jax.value_and_grad(lambda p, t: jnp.mean(function(p, t))))
        self.best = math.inf
        self()
        self.best = math.inf

    def __call__(self):
        start = time.perf_counter()
        jax.block_until_ready(self.step(*self.arguments))
        self.best = min(self.best, time.perf_counter() - start)


class Eager:
    """A torch loss, whose gradient is written into the same memory each time."""

    def __init__(self, function, predictions, targets):
        self.function, self.targets = function, torch.from_numpy(targets.copy())
        self.predictions = torch.from_numpy(predictions.copy()).requires_grad_()
        self.best = math.inf
        self()
        self.best = math.inf

    def __call__(self):
        start = time.perf_counter()
        self.predictions.grad = None
        self.function(self.predictions, self.targets).backward()
        self.best = min(self.best, time.perf_counter() - start)


def ratio(ours, theirs):
    return f"{theirs.best * 1e3:.2f} | {ours.best / theirs.best:.2f}" if theirs else "– | –"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--losses", nargs="+", default=[name for name in CASES if name in losses.registry])
    chosen = parser.parse_args()
    order = random.Random(0)
    print("| loss | shape | ours ms | optax ms | to optax | torch ms | to torch |\n" + "|---" * 7 + "|")
    for name in chosen.losses:
        of_optax, of_torch, p, t = CASES[name]
        ours = Jitted(losses.registry[name], p, t)
        theirs = Jitted(of_optax, p, t) if of_optax else None
        torches = Eager(of_torch, p, t) if of_torch else None
        sides = [side for side in (ours, theirs, torches) if side]
        for _ in range(chosen.repeats):
            order.shuffle(sides)
            for side in sides:
                side()
        print(
            f"| {name} | {p.shape} | {ours.best * 1e3:.2f} | {ratio(ours, theirs)} | {ratio(ours, torches)} |",
            flush=True,
        )
