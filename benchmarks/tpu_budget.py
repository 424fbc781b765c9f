"""What the TPU compiler makes of nine update steps, ours beside optax's, for chips that are not there.

    pip install "jax[tpu]"          # on a plain CPU machine, in an environment of its own
    python benchmarks/tpu_budget.py [--chips v5e-1 v5e-4 v5p-4 v5e-256] [--rules adamw lamb …] [--programs FOLDER]

The package libtpu holds the whole compiler: it optimises the program for the chips named and counts, but nothing runs,
so there are no times here but the compiler's own. Parameters, gradients and slots are float32 and sharded over all
chips; parameters and state are donated and come back where they were. The bytes are the compiler's count, in which an
array copied into fast memory first counts again: on v5e-256, where a chip holds 126 MB of parameters, most are.
"""

import argparse
import collections
import functools
import math
import os
import re
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # look for no cloud machine
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, so others may compile too

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers  # noqa: E741
RATE, DECAY = 1e-3, 1e-2


def transformer(layers, width, inner, vocabulary, narrow):
    """A decoder's parameters, layers stacked: twelve leaves."""
    wide = {name: (layers, width, inner) for name in ("gate", "up")}
    return {
        "embedding": (vocabulary, width),
        **{name: (layers, width, width) for name in ("query", "output")},
        **{name: (layers, width, narrow) for name in ("key", "value")},
        **wide,
        "down": (layers, inner, width),
        **{name: (layers, width) for name in ("norm1", "norm2")},
        "norm": (width,),
        "head": (width, vocabulary),
    }


# name: (topology, how many of its chips, parameters); float32 Adam of eight billion does not fit four v5e
CHIPS = {
    "v5e-1": ("v5e:2x2", 1, transformer(2, 4096, 14336, 16384, 1024)),
    "v5e-4": ("v5e:2x2", 4, transformer(10, 4096, 14336, 131072, 1024)),
    "v5p-4": ("v5p:2x2x1", 4, transformer(32, 4096, 14336, 131072, 1024)),
    "v5e-256": ("v5e:16x16", 256, transformer(32, 4096, 14336, 131072, 1024)),
}


def schedule(library):
    return library.warmup_cosine_decay_schedule(0.0, RATE, 1000, 100_000)


RULES = {
    "sgd": (O.sgd(RATE), optax.sgd(RATE)),
    "momentum": (O.sgd(RATE, 0.9), optax.sgd(RATE, 0.9)),
    "adam": (O.adam(RATE), optax.adam(RATE)),
    "adamw": (O.adamw(RATE, weight_decay=DECAY), optax.adamw(RATE, weight_decay=DECAY)),
    "adamw+schedule": (
        O.adamw(schedule(lo.schedules), weight_decay=DECAY),
        optax.adamw(schedule(optax), weight_decay=DECAY),
    ),
    "clip+adamw": (
        lo.chain(T.clip_by_global_norm(1.0), O.adamw(RATE, weight_decay=DECAY)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=DECAY)),
    ),
    "lion": (O.lion(RATE, weight_decay=DECAY), optax.lion(RATE, weight_decay=DECAY)),
    "lamb": (O.lamb(RATE, weight_decay=DECAY), optax.lamb(RATE, weight_decay=DECAY)),
    "adafactor": (O.adafactor(RATE), optax.adafactor(RATE)),
}


def by_us(tx):
    """What `compile_update` runs where the backend is a TPU."""
    return functools.partial(lo.compile_update(tx).jitted.__wrapped__, arrays={}, functions=(), blocks=False)


