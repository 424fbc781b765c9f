"""`pack_small`: the same values in fewer arrays."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import OPTIMIZERS, TRANSFORMS, advance, by_rank, lifts, matrices

import lossopt_jax as lo
from lossopt_jax.transforms._packing import _WRAPPERS

T, O = lo.transforms, lo.optimizers
SHAPES = {"a": (3, 4), "b": (4,), "c": (2, 2), "d": (), "large": (40,), "h": (5,), "i": (2, 3), "empty": (0, 3)}
HALF = {"h": jnp.bfloat16, "i": jnp.bfloat16}
PACKED = {}
REFUSED = {}
for name, row in (TRANSFORMS | OPTIMIZERS).items():
    tx = row.build(row.value)
    try:
        PACKED[name] = (tx, lo.pack_small(tx, 12, 3))
    except ValueError as error:
        REFUSED[name] = str(error)
packable = pytest.mark.parametrize("pair", PACKED.values(), ids=PACKED)
WIDE = {name: pair for name, pair in PACKED.items() if lifts(pair[0]) <= {"elementwise"}}


def some(seed):
    draw = np.random.default_rng(seed).normal
    leaves = {name: jnp.asarray(draw(size=shape), HALF.get(name, jnp.float32)) for name, shape in SHAPES.items()}
    return leaves | {"none": None, "number": jnp.arange(3), "z": jnp.asarray(draw(size=2) + 1j, jnp.complex64)}


def gradients(seed, **without):
    return some(seed) | {"number": np.zeros(3, jax.dtypes.float0)} | without


def assert_same(left, right, ulps, least_scale=0.0):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = (np.asarray(x).astype(np.complex64) if x.dtype == jnp.bfloat16 else np.asarray(x) for x in (a, b))
        if a.size and a.dtype.kind in "fc":
            scale = np.max(np.abs(a), where=np.isfinite(a), initial=least_scale)
            np.testing.assert_allclose(a, b, rtol=ulps * 2.0**-23, atol=ulps * 2.0**-23 * scale)
        elif a.dtype != jax.dtypes.float0:
            np.testing.assert_array_equal(a, b)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)), tree)


@pytest.mark.slow
@packable
def test_states_and_updates_are_the_unpacked_ones(pair):
    tx, packed = pair
    params, ulps = some(0), 2 if lifts(tx) <= {"elementwise"} else 2.0**11  # sums in another order, and differences
    mine = packed.init(params)
    assert_same(packed.unpack(mine, params), tx.init(params), 0)
    for seed, without in ((1, {}), (2, {"b": None}), (3, {})):  # one step without a gradient for a leaf of a group
        grads = gradients(seed, **without)
        before = packed.unpack(mine, params)
        updates, mine = advance(packed, grads, mine, params)
        expected, state = advance(tx, grads, before, params)
        assert_same(packed.unpack(mine, params), state, ulps)
        # an update may be a difference, of terms larger than itself: as large as other elements' updates, say
        sizes = [np.max(np.abs(u), initial=0) for u in expected.values() if getattr(u, "dtype", None) == jnp.float32]
        for name, update in updates.items():  # bfloat16 by one of its own units
            if hasattr(update, "dtype") and update.dtype == jnp.bfloat16:
                np.testing.assert_allclose(np.float32(update), np.float32(expected[name]), rtol=2.0**-7)
            else:
                assert_same(update, expected[name], ulps, max(sizes))
        params = lo.apply_updates(params, updates)


@pytest.mark.slow
@packable
def test_types_are_a_fixed_point_in_scan(pair):
    _, packed = pair
    params, grads = ({k: v for k, v in tree.items() if k not in ("none", "number")} for tree in (some(0), some(1)))
    start = packed.init(params)

    def step(carry, _):
        updates, state = advance(packed, grads, carry[1], carry[0])
        return (lo.apply_updates(carry[0], updates), state), None

    (_, state), _ = jax.lax.scan(step, (params, start), length=2)
    assert types(state) == types(start)
    assert types(jax.eval_shape(packed.init, params)) == types(start)


def test_every_elementwise_rule_is_packable():
    assert {"scale_by_adam", "adamw", "scale_by_lion", "masked", "partition", "sgd"} <= set(WIDE)
    rows = {name: row.build(row.value) for name, row in (TRANSFORMS | OPTIMIZERS).items()}
    elementwise = {name for name, tx in rows.items() if lifts(tx) <= {"elementwise"}}
    assert elementwise - set(PACKED) <= {"pack_small", "offload_state"}  # the latter goes around
    assert {"clip_by_global_norm", "chain", "lookahead", "sam", "mechanize", "scale_by_lbfgs"} <= set(PACKED)
    assert set(_WRAPPERS) <= set(T.registry)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lamb", "scale_by_trust_ratio, a leafwise rule"),
        ("sophia", "scale_by_sophia, a rule whose random bits"),
        ("cautious", "cautious, a wrapper that may look"),
        ("stochastic_rounding", r"write stochastic_rounding\(pack_small"),
        ("master_weights", r"write master_weights\(pack_small"),
        ("offload_state", r"write offload_state\(pack_small"),
    ],
)
def test_what_sees_single_leaves_is_refused(name, message):
    assert re.search(message, REFUSED[name])


def test_others_are_refused():
    optax = pytest.importorskip("optax", reason="the foreign library")
    with pytest.raises(ValueError, match="does not know"):
        lo.pack_small(lo.chain(T.clip(1.0), optax.adam(0.1)))
    with pytest.raises(ValueError, match="does not know"):
        lo.pack_small(lo.pack_small(O.sgd(0.1)))

    @T.treewise(per=T.Slot("leaf"))
    def one_per_leaf(g, slots, t):
        return g, {}

    with pytest.raises(ValueError, match="a slot, per, that is not shaped like its parameter"):
        lo.pack_small(one_per_leaf())
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="max_leaf_size must be an integer ≥ 1"):
            lo.pack_small(O.sgd(0.1), bad)
    tx = lo.pack_small(O.sgd(0.1))
    with pytest.raises(TypeError, match="pack_small: params must be given"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_groups_are_bounded_and_agree_on_masks_and_labels():
    params = {f"w{i}": jnp.ones((2, 2)) for i in range(5)} | {f"b{i}": jnp.ones(3) for i in range(5)}
    mu = lo.get_slot(lo.pack_small(O.adamw(0.1, mask=matrices), max_group_size=4).init(params), "mu")
    assert sorted(group.size for group in mu.packed) == [12, 16]  # and one of each left over, which stay
    assert sum(leaf is not None for leaf in mu.whole.values()) == 2
    both = lo.get_slot(lo.pack_small(O.adamw(0.1), max_group_size=4).init(params), "mu")
    assert sorted(group.size for group in both.packed) == [7, 12, 16]
    tx = lo.pack_small(lo.partition({"matrix": O.adam(0.1), "rest": O.sgd(0.1, 0.9)}, by_rank))
    state = tx.init(params)
    assert [group.size for group in lo.get_slot(state, "mu").packed if group is not None] == [20]
    assert [group.size for group in lo.get_slot(state, "trace").packed if group is not None] == [15]
    assert "matrix/learning_rate" in lo.get_hyperparams(state)


def compositions():
    tx = O.adamw(0.1, mask=matrices)
    return {
        "outermost": (lo.chain(T.clip_by_global_norm(1.0), tx), lambda a: lo.pack_small(a, 12, 3)),
        "in a chain": (tx, lambda a: lo.chain(T.clip_by_global_norm(1.0), lo.pack_small(a, 12, 3))),
        "masked": (tx, lambda a: lo.masked(lo.pack_small(a, 12, 3), matrices)),
        "master weights": (tx, lambda a: lo.master_weights(lo.pack_small(a, 12, 3))),
    }


@pytest.mark.parametrize("inner_and_wrap", compositions().values(), ids=compositions())
def test_composes_and_compiles(inner_and_wrap):
    inner, wrap = inner_and_wrap
    packed = wrap(inner)
    params, grads = ({k: v for k, v in tree.items() if k not in ("none", "number")} for tree in (some(0), some(1)))
    step = lo.compile_update(packed)
    updates, expected = packed.update(grads, packed.init(params), params)
    given, state = jax.tree.map(jnp.copy, params), packed.init(params)
    after, now = step(given, state, grads)
    assert_same((after, now), (lo.apply_updates(params, updates), expected), 2.0**17)  # a rounding of bfloat16
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given, state)))
    step(after, now, grads)
    assert step.jitted._cache_size() == 1


def test_vmap_over_states_is_a_loop():
    tx = lo.pack_small(O.adam(0.1))
    params, grads = ({"a": jnp.full(3, x), "b": jnp.full((2, 2), x)} for x in (1.0, 0.5))
    states = [lo.set_hyperparams(tx.init(params), learning_rate=rate) for rate in (0.1, 0.2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    many = jax.vmap(lambda state: tx.update(grads, state, params)[0])(stacked)
    for k, state in enumerate(states):
        assert_same(jax.tree.map(lambda leaf, k=k: leaf[k], many), tx.update(grads, state, params)[0], 2)


def test_trains_by_the_compile_step():
    def network(params, x):
        return x @ params["w"] + params["b"]

    params = {"w": jnp.zeros((4, 1)), "b": jnp.zeros(1)}
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    y = x @ np.ones((4, 1), np.float32)
    losses = {}
    for name, wrap in (("plain", lambda tx: tx), ("packed", lo.pack_small)):
        program = lo.compile(network, optimizer=wrap(O.adam(0.1)), loss="mean_squared_error")
        state, logs = program.init(params), []
        for _ in range(5):
            state, log = program.train_step(state, (x, y))
            logs.append(float(log["loss"]))
        losses[name] = logs
    np.testing.assert_allclose(losses["packed"], losses["plain"], rtol=1e-5)
    assert losses["packed"][-1] < losses["packed"][0]


def test_fewer_kernels():
    params, grads = ([jnp.full(64, x) for _ in range(64)] for x in (1.0, 0.1))

    def kernels(tx):
        text = lo.compile_update(tx).lower(params, tx.init(params), grads).compile().as_text()
        return len(re.findall(r" (?:fusion|call|copy|concatenate)\(", re.split(r"\nENTRY ", text)[-1]))

    assert kernels(O.adamw(0.1)) > 3 * 64
    assert kernels(lo.pack_small(O.adamw(0.1))) < 2 * 64


def test_equal_arguments_compare():
    one, same = (lo.pack_small(O.adam(0.1), 100, 8) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != lo.pack_small(O.adam(0.1), 100, 9)
    assert repr(one).startswith("pack_small(chain(scale_by_adam(")
    run = jax.jit(partial(one.update))
    assert run({"a": 1.0}, one.init({"a": 1.0}), {"a": 1.0})[0]["a"].shape == ()
