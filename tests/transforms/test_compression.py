"""`compress_state`: the same rules, remembering in fewer bits."""

import math
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rows import OPTIMIZERS, TRANSFORMS, advance, matrices

import lossopt_jax as lo
from lossopt_jax._core import CPU_FUSES_SUMS
from lossopt_jax.kernels import Codes, is_stored, loaded

T, O = lo.transforms, lo.optimizers
ROWS = TRANSFORMS | OPTIMIZERS
KINDS = ("bfloat16", "int8", "int4")
kinds = pytest.mark.parametrize("kind", KINDS)
BITS = {"int8": 8, "int4": 4}


def some(seed=0, scale=1.0, **shapes):
    shapes = shapes or {"w": (32, 256), "v": (30, 200), "b": (64,)}
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def types(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves]


def kept(tree):
    """How each slot is kept."""
    return jax.tree.map(lambda leaf: type(leaf).__name__, tree, is_leaf=is_stored)


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def assert_almost_all_same(left, right, kind):
    """Values equal to float32's last bits, but for those on the border of two codes or two roundings."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(loaded(left)), jax.tree.leaves(loaded(right)), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        close = np.isclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b), initial=0))
        assert np.mean(close) > 1 - 1e-3 if a.size > 1000 else close.all()


# ------------------------------------------------------------------------------------------------------- what is kept


def test_what_is_compressed_follows_from_the_declarations():
    params = some() | {"z": jnp.ones((64, 64), jnp.complex64), "i": jnp.arange(5000), "none": None}
    state = lo.compress_state(O.adamw(0.1), "int8").init(params)["scale_by_adam"]
    expected = {"w": "Codes", "v": "Codes", "b": "ArrayImpl", "z": "ArrayImpl", "i": None, "none": None}
    assert kept(state.slots) == {"mu": expected, "nu": expected}
    assert [state.slots[name]["w"].nonnegative for name in ("mu", "nu")] == [False, True]
    adan = lo.compress_state(O.adan(0.1), "int4").init(params)["scale_by_adan"].slots
    assert kept({name: slot["w"] for name, slot in adan.items()}) == {
        **dict.fromkeys(("mu", "delta", "nu"), "Codes"),
        "before": "ArrayImpl",  # declared exact
    }
    factored = O.adafactor(0.1, min_dim_size_to_factor=2)
    assert lo.compress_state(factored, "int8").init(some()).keys() == factored.init(some()).keys()
    rows = lo.compress_state(T.scale_by_factored_rms(min_dim_size_to_factor=2), "int8").init(some(w=(4096, 32)))
    assert not any(map(is_stored, jax.tree.leaves(rows.slots, is_leaf=is_stored)))


@kinds
def test_bytes_per_parameter(kind):
    params = some(w=(256, 1024))
    adam, lion = (lo.compress_state(make(0.1), kind).init(params) for make in (O.adam, O.lion))
    most = {"bfloat16": 2.001, "int8": 1.02, "int4": 0.535}[kind]
    assert size(lion) <= most * params["w"].size
    assert size(adam) <= 2 * most * params["w"].size  # 2.04 and 1.07


def test_another_library_is_left_alone():
    optax = pytest.importorskip("optax", reason="the foreign library")
    params = some()
    foreign = optax.adam(0.1)
    tx = lo.compress_state(lo.chain(O.sgd(1.0, 0.9), foreign), "int8")
    state = tx.init(params)
    assert any(map(is_stored, jax.tree.leaves(state["trace"], is_leaf=is_stored)))
    alone = [part for name, part in state.items() if name not in ("trace", "scale_by_learning_rate")]
    with jax.numpy_dtype_promotion("standard"):
        assert types(alone) == types([foreign.init(params)])


def test_get_slot_decodes():
    params, grads = some(), some(1)
    tx = lo.compress_state(lo.partition({"a": O.adam(0.1), "b": O.adam(0.1)}, {"w": "a", "v": "b", "b": "b"}), "int8")
    _, state = tx.update(grads, tx.init(params), params)
    for name, slot in lo.get_slot(state, "mu").items():
        np.testing.assert_allclose(slot, 0.1 * grads[name], atol=0.02 * 0.1 * 4)
        assert slot.dtype == jnp.float32


# ----------------------------------------------------------------------------------------------------------- the maths


def oracle_of():
    """The transcription of the papers' codes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
    try:
        from test_codes import oracle
    finally:
        sys.path.pop(0)
    return oracle


