"""The transducer loss: the sum over all alignments, counted one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)
T, U, K = 4, 3, 5
FRAMES, SAID = np.array([4, 3, 1, 4, 0, 0]), np.array([3, 2, 3, 0, 0, 2])
LOGITS = generator.normal(size=(6, T, U + 1, K)) * 2
LABELS = generator.integers(1, K, (6, U), np.int32)
SILENT, UNSAID = (np.arange(n) >= many[:, None] for n, many in ((T, FRAMES), (U, SAID)))
loss = losses.transducer_loss


def by_hand(logits, frames, labels, blank=0):
    """−log Σ over all orders of `frames` blanks, the last one at the end, and the labels."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    if not frames:
        return np.inf if len(labels) else 0.0
    total = 0.0
    for spoken in itertools.combinations(range(frames + len(labels) - 1), len(labels)):
        t = u = path = 0
        for n in range(frames + len(labels)):
            if n in spoken:
                path, u = path + log_p[t, u, labels[u]], u + 1
            else:
                path, t = path + log_p[t, u, blank], t + 1
        total += np.exp(path)
    return -np.log(total)


def summed(logits, **given):
    given = {"logit_paddings": SILENT, "labels": LABELS, "label_paddings": UNSAID, **given}
    values = loss(logits, **given)
    return jnp.sum(jnp.where(jnp.isinf(values), 0.0, values)), values


both = jax.jit(jax.value_and_grad(summed, has_aux=True))


def test_every_alignment_counts(x64):
    (_, values), gradient = both(LOGITS)
    truth = [by_hand(z, f, y[:u]) for z, f, y, u in zip(LOGITS, FRAMES, LABELS, SAID, strict=True)]
    np.testing.assert_allclose(values, truth, rtol=1e-13)
    h, v = 1e-4, np.random.default_rng(1).normal(size=LOGITS.shape)
    for i in range(6):
        if np.isfinite(truth[i]):
            y, shifts = LABELS[i, : SAID[i]], h * np.arange(-2, 3)
            along = [by_hand(LOGITS[i] + s * v[i], FRAMES[i], y) for s in shifts]
            np.testing.assert_allclose(
                np.vdot(gradient[i], v[i]), np.dot(along, [1, -8, 0, 8, -1]) / (12 * h), rtol=1e-9
            )
    flat = jax.jit(loss)(LOGITS[0], SILENT[0], LABELS[0], UNSAID[0])
    np.testing.assert_allclose(flat, truth[0], rtol=1e-13)


def test_any_class_may_be_the_blank(x64):
    moved = np.roll(LOGITS, 2, -1)
    np.testing.assert_allclose(
        loss(moved, SILENT, (LABELS + 2) % K, UNSAID, blank_id=2), both(LOGITS)[0][1], rtol=1e-13
    )


def test_every_mode_of_differentiation(x64):
    v = np.random.default_rng(2).normal(size=LOGITS.shape)

    def gradient(z):
        return jax.grad(lambda z: summed(z)[0])(z)

    @jax.jit
    def everything(z):
        shifts = 1e-4 * jnp.arange(-2.0, 3)
        along = jnp.tensordot(
            jnp.array([1.0, -8, 0, 8, -1]) / 12e-4, jax.vmap(lambda s: gradient(z + s * v))(shifts), 1
        )
        return jax.jvp(lambda z: summed(z)[0], (z,), (v,))[1], gradient(z), jax.jvp(gradient, (z,), (v,))[1], along

    forward, reverse, hvp, along = everything(LOGITS)
    np.testing.assert_allclose(forward, np.vdot(reverse, v), rtol=1e-12)
    np.testing.assert_allclose(hvp, along, rtol=1e-7, atol=1e-9)


