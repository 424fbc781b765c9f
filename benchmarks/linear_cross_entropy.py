"""Fused linear cross entropy: time and temporaries of value and gradients, beside the layer and its loss apart.

    python benchmarks/linear_cross_entropy.py [--shape 4096 512 65536] [--dtype float32] [--repeats 3] [--torch]

All sides interleaved in one process, minimum of the repeats; temporaries from the compiled program. Torch's fused form
is `torch.nn.functional.linear_cross_entropy`, which has no memory figure here.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt_jax import losses


def of_optax(hidden, kernel, labels):
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def unfused(hidden, kernel, labels):
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return losses.mean(losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def recomputed(hidden, kernel, labels):
    return losses.mean(losses.linear_softmax_cross_entropy(hidden, kernel, labels))


class Side:
    def __init__(self, loss, arguments):
        self.program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        self.temporaries = self.program.memory_analysis().temp_size_in_bytes
        self.arguments, self.best = arguments, math.inf
        jax.block_until_ready(self.program(*arguments))

    def __call__(self):
        start = time.perf_counter()
        jax.block_until_ready(self.program(*self.arguments))
        self.best = min(self.best, time.perf_counter() - start)


class Torch:
    def __init__(self, arguments):
        import torch

        self.function, self.temporaries, self.best = torch.nn.functional.linear_cross_entropy, math.nan, math.inf
        hidden, kernel, labels = (torch.from_numpy(np.array(x, copy=True)) for x in arguments)
        self.hidden, self.kernel = hidden.requires_grad_(), kernel.T.contiguous().requires_grad_()
        self.labels = labels.long()
        self()
        self.best = math.inf

    def __call__(self):
        start = time.perf_counter()
        self.hidden.grad = self.kernel.grad = None
        self.function(self.hidden, self.kernel, self.labels).backward()
        self.best = min(self.best, time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(4096, 512, 65536))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", action="store_true")
    chosen = parser.parse_args()
    tokens, features, classes = chosen.shape
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(keys[0], (tokens, features), chosen.dtype),
        jax.random.normal(keys[1], (features, classes), chosen.dtype) / features**0.5,
        jax.random.randint(keys[2], (tokens,), 0, classes),
    )
    sides = {
        "the layer and our loss apart": Side(unfused, arguments),
        "the layer and optax's loss apart": Side(of_optax, arguments),
        "fused, gradients with the loss": Side(losses.mean_linear_softmax_cross_entropy, arguments),
        "fused, per token, recomputed": Side(recomputed, arguments),
    }
    if chosen.torch:
        sides["torch, fused"] = Torch(arguments)
    for _ in range(chosen.repeats):
        for side in sides.values():
            side()
    base = sides["the layer and our loss apart"]
    print(f"{tokens} tokens, {features} features, {classes} classes, {chosen.dtype}\n")
    print("| | s | to apart | temporaries MB | to apart |\n" + "|---" * 5 + "|")
    for name, side in sides.items():
        memory = f"{side.temporaries / 1e6:.0f} | {side.temporaries / base.temporaries:.2f}"
        print(f"| {name} | {side.best:.2f} | {side.best / base.best:.2f} | {memory} |")