@pytest.mark.parametrize("kind", BITS)
def test_adam_is_the_papers(kind):
    """Decode, Adam, encode; the update from the moments before they are encoded."""
    oracle, bits = oracle_of(), BITS[kind]
    params, tx = some(), lo.compress_state(T.scale_by_adam(0.8, 0.95, 1e-6), kind)
    state, run = tx.init(params), jax.jit(tx.update)
    for t in range(1, 6):
        grads = some(t, 0.1 * t)
        before = {name: np.asarray(lo.get_slot(state, name)["w"], np.float64) for name in ("mu", "nu")}
        updates, state = run(grads, state)
        g = np.asarray(grads["w"], np.float64)
        mu, nu = 0.8 * before["mu"] + 0.2 * g, 0.95 * before["nu"] + 0.05 * g * g
        expected = mu / (1 - 0.8**t) / (np.sqrt(nu / (1 - 0.95**t)) + 1e-6)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5, atol=1e-6)
        for name, x in (("mu", mu), ("nu", nu)):
            after = np.asarray(lo.get_slot(state, name)["w"])
            same = np.isclose(after, oracle(x, bits, name == "nu"), rtol=1e-5)
            assert np.mean(same) > 1 - 1e-3
            assert np.mean(after == before[name]) < 0.5  # it moves


@kinds
def test_the_first_update_is_the_uncompressed_one(kind):
    params, grads = some(), some(1)
    for tx in (O.adamw(0.1), O.lamb(0.1), O.lion(0.1), O.prodigy(0.1), O.adagrad(0.1), O.schedule_free_adamw(0.1)):
        expected, _ = jax.jit(partial(advance, tx))(grads, tx.init(params), params)
        other = lo.compress_state(tx, kind)
        updates, _ = jax.jit(partial(advance, other))(grads, other.init(params), params)
        for u, v in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            rtol = 1e-3 if kind == "bfloat16" else 1e-5  # in which 0.1, adagrad's first value, is another number
            np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-7)


def test_bfloat16_does_not_stall():  # NUMERICS O2
    params, tx = {"w": jnp.zeros((64, 64))}, lo.compress_state(T.scale_by_rms(0.999), "bfloat16")
    state = tx.init(params)
    _, state = tx.update({"w": jnp.full((64, 64), 10.0)}, state, params)
    start = lo.get_slot(state, "nu")["w"].mean()
    decay = jax.jit(partial(jax.lax.fori_loop, 0, 1000, lambda _, s: tx.update(params, s, params)[1]))
    np.testing.assert_allclose(lo.get_slot(decay(state), "nu")["w"].mean() / start, 0.999**1000, rtol=0.02)


