"""Where the state of an optimizer belongs: what init and XLA do with it, and ZeRO-1."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from rows import OPTIMIZERS, TRANSFORMS, advance

import lossopt_jax as lo
from lossopt_jax.training import state_sharding

T, O, P = lo.transforms, lo.optimizers, PartitionSpec
ROWS = TRANSFORMS | OPTIMIZERS
slow = pytest.mark.slow
SPECS = {"w": P("model", "data"), "v": P(None, "model", "data"), "b": P("data")}
SHAPES = {"w": (8, 4), "v": (2, 6, 8), "b": (16,)}

rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
FEW = ("adam", "scale_by_factored_rms", "scale_by_sm3", "scale_by_adam_mini", "scale_by_lbfgs", "partition")
compiled_rows = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[] if name in FEW else [slow]) for name, row in ROWS.items()],
    ids=ROWS,
)


def mesh():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


def some(shapes, seed=0, dtype=jnp.float32):
    keys = iter(range(len(shapes)))
    return {
        name: jnp.asarray(np.random.default_rng([seed, next(keys)]).normal(size=shape), dtype)
        for name, shape in shapes.items()
    }


def shardings_of(specs):
    return {name: NamedSharding(mesh(), spec) for name, spec in specs.items()}


def placed(tree, specs):
    return {name: jax.device_put(leaf, NamedSharding(mesh(), specs[name])) for name, leaf in tree.items()}


def abstract(shapes, specs):
    places = shardings_of(specs)
    return {name: jax.ShapeDtypeStruct(shapes[name], "float32", sharding=places[name]) for name in shapes}


def same(sharding, other, ndim):
    kinds = {sharding.memory_kind, other.memory_kind} - {None, "device"}
    return sharding.is_equivalent_to(other, ndim) and (not kinds or sharding.memory_kind == other.memory_kind)


def assert_lies(state, shardings):
    assert jax.tree.structure(state) == jax.tree.structure(shardings)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        assert same(leaf.sharding, sharding, leaf.ndim), (jax.tree_util.keystr(path), leaf.sharding, sharding)


# ------------------------------------------------------------------------------------------------------- every row


@rows
def test_it_has_the_structure_of_the_state_and_every_shard_is_whole(row):
    params, tx = abstract(SHAPES, SPECS), row.build(row.value)
    state, shardings = jax.eval_shape(tx.init, params), state_sharding(tx, params)
    cut = state_sharding(tx, params, {**dict.fromkeys(params, NamedSharding(mesh(), P()))}, zero_axis="data")
    assert jax.tree.structure(state) == jax.tree.structure(shardings) == jax.tree.structure(cut)
    for leaf, sharding, further in zip(*map(jax.tree.leaves, (state, shardings, cut)), strict=True):
        assert isinstance(sharding, NamedSharding)
        assert sharding.mesh == mesh()
        sharding.shard_shape(leaf.shape)  # which refuses unequal shards
        further.shard_shape(leaf.shape)
        if leaf.shape in SHAPES.values():
            assert not sharding.is_fully_replicated
            assert not further.is_fully_replicated


@compiled_rows
def test_init_puts_slots_there(row):
    params, tx = placed(some(SHAPES), SPECS), row.build(row.value)
    state = tx.init(params)
    shardings = state_sharding(tx, params)
    assert jax.tree.structure(state) == jax.tree.structure(shardings)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        if len(leaf.sharding.device_set) == 1:  # a number of the whole tree, which lies nowhere yet
            assert sharding.is_fully_replicated
        else:
            assert same(leaf.sharding, sharding, leaf.ndim)


@compiled_rows
def test_init_under_jit_puts_it_there_and_updates_keep_it_there(row):
    params, grads = (placed(some(SHAPES, seed), SPECS) for seed in (0, 1))
    tx = row.build(row.value)
    shardings = state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert_lies(state, shardings)
    for leaf, plain in zip(jax.tree.leaves(state), jax.tree.leaves(tx.init(params)), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(plain))
    _, after = jax.jit(partial(advance, tx))(grads, state, params)
    assert_lies(after, shardings)


# ------------------------------------------------------------------------------------------------- what runs along


def specs_of(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def test_factors_run_along_their_rows_and_columns():
    shapes, specs = {"w": (256, 128), "b": (128,)}, {"w": P("model", "data"), "b": P("data")}
    state = state_sharding(T.scale_by_factored_rms(), abstract(shapes, specs))
    rows, columns, rest = (specs_of(lo.get_slot(state, name)) for name in ("v_row", "v_col", "v"))
    assert {rows["w"], columns["w"]} == {P("model"), P("data")}
    assert rest == {"w": None, "b": P("data")}
    shape = jax.eval_shape(T.scale_by_factored_rms().init, abstract(shapes, specs))
    assert shape.slots["v_row"]["w"].shape == ((256,) if rows["w"] == P("model") else (128,))
    assert specs_of(lo.get_slot(state_sharding(T.scale_by_sm3(), abstract(shapes, specs)), "mu"))["w"] == (
        P("model"),
        P("data"),
    )
    history = state_sharding(T.scale_by_lbfgs(3), abstract(shapes, specs))
    assert specs_of(lo.get_slot(history, "diff_params")) == {"w": P(None, "model", "data"), "b": P(None, "data")}
    blocks = state_sharding(T.scale_by_adam_mini(), abstract(shapes, specs))
    assert specs_of(lo.get_slot(blocks, "nu"))["w"] == P(None, "data")


@pytest.mark.parametrize("kind", [pytest.param("bfloat16", marks=slow), "int8", pytest.param("int4", marks=slow)])
@pytest.mark.parametrize("spec", [("data", "model"), (None, ("data", "model")), (("data", "model"), None)])
def test_codes_and_scales_run_along_what_they_encode(kind, spec):
    shapes = {"w": (16, 2048)}
    tx, given = lo.compress_state(O.adam(0.1), kind), {"w": P(*spec)}
    params, grads = (placed(some(shapes, seed), given) for seed in (0, 1))
    shardings = state_sharding(tx, params)
    mu = shardings["scale_by_adam"].slots["mu"]["w"]
    cut = {x.spec for x in jax.tree.leaves(mu) if x.spec != P()}
    assert cut == {P(*spec) if spec[1] else P(spec[0])}
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    _, after = jax.jit(tx.update)(grads, state, params)
    assert_lies(after, shardings)


def test_shards_are_equal_or_none():
    shapes, specs = {"w": (16, 1000)}, {"w": P(None, ("data", "model"))}
    state = state_sharding(lo.compress_state(O.adam(0.1), "int4"), abstract(shapes, specs))
    mu = state["scale_by_adam"].slots["mu"]["w"]
    assert (mu.codes.spec, mu.scales.spec) == (P(), P(None, ("data", "model")))  # 500 bytes in 8; 8 blocks in 8


def test_an_axis_that_a_slot_has_twice_is_cut_once():
    @T.leafwise(left=T.Slot(lambda shape, arguments: (0, 0)), right=T.Slot(lambda shape, arguments: [(1, 1), (1,)]))
    def gram(g, slots, t):
        return g, {"left": g @ g.T, "right": (g.T @ g, g.sum(0))}

    params, tx = placed(some({"w": (8, 4)}), {"w": P("model", "data")}), gram()
    shardings = state_sharding(tx, params)
    assert [x.spec for x in jax.tree.leaves(shardings.slots)] == [P("model"), P("data"), P("data")]
    assert_lies(jax.jit(tx.init, out_shardings=shardings)(params), shardings)


def test_groups_of_small_leaves_lie_on_every_device():
    shapes, specs = {"w": (64, 8), "a": (8,), "b": (16,)}, {"w": P("data"), "a": P("data"), "b": P()}
    tx = lo.pack_small(O.adam(0.1), 16)
    params = placed(some(shapes), specs)
    for zero in (None, "model"):
        mu = lo.get_slot(state_sharding(tx, params, zero_axis=zero), "mu")
        assert specs_of(mu.packed) == (P(),)
        assert mu.whole["w"].spec == P("data", zero) if zero else P("data")
    groups = lo.partition({"some": tx, "one": O.sgd(0.1)}, {"w": "one", "a": "some", "b": "some", "c": "one"})
    more = params | {"c": params["a"]}  # as small, and of another group
    inside = state_sharding(groups, more)
    assert jax.tree.structure(inside) == jax.tree.structure(jax.eval_shape(groups.init, more))
    shardings = state_sharding(tx, params)
    step = lo.compile_update(tx, out_shardings=(shardings_of(specs), shardings))
    after, state = step(params, jax.jit(tx.init, out_shardings=shardings)(params), placed(some(shapes, 1), specs))
    assert_lies((after, state), (shardings_of(specs), shardings))


def test_states_of_other_libraries():
    optax = pytest.importorskip("optax", reason="the foreign library")
    shapes = {"enc": {"w": (8, 4), "b": (16,)}, "dec": (16, 4)}
    given = {"enc": {"w": P("model", "data"), "b": P("data")}, "dec": P("data")}
    params = jax.tree.map(
        lambda spec, shape: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh(), spec)),
        given,
        shapes,
        is_leaf=lambda x: isinstance(x, P | tuple),
    )
    adam = specs_of(state_sharding(optax.adam(0.1), params))[0]
    assert (adam.count, adam.mu, adam.nu) == (P(), given, given)
    held = specs_of(state_sharding(lo.chain(T.clip(1.0), optax.adam(0.1)), params))
    (adam,) = [own[0] for name, own in held.items() if name != "clip"]
    assert (adam.count, adam.mu, adam.nu) == (P(), given, given)
    ours = specs_of(state_sharding(optax.chain(optax.clip(1.0), O.adam(0.1)), params))
    assert lo.get_slot(ours, "mu") == given
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=4)
    named = jax.tree_util.tree_leaves_with_path(state_sharding(factored, params))
    held = {jax.tree_util.keystr(path): x.spec for path, x in named}
    assert held[".v_row['enc']['w']"] == held[".v_col['dec']"] == held[".v['dec']"] == P()
    assert held[".v['enc']['b']"] == P("data")
    labels = {"enc": "a", "dec": "b"}
    groups = state_sharding(optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)}, labels), params)
    trees = [jax.tree.leaves(groups.inner_states[label]) for label in "ab"]
    assert [x.spec for x in trees[0]] == [P(), *2 * jax.tree.leaves(given["enc"])]
    assert [x.spec for x in trees[1]] == [given["dec"]]
    lone = state_sharding(optax.adam(0.1), params["dec"], zero_axis="model")[0]
    assert lone.mu.spec == P("data", "model")


# ------------------------------------------------------------------------------------------------------------ ZeRO


def bytes_on_one_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


ZERO_SHAPES = {"w": (8, 16), "u": (16, 16), "v": (6, 5), "b": (16,), "d": (8, 8)}
ZERO_SPECS = {"w": P(None, "model"), "u": P(), "v": P(), "b": P(), "d": P("data")}
FURTHER = {"w": P("data", "model"), "u": P("data"), "v": P(), "b": P("data"), "d": P("data")}
STEPS = {"adamw": O.adamw(0.1), "clip and lamb": lo.chain(T.clip_by_global_norm(1.0), O.lamb(0.1))}


@pytest.mark.parametrize("tx", [pytest.param(STEPS["adamw"], marks=slow), STEPS["clip and lamb"]], ids=STEPS)
def test_zero_cuts_slots_and_a_step_keeps_what_it_is_told(tx):
    params, grads = (placed(some(ZERO_SHAPES, seed), ZERO_SPECS) for seed in (0, 1))
    plain, cut = state_sharding(tx, params), state_sharding(tx, params, zero_axis="data")
    assert specs_of(lo.get_slot(plain, "mu")) == ZERO_SPECS
    assert specs_of(lo.get_slot(cut, "mu")) == specs_of(lo.get_slot(cut, "nu")) == FURTHER
    state = jax.jit(tx.init, out_shardings=cut)(params)
    whole = 2 * 4 * (8 * 16 // 2 + 16 * 16 + 6 * 5 + 16 + 8 * 8 // 4)
    assert bytes_on_one_device([lo.get_slot(state, name) for name in ("mu", "nu")]) == whole - 2 * 4 * 3 * (
        8 * 16 // 2 // 4 + 16 * 16 // 4 + 16 // 4
    )
    both = shardings_of(ZERO_SPECS), cut
    expected = lo.compile_update(tx)(some(ZERO_SHAPES), tx.init(some(ZERO_SHAPES)), some(ZERO_SHAPES, 1))

    step = lo.compile_update(tx, out_shardings=both)

    @jax.jit
    def constrained(params, state, grads):
        return jax.lax.with_sharding_constraint(step.fn(params, state, grads), both)

    for run in (constrained, step):  # the second consumes
        after = run(params, state, grads)
        assert_lies(after, both)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, float(jnp.abs(b).max())))
    again = step(*after, grads)
    assert_lies(again, both)
    assert step.jitted._cache_size() == 1


def test_zero_moves_updates_not_slots():
    """One all-gather of the parameters; gradients that lie on every device already are cut where they lie."""
    tx, shapes, specs = O.adamw(0.1), {"u": (64, 64)}, {"u": P()}
    params = abstract(shapes, specs)
    cut = state_sharding(tx, params, zero_axis=("data", "model"))
    assert lo.get_slot(cut, "mu")["u"].spec == P(("data", "model"))
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(tx.init, params), cut
    )
    program = lo.compile_update(tx, out_shardings=(shardings_of(specs), cut)).lower(params, state, params).compile()
    collectives = re.findall(r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)\(", program.as_text())
    assert [kind for _, kind in collectives] == ["all-gather"]


def test_zero_takes_the_largest_free_axis_that_it_divides():
    for shape, spec, want in (
        ((8, 16, 4), P(), P(None, "data")),
        ((16, 16), P(), P("data")),
        ((8, 16), P(None, "model"), P("data", "model")),
        ((8, 18), P(), P("data")),
        ((8, 16), P("model", "data"), P("model", "data")),
        ((8, 16), P(("model", "data")), P(("model", "data"))),
        ((3, 5), P(), P()),
        ((0, 3), P(), P()),
        ((), P(), P()),
    ):
        params = {"w": jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh(), spec))}
        assert lo.get_slot(state_sharding(T.trace(0.9), params, zero_axis="data"), "trace")["w"].spec == want
    params = abstract({"w": (16, 2048)}, {"w": P()})
    for kind in ("int8", "int4"):  # codes and scales alike: 8 or 16 blocks in a row
        mu = state_sharding(lo.compress_state(O.adam(0.1), kind), params, zero_axis="data")
        assert {x.spec for x in jax.tree.leaves(mu["scale_by_adam"].slots["mu"])} == {P(None, "data")}
    factored = state_sharding(T.scale_by_factored_rms(), abstract({"w": (256, 128)}, {"w": P()}), zero_axis="data")
    assert {x.spec for x in jax.tree.leaves(factored)} == {P()}
    history = state_sharding(T.scale_by_lbfgs(4), abstract({"w": (8, 16)}, {"w": P()}), zero_axis="data")
    assert lo.get_slot(history, "diff_params")["w"].spec == P(None, None, "data")


# --------------------------------------------------------------------------------------------- who says where


def test_arrays_shapes_and_a_prefix_of_shardings_say_the_same():
    tx, arrays = O.adamw(0.1, mask=lambda p: jax.tree.map(lambda x: np.ndim(x) > 1, p)), placed(some(SHAPES), SPECS)
    expected = state_sharding(tx, arrays)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    for given in (
        state_sharding(tx, abstract(SHAPES, SPECS)),
        state_sharding(tx, bare, shardings_of(SPECS)),
        state_sharding(tx, some(SHAPES), shardings_of(SPECS)),  # which win over one device
    ):
        assert given == expected
    one = state_sharding(tx, {"a": bare, "b": bare}, {"a": NamedSharding(mesh(), P()), "b": shardings_of(SPECS)})
    mu = lo.get_slot(one, "mu")
    assert (specs_of(mu["a"]), specs_of(mu["b"])) == (dict.fromkeys(SPECS, P()), SPECS)


def test_leaves_that_say_nothing_lie_on_every_device():
    tx = T.trace(0.9)
    params = {**placed(some(SHAPES), SPECS), "new": jnp.ones(8), "rate": 0.5, "none": None, "count": jnp.arange(8)}
    params["act"] = jax.nn.relu  # as modules have among their leaves
    held = lo.get_slot(state_sharding(tx, params), "trace")
    assert specs_of({name: held[name] for name in SPECS}) == SPECS
    assert (held["new"].spec, held["rate"].spec) == (P(), P())
    assert held["none"] is held["count"] is held["act"] is None


def test_one_device_and_an_abstract_mesh():
    shardings = state_sharding(O.adam(0.1), {"w": jnp.ones(3)})
    state = jax.jit(O.adam(0.1).init, out_shardings=shardings)({"w": jnp.ones(3)})
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(state))
    far = AbstractMesh((256, 2), ("data", "model"))
    params = {"w": jax.ShapeDtypeStruct((512, 512), "bfloat16", sharding=NamedSharding(far, P(None, "model")))}
    mu = lo.get_slot(state_sharding(lo.master_weights(O.adam(0.1)), params, zero_axis="data"), "mu")["w"]
    assert mu == NamedSharding(far, P("data", "model"))


def test_a_restored_state_goes_on_without_another_compile():
    tx, (params, grads) = O.adamw(0.1), (placed(some(SHAPES, seed), SPECS) for seed in (0, 1))
    shardings = state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    run = jax.jit(tx.update)
    _, state = run(grads, state, params)
    expected, _ = run(grads, state, params)
    compiled = run._cache_size()
    restored = jax.device_put(jax.tree.map(np.asarray, state), shardings)
    updates, _ = run(grads, restored, params)
    assert run._cache_size() == compiled
    for name in SHAPES:
        np.testing.assert_array_equal(updates[name], expected[name])


def test_what_it_refuses():
    tx, bare = O.adam(0.1), {"w": jax.ShapeDtypeStruct((8,), "float32")}
    with pytest.raises(ValueError, match="state_sharding: params must say where they lie, got shapes without"):
        state_sharding(tx, bare)
    with pytest.raises(ValueError, match="state_sharding: shardings must be a prefix of the parameters' tree"):
        state_sharding(tx, bare, {"v": NamedSharding(mesh(), P())})
    with pytest.raises(TypeError, match=r"shardings must hold NamedShardings or None, got .* at 'w'"):
        state_sharding(tx, bare, P("data"))
    with pytest.raises(ValueError, match=r"zero_axis must be among the mesh's axes \['data', 'model'\], got 'fsdp'"):
        state_sharding(tx, abstract(SHAPES, SPECS), zero_axis=("data", "fsdp"))
    with pytest.raises(TypeError, match="state_sharding: members must have init and update"):
        state_sharding("adam", bare)
    nameless = SimpleNamespace(shape=(8,), dtype=jnp.float32, sharding=SimpleNamespace(device_set={*jax.devices()}))
    with pytest.raises(ValueError, match="the parameter at 'w' must have a NamedSharding"):
        state_sharding(tx, {"w": nameless})
