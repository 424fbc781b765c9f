"""Compressed state: bytes and time of a step, and what an ill-conditioned autoencoder loses.

    python benchmarks/compress.py [--repeats 15] [--seeds 5] [--steps 300]

The step is `compile_update` of adamw over donated memory, all sides interleaved in one process, minimum of many. The
autoencoder (tanh, 64-96-48-24-6 and back, on scikit-learn's digits) is trained by adam from the same first values on
the same batches of 256; the rate is the best of eight for float32, and the loss the mean square on all digits after a
cosine decay. Leaves of less than 4096 elements are not compressed: 21,504 of its 24,502 parameters are.
"""

import argparse
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

import lossopt_jax as lo

KINDS = ("float32", "bfloat16", "int8", "int4")
MODELS = {
    "one leaf of 16.8 M": [(4096, 4096)],
    "12 leaves of 4.2 M": [(2048, 2048)] * 12,
    "4 leaves of 4.2 M, rows not of whole blocks": [(2051, 2045)] * 4,
}
WIDTHS = (64, 96, 48, 24, 6, 24, 48, 96, 64)
RATES = np.geomspace(1e-3, 5e-2, 8)


def kept(tx, kind):
    return tx if kind == "float32" else lo.compress_state(tx, kind)


class Side:
    """A step over donated memory, and what it needs."""

    def __init__(self, kind, shapes):
        tx = kept(lo.optimizers.adamw(1e-3), kind)
        self.params, self.grads = ([jnp.full(shape, x) for shape in shapes] for x in (0.1, 0.01))
        self.state = jax.block_until_ready(tx.init(self.params))
        self.step, self.best = lo.compile_update(tx), math.inf
        program = self.step.lower(self.params, self.state, self.grads).compile()
        size = sum(map(math.prod, shapes))
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state)) / size
        self.temporaries = program.memory_analysis().temp_size_in_bytes / (4 * size)
        self()

    def __call__(self):
        start = time.perf_counter()
        self.params, self.state = jax.block_until_ready(self.step(self.params, self.state, self.grads))
        self.best = min(self.best, time.perf_counter() - start)


def steps(repeats):
    print("| | state, bytes per parameter | temporaries to parameters | step ms | to float32 |")
    print("|---" * 5 + "|")
    for model, shapes in MODELS.items():
        sides = {kind: Side(kind, shapes) for kind in KINDS}
        for _ in range(repeats):
            for side in sides.values():
                side()
        for kind, side in sides.items():
            print(f"| {model}, {kind} | {side.bytes:.3f} | {side.temporaries:.1%} "
                  f"| {side.best * 1e3:.1f} | {side.best / sides['float32'].best:.2f} |", flush=True)  # fmt: skip


def first_values(key):
    keys = jax.random.split(key, len(WIDTHS))
    return [
        {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    ]


def loss(params, x):
    y = x
    for number, layer in enumerate(params):
        y = y @ layer["w"] + layer["b"]
        y = jnp.tanh(y) if number < len(params) - 1 else y
    return jnp.mean((y - x) ** 2)


@functools.partial(jax.jit, static_argnums=(0, 4))
@functools.partial(jax.vmap, in_axes=(None, 0, None, None, None))
def final_loss(kind, seed, rate, x, count):
    first, batches = jax.random.split(jax.random.key(seed))
    params = first_values(first)
    tx = kept(lo.optimizers.adam(lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / count))), kind)

    def step(carry, key):
        params, state = carry
        grads = jax.grad(loss)(params, x[jax.random.choice(key, len(x), (256,), replace=False)])
        updates, state = tx.update(grads, state, params)
        return (lo.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(batches, count))
    return loss(params, x)


def losses(seeds, count):
    from sklearn.datasets import load_digits

    x, numbers = jnp.asarray(load_digits().data / 16, jnp.float32), jnp.arange(seeds)
    found = [float(jnp.mean(final_loss("float32", numbers, rate, x, count))) for rate in RATES]
    rate = RATES[int(np.argmin(found))]
    print(f"\nautoencoder, {count} steps, {seeds} seeds, rate {rate:.4f}\n")
    print("| | loss | to float32, mean of pairs | standard error |\n|---|---|---|---|")
    plain = np.asarray(final_loss("float32", numbers, rate, x, count))
    for kind in KINDS:
        own = np.asarray(final_loss(kind, numbers, rate, x, count))
        ratio = own / plain
        print(f"| {kind} | {own.mean():.5f} | {ratio.mean() - 1:+.2%} | {ratio.std() / max(seeds - 1, 1) ** 0.5:.2%} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, adamw\n")
    if options.repeats:
        steps(options.repeats)
    losses(options.seeds, options.steps)


if __name__ == "__main__":
    main()