def test_roundings_differ_between_slots_leaves_and_steps():
    params = some(w=(64, 64), v=(64, 64))
    tx = lo.compress_state(T.trace(0.9), "bfloat16")
    ones = jax.tree.map(lambda p: jnp.full_like(p, 1 + 2.0**-9), params)
    _, first = tx.update(ones, tx.init(params), params)
    _, again = tx.update(ones, tx.init(params), params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    trace = lo.get_slot(first, "trace")
    assert float(np.mean(np.asarray(trace["w"]) == np.asarray(trace["v"]))) < 0.9
    np.testing.assert_allclose([np.mean(np.asarray(x)) for x in trace.values()], 1 + 2.0**-9, rtol=3e-4)


# --------------------------------------------------------------------------------------------------------- composition


def compositions():
    """Both sides of every kind of wrapper."""
    adam, guard = O.adam(0.1), T.apply_if_finite
    return {
        "chain": lambda c: lo.chain(T.clip_by_global_norm(1.0), c(adam)),
        "masked": lambda c: lo.masked(c(adam), matrices),
        "inside masked": lambda c: c(lo.masked(adam, matrices)),
        "partition": lambda c: lo.partition({"a": c(adam), "b": O.sgd(0.1)}, {"w": "a", "v": "b", "b": "a"}),
        "guard outside": lambda c: guard(c(adam)),
        "guard inside": lambda c: c(guard(adam)),
        "master weights outside": lambda c: lo.master_weights(c(adam)),
        "master weights inside": lambda c: c(lo.master_weights(adam)),
        "lookahead": lambda c: c(T.lookahead(adam, 2, 0.5)),
        "hypergradient": lambda c: c(T.hypergradient(T.scale_by_adam(), 0.1, 0.01)),
        "sam": lambda c: c(T.sam(adam, lo.chain(T.normalize(), T.scale(-0.05)))),
        "packed outside": lambda c: lo.pack_small(c(adam), 5000),
        "packed inside": lambda c: c(lo.pack_small(adam, 5000)),
        "lamb": lambda c: c(O.lamb(0.1)),
        "prodigy": lambda c: c(O.prodigy(0.1)),
    }


@pytest.mark.parametrize("compose", compositions().values(), ids=compositions())
@pytest.mark.parametrize("kind", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_composes(compose, kind):
    params, grads = some(), some(1)
    tx, plain = compose(lambda inner: lo.compress_state(inner, kind)), compose(lambda inner: inner)
    state, expected = tx.init(params), plain.init(params)
    assert size(state) < 0.8 * size(expected)
    assert types(jax.eval_shape(tx.init, params)) == types(state)
    assert jax.tree.structure(loaded(state)) == jax.tree.structure(expected)
    assert list(lo.get_hyperparams(state)) == list(lo.get_hyperparams(plain.init(params)))
    run, other = (jax.jit(partial(advance, one)) for one in (tx, plain))
    for _ in range(3):
        updates, after = run(grads, state, params)
        assert types(after) == types(state)
        ours, theirs = other(grads, loaded(state), params)  # the rules are those of the plain composition
        for u, v in zip(jax.tree.leaves(updates), jax.tree.leaves(ours), strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-6)  # some are differences of parameters
        assert jax.tree.structure(theirs) == jax.tree.structure(expected)
        params, state = lo.apply_updates(params, updates), after


@pytest.mark.parametrize("order", ["guard outside", "guard inside"])
@kinds
def test_a_skipped_step_leaves_every_bit(order, kind):
    params, grads = some(), some(1)
    tx = compositions()[order](lambda inner: lo.compress_state(inner, kind))
    run = jax.jit(tx.update)
    _, state = run(grads, tx.init(params), params)
    _, after = run(jax.tree.map(lambda g: g * jnp.nan, grads), state, params)
    for a, b in zip(jax.tree.leaves(after.inner), jax.tree.leaves(state.inner), strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_of_small_leaves_stay_as_they_are():
    params = {"a": jnp.ones((3000,)), "b": jnp.ones((3000,)), "w": jnp.ones((64, 128))}
    for tx in (
        lo.pack_small(lo.compress_state(O.adam(0.1)), 4000),
        lo.compress_state(lo.pack_small(O.adam(0.1), 4000)),
    ):
        state = tx.init(params)
        mu = state["scale_by_adam"].slots["mu"]
        assert [group.shape for group in mu.packed] == [(6000,)]
        assert isinstance(mu.whole["w"], Codes)
        _, after = tx.update(params | {"a": None}, state, params)
        assert types(after) == types(state)
        assert tx.unpack(lo.get_slot(after, "mu"), params)["b"].shape == (3000,)


def test_of_every_row_types_are_a_fixed_point():
    params, grads = some(), some(1)
    compressed = set()
    for name, row in ROWS.items():
        tx = row.build(row.value)
        if name == "compress_state":
            continue
        for kind in ("bfloat16", "int4"):
            mine = lo.compress_state(tx, kind)
            start = jax.eval_shape(mine.init, params)
            compressed |= {name} if any(map(is_stored, jax.tree.leaves(start, is_leaf=is_stored))) else set()
            updates, state = jax.eval_shape(partial(advance, mine), grads, start, params)
            assert types(state) == types(start), name
            assert types(updates) == types(params)
            for path, leaf in jax.tree_util.tree_leaves_with_path(start, is_leaf=is_stored):
                assert not is_stored(leaf) or leaf.shape in ((32, 256), (30, 200)), path
    assert {"adamw", "lion", "lamb", "hypergradient", "lookahead", "adan", "prodigy", "trace"} <= compressed
    assert not {"lbfgs", "sign_sgd", "rprop", "clip"} & compressed


# --------------------------------------------------------------------------------------------- programs and devices


@kinds
def test_jit_vmap_scan_and_a_loop_agree(kind):
    params, grads = some(), some(1)
    tx = lo.compress_state(O.adamw(0.1), kind)

    def steps(rate):
        def step(carry, _):
            updates, state = tx.update(grads, carry[1], carry[0])
            return (lo.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, lo.set_hyperparams(tx.init(params), learning_rate=rate)), length=2)[0]

    many = jax.jit(jax.vmap(steps))(jnp.array([0.1, 0.2]))
    for k, rate in enumerate((0.1, 0.2)):
        state, here = lo.set_hyperparams(tx.init(params), learning_rate=rate), params
        for _ in range(2):
            updates, state = tx.update(grads, state, here)
            here = lo.apply_updates(here, updates)
        assert_almost_all_same(jax.tree.map(lambda x, k=k: x[k], many), (here, state), kind)


@kinds
def test_a_state_is_arrays(kind):
    params, tx = some(), lo.compress_state(O.adam(0.1), kind)
    _, state = tx.update(some(1), tx.init(params), params)
    leaves, treedef = jax.tree.flatten(state)
    restored = treedef.unflatten([np.asarray(leaf) for leaf in leaves])
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert jax.tree.structure(again) == treedef
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert len(set(paths)) == len(paths)
    for other in (restored, again):
        updates, _ = jax.jit(tx.update)(some(2), other, params)
        expected, _ = jax.jit(tx.update)(some(2), state, params)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), updates, expected))