def by_optax(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def spec_of(shape, chips):
    """Rows over all chips: the last axis but one, since the last one fills the lanes; the last where rows are few."""
    axis = next((axis for axis in (len(shape) - 2, len(shape) - 1) if axis >= 0 and shape[axis] % chips == 0), None)
    return PartitionSpec(*("chips" if i == axis else None for i in range(len(shape))))


def slot_spec(path, shape, specs, shapes):
    """A slot lies where its parameter does, a factored one without the axis it averages over, a scalar everywhere."""
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    owner = next((key for key in reversed(keys) if key in shapes), None)
    if owner is None or not shape:
        return PartitionSpec()
    whole, names = shapes[owner], specs[owner]
    if shape == whole:
        return names
    axes = range(len(whole)) if "v_col" in keys else reversed(range(len(whole)))
    for axis in axes:  # of two axes of one length rows lack the last
        if shape == whole[:axis] + whole[axis + 1 :]:
            return PartitionSpec(*names[:axis], *names[axis + 1 :])
    return PartitionSpec()


def arguments(tx, shapes, devices):
    """Shapes and places of parameters, state and gradients."""
    mesh = Mesh(np.array(devices), ("chips",))
    specs = {name: spec_of(shape, len(devices)) for name, shape in shapes.items()}

    def placed(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = {name: placed(shape, jnp.float32, specs[name]) for name, shape in shapes.items()}
    state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: placed(leaf.shape, leaf.dtype, slot_spec(path, leaf.shape, specs, shapes)),
        jax.eval_shape(tx.init, params),
    )
    return params, state, params


def size(types):
    """Bytes of the largest array in the text of a result's type."""
    arrays = re.findall(r"([a-z]+)(\d+)\w*\[([\d,]*)\]", types)
    return max(int(bits) // 8 * math.prod(map(int, filter(None, dims.split(",")))) for _, bits, dims in arrays)


def collectives(program):
    """Kind → (how many, bytes of the largest); opcodes only, since names and uses repeat the word."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    found = collections.defaultdict(list)
    for types, kind in re.findall(rf" = (.+?) ({kinds})(?:-start)?\(", program):
        found[kind].append(size(types))
    return {kind: (len(sizes), max(sizes)) for kind, sizes in found.items()}


def compiled(step, tx, shapes, devices):
    """The optimised program, and the seconds from the call of trace to the end of compile."""
    given = arguments(tx, shapes, devices)
    places = jax.tree.map(lambda leaf: leaf.sharding, given[:2])
    start = time.perf_counter()
    program = jax.jit(step, donate_argnums=(0, 1), out_shardings=places).lower(*given).compile()
    return program, time.perf_counter() - start


def row(program, seconds, count, chips):
    temporary = program.memory_analysis().temp_size_in_bytes * chips / count
    counted = program.cost_analysis()["bytes accessed"] * chips / count
    moved = collectives(program.as_text())
    text = ", ".join(f"{n} {kind} ≤ {most:,} B" for kind, (n, most) in sorted(moved.items())) or "none"
    return f"{seconds:.1f} | {temporary:.3f} ({temporary / 4:.2%}) | {counted:.1f} | {text}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--programs", type=Path, help="a folder for the optimised programs' text")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, optax {optax.__version__}, compiled on {jax.default_backend()}")
    for name in options.chips:
        topology, chips, shapes = CHIPS[name]
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:chips]
        count = sum(map(math.prod, shapes.values()))
        print(f"\n{name}: {len(shapes)} leaves, {count / 1e9:.2f} G parameters\n")
        print("| rule | side | seconds to compile | temporaries, bytes per parameter | bytes accessed per parameter "
              "| collectives, the largest |")  # fmt: skip
        print("|---" * 6 + "|")
        for rule in options.rules:
            ours, theirs = RULES[rule]
            for side, step, tx in (("ours", by_us(ours), ours), ("optax", by_optax(theirs), theirs)):
                program, seconds = compiled(step, tx, shapes, devices)
                print(f"| {rule} | {side} | {row(program, seconds, count, chips)} |", flush=True)
                if options.programs:
                    (options.programs / f"{rule}-{side}-{name}.txt").write_text(program.as_text())


if __name__ == "__main__":
    main()
