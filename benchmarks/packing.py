"""Many small leaves: adamw of optax, ours, and ours with `pack_small`; compiling and one step.

    python benchmarks/packing.py [--groups 16 64 …] [--repeats 60]

All sides in one process, steps interleaved, minimum of many; parameters and state donated on all sides. The gradients
are leaves of their own, as `jax.grad` makes them. "nothing" is a step that returns its parameters and state: what it
costs to hand over so many arrays.
"""

import argparse
import math
import re
import time

import jax
import jax.numpy as jnp
import optax

import lossopt_jax as lo

MODELS = {
    "1000 leaves of 64": [(64,)] * 1000,
    "500 leaves of 64 to 256": [(256,), (16, 16), (64,), (8, 8)] * 125,
}


def by_optax(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


class Side:
    """A step over donated memory, the seconds to make it, and how many kernels it runs."""

    def __init__(self, step, tx, shapes):
        self.params, self.grads = ([jnp.full(shape, x) for shape in shapes] for x in (0.1, 0.01))
        self.state = jax.block_until_ready(tx.init(self.params))
        start = time.perf_counter()
        traced = step.trace(self.params, self.state, self.grads)
        middle = time.perf_counter()
        lowered = traced.lower()
        late = time.perf_counter()
        program = lowered.compile()
        self.seconds = (middle - start, late - middle, time.perf_counter() - late)
        entry = re.split(r"\nENTRY ", program.as_text())[-1]
        self.kernels = len(re.findall(r" (?:fusion|call|concatenate|copy|slice|while|conditional)\(", entry))
        self.step, self.best = step, math.inf
        self()

    def __call__(self):
        start = time.perf_counter()
        self.params, self.state = jax.block_until_ready(self.step(self.params, self.state, self.grads))
        self.best = min(self.best, time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", nargs="+", type=int, default=[16])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    adamw = lo.optimizers.adamw(1e-3)
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].device_kind}")
    for model, shapes in MODELS.items():
        sides = {"optax": Side(by_optax(optax.adamw(1e-3)), optax.adamw(1e-3), shapes)}
        sides["ours"] = Side(lo.compile_update(adamw), adamw, shapes)
        for size in options.groups:
            packed = lo.pack_small(adamw, max_group_size=size)
            sides[f"packed by {size}"] = Side(lo.compile_update(packed), packed, shapes)
        sides["nothing"] = Side(
            jax.jit(lambda p, s, g: (p, s), donate_argnums=(0, 1), keep_unused=True), packed, shapes
        )
        for _ in range(options.repeats):
            for side in sides.values():
                side()
        total = sum(sides["optax"].seconds)
        print(f"\n{model}\n")
        print("| | kernels | trace | lower | compile s | sum | to optax's | step ms | optax/it |")
        print("|---" * 9 + "|")
        for name, side in sides.items():
            parts, whole = " | ".join(f"{s:.2f}" for s in side.seconds), sum(side.seconds)
            print(f"| {name} | {side.kernels} | {parts} | {whole:.2f} | {whole / total:.2f} "
                  f"| {side.best * 1e3:.2f} | {sides['optax'].best / side.best:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