LARGE = {"w": (512, 512), "odd": (700, 301), "b": (256,)}  # the first in blocks, the second in blocks of rows
STEPS = {
    "adamw": O.adamw(0.1),
    "clip and adamw": lo.chain(T.clip_by_global_norm(1.0), O.adamw(0.1)),
    "lion": O.lion(0.1),
    "adan": O.adan(0.1),
    "lamb": O.lamb(0.1),
    "masked": O.adamw(0.1, mask=matrices),
    "guard": T.apply_if_finite(O.adam(0.1)),
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", BITS)
def test_without_temporaries(name, kind):
    params = {"w": jax.ShapeDtypeStruct((8192, 4096), jnp.float32), "b": jax.ShapeDtypeStruct((256,), jnp.float32)}
    tx = lo.compress_state(STEPS[name], kind)
    state = jax.eval_shape(tx.init, params)
    memory = lo.compile_update(tx).lower(params, state, params).compile().memory_analysis()
    held, parameters = (
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (state, params)
    )
    assert memory.alias_size_in_bytes >= parameters + held - 64
    assert memory.temp_size_in_bytes <= (0.01 if CPU_FUSES_SUMS else 0.05) * parameters


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("kind", BITS)
def test_rows_of_any_length_without_temporaries(name, kind):
    """A leaf whose last axis is no multiple of a block of codes is cut between rows."""
    params = {"w": jax.ShapeDtypeStruct((32, 1024, 1001), jnp.float32)}
    tx = lo.compress_state(STEPS[name], kind)
    memory = lo.compile_update(tx).lower(params, jax.eval_shape(tx.init, params), params).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= (0.01 if CPU_FUSES_SUMS else 0.05) * 4 * 32 * 1024 * 1001


@pytest.mark.usefixtures("one_device")
def test_bfloat16_without_temporaries():
    params = {"w": jax.ShapeDtypeStruct((8192, 4096), jnp.float32)}
    tx = lo.compress_state(STEPS["clip and adamw"], "bfloat16")
    memory = lo.compile_update(tx).lower(params, jax.eval_shape(tx.init, params), params).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= (0.01 if CPU_FUSES_SUMS else 0.05) * 4 * 8192 * 4096


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if name in ("adamw", "lamb") and kind != "bfloat16" else [pytest.mark.slow])
        for name in STEPS
        for kind in KINDS
    ],
)
def test_compiled_is_plain_and_donates(name, kind):
    params, grads, tx = some(**LARGE), some(1, **LARGE), lo.compress_state(STEPS[name], kind)
    step, plain = lo.compile_update(tx), jax.jit(lo.compile_update(tx).fn)
    mine, other = (params, tx.init(params)), (params, tx.init(params))
    mine = jax.tree.map(jnp.copy, mine)
    for _ in range(2):
        given = mine
        mine, other = step(*mine, grads), plain(*other, grads)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        assert types(mine) == types(other)
        assert_almost_all_same(mine, other, kind)
        other = jax.tree.map(jnp.copy, mine)
    assert step.jitted._cache_size() == 1


