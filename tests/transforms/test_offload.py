"""State in the memory of the host: where arrays lie, and that nothing else is different."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rows import OPTIMIZERS, TRANSFORMS, advance

import lossopt_jax as lo
from lossopt_jax._core import keeps_host_memory
from lossopt_jax.transforms._compile import run_and_apply

T, O = lo.transforms, lo.optimizers
ROWS = TRANSFORMS | OPTIMIZERS
HOST = "pinned_host" if keeps_host_memory() else "device"
SHAPES = {"w": (16, 32), "b": (16,)}
slow = pytest.mark.slow


def some(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def kinds(tree):
    return [leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)]


def expected_kinds(tree, least):
    return [HOST if leaf.size >= least else "device" for leaf in jax.tree.leaves(tree)]


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


STEPS = {
    "adamw": O.adamw(0.1),
    "clip and adam": lo.chain(T.clip_by_global_norm(1.0), O.adam(0.1)),
    "lamb": O.lamb(0.1),
    "lion": O.lion(0.1),
    "master": lo.master_weights(O.adam(0.1)),
    "guard": T.apply_if_finite(O.adam(0.1)),
    "masked": O.adamw(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "lookahead": T.lookahead(O.adam(0.1), 2, 0.5),
    "packed": lo.pack_small(O.adam(0.1), 32),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "clip and adam" else [slow]) for name in STEPS],
)
def test_large_arrays_rest_on_the_host_and_every_bit_is_the_same(name):
    inner, (params, grads) = STEPS[name], jax.device_put((some(0), some(1)), jax.devices()[0])
    tx = lo.offload_state(inner, 100)
    state, plain = jax.jit(tx.init)(params), inner.init(params)
    for made in (state, tx.init(params)):
        assert kinds(made) == expected_kinds(plain, 100)
        assert_same(made, plain)
    step, other = lo.compile_update(tx), lo.compile_update(inner)
    mine, theirs = (jax.tree.map(jnp.copy, params), state), (jax.tree.map(jnp.copy, params), plain)
    for _ in range(3):
        given = mine
        mine, theirs = step(*mine, grads), other(*theirs, grads)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        assert kinds(mine) == ["device", "device", *expected_kinds(mine[1], 100)]
        assert_same(mine, theirs)
    if HOST != "device":  # where all that comes from a program beside it is committed, from init on
        assert step.jitted._cache_size() == 1
    _, state = mine
    jitted, eager = jax.jit(tx.update)(grads, state, params), tx.update(grads, state, params)
    assert kinds(jitted[1]) == kinds(eager[1]) == kinds(state)
    assert_same(jitted, jax.jit(inner.update)(grads, theirs[1], params))
    assert_same(eager, inner.update(grads, theirs[1], params))


@slow
@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items() if name != "offload_state"])
def test_every_bit_of_every_rule(row):
    inner, (params, grads) = row.build(row.value), (some(0), some(1))
    tx = lo.offload_state(inner, 2)
    results = []
    for one in (tx, inner):
        run = jax.jit(partial(advance, one))
        _, state = run(grads, one.init(params), params)
        results.append(run(grads, state, params))
    assert_same(*results)
    assert kinds(results[0][1]) == expected_kinds(results[1][1], 2)


@pytest.mark.parametrize("kind", [pytest.param("bfloat16", marks=slow), "int8", pytest.param("int4", marks=slow)])
def test_codes_rest_there_too(kind):
    shapes = {"w": (64, 128)}
    params, grads = some(0, shapes), some(1, shapes)
    inner = lo.compress_state(O.adam(0.1), kind)
    tx = lo.offload_state(inner, 1000)
    assert tx == lo.compress_state(lo.offload_state(O.adam(0.1), 1000), kind)
    mine, theirs = (jax.jit(one.update)(grads, one.init(params), params) for one in (tx, inner))
    assert_same(mine, theirs)
    assert kinds(mine[1]) == expected_kinds(theirs[1], 1000)
    read = lo.get_slot(mine[1], "mu")
    assert kinds(read) == ["device"]
    assert_same(read, lo.get_slot(theirs[1], "mu"))


def test_shards_stay_where_they_are():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("d", "m"))
    spec = {"w": PartitionSpec("m", "d"), "b": PartitionSpec("d")}
    params, grads = (
        {name: jax.device_put(leaf, NamedSharding(mesh, spec[name])) for name, leaf in some(seed).items()}
        for seed in (0, 1)
    )
    tx = lo.offload_state(O.adamw(0.1), 100)
    shardings = lo.training.state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    both = lo.compile_update(tx)(params, state, grads)
    for leaf, sharding in zip(jax.tree.leaves(both[1]), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    mu = lo.get_slot(both[1], "mu")
    assert mu["w"].sharding.is_equivalent_to(NamedSharding(mesh, spec["w"]), 2)
    assert both[1]["scale_by_adam"].slots["mu"]["w"].sharding.memory_kind == HOST
    plain = lo.compile_update(O.adamw(0.1))(some(0), O.adamw(0.1).init(some(0)), some(1))
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_least_size_counts_too():
    params = some(0)
    for least, kind in ((512, HOST), (513, "device")):
        tx = lo.offload_state(T.trace(0.9), least)
        shardings = lo.training.state_sharding(tx, params)
        for tree in (tx.init(params), jax.jit(tx.init, out_shardings=shardings)(params)):
            assert kinds(lo.get_slot(tree, "trace")) == ["device", "device"]
            assert kinds(tree.slots) == ["device", kind]
        assert [sharding.memory_kind or "device" for sharding in jax.tree.leaves(shardings.slots)] == ["device", kind]


def test_it_runs_in_a_scan():
    tx, (params, grads) = lo.offload_state(O.adam(0.1), 100), (some(0), some(1))

    @jax.jit
    def run(params, state):
        return jax.lax.scan(lambda both, _: (lo.compile_update(tx)(*both, grads), None), (params, state), length=3)[0]

    after, state = run(params, tx.init(params))
    assert kinds(state) == expected_kinds(state, 100)
    step, expected = lo.compile_update(O.adam(0.1)), (params, O.adam(0.1).init(params))
    for _ in range(3):
        expected = step.fn(*expected, grads)
    for a, b in zip(jax.tree.leaves((after, state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_skipped_step_leaves_every_bit_and_chooses_on_the_device():
    tx, params = lo.offload_state(O.adam(0.1), 100), some(0)
    run = jax.jit(lambda p, s, g, ok: run_and_apply(tx, p, s, g, {}, ok=ok, blocks=True))
    before = run(params, tx.init(params), some(1), True)
    after = run(*before, some(2), False)
    assert_same(after, before)
    assert kinds(after) == kinds(before)
    if HOST != "device":  # all that is read from the host is what is brought to the device
        program = str(jax.make_jaxpr(run)(*before, some(2), True))
        assert "<host>" in program
        chosen = [line for line in program.splitlines() if "select_n" in line]
        assert chosen
        assert not any("host" in line for line in chosen)


def test_paths_and_hyperparameters_are_those_of_the_inner_transform():
    inner, params = lo.chain(T.clip(1.0), O.adamw(0.1)), some()
    tx = lo.offload_state(inner, 100)

    def paths(state):
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]

    assert paths(tx.init(params)) == paths(inner.init(params))
    state = lo.set_hyperparams(tx.init(params), learning_rate=0.0, weight_decay=0.0)
    updates, after = tx.update(some(1), state, params)
    assert not any(np.any(leaf) for leaf in updates.values())
    saved = jax.tree.map(np.asarray, after)  # and back, into whichever memory
    restored = jax.device_put(saved, jax.tree.map(lambda leaf: leaf.sharding, after))
    for given in (restored, jax.tree.map(jnp.asarray, saved)):
        assert_same(jax.jit(tx.update)(some(1), given, params), jax.jit(inner.update)(some(1), saved, params))


def test_a_state_from_elsewhere_is_sent_to_the_host_before_it_is_donated():
    inner, params, grads = O.adam(0.1), some(0), some(1)
    tx, given = lo.offload_state(inner, 100), inner.init(params)
    mine = lo.compile_update(tx)(jax.tree.map(jnp.copy, params), given, grads)
    assert kinds(mine) == ["device", "device", *expected_kinds(mine[1], 100)]
    assert_same(mine, lo.compile_update(inner)(params, inner.init(params), grads))


def test_what_reads_a_state_brings_it_to_the_device():
    params = some(0)
    for inner, read in (
        (T.ema_params(O.sgd(0.1), 0.9), lo.transforms.averaged_params),
        (T.scale_by_schedule_free(0.1), lo.transforms.schedule_free_eval_params),
        (T.gpa(), lo.transforms.gpa_eval_params),
    ):
        state = lo.offload_state(inner, 100).init(params)
        assert HOST in kinds(state)
        assert kinds(read(state, params)) == ["device", "device"]
        assert_same(read(state, params), read(inner.init(params), params))


def test_a_program_trains_with_it():
    def apply(params, x):
        return x @ params["w"]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32)
    y = x @ jnp.ones((8, 1))
    results = []
    for optimizer in (O.adam(0.1), lo.offload_state(O.adam(0.1), 4)):
        program = lo.compile(apply, optimizer=optimizer, loss="mean_squared_error")
        state, history = program.fit(program.init({"w": jnp.zeros((8, 1))}), (x, y), batch_size=16, progress=False)
        results.append((state.params, history["loss"]))
        assert kinds(lo.get_slot(state.opt_state, "mu")) == ["device"]
    assert kinds(state.opt_state) == expected_kinds(state.opt_state, 4)
    np.testing.assert_allclose(results[0][0]["w"], results[1][0]["w"], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)


@pytest.mark.parametrize("how", ["train_step", "arrays", "batches", "find_lr"])
def test_a_program_takes_a_state_from_a_checkpoint(how):
    """All on the device, which a donating program or a scan would not survive."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32)
    y = x @ jnp.ones((8, 1))
    results = []
    for optimizer in (O.adam(0.1), lo.offload_state(O.adam(0.1), 4)):
        program = lo.compile(lambda params, x: x @ params["w"], optimizer=optimizer, loss="mse")
        state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), program.init({"w": jnp.zeros((8, 1))}))
        if how == "find_lr":
            results.append(lo.training.find_lr(program, state, (x, y), steps=10).losses)
            continue
        if how == "train_step":
            state, _ = program.train_step(state, (x, y))
        else:
            state, _ = program.fit(state, (x, y) if how == "arrays" else [(x, y)], progress=False)
        results.append(state.params["w"])
    np.testing.assert_allclose(*results, rtol=1e-6)
    if how != "find_lr":
        assert kinds(state.opt_state) == expected_kinds(state.opt_state, 4)


def test_foreign_states_rest_there_too():
    optax = pytest.importorskip("optax", reason="the foreign library")
    tx, (params, grads) = lo.offload_state(optax.adam(0.1), 100), (some(0), some(1))
    step = lo.compile_update(tx)
    after, state = step(params, tx.init(params), grads)
    assert kinds(state[0].mu) == ["device", HOST]
    expected, _ = lo.compile_update(optax.adam(0.1))(some(0), optax.adam(0.1).init(some(0)), grads)
    assert_same(after, expected)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="offload_state: inner must not be offloaded already"):
        lo.offload_state(lo.offload_state(O.sgd(0.1)))
    with pytest.raises(ValueError, match=r"must be outermost, got it; write offload_state\(pack_small\(…\)\) instead"):
        lo.pack_small(lo.offload_state(O.adam(0.1)))
    with pytest.raises(ValueError, match="offload_state: min_leaf_size must be an integer ≥ 1"):
        lo.offload_state(O.sgd(0.1), 0)
    with pytest.raises(TypeError, match="offload_state: members must have init and update"):
        lo.offload_state("adam")