def test_padding_is_never_read():
    z, labels = LOGITS.astype(np.float32), LABELS.copy()
    spoilt = z.copy()
    spoilt[SILENT] = np.nan
    for i, u in enumerate(SAID):
        spoilt[i, :, u + 1 :] = np.inf
        labels[i, u:] = -7
    (_, values), gradient = both(z)
    (_, its_values), its_gradient = jax.jit(jax.value_and_grad(lambda z: summed(z, labels=labels), has_aux=True))(
        spoilt
    )
    np.testing.assert_allclose(its_values, values, rtol=1e-6)
    np.testing.assert_allclose(its_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert not its_gradient[SILENT].any()
    assert not its_gradient[4:].any()


def test_impossible_classes_and_paths(x64):
    z = LOGITS.copy()
    z[0, :, :, 4] = -np.inf  # no label of example 0 is it
    labels = np.where(LABELS == 4, 3, LABELS)
    z[1, 2, :, 0] = -np.inf  # nor a path without the last blank
    (_, values), gradient = jax.jit(jax.value_and_grad(lambda z: summed(z, labels=labels), has_aux=True))(z)
    np.testing.assert_allclose(values[0], by_hand(z[0], 4, labels[0]), rtol=1e-13)
    assert np.isposinf(values[1])
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_long_sequence_in_float32(dtype, x64):
    z = (np.random.default_rng(3).normal(size=(1000, 31, 4)) * 3).astype(dtype)
    given = np.zeros(1000), np.random.default_rng(4).integers(1, 4, 30), np.zeros(30)
    step = jax.jit(jax.value_and_grad(lambda z: loss(z, *given)))
    (value, gradient), (truth, its_gradient) = step(z), step(z.astype(np.float64))
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    rtol = 2e-4 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(gradient.astype(np.float64), its_gradient, rtol=rtol, atol=3e-6)


def test_what_is_sure_costs_nothing():
    z = np.full((2, 2, 3), -40.0, np.float32)
    z[0, 0, 1] = z[0, 1, 0] = z[1, 1, 0] = 0
    step = jax.jit(jax.value_and_grad(lambda z: loss(z, np.zeros(2), np.array([1]), np.zeros(1))))
    value, gradient = step(z)
    assert 0 <= value < 1e-15
    assert np.isfinite(gradient).all()


def test_traced_labels_and_paddings_that_are_wrong_are_nan():
    step = jax.jit(jax.vmap(jax.value_and_grad(lambda z, s, y, u: loss(z, s, y, u)), in_axes=(None, 0, 0, 0)))
    silent, labels, unsaid = (np.stack([x] * 6) for x in (np.zeros(T), np.ones(U, int), np.zeros(U)))
    labels[1, 0], labels[2, 1], labels[3, 2], silent[4, 1], unsaid[5, 0] = K, -1, 0, 1, 1
    values, gradients = step(LOGITS[0].astype(np.float32), silent, labels, unsaid)
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(gradients).any((1, 2, 3)), np.isnan(values))


def test_bad_input_is_refused():
    good = {"logits": LOGITS, "logit_paddings": SILENT, "labels": LABELS, "label_paddings": UNSAID}
    hole = SILENT.copy()
    hole[0, 1] = True
    for bad, error, match in [
        ({"logits": LABELS}, TypeError, "logits must be floating"),
        ({"logits": LOGITS[0, 0]}, ValueError, "logits must be"),
        ({"labels": LABELS * 1.0}, TypeError, "labels must be integer"),
        ({"labels": LABELS[:, 1:]}, ValueError, "labels must have the shape"),
        ({"labels": LABELS + K}, ValueError, r"labels must be in \[0, 5\)"),
        ({"labels": LABELS * 0}, ValueError, "labels must not be the blank"),
        ({"logit_paddings": SILENT[:, 1:]}, ValueError, "logit_paddings must have the shape"),
        ({"logit_paddings": hole}, ValueError, "logit_paddings must be 0 and then 1"),
        ({"label_paddings": UNSAID * 0.5}, ValueError, "label_paddings must be 0 and then 1"),
        ({"blank_id": K}, ValueError, "blank_id must be in"),
        ({"blank_id": 1.0}, TypeError, "blank_id must be an int"),
    ]:
        with pytest.raises(error, match=f"transducer_loss: {match}"):
            loss(**{**good, **bad})


def test_examples_over_a_mesh_and_none_at_all():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = jax.sharding.PartitionSpec("data")
    given = np.zeros((2, 3), np.float32), np.ones((2, 1), np.int8), np.zeros((2, 1), np.float32)
    step = jax.shard_map(loss, mesh=mesh, in_specs=data, out_specs=data)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: step(z, *given).sum()))(np.zeros((2, 3, 2, 300), np.float32))
    np.testing.assert_allclose(value, 2 * (4 * np.log(300) - np.log(3)), rtol=1e-6)
    assert np.isfinite(gradient).all()
    nothing = np.zeros((0, 3, 2, 4), np.float32), np.zeros((0, 3)), np.zeros((0, 1), int), np.zeros((0, 1))
    assert loss(*nothing).shape == (0,)
