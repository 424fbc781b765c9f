"""Warm `fit` of a 64-128-10 network on digits against a hand-written scan of the same steps, and against Keras.

    python benchmarks/fit.py

All sides in one process, interleaved, minimum of many. The hand-written side is what one writes with optax: one
`lax.scan` per epoch, shuffled, the losses of an epoch fetched once; it has no metrics and no guard. Ours computes the
accuracy and checks every step for NaN as well.
"""

import os
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from sklearn.datasets import load_digits

import lossopt_jax as lo

BATCH, EPOCHS, REPEATS = 32, 20, 15


def network(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def initial():
    keys = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(keys[0], (64, 128)) / 8,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(keys[1], (128, 10)) / 11,
        "b2": jnp.zeros(10),
    }


def by_hand(x, y):
    """The loop one writes with optax: one scan per epoch."""
    tx, steps = optax.adam(1e-3), len(x) // BATCH

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

    @jax.jit
    def epoch(params, state, key):
        order = jax.random.permutation(key, len(x))[: steps * BATCH].reshape(steps, BATCH)

        def step(carry, rows):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x[rows], y[rows])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), losses = jax.lax.scan(step, (params, state), order)
        return params, state, losses.mean()

    def run():
        params = initial()
        state = tx.init(params)
        for i in range(EPOCHS):
            params, state, value = epoch(params, state, jax.random.key(i))
            value = float(value)
        return value

    return run


def with_fit(x, y, metrics):
    program = lo.compile(network, optimizer="adam", loss="softmax_cross_entropy_with_integer_labels", metrics=metrics)
    state = program.init(initial())

    def run():
        return program.fit(state, (x, y), epochs=EPOCHS, batch_size=BATCH, progress=False)[1]["loss"][-1]

    return run


def with_keras(x, y):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])

    def run():
        return model.fit(x, y, epochs=EPOCHS, batch_size=BATCH, verbose=0).history["loss"][-1]

    return run


def main():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32)[:1408], y.astype(np.int32)[:1408]
    on_device = jnp.asarray(x), jnp.asarray(y)
    sides = {
        "hand-written scan": by_hand(*on_device),
        "fit": with_fit(x, y, ["accuracy"]),
        "fit, no metrics": with_fit(x, y, []),
        "keras fit": with_keras(x, y),
    }
    first, best, final = {}, {}, {}
    for repeat in range(REPEATS + 1):
        for name, run in sides.items():
            if name == "keras fit" and repeat > 5:
                continue
            start = time.perf_counter()
            final[name] = run()
            spent = time.perf_counter() - start
            if repeat == 0:
                first[name] = spent
            else:
                best[name] = min(best.get(name, spent), spent)
    print(f"digits, 64-128-10, batch {BATCH}, {EPOCHS} epochs of {len(x) // BATCH} steps; jax {jax.__version__}, CPU")
    print(f"{'':20s}{'first run':>12s}{'warm':>12s}{'to hand-written':>18s}{'to keras':>12s}{'loss':>10s}")
    for name in sides:
        warm = best[name]
        ratios = f"{warm / best['hand-written scan']:17.2f}×{warm / best['keras fit']:11.3f}×"
        print(f"{name:20s}{first[name]:10.2f} s{1e3 * warm:9.1f} ms{ratios}{final[name]:10.4f}")


if __name__ == "__main__":
    main()
