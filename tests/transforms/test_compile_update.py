"""`compile_update`: one program, in place, anywhere."""

import math
import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rows import advance, extras, lifts, whole

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS

T, O = lo.transforms, lo.optimizers
# Levenberg–Marquardt has its own test: here its Jacobian would be parameters × parameters.
STEPS = {name: whole(O.registry.build(name)) for name in O.registry if name != "levenberg_marquardt"} | {
    "momentum": O.sgd(0.1, 0.9),
    "nesterov": O.sgd(0.1, 0.9, nesterov=True),
    "rmsprop centered": O.rmsprop(0.1, centered=True, momentum=0.9),
    "adam on a schedule": O.adam(lambda step: 0.1 / (1 + step)),
    "adamw masked": O.adamw(0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "partition": lo.partition({"a": O.adam(0.1), "b": O.sgd(0.1)}, {"w": "a", "v": "a", "b": "b"}),
    "master_weights": lo.master_weights(O.adamw(0.1)),
    "clip and adamw": lo.chain(T.clip_by_global_norm(1.0), O.adamw(0.1)),
    "loss scale, clip and adamw": T.dynamic_loss_scale(
        lo.chain(T.zero_nans(), T.clip_by_global_norm(1.0), O.adamw(0.1)), 0.01, min_scale=0.01
    ),
}
compiled = pytest.mark.parametrize("tx", STEPS.values(), ids=STEPS)
step_of = lru_cache(maxsize=1)(lo.compile_update)  # tests of one transform run side by side
# What measures a leaf first passes over it once more, and writes nothing down either: means from jax 0.10.
MEASURED = {"fromage", "lamb", "lars", "novograd"} | ({"adafactor", "adam_mini"} if CPU_FUSES_SUMS else set())
IN_PLACE = {name: tx for name, tx in STEPS.items() if lifts(tx) <= {"elementwise"} or name in MEASURED}
IN_PLACE |= {name: STEPS[name] for name in ("partition", "master_weights", "clip and adamw")}
# These read an old slot after its successor has been needed, which XLA:CPU answers with a copy: of a block of a large
# leaf, or of a whole leaf too small for blocks.
COPIED = {"adadelta", "adan", "cocob", "ftrl", "gpa_adamw", "optimistic_adam", "optimistic_adam_v2"}
COPIED |= {"optimistic_gradient_descent", "rprop", "schedule_free_adamw"}


def some(scale=1.0, dtype=jnp.float32):
    shapes = {"w": (512, 256), "v": (300, 128), "b": (256,)}
    return {name: jnp.asarray(np.random.default_rng(7).normal(size=s) * scale, dtype) for name, s in shapes.items()}


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def assert_close(left, right, eps=2.4e-7):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=eps, atol=eps)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_without_temporaries_or_copies(name):
    shapes = {"w": (8192, 4096), "v": (300, 128), "b": (256,)}
    params = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    tx = IN_PLACE[name]
    state = jax.eval_shape(tx.init, params)
    program = lo.compile_update(tx).lower(params, state, params).compile()
    memory, text = program.memory_analysis(), program.as_text()
    held, parameters = (sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (state, params))
    assert memory.alias_size_in_bytes >= parameters + held - 64
    # before jax 0.10, norms write down three sums of each row of 128
    assert memory.temp_size_in_bytes <= (0.01 if CPU_FUSES_SUMS else 0.05) * parameters
    copied = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= f32\[([\d,]+)[^ ]* copy\(", text)]
    assert max(copied, default=0) <= (2**16 if name in COPIED | MEASURED else 0)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "tx",
    [
        T.dynamic_loss_scale(lo.chain(T.clip_by_global_norm(1.0), O.adamw(0.1))),
        lo.chain(T.zero_nans(), T.clip(1.0), T.clip_by_global_norm(1.0), O.adamw(0.1)),
    ],
    ids=["loss scale", "chain"],
)
def test_what_stands_before_a_clip_is_written_for_its_norm_alone(tx):
    params = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * 2
    program = lo.compile_update(tx).lower(params, jax.eval_shape(tx.init, params), params).compile()
    assert program.memory_analysis().temp_size_in_bytes <= (1.01 if CPU_FUSES_SUMS else 1.05) * 4 * 2 * 1024 * 1024


@compiled
def test_is_update_and_apply(tx):
    params, grads = some(), some(0.1)
    updates, expected = advance(tx, grads, tx.init(params), params)
    given = extras(params, jax.tree.map(jnp.copy, grads))
    after, state = step_of(tx)(jax.tree.map(jnp.copy, params), tx.init(params), grads, **given)
    assert_close(after, lo.apply_updates(params, updates))
    assert_close(state, expected)


@compiled
def test_consumes_parameters_and_state_and_nothing_else(tx):
    params, grads = some(), some(0.1)
    state = tx.init(params)
    step, given = step_of(tx), extras(params, jax.tree.map(jnp.copy, grads))
    after = step(params, state, grads, **given)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((grads, after)))
    step(*after, grads, **given)
    assert step.jitted._cache_size() == 1


