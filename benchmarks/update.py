"""One update step of nine optimizers on three models: ours, optax's, torch's fused, and one pass over the same memory.

    python benchmarks/update.py [--models gpt2 resnet50 small] [--rules adamw lion …] [--repeats 10]

All sides in one process, interleaved, minimum of many; parameters and state donated on both JAX sides. The floor is a
loop in C that reads and writes every array once with the rule's arithmetic, compiled here if there is a compiler, else
NumPy copies of as many bytes. Programs are read after XLA has optimised them: what temporary memory they take, and how
many fusions and copies of arrays they hold.
"""

import argparse
import ctypes
import gc
import math
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import lossopt_jax as lo

rules, recipes = lo.transforms, lo.optimizers
RATE, DECAY = 1e-3, 1e-2
ROUNDS = 3


def gpt2(width=512, layers=12, vocabulary=50257, context=1024):
    layer = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width,), (width,)]
    return [(vocabulary, width), (context, width), *layer * layers, (width,), (width,)]


def resnet50():
    shapes, before = [(7, 7, 3, 64), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            kernels = [(1, 1, before, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            kernels += [(1, 1, before, 4 * width)] if block == 0 else []
            shapes += [shape for kernel in kernels for shape in (kernel, kernel[-1:], kernel[-1:])]
            before = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


MODELS = {"gpt2": gpt2(), "resnet50": resnet50(), "small": [(256,), (16, 16), (64,), (8, 8)] * 125}


def warmup_cosine(library):
    return library.warmup_cosine_decay_schedule(0.0, RATE, 1000, 100_000)


# name: (ours, optax's, torch's, the loop's)
RULES = {
    "sgd": (recipes.sgd(RATE), optax.sgd(RATE), ("SGD", {}), "sgd"),
    "momentum": (recipes.sgd(RATE, 0.9), optax.sgd(RATE, 0.9), ("SGD", {"momentum": 0.9}), "momentum"),
    "adam": (recipes.adam(RATE), optax.adam(RATE), ("Adam", {}), "adam"),
    "adamw": (recipes.adamw(RATE, weight_decay=DECAY), optax.adamw(RATE, weight_decay=DECAY), ("AdamW", {}), "adam"),
    "adamw+schedule": (
        recipes.adamw(warmup_cosine(lo.schedules), weight_decay=DECAY),
        optax.adamw(warmup_cosine(optax), weight_decay=DECAY),
        None,
        "adam",
    ),
    "clip+adamw": (
        lo.chain(rules.clip_by_global_norm(1.0), recipes.adamw(RATE, weight_decay=DECAY)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=DECAY)),
        ("AdamW", {"clip": 1.0}),
        "clip",
    ),
    "lion": (recipes.lion(RATE, weight_decay=DECAY), optax.lion(RATE, weight_decay=DECAY), None, "lion"),
    "lamb": (recipes.lamb(RATE, weight_decay=DECAY), optax.lamb(RATE, weight_decay=DECAY), None, None),
    "adafactor": (recipes.adafactor(RATE), optax.adafactor(RATE), None, None),
}

LOOPS = r"""
#include <math.h>
#include <stddef.h>
#define LOOP(name, body) void name(float*restrict p, float*restrict m, float*restrict v, const float*restrict g, \
  ptrdiff_t n, float c) { _Pragma("omp parallel for simd schedule(static)") for (ptrdiff_t i = 0; i < n; i++) { body } }
LOOP(sgd, p[i] -= 1e-3f * g[i];)
LOOP(momentum, m[i] = 0.9f * m[i] + g[i]; p[i] -= 1e-3f * m[i];)
LOOP(lion, float u = 0.9f * m[i] + 0.1f * g[i]; m[i] = 0.99f * m[i] + 0.01f * g[i];
  p[i] -= 1e-3f * ((u > 0) - (u < 0) + 1e-2f * p[i]);)
LOOP(adam, float x = c * g[i]; m[i] = 0.9f * m[i] + 0.1f * x; v[i] = 0.999f * v[i] + 0.001f * x * x;
  p[i] -= 1e-3f * (2.f * m[i] / (sqrtf(3.f * v[i]) + 1e-8f) + 1e-2f * p[i]);)
float square(const float*restrict g, ptrdiff_t n) { float s = 0;
  _Pragma("omp parallel for simd schedule(static) reduction(+:s)") for (ptrdiff_t i = 0; i < n; i++) s += g[i] * g[i];
  return s; }
"""


def compiled_loops():
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "loops.c").write_text(LOOPS)
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "loops.c", "-o", "loops.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "loops.so"))
    library.square.restype = ctypes.c_float
    return library


LIBRARY = compiled_loops()
ARRAYS = {"sgd": 1, "momentum": 2, "lion": 2, "adam": 3, "clip": 3}


class Floor:
    """One pass over parameters, slots and gradients."""

    def __init__(self, loop, shapes):
        self.loop, self.sizes = loop, [math.prod(shape) for shape in shapes]

    def renew(self):
        self.held = [[np.full(n, 0.1, np.float32) for n in self.sizes] for _ in range(ARRAYS[self.loop])]
        self.grads = [np.full(n, 0.01, np.float32) for n in self.sizes]

    def __call__(self):
        if LIBRARY is None:
            for held in self.held:
                for leaf, gradient in zip(held, self.grads, strict=True):
                    np.add(leaf, gradient, out=leaf)
            return
        function = getattr(LIBRARY, "adam" if self.loop == "clip" else self.loop)
        pointers = [[leaf.ctypes.data_as(ctypes.c_void_p) for leaf in held] for held in (*self.held, self.grads)]
        sizes = [ctypes.c_ssize_t(n) for n in self.sizes]
        total = sum(map(LIBRARY.square, pointers[-1], sizes)) if self.loop == "clip" else 0.0
        factor = ctypes.c_float(min(1.0, 1 / math.sqrt(total)) if total else 1.0)
        p, m, v = (pointers[min(i, len(pointers) - 2)] for i in range(3))
        for i, n in enumerate(sizes):
            function(p[i], m[i], v[i], pointers[-1][i], n, factor)


class Torch:
    def __init__(self, name, options, shapes):
        self.options, self.name, self.shapes = dict(options), name, shapes
        self.clip = self.options.pop("clip", None)

    def renew(self):
        self.leaves = [torch.full(shape, 0.1) for shape in self.shapes]
        for leaf in self.leaves:
            leaf.grad = torch.full(leaf.shape, 0.01)
        self.optimizer = getattr(torch.optim, self.name)(self.leaves, lr=RATE, fused=True, **self.options)

    def __call__(self):
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.leaves, self.clip)
        self.optimizer.step()


