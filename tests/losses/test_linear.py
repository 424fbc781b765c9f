"""Fused linear losses: the same numbers as the layer and its loss apart, without the logits in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lossopt_jax import losses

generator = np.random.default_rng(0)
H, W, B = generator.normal(size=(2, 11, 5)), generator.normal(size=(5, 17)), generator.normal(size=17)
LABELS, WEIGHTS = generator.integers(0, 17, (2, 11)), generator.uniform(0.2, 1, (2, 11))
fused, each = losses.mean_linear_softmax_cross_entropy, losses.linear_softmax_cross_entropy
OPTIONS = {
    "plain": {},
    "ignored": {"ignore_index": 3},
    "all": {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def apart(h, w, b, labels, weights=None, **options):
    values = losses.softmax_cross_entropy_with_integer_labels(h @ w + b[None, None], labels, **options)
    counted = labels != options.get("ignore_index", -100)
    return losses.mean(values, where=counted, weights=weights)


def same(one, two, rtol=1e-11):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@options
@pytest.mark.parametrize("size", [None, 1, 4, 22, 50])
def test_mean_is_the_unfused_one(options, size, x64):
    given = {**options, "chunk_size": size}
    ours = jax.jit(jax.value_and_grad(lambda h, w, b, v: fused(h, w, LABELS, bias=b, weights=v, **given), range(4)))
    theirs = jax.jit(jax.value_and_grad(lambda h, w, b, v: apart(h, w, b, LABELS, v, **options), range(4)))
    same(ours(H, W, B, WEIGHTS), theirs(H, W, B, WEIGHTS))
    same(fused(H, W, LABELS, bias=B, chunk_size=size, **options), apart(H, W, B, LABELS, **options))


@options
def test_each_token_is_the_unfused_one_in_every_mode(options, x64):
    v = np.random.default_rng(1).normal(size=W.shape)

    def ours(w):
        return each(H, w, LABELS, bias=B, chunk_size=4, **options)

    def theirs(w):
        return losses.softmax_cross_entropy_with_integer_labels(H @ w + B[None, None], LABELS, **options)

    def everything(f):
        def total(w):
            return jnp.sum(f(w) * WEIGHTS)

        return f(W), jax.jvp(f, (W,), (v,))[1], jax.grad(total)(W), jax.jvp(jax.grad(total), (W,), (v,))[1]

    same(jax.jit(functools.partial(everything, ours))(), jax.jit(functools.partial(everything, theirs))(), 1e-9)


def test_optax_is_the_peer(x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")

    def theirs(h, w):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ w, jnp.asarray(LABELS)))

    same(jax.value_and_grad(lambda h, w: fused(h, w, LABELS), (0, 1))(H, W), jax.value_and_grad(theirs, (0, 1))(H, W))


@pytest.mark.parametrize("mask", ["weights", "ignore_index"])
def test_a_token_that_does_not_count_leaves_no_trace(mask):
    out = np.zeros((2, 11), bool)
    out[0, 3] = out[1, 7:] = True
    h = np.where(out[..., None], np.nan, H).astype(np.float32)
    if mask == "weights":
        given = {"weights": np.where(out, 0, WEIGHTS).astype(np.float32)}
        labels = LABELS
    else:
        given, labels = {"ignore_index": -1}, np.where(out, -1, LABELS)
    step = jax.jit(jax.value_and_grad(lambda h, w: fused(h, w, labels, chunk_size=4, **given), (0, 1)))
    value, (of_h, of_w) = step(h, W.astype(np.float32))
    kept = {"weights": given["weights"][~out]} if mask == "weights" else {}
    want, (h_want, w_want) = jax.value_and_grad(lambda h, w: fused(h, w, LABELS[~out], **kept), (0, 1))(
        H[~out].astype(np.float32), W.astype(np.float32)
    )
    np.testing.assert_array_equal(of_h[out], 0)
    same((value, of_h[~out], of_w), (want, h_want, w_want), 1e-5)


def test_nothing_counts():
    step = jax.value_and_grad(lambda h, w, labels: fused(h, w, labels, ignore_index=0), (0, 1))
    for h, labels in ((np.ones((3, 5)), np.zeros(3, int)), (np.ones((0, 5)), np.zeros(0, int))):
        value, gradients = step(h.astype(np.float32), W.astype(np.float32), labels)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    assert each(np.ones((0, 5), np.float32), W.astype(np.float32), np.zeros(0, int)).shape == (0,)


def test_half_precision_sums_in_float32():
    h, w = H.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    step = jax.jit(jax.value_and_grad(lambda h, w: fused(h, w, LABELS, chunk_size=4), (0, 1)))
    value, gradients = step(h, w)
    exact, wide = step(h.astype(np.float32), w.astype(np.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for one, two in zip(gradients, wide, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(np.float32), two, rtol=0.02, atol=0.01 * np.abs(two).max())
    assert each(h, w, LABELS).dtype == jnp.float32


def test_the_logits_are_never_whole():
    t, d, v = 4096, 64, 4096
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((t, d), (d, v))]
    labels = jax.ShapeDtypeStruct((t,), jnp.int32)

    def temporaries(f):
        step = jax.jit(jax.value_and_grad(f, (0, 1)))
        return step.lower(*shapes, labels).compile().memory_analysis().temp_size_in_bytes

    whole = temporaries(lambda h, w, y: losses.mean(losses.softmax_cross_entropy_with_integer_labels(h @ w, y)))
    assert temporaries(fused) < whole / 8
    assert temporaries(lambda h, w, y: losses.mean(each(h, w, y))) < whole / 4


def test_vmap_checkpoint_and_scan(x64):
    heads = list(zip(H, LABELS, strict=True))
    same(jax.vmap(lambda h, y: fused(h, W, y))(H, LABELS), np.array([fused(h, W, y) for h, y in heads]))
    same(jax.grad(jax.checkpoint(lambda w: fused(H, w, LABELS)))(W), jax.grad(lambda w: fused(H, w, LABELS))(W))
    total = jax.jit(lambda w: jax.lax.scan(lambda c, hy: (c + fused(hy[0], w, hy[1]), None), 0.0, (H, LABELS))[0])
    same(jax.grad(total)(W), sum(jax.grad(lambda w, h=h, y=y: fused(h, w, y))(W) for h, y in heads))


def test_a_traced_label_that_is_no_class_is_nan():
    bad = jnp.asarray(LABELS).at[0, 0].set(17)
    value, gradient = jax.jit(jax.value_and_grad(lambda h, y: fused(h, W.astype(np.float32), y)))(
        H.astype(np.float32), bad
    )
    assert np.isnan(value)
    assert np.isnan(gradient[0, 0]).all()
    values = jax.jit(lambda y: each(H.astype(np.float32), W.astype(np.float32), y))(bad)
    assert np.isnan(values[0, 0])
    assert np.isfinite(values.reshape(-1)[1:]).all()


@pytest.mark.parametrize("f", [fused, each])
def test_bad_input_is_refused(f):
    name = f.__name__
    for h, w, y, given, error, match in [
        (H, W.T, LABELS, {}, ValueError, "kernel must be"),
        (H, W, LABELS[0], {}, ValueError, "labels must have the shape"),
        (H, W, LABELS + 17, {}, ValueError, r"labels must be in \[0, 17\)"),
        (H, W, LABELS * 1.0, {}, TypeError, "labels must be integer"),
        (H, W, LABELS, {"bias": B[:3]}, ValueError, "bias must have the shape"),
        (H, W, LABELS, {"label_smoothing": 2.0}, ValueError, "label_smoothing must be"),
        (H, W, LABELS, {"softcap": 0.0}, ValueError, "softcap must be"),
        (H, W, LABELS, {"chunk_size": 0}, ValueError, "chunk_size must be"),
        (H, W, LABELS, {"ignore_index": 1.0}, TypeError, "ignore_index must be"),
        (H > 0, W, LABELS, {}, TypeError, "hidden must be floating"),
    ]:
        with pytest.raises(error, match=f"{name}: {match}"):
            f(h if h.dtype == bool else h.astype(np.float32), w.astype(np.float32), y, **given)


def test_clip_by_its_definition(x64):
    u, v = H[0], H[1]

    def theirs(u, v, s):
        z = s * u @ v.T
        rows = jnp.arange(11)
        both = (losses.softmax_cross_entropy_with_integer_labels(x, rows) for x in (z, z.T))
        return sum(map(losses.mean, both)) / 2

    ours = jax.value_and_grad(lambda u, v, s: losses.clip_loss(u, v, logit_scale=s, chunk_size=4), (0, 1, 2))
    same(ours(u, v, 3.0), jax.value_and_grad(theirs, (0, 1, 2))(u, v, 3.0))


def test_siglip_by_its_definition(x64):
    def theirs(u, v, s, b):
        signs = 2 * jnp.eye(11) - 1
        return -jnp.sum(jax.nn.log_sigmoid(signs * (s * u @ v.T + b))) / 11

    def ours(u, v, s, b):
        return losses.siglip_loss(u, v, logit_scale=s, logit_bias=b, chunk_size=4)

    arguments = H[0], H[1], 3.0, -2.0
    same(jax.value_and_grad(ours, range(4))(*arguments), jax.value_and_grad(theirs, range(4))(*arguments))


def test_distillation_by_its_definition(x64):
    generator = np.random.default_rng(2)
    teacher, teacher_kernel = generator.normal(size=(2, 11, 3)), generator.normal(size=(3, 17))

    def theirs(h, w, b):
        student, taught = map(jax.nn.log_softmax, ((h @ w + b[None, None]) / 2, teacher @ teacher_kernel / 2))
        values = 4 * jnp.sum(jnp.exp(taught) * (taught - student), -1)
        return jnp.sum(values * WEIGHTS) / WEIGHTS.sum()

    def ours(h, w, b):
        return losses.mean_linear_distillation(
            h, w, teacher, teacher_kernel, bias=b, weights=WEIGHTS, temperature=2.0, chunk_size=4
        )

    same(jax.value_and_grad(ours, range(3))(H, W, B), jax.value_and_grad(theirs, range(3))(H, W, B))
    with pytest.raises(ValueError, match="teacher_hidden and teacher_kernel must be"):
        losses.mean_linear_distillation(H, W, teacher[0], teacher_kernel)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0}])
@pytest.mark.parametrize("inside", [False, True], ids=["gradient outside", "gradient inside"])
def test_columns_over_a_mesh_are_the_whole(options, inside, x64):
    mesh = jax.make_mesh((4,), ("classes",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel, bias = np.pad(W, ((0, 0), (0, 3))), np.pad(B, (0, 3), constant_values=-1.0)

    def sharded(h, w, b):
        return fused(h, w, LABELS, bias=b, weights=WEIGHTS, chunk_size=4, axis_name="classes", **options)

    specs = P(), P(None, "classes"), P("classes")
    body = jax.value_and_grad(sharded, (0, 1, 2)) if inside else sharded
    out = (P(), specs) if inside else P()
    step = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=out)
    step = jax.jit(step if inside else jax.value_and_grad(step, (0, 1, 2)))
    theirs = jax.value_and_grad(lambda h, w, b: fused(h, w, LABELS, bias=b, weights=WEIGHTS, **options), (0, 1, 2))
    same(step(H, kernel, bias), theirs(H, kernel, bias))