@pytest.mark.slow
@compiled
def test_runs_inside_scan_and_jit(tx):
    params, grads = some(), some(0.1)
    step = partial(step_of(tx), **extras(params, jax.tree.map(jnp.copy, grads)))
    scanned, _ = jax.lax.scan(lambda carry, _: (step(*carry, grads), None), (params, tx.init(params)), length=2)
    jitted = jax.jit(lambda params, state: step(*step(params, state, grads), grads))(params, tx.init(params))
    alone = step(*step(jax.tree.map(jnp.copy, params), tx.init(params), grads), grads)
    eps = 1e-5 if tx is STEPS["lbfgs"] else 1e-6  # a search compares losses that differ in their last bits
    assert_close(scanned, alone, eps)
    assert_close(jitted, alone, eps)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_adds_before_it_rounds():
    p, g = jnp.full(3, 256.0, jnp.bfloat16), jnp.ones(3, jnp.bfloat16)
    tx = O.sgd(1.003)  # 1.003 rounds to 1 in bfloat16, and 256 − 1 is no bfloat16; 254.997 rounds to 255
    after, _ = lo.compile_update(tx)(p, tx.init(p), g)
    assert float(after[0]) == 255.0


def test_leaves_that_are_no_arrays_pass_through():
    params = {"w": jnp.ones(3), "act": jax.nn.relu, "name": "dense", "n": 3, "none": None, "i": jnp.arange(2)}
    float0 = np.zeros(2, jax.dtypes.float0)
    grads = {"w": jnp.ones(3), "act": None, "name": None, "n": None, "none": None, "i": float0}
    tx = O.adamw(0.1)
    after, state = lo.compile_update(tx)(params, tx.init(params), grads)
    assert after["act"] is jax.nn.relu
    assert (after["name"], int(after["n"]), after["none"]) == ("dense", 3, None)
    np.testing.assert_array_equal(after["i"], [0, 1])
    np.testing.assert_allclose(after["w"], 0.9 - 1e-5, rtol=1e-6)
    lo.compile_update(tx)(after, state, grads)


def test_extra_arguments_reach_the_rule():
    @T.elementwise(needs=("value",))
    def by_value(g, slots, t, value):
        return value * g, {}

    @T.treewise(needs=("value_fn",))
    def by_function(g, slots, t, value_fn):
        return [value_fn(g) * x for x in g], {}

    params = {"w": jnp.ones(2)}
    for tx, extra, moved in (
        (by_value(), {"value": 3.0}, 4.0),
        (by_function(), {"value_fn": lambda p: 5 * p["w"][0]}, 6.0),
        (O.sgd(1.0), {"value": 3.0, "loss": 3.0, "value_fn": len}, 0.0),
    ):
        after, _ = lo.compile_update(tx)(jax.tree.map(jnp.copy, params), tx.init(params), params, **extra)
        np.testing.assert_array_equal(after["w"], moved)
    with pytest.raises(TypeError, match="valeu"):
        lo.compile_update(O.sgd(0.1))(params, O.sgd(0.1).init(params), params, valeu=1.0)


def test_one_array_in_two_places_is_named():
    w, tx = jnp.ones(3), O.adam(0.1)
    for params, grads, names in (
        ({"a": w, "b": w}, {"a": jnp.ones(3), "b": jnp.ones(3)}, "'params/a' and 'params/b'"),
        ({"a": w}, {"a": w}, "'params/a' and 'grads/a'|'grads/a' and 'params/a'"),
    ):
        state = tx.init(params)
        with pytest.raises(ValueError, match=rf"compile_update: arrays must be held once, got one for ({names})"):
            lo.compile_update(tx)(params, state, grads)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, state, grads)))
    lo.compile_update(tx)({"a": w}, state, {"a": jnp.ones(3)})
    with pytest.raises(RuntimeError, match="deleted"):
        lo.compile_update(tx)({"a": w}, state, {"a": jnp.ones(3)})


def test_sharded_step_keeps_its_shards_and_moves_only_scalars():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("d", "m"))
    sharding = {"w": PartitionSpec("d", "m"), "v": PartitionSpec(None, "m"), "b": PartitionSpec("m")}
    placed = [
        {name: jax.device_put(leaf, NamedSharding(mesh, sharding[name])) for name, leaf in tree.items()}
        for tree in (some(), some(0.1))
    ]
    tx = STEPS["clip and adamw"]
    program = lo.compile_update(tx).lower(placed[0], tx.init(placed[0]), placed[1]).compile()
    collectives = re.findall(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)\(", program.as_text())
    moved = [
        math.prod(map(int, filter(None, dims.split(","))))
        for shape, _ in collectives
        for dims in re.findall(r"\[([\d,]*)\]", shape)
    ]
    assert collectives
    assert max(moved) <= 8  # one number of each device
    after, state = lo.compile_update(tx)(placed[0], tx.init(placed[0]), placed[1])
    for name, leaf in (after | {"w": lo.get_slot(state, "mu")["w"]}).items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, sharding[name]), leaf.ndim)
    expected, _ = lo.compile_update(tx)(some(), tx.init(some()), some(0.1))
    assert_close(after, expected, 1e-6)


def test_foreign_transforms_are_welcome():
    optax = pytest.importorskip("optax", reason="the foreign library")
    params, grads = some(), some(0.1)
    for tx in (optax.adam(0.1), lo.chain(T.clip(0.05), optax.adam(0.1)), optax.chain(T.clip(0.05), O.adam(0.1))):
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(grads, tx.init(params), params)
        after, _ = lo.compile_update(tx)(jax.tree.map(jnp.copy, params), tx.init(params), grads)
        assert_close(after, optax.apply_updates(params, updates))
    with pytest.raises(TypeError, match="compile_update: members must have init and update"):
        lo.compile_update("adam")