class Jax:
    """A jitted step over donated memory, and what its program says of itself."""

    def __init__(self, step, tx, shapes):
        self.tx, self.shapes = tx, shapes
        self.renew()
        arguments = (self.params, self.state, self.grads)
        start = time.perf_counter()
        traced = step.trace(*arguments)
        middle = time.perf_counter()
        lowered = traced.lower()
        late = time.perf_counter()
        compiled, self.step = lowered.compile(), step
        self.seconds = (middle - start, late - middle, time.perf_counter() - late)
        entry = re.split(r"\nENTRY ", compiled.as_text())[-1]
        self.fusions = len(re.findall(r" (?:fusion|call)\(", entry))
        self.copies = len(re.findall(r"\[\d[\d,]*\]\{[^}]*\} copy\(", compiled.as_text()))
        parameters = sum(leaf.nbytes for leaf in self.params)
        self.temporaries = compiled.memory_analysis().temp_size_in_bytes / parameters

    def renew(self):
        self.params = self.grads = self.state = None
        self.params = [jnp.full(shape, 0.1) for shape in self.shapes]
        self.grads = [jnp.full(shape, 0.01) for shape in self.shapes]
        self.state = jax.block_until_ready(self.tx.init(self.params))

    def __call__(self):
        self.params, self.state = jax.block_until_ready(self.step(self.params, self.state, self.grads))


def by_optax(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


class Ours(Jax):
    """`compile_update`, which chooses by what it is called with."""

    def __init__(self, tx, shapes):
        super().__init__(lo.compile_update(tx), tx, shapes)


def measured(sides, repeats):
    """The least time of each side, in rounds with fresh arrays: where those lie makes identical programs differ.

    Every other turn goes backwards, as threads of OpenMP spin for a while after their work and slow down what follows.
    """
    best, order = dict.fromkeys(sides, math.inf), list(sides)
    for _ in range(ROUNDS):
        for name in order:
            sides[name].renew()
        for turn in range(repeats + 2):
            order = [*order[1:], order[0]] if turn % 2 else order[::-1]
            for name in order:
                start = time.perf_counter()
                sides[name]()
                if turn > 1:
                    best[name] = min(best[name], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    loop = "C loop" if LIBRARY else "NumPy copies"
    print(
        f"jax {jax.__version__}, optax {optax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}"
    )
    gains = []
    for model in options.models:
        shapes = MODELS[model]
        print(f"\n{model}: {len(shapes)} leaves, {sum(map(math.prod, shapes)) / 1e6:.1f} M parameters; times in ms\n")
        print(f"| rule | ours | optax | torch | {loop} | optax/ours | ours/torch | ours/loop | temporaries ours, optax "
              "| fusions | copies | trace + lower + compile s ours, optax |")  # fmt: skip
        print("|---" * 12 + "|")
        packable = [f"{rule}, packed" for rule in options.rules if rule not in ("lamb", "adafactor")]
        for rule in [*options.rules, *(packable if model == "small" else [])]:
            tx, theirs, fused, floor = RULES[rule.removesuffix(", packed")]
            tx = lo.pack_small(tx) if rule.endswith("packed") else tx
            sides = {"ours": Ours(tx, shapes), "optax": Jax(by_optax(theirs), theirs, shapes)}
            sides |= {"torch": Torch(*fused, shapes)} if fused else {}
            sides |= {"floor": Floor(floor, shapes)} if floor else {}
            best = measured(sides, options.repeats)
            ours, other = sides["ours"], sides["optax"]
            gains.append(best["optax"] / best["ours"])

            def against(name, best=best):
                return f"{best['ours'] / best[name]:.2f}" if name in best else "–"

            times = " | ".join(
                f"{best[side] * 1e3:.2f}" if side in best else "–" for side in ("ours", "optax", "torch", "floor")
            )
            seconds = ", ".join(" + ".join(f"{s:.2f}" for s in side.seconds) for side in (ours, other))
            print(f"| {rule} | {times} | **{gains[-1]:.2f}** | {against('torch')} | {against('floor')} "
                  f"| {ours.temporaries:.1%}, {other.temporaries:.1%} | {ours.fusions}, {other.fusions} "
                  f"| {ours.copies}, {other.copies} | {seconds} |", flush=True)  # fmt: skip
            del sides, ours, other
            gc.collect()
    print(
        f"\noptax/ours, geometric mean of {len(gains)}: {math.exp(np.mean(np.log(gains))):.2f}; least {min(gains):.2f}"
    )


if __name__ == "__main__":
    main()