def test_a_skipped_step_of_a_program_leaves_every_bit():
    from lossopt_jax.transforms._compile import run_and_apply

    params, tx = some(**LARGE), lo.compress_state(O.adam(0.1), "int8")
    state = tx.init(params)
    run = jax.jit(lambda p, s, g, ok: run_and_apply(tx, p, s, g, {}, ok=ok, blocks=True))
    params, state = run(params, state, some(1, **LARGE), True)
    after = run(params, state, some(2, **LARGE), False)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(a, b)


SPECS = [("d", "m"), (None, ("d", "m")), (("d", "m"), None), ("m", None), (None, "m")]


@pytest.mark.parametrize(
    ("spec", "wrap", "kind"),
    [
        pytest.param(spec, wrap, kind, marks=[pytest.mark.slow] if eager or spec[1] is None else [])
        for spec in SPECS
        for wrap, eager in ((lambda f: f, True), (jax.jit, False))
        for kind in KINDS
    ],
)
def test_sharded_along_any_axis(spec, wrap, kind):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("d", "m"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    shapes = {"w": (16, 2048), "odd": (16, 1000)}
    plain = [some(seed, **shapes) for seed in (0, 1)]
    placed = jax.tree.map(lambda x: jax.device_put(x, sharding), plain)
    tx = lo.compress_state(O.adamw(0.1), kind)
    start = tx.init(placed[0])
    updates, state = wrap(tx.update)(placed[1], start, placed[0])
    expected, expected_state = jax.jit(tx.update)(plain[1], tx.init(plain[0]), plain[0])
    assert_almost_all_same((updates, state), (expected, expected_state), kind)
    for name, update in updates.items():
        assert update.sharding.is_equivalent_to(sharding, 2)
        for slot in ("mu", "nu"):
            one, other = (s["scale_by_adam"].slots[slot][name] for s in (state, start))
            data = one.value if kind == "bfloat16" else one.codes
            assert name == "odd" or data.sharding.is_equivalent_to(sharding, 2)  # half of 1000 may not divide
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                assert a.ndim == 0 or a.sharding.is_equivalent_to(b.sharding, a.ndim)
    if kind == "bfloat16" or wrap is not jax.jit:
        return
    w = [{"w": tree["w"]} for tree in placed]
    text = jax.jit(tx.update).lower(w[1], tx.init(w[0]), w[0]).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", text)  # 256 of the last axis in each shard


# -------------------------------------------------------------------------------------------------------- its edges


def test_refusals():
    with pytest.raises(ValueError, match=r"compress_state: kind must be among .*'int4'.*, got 'int2'"):
        lo.compress_state(O.adam(0.1), "int2")
    with pytest.raises(ValueError, match="inner must not be compressed already"):
        lo.compress_state(lo.chain(T.clip(1.0), lo.compress_state(O.adam(0.1))), "int8")
    with pytest.raises(TypeError, match="members must have init and update"):
        lo.compress_state("adam")
    with pytest.raises(ValueError, match="must be outermost"):
        lo.chain(T.clip(1.0), lo.compress_state(lo.master_weights(O.sgd(0.1))))


def test_compares_prints_and_pickles():
    one, same, other = (lo.compress_state(O.adam(0.1), kind) for kind in ("int8", "int8", "int4"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != O.adam(0.1)
    assert repr(one).startswith("chain(compress_state(scale_by_adam(")
    assert repr(one).endswith(", 'int8'), scale_by_learning_rate(learning_rate=0.1, flip_sign=True))")
    assert pickle.loads(pickle.dumps(one)) == one
    assert lo.compress_state(O.sgd(0.1)) == O.sgd(0.1)  # which remembers nothing


def test_not_finite_is_seen():
    params, tx = {"w": jnp.ones((16, 512))}, lo.compress_state(O.adam(0.1), "int8")
    grads = {"w": jnp.ones((16, 512)).at[3, 5].set(jnp.inf)}
    _, state = tx.update(grads, tx.init(params), params)
    bad = np.isnan(lo.get_slot(state, "mu")["w"])
    assert bad[3, :256].all()
    assert bad.sum() == 256
