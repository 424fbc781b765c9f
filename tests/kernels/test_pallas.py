"""The generic kernel in interpret mode says what its body says, in place, for every elementwise rule."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import TRANSFORMS, half_square, lifts

import lossopt_jax as lo
from lossopt_jax.kernels._pallas import declines, pallas_elementwise
from lossopt_jax.transforms._base import RuleState, apply_leaf

SHAPES = [
    (),
    (1,),
    (5,),
    (127,),
    (128,),
    (129,),
    (1000,),
    (4096,),
    (70000,),
    (37, 29),
    (50, 1400),
    (3, 5, 7),
    (2, 9, 4),
]
SHAPES += [(9, 128, 260), (2, 3, 1, 4)]
PLATFORMS = ["tpu", "gpu"]
platforms = pytest.mark.parametrize("platform", PLATFORMS)


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 3, dtype)


def code(x):
    return jnp.clip(jnp.round(x * 16), -127, 127).astype(jnp.int8)


def momentum(updated, read, scalars):
    """Every dtype at once: a parameter, an accumulator, an 8-bit slot, a gradient; a step, a rate and a switch."""
    (p, m, q), (g,), (step, rate, nesterov) = updated, read, scalars
    wide = [x.astype(jnp.float32) for x in (p, m, q, g)]
    m = 0.5 * wide[1] + wide[3] + wide[2] / 16
    bias = -jnp.expm1(step.astype(jnp.float32) * jnp.log(jnp.float32(0.5)))
    direction = jnp.where(nesterov, 0.5 * m + wide[3], m) / bias
    return (wide[0] - rate * direction).astype(p.dtype), m.astype(updated[1].dtype), code(m)


def scalars():
    return jnp.int32(3), jnp.float32(0.25), jnp.array(True)


def arrays(shape, dtypes):
    p, m, g = (normal(shape, dtype, seed) for seed, dtype in enumerate(dtypes))
    return (p, m, code(normal(shape, seed=9))), (g,)


def spacing(x):
    """The distance to the next number of x's dtype, in float64."""
    info = jnp.finfo(x.dtype)
    exact = np.abs(np.asarray(x, np.float64))
    return 2.0 ** (np.floor(np.log2(np.maximum(exact, float(info.tiny)))) - info.nmant)


def assert_within(got, expected, ulps, scale=0.0):
    """Equal up to some ulps of the value or, where terms cancelled, of a scale."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    a, b = (np.asarray(x, np.float64) for x in (got, expected))
    if jnp.issubdtype(got.dtype, jnp.floating):
        room = ulps * np.maximum(spacing(expected), scale * float(jnp.finfo(got.dtype).eps))
    else:
        room = ulps
    np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
    off = np.abs(a - b)[np.isfinite(b)] - np.broadcast_to(room, b.shape)[np.isfinite(b)]
    assert off.size == 0 or off.max() <= 0, off.max()


@platforms
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_body(shape, platform):
    """Sums and products with powers of two are exact, so that no compiler's contraction can change a bit."""
    updated, read = (normal(shape), normal(shape, jnp.bfloat16, 1)), (normal(shape, jnp.float16, 2),)

    def body(updated, read, scalars):
        (p, m), (g,), (rate,) = updated, read, scalars
        m = (0.5 * m.astype(jnp.float32)).astype(m.dtype) + g.astype(m.dtype)
        return jnp.where(p > 0, rate * p, jnp.sqrt(jnp.abs(p))), m

    rate = (jnp.float32(0.125),)
    new = pallas_elementwise(body, updated, read, rate, interpret=True, platform=platform)
    for got, expected in zip(new, body(updated, read, rate), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(expected, np.float32))


@platforms
@pytest.mark.parametrize("dtypes", [("float32",) * 3, ("bfloat16", "float32", "bfloat16"), ("float16",) * 3], ids=str)
@pytest.mark.parametrize("shape", [(1,), (129,), (70000,), (37, 29)], ids=str)
def test_dtypes_mix(shape, dtypes, platform):
    updated, read = arrays(shape, dtypes)
    new = pallas_elementwise(momentum, updated, read, scalars(), interpret=True, platform=platform)
    expected = jax.jit(momentum)(updated, read, scalars())
    for got, wanted, old in zip(new, expected, updated, strict=True):
        assert got.dtype == old.dtype
        assert_within(got, wanted, 1, scale=4.0)


