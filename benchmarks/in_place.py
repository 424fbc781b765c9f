"""What a step of each elementwise optimizer needs beside its own memory on a CPU: three ways of compiling it.

    python benchmarks/in_place.py

Temporary memory over the parameters' (16.8 M of them, in four leaves), and how often an array of a leaf's size is
copied per step: in a plain jit with donation, in one with `lo.cpu_compiler_options()`, and by `lo.compile_update`.
Nothing is run.
"""

import math
import re

import jax
import jax.numpy as jnp

import lossopt_jax as lo

SHAPES = [(2048, 2048)] * 4


def figures(lowered):
    program = lowered.compile()
    parameters = 4 * sum(map(math.prod, SHAPES))
    sizes = [math.prod(map(int, d.split(","))) for d in re.findall(r"= f32\[([\d,]+)\]\S* copy\(", program.as_text())]
    copies = sum(size >= 2048 * 2048 for size in sizes)
    return f"{program.memory_analysis().temp_size_in_bytes / parameters:.1%}, {copies}"


def main():
    registry = lo.optimizers.registry
    print(f"jax {jax.__version__}: temporaries over parameters, copies of leaves\n")
    print("| optimizer | `jax.jit` | with `cpu_compiler_options` | `compile_update` |\n|---|---|---|---|")
    clipped = lo.chain(lo.transforms.clip_by_global_norm(1.0), lo.optimizers.adamw(0.1))
    built = {name: registry.build(name) for name in registry} | {"clip_by_global_norm, adamw": clipped}
    for name, tx in built.items():
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]
        if tx is not clipped and tx._met_by(params) is None:
            continue
        state, step = jax.eval_shape(tx.init, params), lo.compile_update(tx)
        plain = jax.jit(step.fn, donate_argnums=(0, 1))
        helped = jax.jit(step.fn, donate_argnums=(0, 1), compiler_options=lo.cpu_compiler_options())
        columns = [figures(way.lower(params, state, params)) for way in (plain, helped, step)]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