def calls(jaxpr):
    """Every pallas_call in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
        for inner in eqn.params.values():
            if hasattr(inner, "jaxpr"):
                yield from calls(inner.jaxpr)


@platforms
def test_what_is_updated_is_aliased(platform):
    updated, read = arrays((70, 1000), ("float32",) * 3)
    run = partial(pallas_elementwise, momentum, interpret=True, platform=platform)
    jaxpr = jax.make_jaxpr(run)(updated, read, scalars()).jaxpr
    (call,) = calls(jaxpr)
    pairs = [(call.invars[i].aval, call.outvars[o].aval) for i, o in call.params["input_output_aliases"]]
    assert [(old.shape, old.dtype) for old, _ in pairs] == [(new.shape, new.dtype) for _, new in pairs]
    assert [new.dtype for _, new in pairs] == [array.dtype for array in updated]


@platforms
def test_nothing_is_padded_or_copied_outside_the_kernel(platform):
    updated, read = arrays((3, 77, 1001), ("float32",) * 3)
    run = partial(pallas_elementwise, momentum, platform=platform)
    jaxpr = jax.make_jaxpr(run)(updated, read, scalars()).jaxpr
    outside = {eqn.primitive.name for eqn in jaxpr.eqns if any(var.aval.size > 1 for var in eqn.outvars)}
    assert outside <= {"pallas_call", "reshape"}


@pytest.mark.parametrize(("size", "masked"), [(4096, False), (70000, True)])
def test_a_gpu_masks_every_load_and_store_of_a_ragged_array(size, masked):
    """Interpret mode drops what lies outside an array by itself; a GPU would write there."""
    body, array = lambda u, r, s: (u[0] + r[0],), normal((size,))
    jaxpr = jax.make_jaxpr(partial(pallas_elementwise, body, platform="gpu"))((array,), (array,), ()).jaxpr
    (call,) = calls(jaxpr)
    eqns = call.params["jaxpr"].eqns
    masks = {var for eqn in eqns if eqn.primitive.name == "lt" for var in eqn.outvars}
    uses = [eqn for eqn in eqns if any(not hasattr(atom, "val") and atom in masks for atom in eqn.invars)]
    assert len(uses) == (3 if masked else 0)


@platforms
def test_the_body_is_given_scalars_and_their_arithmetic_stays_outside(platform):
    seen = []

    def body(updated, read, scalars):
        seen.append([(value.shape, value.dtype) for value in scalars])
        return momentum(updated, read, scalars)

    updated, read = arrays((129,), ("float32",) * 3)
    jaxpr = jax.make_jaxpr(partial(pallas_elementwise, body, interpret=True, platform=platform))(
        updated, read, scalars()
    ).jaxpr
    assert seen == [[((), jnp.int32), ((), jnp.float32), ((), bool)]]
    (call,) = calls(jaxpr)
    assert "expm1" in {eqn.primitive.name for eqn in jaxpr.eqns}
    assert "expm1" not in {eqn.primitive.name for eqn in call.params["jaxpr"].eqns}


def test_arrays_of_one_scalar_that_the_body_closes_over_are_scalars():
    half = jnp.array(0.5, jnp.float32)
    (new,) = pallas_elementwise(lambda u, r, s: (u[0] * half,), (normal((129,)),), (), (), interpret=True)
    np.testing.assert_array_equal(new, normal((129,)) * 0.5)


@pytest.mark.parametrize(
    "body",
    [
        lambda u, r, s: (),
        lambda u, r, s: (u[0].astype(jnp.bfloat16),),
        lambda u, r, s: (jnp.sum(u[0]),),
        lambda u, r, s: (s[0],),
    ],
)
def test_a_body_that_returns_something_else_is_refused(body):
    with pytest.raises(TypeError, match="the body must return"):
        pallas_elementwise(body, (normal((9, 9)),), (), (jnp.float32(1),), interpret=True)


@platforms
@pytest.mark.parametrize(
    ("dtype", "held"),
    [(d, True) for d in ("bfloat16", "int8", "int32", "uint32")]
    + [(d, False) for d in ("float64", "complex64", "int4", "bool")],
)
def test_dtypes_that_are_held(dtype, held, platform):
    big, other = (jax.ShapeDtypeStruct((512, 512), np.dtype(d)) for d in ("float32", jnp.dtype(dtype)))
    assert declines((big,), (other,), platform) is not held
    assert declines((other, big), (), platform) is not held


def test_half_precision_floats_of_a_tpu_are_bfloat16():
    half = jax.ShapeDtypeStruct((512, 512), jnp.float16)
    assert declines((half,), (), "tpu")
    assert not declines((half,), (), "gpu")


@platforms
def test_what_is_not_one_large_shape_is_declined(platform):
    def of(*shapes):
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    big = (512, 512)
    assert not declines(of(big, big), of(big), platform)
    assert declines((), of(big), platform)
    assert declines(of((0, 512)), (), platform)
    assert declines(of((100,)), (), platform)
    assert declines(of((2**16, 2**16)), (), platform)
    assert declines(of(big), of((512 * 512,)), platform)
    assert declines(of(*[big] * 17), (), platform)


# what the compiler for v5e does with float32 arrays of these shapes: keep them, or turn them round and pay in copies
KEPT = [(4096, 4096), (50257, 512), (4096, 255), (1001, 1001), (7, 300000), (12, 300000), (64, 64, 128), (1000, 4, 256)]
KEPT += [(1 << 22,), (3, 3, 256, 512), (12, 512, 1536)]
TURNED = [(1000, 1030), (1024, 50257), (300000, 64), (64, 128, 64), (1000, 7, 1024), (1000, 12, 256), (8, 1000, 200)]
TURNED += [(512, 512, 3, 3), (3, 3, 512, 64), (7000001,)]


@pytest.mark.parametrize(("shape", "kept"), [(s, True) for s in KEPT] + [(s, False) for s in TURNED])
def test_shapes_that_a_tpu_turns_round_are_declined_there(shape, kept):
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert declines((array,), (), "tpu") is not kept
    assert not declines((array,), (), "gpu")


@platforms
@pytest.mark.parametrize("word", ["cbrt", "round"])
def test_what_pallas_cannot_say_is_left_to_xla(word, platform):
    """The cube root on TPU; rounding to even nowhere, since it is written out."""
    body = {"cbrt": lambda u, r, s: (jnp.cbrt(u[0]),), "round": lambda u, r, s: (jnp.round(u[0]),)}[word]
    jaxpr = jax.make_jaxpr(partial(pallas_elementwise, body, platform=platform))((normal((9, 9)),), (), ()).jaxpr
    assert bool(list(calls(jaxpr))) is ((word, platform) != ("cbrt", "tpu"))


def test_rounding_written_out_is_rounding():
    x = jnp.concatenate([jnp.arange(-50, 50) / 4, normal((1000,)) * 1e3, jnp.float32([0.49999997, -0.49999997, 3e38])])
    x = jnp.concatenate([x, jnp.float32([jnp.inf, -jnp.inf, jnp.nan, 8388609.0, -8388609.0, 8388607.5, -4194303.5])])
    (new,) = pallas_elementwise(lambda u, r, s: (jnp.round(u[0]),), (x,), (), (), interpret=True)
    np.testing.assert_array_equal(new, jnp.round(x))


def test_import_leaves_pallas_alone():
    code = "import sys, lossopt_jax.kernels._pallas; sys.exit('jax.experimental.pallas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ----- every elementwise rule through its own function


def singles():
    """Transforms of one elementwise rule, by name."""
    built = {name: row.build(row.value) for name, row in TRANSFORMS.items()}
    return {name: tx for name, tx in built.items() if hasattr(tx, "rule") and tx.rule.lift == "elementwise"}


def reason(rule):
    """Why a rule cannot run on blocks through this kernel, or None."""
    if "key" in rule.needs:
        return "draws a random number for each element from its place in the whole array"
    if "value_fn" in rule.needs:
        return "evaluates the loss"
    return None


class Leaf:
    """One array's step with a rule, as a body: (p, *slots), (g,), scalars → (p, *slots).

    Scalars are the step, the hyperparameters, the slots that all leaves share, and those of one number per leaf.
    """

    def __init__(self, tx, params):
        self.tx = tx
        state = tx.init(params)
        self.slots = [name for name, slot in state.slots.items() if slot.shape == params.shape]
        numbers = {name: slot for name, slot in state.slots.items() if name not in self.slots}
        self.scalars, self.treedef = jax.tree.flatten((state.step, numbers, state.hyperparams))
        self.updated = (params, *(state.slots[name] for name in self.slots))

    def body(self, updated, read, scalars):
        (p, *slots), (g,) = updated, read
        step, numbers, hyperparams = jax.tree.unflatten(self.treedef, scalars)
        state = RuleState(step, dict(zip(self.slots, slots, strict=True)) | numbers, hyperparams)
        extra = {"value": jnp.float32(0.7), "grad": g, "value_fn": half_square, "loss": jnp.float32(0.7)}
        flow, after = self.tx._run(self.tx._enter(g, p), state, p, extra)
        self.after = after
        return apply_leaf(p, flow), *(after.slots[name] for name in self.slots)

    def next_scalars(self, updated, read, scalars):
        """The scalars that the step leaves, outside any kernel."""

        def run(updated, read, scalars):
            self.body(updated, read, scalars)
            numbers = {name: slot for name, slot in self.after.slots.items() if name not in self.slots}
            return jax.tree.leaves((self.after.step, numbers, self.after.hyperparams))

        return jax.jit(run)(updated, read, scalars)


@pytest.mark.once
@pytest.mark.parametrize(
    ("dtype", "platform"),
    [("float32", "tpu"), ("bfloat16", "gpu")]
    + [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("bfloat16", "tpu"), ("float32", "gpu"))],
)
@pytest.mark.parametrize("name", singles())
def test_every_elementwise_rule_runs_in_the_kernel(name, dtype, platform):
    tx = singles()[name]
    if why := reason(tx.rule):
        pytest.skip(why)
    leaf = Leaf(tx, normal((37, 29), dtype))
    kernel = jax.jit(partial(pallas_elementwise, leaf.body, interpret=True, platform=platform))
    plain = jax.jit(leaf.body)
    now, scalars = leaf.updated, tuple(leaf.scalars)
    for step in range(2):
        read = (normal((37, 29), dtype, 5 + step),)
        new, expected = kernel(now, read, scalars), plain(now, read, scalars)
        for got, wanted in zip(new, expected, strict=True):
            # two compilations: a product and a sum may be rounded once or twice, and the terms may cancel
            assert_within(got, wanted, 2, scale=float(jnp.max(jnp.abs(wanted))))
        scalars = tuple(leaf.next_scalars(now, read, scalars))
        now = expected


def test_no_elementwise_rule_is_left_out():
    assert len(singles()) > 30
    assert all(reason(tx.rule) is None for tx in singles().values())


@platforms
def test_a_chain_runs_in_one_kernel(platform):
    tx = lo.optimizers.adamw(0.1)
    assert lifts(tx) == {"elementwise"}
    params, grads = normal((37, 29)), normal((37, 29), seed=1)
    state = tx.init(params)
    leaves, treedef = jax.tree.flatten(state)
    slots = [index for index, leaf in enumerate(leaves) if leaf.shape == params.shape]
    rest = [index for index in range(len(leaves)) if index not in slots]

    def body(updated, read, scalars):
        held = dict(zip(slots, updated[1:], strict=True)) | dict(zip(rest, scalars, strict=True))
        state = jax.tree.unflatten(treedef, [held[index] for index in range(len(leaves))])
        flow, state = tx._run(read[0], state, updated[0], {})
        after = jax.tree.leaves(state)
        return apply_leaf(updated[0], flow), *(after[index] for index in slots)

    arguments = (params, *(leaves[i] for i in slots)), (grads,), tuple(leaves[i] for i in rest)
    new = jax.jit(partial(pallas_elementwise, body, interpret=True, platform=platform))(*arguments)
    for got, wanted in zip(new, jax.jit(body)(*arguments), strict=True):
        assert_within(got, wanted, 1, scale=4.0)
